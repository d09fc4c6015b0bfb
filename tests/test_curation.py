"""Curating: the ledger adds up, nothing depends on order or processes, splits and mixes are what they say."""

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from helpers import messy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrt_plugin.curation import curate, measure_leakage, mix, plan_mix, reading_entry, split_held_out, write_events
from mrt_plugin.curation.ledger import Entry, Ledger
from mrt_plugin.groups import held_out as draws_held_out
from mrt_plugin.groups import load_groups, read_groups

EVERYTHING = [
    "format",
    "truncation",
    {"token_length": {"response_max": 150}},
    {"repetition": {"min_words": 20}},
    {"refusals": {"action": "drop"}},
    {"check": {"function": lambda prompt, response: "idea" not in response}},
    "duplicate_responses",
    "duplicate_prompts",
]


def by_id(groups: Dataset) -> dict[str, dict]:
    return {group["id"]: group for group in groups}


class TestLedger:
    def test_a_messy_pool_adds_up_and_every_cause_is_found(self) -> None:
        groups = Dataset.from_list(messy.pool(40))
        curated = curate(groups, ["default", "duplicate_responses"])
        ledger = curated.ledger
        reasons = sum((entry.reasons for entry in ledger.entries), Counter())
        for reason in (
            "change: label or template token at an end",
            "drop: ends inside a sentence",
            "drop: repeats itself",
            "flag: refusal",
            "drop: near another prompt",
            "drop: repeats another",
        ):
            assert reasons[reason], reason
        dropped = sum(entry.responses_dropped + entry.responses_dropped_with_group for entry in ledger.entries)
        assert ledger.responses_unchanged + ledger.responses_changed + dropped == 240
        assert sum(map(len, curated.groups["responses"])) == ledger.responses_out
        assert "240 in = " in ledger.lines()[-1]
        json.dumps(ledger.as_dict(), allow_nan=False)

    @given(
        rules=st.lists(st.sampled_from(EVERYTHING), max_size=8),
        sizes=st.lists(
            st.lists(
                st.sampled_from(
                    [
                        messy.CUT,
                        messy.CODE,
                        messy.LOOP,
                        messy.REFUSAL,
                        messy.CHINESE,
                        "a</s>",
                        "a",
                        "</s>",
                        " b\n",
                        "idea",
                    ]
                ),
                min_size=1,
                max_size=5,
            ),
            min_size=1,
            max_size=6,
        ),
        prompts=st.lists(
            st.sampled_from(["p", "P ", messy.prompt(1), messy.prompt(3), "<|im_end|>"]), min_size=6, max_size=6
        ),
    )
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_every_response_has_one_fate(self, rules: list, sizes: list[list[str]], prompts: list[str]) -> None:
        rows = [
            {"id": f"g{number}", "prompt": prompts[number], "responses": responses}
            for number, responses in enumerate(sizes)
        ]
        groups = Dataset.from_list(rows)
        try:
            curated = curate(groups, rules)
        except ValueError as nothing:
            if "leaves no group" in str(nothing):
                return
            raise
        # An account of our own, from the decisions alone.
        left = {(row, index) for row, responses in enumerate(sizes) for index in range(len(responses))}
        changed = set()
        for row, (_, action, _, index) in curated.events:
            assert action in ("drop", "change", "flag")
            of_group = {place for place in left if place[0] == row}
            assert of_group, "a decision about what was dropped before"
            if action == "drop":
                gone = of_group if index is None else {(row, index)}
                assert gone <= left
                left -= gone
            elif action == "change":
                changed.add((row, index))
        assert left == {(row, index) for row, kept in zip(curated.row, curated.origin, strict=True) for index in kept}
        for group, row, kept in zip(curated.groups, curated.row, curated.origin, strict=True):
            for response, index in zip(group["responses"], kept, strict=True):
                assert (response != sizes[row][index]) == ((row, index) in changed)
        curated.ledger.check()
        assert curated.ledger.responses_changed == len(changed & left)
        total = sum(entry.responses_dropped + entry.responses_dropped_with_group for entry in curated.ledger.entries)
        assert total == sum(map(len, sizes)) - len(left)

    def test_a_ledger_that_does_not_add_up_is_refused(self) -> None:
        Ledger([Entry("a", 2, 6, responses_dropped=1), Entry("b", 2, 5)], 2, 5, 4, 1).check()
        with pytest.raises(RuntimeError, match="a let out what b did not take in"):
            Ledger([Entry("a", 2, 6), Entry("b", 2, 5)], 2, 5, 5, 0).check()
        with pytest.raises(RuntimeError, match="in the result"):
            Ledger([Entry("a", 2, 6)], 2, 5, 5, 0).check()
        with pytest.raises(RuntimeError, match="unchanged and changed"):
            Ledger([Entry("a", 2, 6)], 2, 6, 5, 0).check()

    def test_it_starts_with_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "pool.jsonl"
        rows = [{"prompt": "p", "responses": ["a", "", "b"]}, {"prompt": "q", "responses": [" ", None]}]
        path.write_text("\n".join(map(json.dumps, rows)))
        groups, report = read_groups(path)
        ledger = curate(groups, ["format"], ledger=Ledger([reading_entry(report)])).ledger
        assert (ledger.entries[0].groups_in, ledger.entries[0].responses_in) == (2, 5)
        assert (ledger.entries[0].groups_dropped, ledger.entries[0].responses_dropped) == (1, 3)
        assert ledger.responses_out == 2

    def test_nothing_left_is_an_error_that_shows_the_ledger(self) -> None:
        with pytest.raises(ValueError, match=r"leaves no group.*truncation: 1 responses.*ends inside a sentence 1"):
            curate(Dataset.from_list([{"id": "g", "prompt": "p", "responses": [messy.CUT]}]), ["truncation"])

    def test_no_rules_change_nothing(self) -> None:
        groups = Dataset.from_list(messy.pool(4))
        assert curate(groups, []).groups.to_list() == groups.to_list()

    def test_decisions_can_be_read(self, tmp_path: Path) -> None:
        groups = Dataset.from_list(messy.pool(40))
        curated = curate(groups, "default")
        write_events(tmp_path / "decisions.jsonl", groups, curated)
        lines = [json.loads(line) for line in (tmp_path / "decisions.jsonl").read_text().splitlines()]
        assert len(lines) == len(curated.events)
        cut = next(line for line in lines if line["reason"] == "ends inside a sentence")
        assert cut["text"] == messy.CUT
        assert groups[int(cut["id"][1:])]["responses"][cut["response"]] == messy.CUT


