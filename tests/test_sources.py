"""Sources: every public format, from a small file in its true schema to the groups it means."""

import json
import random
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from mrt_plugin import select
from mrt_plugin.groups import DataError, load_groups, read_groups
from mrt_plugin.groups.adapters import SOURCES, all_sources, parse_source, source_files
from mrt_plugin.groups.adapters.guess import guess_source
from mrt_plugin.groups.adapters.pools import trl_preference
from mrt_plugin.groups.adapters.transcripts import parse_transcript
from mrt_plugin.layout.group_row import sequences_of
from mrt_plugin.layout.tree import build_tree
from mrt_plugin.options import MultiResponseOptions
from mrt_plugin.trainer.prepare import prepare_groups

MISSING = "messages that are deleted, rejected in review or empty, or that are below one of these or a missing one"
FOLDER = Path(__file__).parent / "data" / "sources"
SAMPLES = sorted(path.stem for path in FOLDER.glob("*.jsonl") if path.stem in set(SOURCES) - {"fields"})


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def load(source: str, name: str | None = None) -> Dataset:
    return load_groups(FOLDER / f"{name or source.split(':')[0]}.jsonl", source=source)


def jsonl(folder: Path, *rows: Any) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class TestFormats:
    def test_ultrafeedback(self) -> None:
        groups = load("ultrafeedback")
        assert groups["prompt"][1] == "How many legs has a beetle?"
        assert groups["responses"][1] == ["Six.", "Eight, like a spider."]
        assert groups["scores"][:] == [[7.5, 2.0, 9.0, 6.0], [8.0, 1.0]]

    def test_ultrafeedback_leaves_out_what_has_no_such_score(self) -> None:
        groups, report = read_groups(FOLDER / "ultrafeedback.jsonl", source="ultrafeedback:score=fine_grained")
        assert groups["scores"][:] == [[4.25, 1.5, 5.0, 3.5], [4.75]]
        assert groups["responses"][1] == ["Six."]
        assert {what: tally.count for what, tally in report.left_out.items()} == {
            "completions without the score `fine_grained`": 1
        }
        assert "left out: 1 completions without the score `fine_grained` (first: line 2)" in " ".join(report.notes())
        assert load("ultrafeedback:score=honesty")["scores"][:] == [[5.0, 2.0, 5.0], [5.0]]

    def test_nectar(self) -> None:
        groups = load("nectar")
        assert groups["prompt"][0] == [user("Give me a word for a small river.")]
        assert [turn["role"] for turn in groups["prompt"][1]] == ["user", "assistant", "user"]
        assert groups["responses"][0] == ["A brook.", "Stream", "Ocean, perhaps."]
        assert groups["scores"][:] == [[2.0, 1.0, 0.0], [1.0, 0.0]]

    def test_helpsteer2(self) -> None:
        groups = load("helpsteer2")
        assert len(groups) == 2
        assert groups["prompt"][0] == [user("Why is the sea salty?")]
        assert groups["prompt"][1] == [
            user("What is a fjord?"),
            assistant("A long inlet between cliffs."),
            user("Who made them?"),
        ]
        assert groups["responses"][1] == ["Glaciers carved them.", "Vikings, with spades."]
        assert groups["scores"][0] == pytest.approx([11 / 3, 2 / 3])
        assert load("helpsteer2:score=verbosity")["scores"][0] == [1.0, 0.0]

    def test_hh_rlhf(self) -> None:
        groups, report = read_groups(FOLDER / "hh_rlhf.jsonl", source="hh_rlhf")
        assert groups["prompt"][:] == [
            [user("How do I boil an egg?")],
            [user("Hello"), assistant("Hello. What is it about?"), user("A knot that holds.")],
        ]
        assert groups["responses"][1] == ["Try a bowline.\n\nIt does not slip.", "Use glue."]
        assert groups["scores"][:] == [[1.0, 0.0]] * 2
        assert report.left_out["pairs that differ before the last answer"].count == 1

    def test_gold_labelled(self) -> None:
        groups = load("gold_labelled")
        assert groups["prompt"][:] == [
            "Shorten the sentence.\n\nInput:\nThe cat, which was grey, sat on the mat.",
            "Name a prime number above ten.",
        ]
        assert groups["scores"][0] == [1.25, 0.5, -0.75]

    @pytest.mark.parametrize(
        ("options", "sizes", "left_out"), [("", [2], 3), (":language=cpp", [1, 1], 3), (":language=any", [4, 1], 0)]
    )
    def test_code_contests(self, options: str, sizes: list[int], left_out: int) -> None:
        groups, report = read_groups(FOLDER / "code_contests.jsonl", source=f"code_contests{options}")
        assert [len(pool) for pool in groups["responses"]] == sizes
        assert sum(tally.count for tally in report.left_out.values()) == left_out
        assert "scores" not in groups.column_names
        assert report.groups_without_responses.count == 2 - len(sizes)

    def test_code_contests_with_incorrect_solutions(self) -> None:
        groups = load("code_contests:language=python3,incorrect=true")
        assert groups["responses"][0][-1] == "print(input())"
        assert groups["scores"][:] == [[1.0, 1.0, 0.0]]

    def test_mosaic(self) -> None:
        groups, report = read_groups(FOLDER / "mosaic_1k.jsonl", source="mosaic_1k")
        assert groups["id"][:] == ["mosaic_0001_v0", "mosaic_0002_v0"]
        assert groups["responses"][1] == ["Heron (1)", "Second Wind (1)", "Salt and Tar (1)", "Marigold (1)"]
        assert report.left_out["prompt variants beyond variants=1"].count == 6

    @pytest.mark.parametrize(
        ("mode", "picked"),
        [("cyclic_one", ["Heron (1)", "Second Wind (2)", "Salt and Tar (3)"]), ("same_one,index=3", ["Marigold"] * 3)],
    )
    def test_mosaic_modes(self, mode: str, picked: list[str]) -> None:
        groups, report = read_groups(FOLDER / "mosaic_1k.jsonl", source=f"mosaic_1k:variants=3,responses={mode}")
        assert len(groups) == 6
        assert all(len(pool) == 1 for pool in groups["responses"])
        for pool, expected in zip(groups["responses"][3:], picked, strict=True):
            assert pool[0].startswith(expected)
        assert {tally.count for tally in report.left_out.values()} == {2, 18}  # 2 x 1 variant, 6 x 3 responses

    def test_trl_preference(self) -> None:
        groups = load("trl_preference")
        assert groups["prompt"][0] == "The opposite of loud is"
        assert groups["responses"][0] == [" quiet.", " loud."]
        assert groups["scores"][0] == [1.0, 0.0]

    def test_trl_preference_with_an_implicit_prompt(self, tmp_path: Path) -> None:
        groups = load("trl_preference", "trl_preference_conversations")
        assert groups["prompt"][0] == [user("Where does cork come from?")]
        assert groups["responses"][0] == [[assistant("From the bark of an oak.")], [assistant("From a mine.")]]
        assert groups["prompt"][1] == [user("Hello"), assistant("Hello."), user("And rubber?")]
        assert groups["scores"][:] == [[8.5, 3.0], [9.0, 2.0]]
        path = jsonl(tmp_path, {"chosen": "The sky is blue.", "rejected": "The sky is black."})
        group = load_groups(path, source="trl_preference")[0]
        assert group["prompt"] == "The sky is "
        assert group["responses"] == ["blue.", "black."]

    def test_trl_completion(self) -> None:
        groups = load("trl_completion")
        assert groups["responses"][0] == [[assistant("A lute.")], [assistant("A drum.")]]
        assert groups["scores"][:] == [[1.0, 0.0], [1.0]]

    def test_alpaca_eval(self) -> None:
        groups = load("alpaca_eval")
        assert groups["responses"][:] == [
            ["Use a small knife.", "Rub the point on sandpaper."],
            ["The Warm Crumb.", "Crust & Co."],
        ]

    def test_alpaca_needs_no_source(self) -> None:
        groups = load_groups(FOLDER / "alpaca.jsonl")
        assert groups["prompt"][:] == [
            "Sort the numbers.\n\nInput:\n3, 1, 2",
            "Sort the numbers.\n\nInput:\n9, 8",
            "Name a river.",
        ]
        assert groups["responses"][0] == ["1, 2, 3", "1 2 3"]
        assert load("alpaca").to_list() == groups.to_list()

    def test_gsm8k_solutions(self) -> None:
        groups = load("gsm8k_solutions")
        assert groups["responses"][1][0] == "10/2 = <<10/2=5>>5\nA: 5"
        assert groups["scores"][:] == [[1.0, 0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 0.0, 1.0]]

    def test_openr1(self) -> None:
        groups, report = read_groups(FOLDER / "openr1.jsonl", source="openr1")
        assert groups["prompt"][1] == "What is half of 9?"
        assert groups["responses"][1] == ["<think>9/2.</think> 4.5", "Nine halves.", "<think>Half of"]
        assert groups["scores"][:] == [[1.0, 0.0], [1.0, 0.0, 0.0]]
        assert groups["finish_reasons"][:] == [[None, None], ["stop", "stop", "length"]]
        assert not report.left_out
        assert {"solution", "messages", "is_reasoning_complete"} <= report.unused.keys()

    def test_openr1_judged_by_a_model(self) -> None:
        groups, report = read_groups(FOLDER / "openr1.jsonl", source="openr1:score=llama")
        assert groups["scores"][:] == [[1.0, 1.0]]
        assert groups["finish_reasons"][:] == [["stop", "stop"]]
        assert {what: tally.count for what, tally in report.left_out.items()} == {
            "generations without a verdict of `llama`": 3
        }
        assert report.groups_without_responses.count == 1
        assert load("openr1:score=either")["scores"][:] == [[1.0, 0.0], [1.0, 1.0, 0.0]]

    def test_helpsteer3(self) -> None:
        groups = load("helpsteer3")
        assert groups["prompt"][1] == [user("Sum a list."), assistant("sum(x)"), user("Without sum?")]
        assert groups["responses"][0] == ["The kiwi.", "The swift."]
        assert groups["scores"][:] == [[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]

    def test_helpsteer3_counts_contexts_that_no_template_renders(self, tmp_path: Path) -> None:
        row = json.loads((FOLDER / "helpsteer3.jsonl").read_text().splitlines()[0])
        late = {**row, "context": [user("a"), assistant("b")]}
        groups, report = read_groups(jsonl(tmp_path, late, row), source="helpsteer3")
        assert len(groups) == 1
        assert [tally.count for tally in report.left_out.values()] == [1]

    def test_sharegpt_needs_no_source(self) -> None:
        groups, report = read_groups(FOLDER / "sharegpt.jsonl")
        assert groups["prompt"][:] == [
            [user("What is 7 times 8?")],
            [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Hello."), user("A loop?")],
        ]
        assert groups["responses"][0] == [[assistant("<think>56</think> 56")], [assistant("Fifty-six.")]]
        assert report.regrouped
        assert {"difficulty", "source", "domain"} == report.unused.keys()
        assert load("sharegpt").to_list() == groups.to_list()

    def test_sharegpt_with_a_system_text_scores_and_speakers_of_its_own(self, tmp_path: Path) -> None:
        turns = [{"from": "customer", "value": "Hi"}, {"from": "bot", "value": "Hello."}]
        row = {"conversations": turns, "system": "Be kind.", "score": True}
        path = jsonl(tmp_path, row, {**row, "system": "", "score": False})
        groups = load_groups(path, source="sharegpt:user=customer,assistant=bot")
        assert groups["prompt"][:] == [[{"role": "system", "content": "Be kind."}, user("Hi")], [user("Hi")]]
        assert groups["scores"][:] == [[1.0], [0.0]]
        with pytest.raises(DataError, match=r"is from 'customer'; known are .*source='sharegpt:assistant=customer'"):
            load_groups(path)

    def test_sharegpt_counts_what_no_template_renders(self, tmp_path: Path) -> None:
        human, gpt = {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}
        bad = [[gpt, human, gpt], [human, human, gpt], [human], [gpt], [], [human, {**gpt, "value": ""}, human, gpt]]
        rows = [{"conversations": turns} for turns in ([human, gpt], *bad)]
        groups, report = read_groups(jsonl(tmp_path, *rows), source="sharegpt")
        # An earlier answer may be empty, as in `messages`: it is not trained on.
        assert [len(pool) for pool in groups["responses"]] == [1, 1]
        assert [tally.count for tally in report.left_out.values()] == [5]

    def test_oasst2(self) -> None:
        groups, report = read_groups(FOLDER / "oasst2.jsonl", source="oasst2")
        bread = user("How do I keep bread fresh?")
        bag, freeze = assistant("In a paper bag."), assistant("Freeze what you do not eat today.")
        assert groups["id"][:] == ["t1", "p2", "p1", "t2"]  # depth first, in the order of the rows
        assert groups["prompt"][:3] == [
            [bread],
            [bread, bag, user("And in a tin?")],
            [bread, freeze, user("For how long?")],
        ]
        assert groups["responses"][:] == [
            ["In a paper bag.", "Freeze what you do not eat today.", "In the sun."],
            ["That works too."],
            ["Three months.", "A year at most."],
            ["1141 Meter."],
        ]
        assert groups["scores"][:] == [[1.0, 2.0, 0.0], [0.0], [1.0, 0.0], [0.0]]
        assert [tally.count for tally in report.left_out.values()] == [3]  # a rejected reply, the one below, a deleted

    @pytest.mark.parametrize(
        ("options", "ids"),
        [
            ("lang=en", ["t1", "p2", "p1"]),
            ("lang=de", ["t2"]),
            ("unranked=drop", ["t1", "p1"]),
            ("min_replies=3", ["t1"]),
        ],
    )
    def test_oasst2_options(self, options: str, ids: list[str]) -> None:
        assert load(f"oasst2:{options}")["id"][:] == ids

    def test_oasst2_in_any_order_of_rows(self, tmp_path: Path) -> None:
        rows = [json.loads(line) for line in (FOLDER / "oasst2.jsonl").read_text().splitlines()]
        expected = {group["id"]: group for group in load("oasst2").to_list()}
        groups = load_groups(jsonl(tmp_path, *reversed(rows)), source="oasst2").to_list()
        assert groups[0]["id"] == "t1"
        for group in groups:
            pairs = set(zip(group["responses"], group["scores"], strict=True))
            theirs = expected[group["id"]]
            assert pairs == set(zip(theirs["responses"], theirs["scores"], strict=True))
            assert group["prompt"] == theirs["prompt"]

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"role": "narrator"}, ["`role` is a string, but it must be 'prompter' or 'assistant'"]),
            ({"role": "prompter"}, ["do not alternate at message 'a1'", "message_tree_id t1"]),
            ({"rank": "first"}, ["`rank`"]),
        ],
    )
    def test_oasst2_problems(self, change: dict[str, Any], words: list[str], tmp_path: Path) -> None:
        rows = [json.loads(line) for line in (FOLDER / "oasst2.jsonl").read_text().splitlines()]
        with pytest.raises(DataError) as caught:
            load_groups(jsonl(tmp_path, rows[0], {**rows[1], **change}, *rows[2:]), source="oasst2")
        assert all(part in str(caught.value) for part in words), str(caught.value)

    def test_oasst2_leaves_out_what_hangs_below_a_missing_message(self, tmp_path: Path) -> None:
        rows = [json.loads(line) for line in (FOLDER / "oasst2.jsonl").read_text().splitlines()]
        groups, report = read_groups(
            jsonl(tmp_path, *(row for row in rows if row["message_id"] != "a2")), source="oasst2"
        )
        assert groups["id"][:] == ["t1", "p2", "t2"]
        assert sum(tally.count for tally in report.left_out.values()) == 3 + 3  # p1 and its replies

    @pytest.mark.parametrize("seed", range(12))
    def test_oasst2_against_the_definition(self, seed: int, tmp_path: Path) -> None:
        """Each group is found by following the parents of each message, as slowly as the definition reads."""
        draw = random.Random(seed)
        rows: dict[str, dict[str, Any]] = {}
        for number in range(60):
            above = draw.choice([None, *rows.values()]) if rows else None
            asks = above is None or above["role"] == "assistant"
            rows[f"m{number}"] = {
                "message_id": f"m{number}",
                "parent_id": above and (above["message_id"] if draw.random() < 0.95 else "gone"),
                "message_tree_id": above["message_tree_id"] if above else f"m{number}",
                "text": draw.choice(["", " ", *[f"text {number}"] * 20]),
                "role": "prompter" if asks else "assistant",
                "rank": None if asks else draw.choice([None, 0, 1, 2]),
                "deleted": draw.random() < 0.05,
                "review_result": draw.random() > 0.05,
            }

        def path_to(row: Any) -> list[Any] | None:
            usable = row["text"].strip() and not row["deleted"] and row["review_result"]
            if not usable or row["parent_id"] == "gone":
                return None
            before = path_to(rows[row["parent_id"]]) if row["parent_id"] else []
            role = {"prompter": "user", "assistant": "assistant"}[row["role"]]
            return None if before is None else [*before, {"role": role, "content": row["text"]}]

        expected = {}
        for name, row in rows.items():
            prompt = path_to(row)
            pool = [one for one in rows.values() if one["parent_id"] == name and path_to(one)]
            pool = [one for one in pool if one["rank"] is not None] or pool
            if prompt and pool and row["role"] == "prompter":
                ranks = [one["rank"] or 0 for one in pool]
                expected[name] = (prompt, [one["text"] for one in pool], [max(ranks) - rank for rank in ranks])
        mixed = list(rows.values())
        draw.shuffle(mixed)
        groups, report = read_groups(jsonl(tmp_path, *mixed), source="oasst2")
        found = {
            group["id"]: (
                group["prompt"],
                *zip(*sorted(zip(group["responses"], group["scores"], strict=True)), strict=True),
            )
            for group in groups
        }
        assert found == {
            name: (prompt, *zip(*sorted(zip(texts, scores, strict=True)), strict=True))
            for name, (prompt, texts, scores) in expected.items()
        }
        trees = [rows[name]["message_tree_id"] for name in groups["id"]]
        assert len(list(groupby(trees))) == len(set(trees))  # the groups of a tree are neighbours
        unreached = sum(path_to(row) is None for row in rows.values())
        assert report.left_out[MISSING].count == unreached if unreached else MISSING not in report.left_out

    def test_branches_of_a_conversation_share_their_turns(self, chat_tokenizer: Any) -> None:
        """The prompts of all three groups begin with the same message, which the tree of a row holds once."""
        groups = load("oasst2:lang=en")
        options = MultiResponseOptions(selector="all")
        rows = list(prepare_groups(groups, chat_tokenizer, options, max_length=512, seed=0)[0])
        apart = [len(build_tree(sequences_of(row)).input_ids) for row in rows]
        together = build_tree([sequence for row in rows for sequence in sequences_of(row)])
        question = len(chat_tokenizer(groups[0]["prompt"][0]["content"], add_special_tokens=False)["input_ids"])
        assert len(rows) == 3
        assert len(together.input_ids) <= sum(apart) - 2 * question

    def test_numbered_fields(self, tmp_path: Path) -> None:
        row = {"q": "Hot?", "response_10": "C", "response_9": "B", "response_0": "A", "response_10_reward": 0.1}
        row |= {"response_9_reward": 0.9, "response_0_reward": -1, "response_x": "no number"}
        source = "fields:prompt=q,responses=response_*,scores=response_*_reward"
        groups, report = read_groups(jsonl(tmp_path, row), source=source)
        assert groups["responses"][0] == ["A", "B", "C"]
        assert groups["scores"][0] == [-1.0, 0.9, 0.1]
        assert report.unused.keys() == {"response_x"}
        nested = {"q": "Hot?", "answers": {"a2": {"text": "B"}, "a1": {"text": "A"}}}
        groups = load_groups(jsonl(tmp_path, nested), source="fields:prompt=q,responses=answers.a*.text")
        assert groups["responses"][0] == ["A", "B"]

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ({"r_1": "A", "r_2": "B", "r_1_s": 1}, "`r_*_s` has the numbers 1, but `r_*` has 1, 2"),
            (
                {"r_1": "A", "r_1_s": 1},
                "`r_*` matches `r_1` alone, and a pool has several responses: write completion=r_1",
            ),
            ({"r_1": "A", "r_01": "B"}, "have the number 1"),
            ({"response_1": "A"}, "no field matches `r_*`, where * is a number; there are `q`, `response_1`"),
        ],
    )
    def test_numbered_fields_that_do_not_fit(self, row: dict[str, Any], words: str, tmp_path: Path) -> None:
        with pytest.raises(DataError) as caught:
            load_groups(jsonl(tmp_path, {"q": "Hot?", **row}), source="fields:prompt=q,responses=r_*,scores=r_*_s")
        assert words in str(caught.value)
        good = {"q": "Hot?", "r_1": "A", "r_2": "B", "r_1_s": 1, "r_2_s": 2}
        path = jsonl(tmp_path, good, {"q": "Hot?", **row})
        with pytest.raises(DataError) as caught:
            load_groups(path, source="fields:prompt=q,responses=r_*,scores=r_*_s")
        assert [problem.place for problem in caught.value.problems] == ["line 2"]

    def test_a_numbered_response_that_is_empty_takes_its_score_along(self, tmp_path: Path) -> None:
        row = {"q": "a", "r1": "b", "r2": None, "r3": " ", "r4": "c", "s1": 1, "s2": None, "s3": 3, "s4": 4}
        groups, report = read_groups(jsonl(tmp_path, row), source="fields:prompt=q,responses=r*,scores=s*")
        assert groups[0]["responses"] == ["b", "c"]
        assert groups[0]["scores"] == [1.0, 4.0]
        assert report.left_out["empty responses of `r*`"].count == 2

    def test_fields_of_a_conversation(self, tmp_path: Path) -> None:
        """The way past a column that would be refused: the user names what is read."""
        rows = [{"chat": [user("a"), assistant(text)], "tools": ["t"], "ok": text == "b"} for text in "bc"]
        groups = load_groups(jsonl(tmp_path, *rows), source="fields:messages=chat,score=ok")
        assert groups[0]["responses"] == [[assistant("b")], [assistant("c")]]
        assert groups[0]["scores"] == [1.0, 0.0]
        turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
        group = load_groups(jsonl(tmp_path, {"talk": {"turns": turns}}), source="fields:messages=talk.turns")[0]
        assert (group["prompt"], group["responses"]) == ([user("a")], [[assistant("b")]])

    def test_fields(self, tmp_path: Path) -> None:
        groups = load("fields:prompt=meta.question,responses=candidates.text,scores=candidates.reward")
        assert groups["prompt"][1] == "Which metal is liquid?"
        assert groups["responses"][1] == ["Mercury.", "Gallium, in your hand.", "Tin."]
        assert groups["scores"][1] == [1.0, 0.8, 0.0]
        rows = [{"q.a": "Hot?", "a": text, "w": weight} for text, weight in (("Yes.", 1), ("No.", 2))]
        flat = load_groups(jsonl(tmp_path, *rows), source="fields:prompt=q.a, completion=a, weight=w")
        assert flat[0]["responses"] == ["Yes.", "No."]
        assert flat[0]["weights"] == [1.0, 2.0]

    @pytest.mark.parametrize("name", SAMPLES)
    def test_a_file_a_table_and_a_dataset_are_read_alike(self, name: str, tmp_path: Path) -> None:
        """Arrow fills every struct with all fields: absent and None must mean the same."""
        dataset = Dataset.from_json(str(FOLDER / f"{name}.jsonl"), cache_dir=str(tmp_path))
        dataset.to_parquet(tmp_path / "data.parquet")
        expected = load(name).to_list()
        assert load_groups(dataset, source=name).to_list() == expected
        assert load_groups(tmp_path / "data.parquet", source=name).to_list() == expected