class TestWhatItMustNotDependOn:
    @pytest.mark.processes
    @pytest.mark.parametrize("num_proc", [None, 2, 4])
    def test_order_and_processes(self, num_proc: int | None) -> None:
        groups = Dataset.from_list(messy.pool(40))
        rules = ["default", "duplicate_responses", {"sample": {"groups": 50, "max_repeats": 2}}]
        expected = by_id(curate(groups, rules, seed=3).groups)
        shuffled = groups.shuffle(seed=5)
        curated = curate(shuffled, rules, seed=3, num_proc=num_proc)
        assert by_id(curated.groups) == expected
        assert len(expected) == 50

    def test_columns_stay_together(self) -> None:
        rows = messy.pool(10, n=4)
        for row in rows:
            row["weights"] = [score + 1 for score in row["scores"]]
            row["finish_reasons"] = ["stop", None, "length", "stop"]
        curated = curate(Dataset.from_list(rows), ["format", "truncation"])
        assert curated.ledger.responses_out < 31
        for group in curated.groups:
            row = rows[int(group["id"][1:])]
            cleaned = [text.removesuffix("<|im_end|>\n").rstrip() for text in row["responses"]]
            text_of = dict(zip(row["scores"], cleaned, strict=True))
            assert "length" not in group["finish_reasons"]
            assert group["weights"] == [score + 1 for score in group["scores"]]
            assert group["responses"] == [text_of[score] for score in group["scores"]]

    def test_the_data_that_came_in_is_as_it_was(self) -> None:
        groups = Dataset.from_list(messy.pool(20))
        before = groups.to_list()
        ledger = Ledger()
        curate(groups, "default", ledger=ledger)
        assert groups.to_list() == before
        assert ledger.entries == []


class TestSample:
    @pytest.mark.parametrize("wanted", [1, 7, 10, 25, 40])
    def test_exactly_as_many_and_evenly(self, wanted: int) -> None:
        groups = Dataset.from_list(messy.pool(10))
        curated = curate(groups, [{"sample": {"groups": wanted}}])
        assert len(curated.groups) == wanted
        times = Counter(name.split("#")[0] for name in curated.groups["id"])
        assert max(times.values()) - min(times.values()) <= 1 if len(times) == 10 else set(times.values()) == {1}
        assert len(set(curated.groups["id"])) == wanted
        curated.ledger.check()

    def test_more_than_may_be_repeated(self) -> None:
        with pytest.raises(ValueError, match=r"41 groups of 10.*at most 40"):
            curate(Dataset.from_list(messy.pool(10)), [{"sample": {"groups": 41}}])

    def test_another_seed_is_another_draw(self) -> None:
        groups = Dataset.from_list(messy.pool(40))
        first, again, other = (
            set(curate(groups, [{"sample": {"groups": 20}}], seed=s).groups["id"]) for s in (1, 1, 2)
        )
        assert first == again != other

    def test_a_name_that_a_copy_would_need(self) -> None:
        rows = [{"id": name, "prompt": name, "responses": ["r"]} for name in ("a", "a#2")]
        with pytest.raises(ValueError, match="'a#2', which is the id of another"):
            curate(Dataset.from_list(rows), [{"sample": {"groups": 4}}])


class TestHeldOut:
    def test_near_prompts_stay_on_one_side(self) -> None:
        rows = []
        for number in range(48):
            for version in range(3):
                prompt = messy.prompt(number) + " Thanks." * version
                rows.append({"id": f"{number}-{version}", "prompt": prompt, "responses": ["r"]})
        groups = Dataset.from_list(rows).shuffle(seed=1)
        train, held_out, report = split_held_out(groups, 0.25, seed=2)
        sides = {name.split("-")[0] for name in train["id"]}, {name.split("-")[0] for name in held_out["id"]}
        assert not sides[0] & sides[1]
        assert report.clusters == 48
        assert report.largest_cluster == 3
        assert report.parted_clusters > 5
        assert report.moved > 5
        assert 0 < len(held_out) == report.held_out_groups < 72
        leaks = measure_leakage(train, held_out)
        assert (leaks.near_train_groups, leaks.near_held_out_groups) == (0, 0)
        # A split by prompt alone leaks, and is seen to.
        alone = np.array([draws_held_out(prompt, 0.25, 2) for prompt in groups["prompt"]])
        parted = groups.select(np.flatnonzero(~alone)), groups.select(np.flatnonzero(alone))
        assert measure_leakage(*parted).near_held_out_groups > 5

    def test_prompts_without_near_ones_are_where_a_split_by_prompt_has_them(self) -> None:
        groups = Dataset.from_list([{"id": str(n), "prompt": messy.prompt(n), "responses": ["r"]} for n in range(48)])
        _, held_out, report = split_held_out(groups, 0.3, seed=4)
        assert set(held_out["prompt"]) == {
            messy.prompt(n) for n in range(48) if draws_held_out(messy.prompt(n), 0.3, 4)
        }
        assert report.moved == 0

    @pytest.mark.processes
    def test_rows_order_and_processes_make_no_difference(self) -> None:
        groups = Dataset.from_list(messy.pool(40))
        expected = set(split_held_out(groups, 0.3)[1]["id"])
        assert set(split_held_out(groups.shuffle(seed=9), 0.3, num_proc=2)[1]["id"]) == expected

    def test_shared_answers_are_counted(self) -> None:
        one = Dataset.from_list([{"id": "a", "prompt": "p", "responses": ["Yes.", "No."]}])
        two = Dataset.from_list([{"id": "b", "prompt": "completely different", "responses": ["yes. ", "Perhaps."]}])
        assert measure_leakage(one, two).shared_responses == 1

    @pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
    def test_shares_out_of_bounds(self, share: float) -> None:
        with pytest.raises(ValueError, match="above 0 and below 1"):
            split_held_out(Dataset.from_list(messy.pool(4)), share)

    def test_one_cluster_cannot_be_split(self) -> None:
        rows = [{"id": str(n), "prompt": messy.prompt(0) + " " * n, "responses": ["r"]} for n in range(5)]
        with pytest.raises(ValueError, match=r"1 clusters of near prompts, the largest with 5"):
            split_held_out(Dataset.from_list(rows), 0.5)