REASONED = {
    "problem": "2 + 2?",
    "solution": "Count.",
    "generations": ["It is 4.", "4"],
    "messages": [user("2 + 2?"), assistant("It is 4.")],
}
TALK = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
PAIRED = {"prompt": "Hi", "chosen": [user("Hi"), assistant("Hello.")], "rejected": [user("Hi"), assistant("No.")]}
ASKED = "\n\nHuman: a\n\nAssistant"
POOLED = {"prompt": "a", "responses": ["b", "c"]}


class TestColumnsThatChangeMeaning:
    @pytest.mark.parametrize(
        ("source", "row", "column", "remedy"),
        [
            ("alpaca_eval", {"instruction": "Sort.", "input": "2, 1", "output": "1, 2"}, "input", "source='alpaca'"),
            (None, REASONED, "generations", "source='fields:prompt=problem,responses=generations'"),
            (None, {**PAIRED, "messages": PAIRED["chosen"]}, "rejected", "source='trl_preference'"),
            (None, {**POOLED, "context": "A text."}, "context", "write it into the prompt, or remove the column"),
            (None, {**POOLED, "System_Prompt": "Be brief."}, "System_Prompt", "responses=responses"),
            (None, {**POOLED, "tools": [{"name": "add"}]}, "tools", "remove the column"),
            (None, {**POOLED, "candidates": ["d", "e"]}, "candidates", "responses=candidates"),
            (None, {"messages": [user("a"), assistant("b")], "conversations": TALK}, "conversations", "'sharegpt'"),
            ("sharegpt", {"conversations": TALK, "tools": "[]"}, "tools", "remove the column"),
            (None, {"prompt": "a", "completion": "b", "history": [["c", "d"]]}, "history", "write it into the prompt"),
            (None, {"instruction": "a", "input": "", "output": "b", "system": "Go."}, "system", "No source reads it"),
            ("nectar", {"prompt": "a", "answers": [{"answer": "b", "rank": 1}], "docs": ["c"]}, "docs", "write"),
            ("trl_completion", {"prompt": "a", "completion": "b", "images": ["c.png"]}, "images", "remove the column"),
            ("hh_rlhf", {"chosen": f"{ASKED}: b", "rejected": f"{ASKED}: c", "system": "d"}, "system", "No source"),
        ],
    )
    def test_they_are_refused_with_what_reads_them(
        self, source: str | None, row: Any, column: str, remedy: str, tmp_path: Path
    ) -> None:
        bare = {name: value if name != column else None for name, value in row.items()}
        with pytest.raises(DataError) as caught:
            load_groups(jsonl(tmp_path, bare, row, row), source=source)
        (problem,) = [problem for problem in caught.value.problems if problem.column == column]
        assert problem.place == "line 2"
        assert remedy in problem.what

    def test_the_form_that_is_named_reads_the_pool(self, tmp_path: Path) -> None:
        groups, report = read_groups(jsonl(tmp_path, REASONED), source="fields:prompt=problem,responses=generations")
        assert groups[0]["responses"] == REASONED["generations"]
        assert {name: tally.count for name, tally in report.unused.items()} == {"solution": 1, "messages": 1}

    @pytest.mark.parametrize(
        ("source", "row"),
        [
            ("trl_preference", {**PAIRED, "messages": PAIRED["chosen"]}),
            (None, {"messages": [{"role": "system", "content": "Go."}, user("a"), assistant("b")], "system": "Go."}),
            (None, {**POOLED, "answer": "b", "solution": "c", "answers": ["one"], "outputs": [0.5, 1.0], "input": ""}),
            ("nectar", {"prompt": "a", "answers": [{"answer": "b", "rank": 1}], "turns": 1, "source": ["books"]}),
        ],
    )
    def test_a_copy_a_number_and_a_reference_are_not_refused(
        self, source: str | None, row: Any, tmp_path: Path
    ) -> None:
        load_groups(jsonl(tmp_path, row), source=source)

    @pytest.mark.parametrize("name", SAMPLES)
    def test_every_source_counts_what_it_leaves_out(self, name: str, tmp_path: Path) -> None:
        rows = [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]
        path = jsonl(tmp_path, *({**row, "origin": "invented" if number else None} for number, row in enumerate(rows)))
        report = read_groups(path, source=name)[1]
        assert (report.unused["origin"].count, report.unused["origin"].first) == (len(rows) - 1, "line 2")
        path = jsonl(tmp_path, *({**row, "documents": "A text."} for row in rows))
        with pytest.raises(DataError, match="column `documents`: it would be left out"):
            load_groups(path, source=name)


class TestProblems:
    def test_unknown_source_lists_the_known(self) -> None:
        with pytest.raises(ValueError, match="'nectr' is unknown") as caught:
            load_groups(FOLDER / "nectar.jsonl", source="nectr")
        assert "Did you mean 'nectar'?" in str(caught.value)
        assert all(name in str(caught.value) for name in SOURCES)

    @pytest.mark.parametrize("name", SAMPLES)
    def test_another_shape_says_what_was_expected_and_found(self, name: str, tmp_path: Path) -> None:
        path = jsonl(tmp_path, {"frage": "2 + 2?", "antwort": "4"})
        with pytest.raises(DataError) as caught:
            load_groups(path, source=name)
        text = str(caught.value)
        assert all(f"`{field}`" in text for field in parse_source(name)[0].row.__required_keys__)
        assert "line 1 has `frage`, `antwort`" in text

    def test_the_right_source_is_named(self) -> None:
        with pytest.raises(DataError, match="fields of source 'ultrafeedback'"):
            load("nectar", "ultrafeedback")
        with pytest.raises(DataError, match="source 'helpsteer2'"):
            load_groups(FOLDER / "helpsteer2.jsonl")
        with pytest.raises(DataError, match="source 'hh_rlhf' or 'trl_preference'"):
            load_groups(FOLDER / "hh_rlhf.jsonl")

    @pytest.mark.parametrize(
        ("row", "source"),
        [
            (
                {"question": "a", "r1_solution_1": "b", "r1_solution_2": "c"},
                "fields:prompt=question,responses=r1_solution_*",
            ),
            (
                {
                    "prompt": "a",
                    "response_0": "b",
                    "response_1": "c",
                    "response_0_reward": 1,
                    "response_1_reward": 2.0,
                },
                "fields:prompt=prompt,responses=response_*,scores=response_*_reward",
            ),
            ({"problem": "a", "generated_solution": "b"}, "fields:prompt=problem,completion=generated_solution"),
            ({"query": "a", "Candidates": ["b", "c"]}, "fields:prompt=query,responses=Candidates"),
        ],
    )
    def test_fields_that_would_fit_are_named(self, row: dict[str, Any], source: str, tmp_path: Path) -> None:
        path = jsonl(tmp_path, row)
        with pytest.raises(DataError) as caught:
            load_groups(path)
        assert f"source={source!r}" in str(caught.value)
        assert set(load_groups(path, source=source)[0]["responses"]) <= {"b", "c"}

    def test_mixed_rows(self, tmp_path: Path) -> None:
        """The first row decides; a later one of another format is named with its line."""
        alpaca, chat = {"instruction": "a", "output": "b"}, {"messages": [user("a"), assistant("b")]}
        talk = {"conversations": TALK}
        for rows, column in (
            ((talk, chat), "conversations"),
            ((chat, talk), "messages"),
            ((alpaca, talk), "instruction"),
        ):
            with pytest.raises(DataError) as caught:
                load_groups(jsonl(tmp_path, *rows))
            assert ("line 2", column) in [(problem.place, problem.column) for problem in caught.value.problems]
            assert "missing" in str(caught.value)

    def test_prompts_that_are_never_equal_are_noted(self, tmp_path: Path) -> None:
        rows = [{"prompt": f"a{number}", "completion": "b"} for number in range(3)]
        assert "every prompt has one response" in " ".join(read_groups(jsonl(tmp_path, *rows))[1].notes())
        rows.append({"prompt": "a1", "completion": "c"})
        assert "every prompt has one" not in " ".join(read_groups(jsonl(tmp_path, *rows))[1].notes())

    @pytest.mark.parametrize("name", SAMPLES)
    def test_every_format_is_recognised(self, name: str) -> None:
        row = json.loads((FOLDER / f"{name}.jsonl").read_text().splitlines()[0])
        assert f"'{name}'" in guess_source(row)

    @pytest.mark.parametrize(
        ("source", "row", "words"),
        [
            ("nectar", {"prompt": "a", "answers": [{"answer": "b"}]}, ["`answers[0]` has no `rank`; it has `answer`"]),
            ("nectar", {"prompt": "a", "answers": "b"}, ["`answers` is a string, but it must be a valid list"]),
            ("hh_rlhf", {"chosen": ["a"], "rejected": "b"}, ["`chosen` is a list, but it must be a valid string"]),
            (
                "gold_labelled",
                {"instruction": "a", "answers": ["b"], "gold_scores": []},
                ["`gold_scores`: it has 0 for 1 responses"],
            ),
            (
                "trl_preference",
                {"prompt": "a", "chosen": 1, "rejected": "b"},
                ["`chosen` is a number, but it must be a valid string or a valid list"],
            ),
            ("trl_preference", {"chosen": "a", "rejected": [assistant("b")]}, ["one of chosen and rejected"]),
            ("trl_preference", {"chosen": "yes", "rejected": "no"}, ["no beginning in common"]),
            (
                "mosaic_1k",
                {"id": 1, "prompt_variants": ["a", "b"], "responses": [["c"]]},
                ["1 lists for 2 prompt variants"],
            ),
            (
                "code_contests",
                {"description": "a", "solutions": {"language": [3], "solution": []}},
                ["1 languages for 0"],
            ),
            (
                "openr1",
                {"problem": "a", "generations": ["b", "c"], "correctness_math_verify": [True]},
                ["1 for 2 gener"],
            ),
            (
                "openr1",
                {"problem": "a", "generations": ["b"], "correctness_math_verify": ["right"]},
                ["`correctness_math_verify[0]` is a string, but it must be"],
            ),
            (
                "helpsteer3",
                {"context": [user("a")], "response1": "b", "response2": "c", "overall_preference": 5},
                ["`overall_preference` is a number, but it must be less than or equal to 3"],
            ),
            ("sharegpt", {"conversations": "a: b"}, ["`conversations` is a string, but it must be a valid list"]),
            ("fields:messages=a", {"a": "b"}, ["`a` is a string; it must be a list of turns"]),
            ("fields:prompt=a.b,responses=c", {"a": {"x": 1}, "c": []}, ["`a` has no `b`; it has `x`"]),
            ("fields:prompt=a,responses=c", {"x": 1, "y": 2}, ["line 1 has `x`, `y`", "`a`"]),
        ],
    )
    def test_wrong_shapes(self, source: str, row: Any, words: list[str], tmp_path: Path) -> None:
        with pytest.raises(DataError) as caught:
            load_groups(jsonl(tmp_path, row), source=source)
        assert all(part in str(caught.value) for part in words), str(caught.value)

    def test_a_later_row_is_named_by_its_line_and_the_rest_is_checked(self, tmp_path: Path) -> None:
        good = {"prompt": "a", "answers": [{"answer": "b", "rank": 1}]}
        bad = {"prompt": "a", "answers": [{"answer": "b", "rank": "first"}]}
        with pytest.raises(DataError) as caught:
            load_groups(jsonl(tmp_path, good, bad, good, {"prompt": "a"}), source="nectar")
        assert [(problem.place, problem.column) for problem in caught.value.problems] == [
            ("line 2", "answers"),
            ("line 4", "answers"),
        ]

    def test_a_problem_names_the_columns_of_the_source(self, tmp_path: Path) -> None:
        row = {"instruction": " ", "answers": ["b"], "gold_scores": [float("nan")]}
        with pytest.raises(DataError) as caught:
            load_groups(jsonl(tmp_path, row), source="gold_labelled")
        assert {problem.column for problem in caught.value.problems} == {"instruction", "gold_scores"}

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            ("nectar:score=1", "Its options: category=..."),
            ("code_contests:langauge=cpp", "language=python3|python2|cpp|java|any (default python3)"),
            ("code_contests:language=ada", "language='ada'"),
            ("code_contests:cpp", "option=value"),
            ("mosaic_1k:variants=5", "variants='5'"),
            ("fields:responses=a", "needs prompt"),
            ("fields:prompt=a", "either responses= .* completion= .* or messages="),
            ("fields:prompt=a,responses=b,completion=c", "either responses= .* completion= .* or messages="),
            ("fields:prompt=a,responses=b_*_*", "write one [*] in"),
            ("openr1:score=exact", "score='exact'"),
            ("oasst2:min_replies=0", "min_replies='0'"),
            ("", "is unknown"),
        ],
    )
    def test_options(self, source: str, words: str) -> None:
        with pytest.raises(ValueError, match=words.replace("|", r"\|").replace("(d", r"\(d").replace("n3)", r"n3\)")):
            load_groups(FOLDER / "fields.jsonl", source=source)

    def test_nothing_left(self, tmp_path: Path) -> None:
        path = jsonl(tmp_path, {"chosen": "no transcript", "rejected": "none either"})
        with pytest.raises(DataError, match="nothing is left of it. Left out: 1 pairs with a transcript"):
            load_groups(path, source="hh_rlhf")