class TestMix:
    @given(
        sizes=st.lists(st.integers(1, 400), min_size=1, max_size=5),
        shares=st.lists(st.floats(0.01, 10), min_size=5, max_size=5),
        max_repeats=st.integers(1, 5),
    )
    @settings(max_examples=100, deadline=None)
    def test_the_default_total_meets_every_proportion(self, sizes: list, shares: list, max_repeats: int) -> None:
        named = {f"d{number}": size for number, size in enumerate(sizes)}
        proportions = {name: shares[number] for number, name in enumerate(named)}
        try:
            takes = plan_mix(named, proportions, max_repeats=max_repeats)
        except ValueError as tiny:
            if "room for none" in str(tiny):
                return
            raise
        total = sum(takes.values())
        assert total <= sum(sizes)
        assert takes.keys() == named.keys()
        for name, take in takes.items():
            assert take <= named[name] * max_repeats
            assert abs(take - total * proportions[name] / sum(proportions.values())) <= 1

    def test_a_proportion_that_cannot_be_met(self) -> None:
        with pytest.raises(
            ValueError, match=r"from code needs 500.*it has 100.*at most 4 times. Lower the total to 800"
        ):
            plan_mix({"chat": 900, "code": 100}, {"chat": 0.5, "code": 0.5}, total=1000)
        with pytest.raises(ValueError, match="give one for each"):
            plan_mix({"chat": 900, "code": 100}, {"chat": 0.5})
        with pytest.raises(ValueError, match="at least 0"):
            plan_mix({"chat": 900}, {"chat": -1})
        with pytest.raises(ValueError, match="not all 0"):
            plan_mix({"chat": 900}, {"chat": 0})
        with pytest.raises(ValueError, match="room for none from code"):
            plan_mix({"chat": 900, "code": 100}, {"chat": 1000, "code": 1}, total=10)

    def test_groups_are_drawn_and_repeated(self) -> None:
        chat = Dataset.from_list([{"id": f"c{n}", "prompt": f"chat {n}", "responses": ["r", "s"]} for n in range(90)])
        code = Dataset.from_list([{"id": f"k{n}", "prompt": f"code {n}", "responses": ["r", "s"]} for n in range(10)])
        mixed = mix({"chat": chat, "code": code}, {"chat": 3, "code": 1}, total=100, seed=1)
        names = Counter(name.split("#")[0][0] for name in mixed["id"])
        assert names == {"c": 75, "k": 25}
        assert Counter(Counter(n.split("#")[0] for n in mixed["id"] if n[0] == "k").values()) == {2: 5, 3: 5}
        again = mix({"chat": chat.shuffle(seed=2), "code": code}, {"chat": 3, "code": 1}, total=100, seed=1)
        assert set(again["id"]) == set(mixed["id"])

    def test_copies_keep_other_responses(self) -> None:
        from mrt_plugin import select

        one = Dataset.from_list([{"id": "a", "prompt": "p", "responses": [str(n) for n in range(50)]}])
        mixed = mix({"one": one}, {"one": 1}, total=4)
        assert len({tuple(kept) for kept in select(mixed, "random_k", k=5)["responses"]}) == 4

    def test_ids_that_several_have_get_their_datasets_name(self) -> None:
        one = Dataset.from_list([{"id": "0", "prompt": "p", "responses": ["r"]}])
        two = Dataset.from_list([{"id": "0", "prompt": "q", "responses": ["r"]}])
        mixed = mix({"one": one, "two": two}, {"one": 1, "two": 1})
        assert mixed["id"][:] == ["one/0", "two/0"]

    def test_what_does_not_go_together(self, caplog: pytest.LogCaptureFixture) -> None:
        text = Dataset.from_list([{"id": "0", "prompt": "p", "responses": ["r"], "scores": [1.0]}])
        plain = Dataset.from_list([{"id": "1", "prompt": "q", "responses": ["r"]}])
        with caplog.at_level(logging.WARNING, logger="mrt_plugin"):
            mixed = mix({"text": text, "plain": plain}, {"text": 1, "plain": 1})
        assert "scores" not in mixed.column_names
        assert "text: scores left out" in caplog.text
        chat = Dataset.from_list([{"id": "1", "prompt": [{"role": "user", "content": "q"}], "responses": ["r"]}])
        with caplog.at_level(logging.WARNING, logger="mrt_plugin"):
            mixed = mix({"text": text, "chat": chat}, {"text": 1, "chat": 1})
        assert "text: its prompts became messages" in caplog.text
        assert [prompt[0]["content"] for prompt in mixed["prompt"]] == ["p", "q"]
        other = chat.map(lambda row: {"prompt": [{**row["prompt"][0], "name": "Ann"}]}, load_from_cache_file=False)
        with pytest.raises(ValueError, match="cannot be put together: the messages of their column prompt"):
            mix({"other": other, "chat": chat}, {"other": 1, "chat": 1})


def test_a_large_pool_and_a_large_response(tmp_path: Path) -> None:
    """N = 500, 100 kB, non-Latin scripts: through all rules."""
    big = " ".join(messy.answer(number, number % 7, 8) for number in range(340))
    assert len(big.encode()) > 100_000
    path = tmp_path / "pool.jsonl"
    responses = [messy.answer(number, number % 11, 5) for number in range(498)] + [big, messy.CHINESE]
    path.write_text(json.dumps({"id": "g", "prompt": "สวัสดี, what is this? 東京", "responses": responses}))
    rules = [{"token_length": {"response_max": None}}, "format", "truncation", "duplicate_prompts"]
    rules.append({"duplicate_responses": {"threshold": 1.0}})
    curated = curate(load_groups(path), rules)
    assert big in curated.groups[0]["responses"]
    assert messy.CHINESE in curated.groups[0]["responses"]
    assert len(curated.groups[0]["responses"]) == len(set(responses))