OUTSIDE = """
def forum(row, *, min_votes: int = 0):
    posts = [post for post in row["posts"] if post["votes"] >= min_votes]
    yield {"prompt": row["title"], "responses": [p["text"] for p in posts], "scores": [p["votes"] for p in posts]}


def strings(row):
    return ["no group"]


def broken(row):
    return row["nothing"]


word = "no function"
"""
POSTS = {"title": "2 + 2?", "posts": [{"text": "5", "votes": 0}, {"text": "4", "votes": 9}]}


class TestOutside:
    @pytest.fixture
    def mine(self, tmp_path: Path) -> Path:
        (tmp_path / "mine.py").write_text(OUTSIDE)
        return tmp_path / "mine.py"

    def test_a_function_of_the_users_is_a_source(self, mine: Path, tmp_path: Path) -> None:
        path = jsonl(tmp_path, POSTS)
        assert load_groups(path, source=f"{mine}:forum")[0]["scores"] == [0.0, 9.0]
        assert load_groups(path, source=f"{mine}:forum:min_votes=3")[0]["responses"] == ["4"]
        assert source_files(f"{mine}:forum:min_votes=3") == [mine]
        assert source_files("ultrafeedback:score=fine_grained") == source_files("fields:prompt=a,responses=b") == []

    def test_in_a_module_with_declared_fields(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A `TypedDict` as the row's type: rows are checked, and columns that are not read are counted."""
        code = "from typing_extensions import TypedDict\nclass Row(TypedDict):\n    q: str\n    a: list[str]\n"
        code += "def asked(row: Row):\n    yield {'prompt': row['q'], 'responses': row['a']}\n"
        (tmp_path / "my_formats.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        groups, report = read_groups(
            jsonl(tmp_path, {"q": "Hot?", "a": ["Yes."], "origin": "x"}), source="my_formats:asked"
        )
        assert groups[0]["responses"] == ["Yes."]
        assert set(report.unused) == {"origin"}
        with pytest.raises(DataError, match="expects the fields `q`, `a`; line 1 has `title`, `posts`"):
            load_groups(jsonl(tmp_path, POSTS), source="my_formats:asked")

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("mine.py:forum:votes=3", "has no option 'votes'. Its options: min_votes"),
            ("mine.py:forum:min_votes=many", "min_votes='many' is invalid"),
            ("mine.py:gone", "has no function gone"),
            ("gone.py:forum", "there is no file .*gone.py"),
            ("mine.py:word", "is no function"),
            ("mine.py:strings", "gives a string for line 1: it must yield dicts"),
        ],
    )
    def test_what_is_wrong_is_named(self, name: str, words: str, mine: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=words):
            load_groups(jsonl(tmp_path, POSTS), source=f"{tmp_path}/{name}")

    def test_an_error_inside_names_the_row(self, mine: Path, tmp_path: Path) -> None:
        with pytest.raises(KeyError) as caught:
            load_groups(jsonl(tmp_path, POSTS), source=f"{mine}:broken")
        assert "was reading line 1" in caught.value.__notes__[0]


WORDS = st.text(st.sampled_from("ab \n:é"), max_size=8)


class TestProperties:
    @given(st.lists(WORDS, min_size=1, max_size=6))
    def test_a_transcript_is_read_as_it_was_written(self, texts: list[str]) -> None:
        speakers = ["Human", "Assistant"] * len(texts)
        transcript = "".join(f"\n\n{speaker}: {text}" for speaker, text in zip(speakers, texts, strict=False))
        turns = parse_transcript(transcript)
        assert turns is not None
        assert [turn["content"] for turn in turns] == [text.strip() for text in texts]

    @given(WORDS, WORDS, WORDS)
    def test_an_implicit_prompt_and_its_responses_join_to_the_texts(self, common: str, one: str, other: str) -> None:
        row = {"chosen": f"{common} {one}", "rejected": f"{common} {other}"}
        [group] = trl_preference.convert(row)
        assert group["prompt"].startswith(f"{common} ")
        assert [group["prompt"] + response for response in group["responses"]] == [row["chosen"], row["rejected"]]


class TestInARun:
    def test_the_trainer_reads_a_source(self, tmp_path: Path, tiny_model_dir: str) -> None:
        from mrt_plugin import MultiResponseSFTConfig, MultiResponseSFTTrainer

        trainer = MultiResponseSFTTrainer(
            model=tiny_model_dir,
            train_dataset=Dataset.from_json(str(FOLDER / "helpsteer2.jsonl"), cache_dir=str(tmp_path)),
            args=MultiResponseSFTConfig(
                output_dir=str(tmp_path), source="helpsteer2", k=2, report_to=[], bf16=False, use_cpu=True
            ),
        )
        assert trainer.prepare_reports["train"].pairs == 4

    @pytest.mark.axolotl
    def test_a_recipe_names_a_source(self) -> None:
        from mrt_plugin.axolotl.args import parse_block

        assert (
            parse_block({"datasets": [{"path": "a.jsonl", "source": "nectar"}]})["datasets"][0]["source"] == "nectar"
        )
        with pytest.raises(ValueError, match="'nectr' is unknown"):
            parse_block({"source": "nectr"})


class TestFinishReasons:
    def test_they_stay_with_their_responses(self, tmp_path: Path) -> None:
        row = {"prompt": "a", "responses": ["b", "", "c"], "finish_reasons": ["stop", "length", None]}
        group = load_groups(jsonl(tmp_path, row))[0]
        assert list(zip(group["responses"], group["finish_reasons"], strict=True)) == [("b", "stop"), ("c", None)]
        rows = [{"prompt": "a", "completion": f"b{n}", "finish_reason": f"r{n}"} for n in range(8)]
        chosen = select(load_groups(jsonl(tmp_path, *rows)), "random_k", k=3)[0]
        assert [name.replace("b", "r") for name in chosen["responses"]] == chosen["finish_reasons"]

    @pytest.mark.parametrize("reasons", ["stop", ["stop"], [1, 2], ["stop", "\ud83d"]])
    def test_wrong_ones(self, reasons: Any, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="column `finish_reasons`"):
            load_groups(jsonl(tmp_path, {"prompt": "a", "responses": ["b", "c"], "finish_reasons": reasons}))


def test_the_docs_name_every_option() -> None:
    page = (Path(__file__).parents[1] / "docs" / "sources.md").read_text()
    documented = [source for source in all_sources() if f"| `{source.name}` |" in page]
    assert documented
    for source in documented:
        for option, (hint, _) in source.options.items():
            assert option in page
            assert all(value in page for value in get_args(hint) if isinstance(value, str) and source.name != "fields")
