"""Each rule on texts for which the right answer is known."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from helpers import messy, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from mrt_plugin.curation import RULES, GroupView, Tools, curate, parse_rules
from mrt_plugin.curation.config import DEFAULT, markdown, rule_class
from mrt_plugin.curation.near import NearIndex, bands, clusters, jaccard_matrix, shingles, signature
from mrt_plugin.curation.statistics import statistics, task_type
from mrt_plugin.curation.texts import looks_cut, refuses, repeated_share
from mrt_plugin.groups import load_groups
from mrt_plugin.groups.messages import units


def verdicts(rule: str, responses: list, *, tokenizer=None, prompt: str = "A prompt.", options=None, **group) -> list:
    """(response, action, reason) of each verdict of a rule on one group."""
    (parsed,) = parse_rules([{rule: options}])
    found = parsed.judge(GroupView("g", prompt, responses, **group), Tools(tokenizer))
    return [(verdict.response, verdict.action, verdict.reason) for verdict in found]


class TestTruncation:
    @pytest.mark.parametrize(
        "text",
        [
            messy.CUT,
            "They searched for days. They found nothing at all. Finally they decided to go ho",
            "1. First the dough rests. Then it is kneaded, and kneaded aga",
            "Here it is:\n```python\ndef f(x):\n    return x +",
            "<think>The user wants a number. Let me see",
            "他们走了很远的路。天黑了。后来他们看见一座房子，于是",
        ],
    )
    def test_what_is_cut_is_seen(self, text: str) -> None:
        assert looks_cut(text)

    @pytest.mark.parametrize(
        "text",
        [
            messy.CODE,
            messy.CHINESE,
            "Paris",
            "42",
            "for i in range(3):\n    print(i)  # Prints. Then loops",
            "Try these:\n- red\n- green\n- blue",
            "1. Google\n2. Nintendo\n3. Sony",
            "| a | b |\n|---|---|\n| 1 | 2 |",
            "The road is long. The night is cold.\nAnd still we walk,\nwith stars above us",
            "Thank you for your time. I look forward to it.\n\nBest regards,\nJohn Smith",
            "It is all in the paper. See https://example.org/a/b",
            '"The universe is large. I am not sure about people." - Albert Einstein',
            "He met Mr. Darcy",
            "The answer is 5 + (n - 1) * 9",
            "Read it here! #books #reading",
            "Here:\n```\ncode\n```",
            "A nested one:\n````markdown\n```python\nx = 1\n```\n````",
            "วันนี้อากาศดีมาก เราไปเดินเล่นกัน",
            "It ends in prose after an odd fence. ```\nx\nAnd that is how it works.",
            "",
        ],
    )
    def test_what_is_whole_is_kept(self, text: str) -> None:
        assert looks_cut(text) is None

    def test_the_record_decides_where_there_is_one(self) -> None:
        reasons = ["length", "stop", None, "content_filter", "MAX_TOKENS"]
        found = verdicts("truncation", [messy.CODE, messy.CUT, messy.CUT, "No.", "No."], finish_reasons=reasons)
        assert found == [
            (0, "drop", "finish_reason length"),
            (2, "drop", "ends inside a sentence"),
            (3, "drop", "stopped by a content filter"),
            (4, "drop", "finish_reason max_tokens"),
        ]

    @pytest.mark.parametrize(("unknown", "expected"), [("drop", ["drop"]), ("flag", ["flag"]), ("keep", [])])
    def test_what_looks_cut_can_be_flagged_or_kept(self, unknown: str, expected: list[str]) -> None:
        found = verdicts("truncation", [messy.CUT], options={"unknown": unknown})
        assert [action for _, action, _ in found] == expected

    def test_of_messages_the_last_counts(self) -> None:
        response = [{"role": "assistant", "content": "One. Two."}, {"role": "assistant", "content": messy.CUT}]
        assert verdicts("truncation", [response])


class TestRepetition:
    def test_loops_are_dropped_and_ordinary_texts_are_not(self) -> None:
        texts = [messy.LOOP, messy.answer(0, 0), messy.answer(1, 1, 8), "yes " * 20]
        assert verdicts("repetition", texts) == [(0, "drop", "repeats itself")]

    def test_a_loop_in_a_script_without_spaces(self) -> None:
        assert verdicts("repetition", [messy.CHINESE * 5, messy.CHINESE]) == [(0, "drop", "repeats itself")]
        assert units("東京 tower") == ["東", "京", "tower"]

    @given(st.lists(st.sampled_from("abcdefgh"), max_size=60))
    @settings(max_examples=50, deadline=None)
    def test_the_share_is_that_of_its_definition(self, words: list[str]) -> None:
        covered = set()
        for start in range(len(words) - 14):
            earlier = any(words[other : other + 15] == words[start : start + 15] for other in range(start))
            covered |= set(range(start, start + 15)) if earlier else set()
        assert repeated_share(words) == pytest.approx(len(covered) / max(len(words), 1))


class TestRefusals:
    @pytest.mark.parametrize(
        "text",
        [
            messy.REFUSAL,
            "I’m sorry, I can’t assist with that.",
            "As an AI language model, I do not have personal opinions.",
            "I must decline to answer this.",
            "I cannot provide medical advice, but here is what is known.",
            "我很抱歉，我不能帮助您完成这个请求。",
            "Es tut mir leid, aber dabei kann ich nicht helfen.",
        ],
    )
    def test_refusals_are_seen(self, text: str) -> None:
        assert refuses(text)

    @pytest.mark.parametrize(
        "text",
        [
            "I'm sorry to hear that! Rest, and drink a lot of water.",
            "As I stood there I could not help but smile. I cannot help but think of home.",
            "You cannot assist someone who does not want it.",
            messy.answer(0, 0),
            "A" * 300 + " I cannot help with that.",
        ],
    )
    def test_answers_are_not(self, text: str) -> None:
        assert not refuses(text)

    def test_they_are_flagged_and_only_dropped_where_others_answer(self) -> None:
        mixed, unanimous = [messy.REFUSAL, "Yes.", "Sure."], [messy.REFUSAL] * 3
        assert verdicts("refusals", mixed) == [(0, "flag", "refusal")]
        assert verdicts("refusals", mixed, options={"action": "drop"}) == [(0, "drop", "refusal")]
        assert {action for _, action, _ in verdicts("refusals", unanimous, options={"action": "drop"})} == {"flag"}

    def test_more_patterns(self) -> None:
        assert verdicts("refusals", ["No can do."], options={"patterns": ["no can do"]})
        with pytest.raises(ValueError, match="not a regular expression"):
            parse_rules([{"refusals": {"patterns": ["("]}}])


class TestFormat:
    @pytest.mark.parametrize(
        ("text", "cleaned"),
        [
            ("It is 4.</s>", "It is 4."),
            ("It is 4.<|im_end|>\n<|endoftext|>", "It is 4."),
            ("ASSISTANT: It is 4.", "It is 4."),
            ("### Response:\nIt is 4.", "It is 4."),
            ("<|im_start|>assistant\nIt is 4.<|im_end|>", "It is 4."),
            ("\n\n    return x\n", "    return x"),
            ("one\r\ntwo", "one\ntwo"),
        ],
    )
    def test_ends_are_cleaned(self, text: str, cleaned: str) -> None:
        (curated,) = curate(Dataset.from_list([{"id": "g", "prompt": "p", "responses": [text]}]), ["format"]).groups
        assert curated["responses"] == [cleaned]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("Four.<|im_end|>\n<|im_start|>user\nThanks", ("drop", "template token inside")),
            ("Caf\ufffd", ("drop", "replacement character")),
            ("<|im_end|>", ("drop", "nothing left")),
            ("Four.\n### Instruction: Now five", ("flag", "runs on into another turn")),
            ("Itâ€™s four", ("flag", "looks wrongly decoded")),
        ],
    )
    def test_what_cannot_be_cleaned(self, text: str, expected: tuple[str, str]) -> None:
        assert verdicts("format", ["Fine.", text]) == [(1, *expected)]

    def test_ordinary_texts_stay_as_they_are(self) -> None:
        kept = ["  indented = True", "He said: Assistant: is a job.", "<s>struck</s> out", messy.CODE, messy.CHINESE]
        assert verdicts("format", kept) == []

    def test_prompts_with_tokens_and_thinking_in_some_are_flagged(self) -> None:
        assert verdicts("format", ["A."], prompt="<|im_start|>user\nHi") == [
            (None, "flag", "template token in the prompt")
        ]
        thinking = ["<think>Hm.</think>A.", "B."]
        assert verdicts("format", thinking) == [(None, "flag", "thinking in some responses only")]

    def test_the_tokenizers_own_tokens_count(self) -> None:
        tokenizer = tiny.tokenizer()
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|mine|>"]})
        assert verdicts("format", ["a <|mine|> b"]) == []
        assert verdicts("format", ["a <|mine|> b"], tokenizer=tokenizer) == [(0, "drop", "template token inside")]

    def test_messages_are_cleaned_inside(self) -> None:
        rows = [
            {
                "prompt": [{"role": "user", "content": "2 + 2?"}],
                "responses": [
                    [{"role": "assistant", "content": "4</s>", "score": 0.123456789012}],
                    [{"role": "assistant", "content": "four"}],
                ],
            }
        ]
        groups = _loaded(rows)
        curated = curate(groups, ["format"])
        assert curated.groups[0]["responses"] == [
            [{"role": "assistant", "content": "4", "score": 0.123456789012}],
            [{"role": "assistant", "content": "four"}],
        ]
        assert curated.ledger.responses_changed == 1


def _loaded(rows: list[dict]) -> Dataset:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return load_groups(path)


class TestTokenLength:
    def test_lengths_are_the_tokenizers(self) -> None:
        tokenizer = tiny.tokenizer()
        texts = ["The capital of France is Paris.", "The capital"]
        length = len(tokenizer(texts[0], add_special_tokens=False)["input_ids"])
        bound = {"response_max": length - 1}
        assert verdicts("token_length", texts, tokenizer=tokenizer, options=bound) == [
            (0, "drop", "response too long")
        ]
        assert verdicts("token_length", texts, tokenizer=tokenizer, options={"response_max": length}) == []

    def test_without_a_tokenizer_they_are_estimated_and_it_says_so(self) -> None:
        found = verdicts("token_length", ["x" * 44, "x" * 40], options={"response_max": 10})
        assert found == [(0, "drop", "response too long (estimated)")]

    def test_a_prompt_out_of_bounds_drops_the_group(self) -> None:
        options = {"prompt_min": 2}
        assert verdicts("token_length", ["a", "b"], prompt="Hi", options=options) == [
            (None, "drop", "prompt too short (estimated)")
        ]

    def test_four_is_an_answer(self) -> None:
        assert verdicts("token_length", ["4"]) == []


class TestCheck:
    def test_a_function_of_the_users(self) -> None:
        def right(prompt: str, response: str) -> bool | str:
            return "no number" if not any(c.isdigit() for c in response) else response.endswith("4")

        found = verdicts("check", ["It is 4", "It is 5", "four"], options={"function": right})
        assert found == [(1, "drop", "did not pass"), (2, "drop", "no number")]

    def test_where_nothing_passes_one_may_keep_all(self) -> None:
        options = {"function": lambda prompt, response: False, "keep_one": True}
        assert {action for _, action, _ in verdicts("check", ["a", "b"], options=options)} == {"flag"}

    def test_from_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text("def ok(prompt, response):\n    return 'good' in response\n")
        options = {"function": f"{tmp_path}/mine.py:ok"}
        assert verdicts("check", ["good", "bad"], options=options) == [(1, "drop", "did not pass")]

    @pytest.mark.parametrize("name", ["nowhere", "nowhere.py:f", "json:nothing", "no.such.module:f", ":f"])
    def test_no_such_function(self, name: str) -> None:
        with pytest.raises(ValueError, match="function"):
            parse_rules([{"check": {"function": name}}])

    def test_an_error_inside_names_the_response(self) -> None:
        def broken(prompt: str, response: str) -> bool:
            raise KeyError("x")

        with pytest.raises(KeyError) as caught:
            verdicts("check", ["a"], options={"function": broken})
        assert "response 0 of group g" in caught.value.__notes__[0]


def test_template_drops_what_cannot_be_encoded() -> None:
    tokenizer = tiny.tokenizer(family="qwen3")
    called = [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]
    chatml = tiny.tokenizer()  # its template knows no tools
    assert verdicts("template", ["4", called], tokenizer=chatml) == [(1, "drop", "the template does not render it")]
    assert verdicts("template", ["4", called], tokenizer=tokenizer) == []
    with pytest.raises(ValueError, match="--tokenizer"):
        curate(Dataset.from_list([{"id": "g", "prompt": "p", "responses": ["r"]}]), ["template"])


class TestNear:
    @given(st.lists(st.text("ab c", max_size=12), min_size=1, max_size=5))
    @settings(max_examples=60, deadline=None)
    def test_similarities_are_those_of_the_sets(self, texts: list[str]) -> None:
        def grams(text: str) -> set[str]:
            flat = " ".join(text.casefold().split())
            return {flat[i : i + 5] for i in range(max(1, len(flat) - 4))} if flat else set()

        sets = [grams(text) for text in texts]
        expected = [[len(a & b) / len(a | b) if a | b else 1.0 for b in sets] for a in sets]
        assert jaccard_matrix(texts) == pytest.approx(np.array(expected))

    def test_case_space_and_width_make_no_difference(self) -> None:
        assert np.array_equal(shingles("Ｈｅｌｌｏ  World\n"), shingles("hello world"))

    def test_signatures_estimate_the_similarity(self) -> None:
        one, two = messy.answer(0, 0, 6), messy.answer(0, 1, 6)
        true = jaccard_matrix([one, two])[0, 1]
        assert 0.2 < true < 0.9
        assert np.mean(signature(one) == signature(two)) == pytest.approx(true, abs=4 * 0.045)

    @pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
    def test_the_index_finds_most_pairs_at_the_threshold(self, threshold: float) -> None:
        count, rows = bands(threshold)
        assert count * rows <= 128
        assert 1 - (1 - threshold**rows) ** count >= 0.95

    def test_the_index_finds_near_texts_and_no_others(self) -> None:
        index = NearIndex(0.8)
        for number in range(48):
            index.insert(number, signature(messy.prompt(number)))
        for number in range(48):
            near = (
                messy.prompt(number).replace("people", "peoples").replace("town", "towns").replace("money", "moneys")
            )
            assert index.near(signature(near)) == [number]
        assert index.near(signature("Something that is not there at all, whatever one makes of it.")) == []

    def test_a_chain_is_one_cluster_whatever_the_order(self) -> None:
        words = [f"word{number}" for number in range(40)]
        chain = [" ".join(words[start : start + 30]) for start in range(0, 11)]  # each near the next, ends far apart
        texts = [*chain, "a quite different text about bees and honey", "a third one about the tides of the sea"]
        signatures = np.array([signature(text) for text in texts])
        assert jaccard_matrix([chain[0], chain[-1]])[0, 1] < 0.6
        for order in (np.arange(13), np.arange(13)[::-1], np.random.default_rng(0).permutation(13)):
            found = clusters(signatures[order], 0.8)
            back = found[np.argsort(order)]
            assert len(set(back[:11])) == 1
            assert len(set(back)) == 3

    def test_a_hundred_kilobytes_and_nothing(self) -> None:
        assert signature("".join(messy.answer(n, n) for n in range(1000))[:100_000]).shape == (128,)
        assert np.array_equal(signature(""), signature("  "))
        assert jaccard_matrix(["", "", "x"])[0].tolist() == [1.0, 1.0, 0.0]


class TestDuplicates:
    def test_within_a_group_the_better_one_stays(self) -> None:
        same = messy.answer(0, 0)
        texts = [same, messy.answer(5, 1), same.upper(), f"{same} Indeed."]
        found = verdicts("duplicate_responses", texts, scores=[0.1, 0.5, 0.9, 0.3], options={"threshold": 0.8})
        assert found == [(3, "drop", "near another"), (0, "drop", "repeats another")]
        exact = verdicts("duplicate_responses", texts, scores=[0.1, 0.5, 0.9, 0.3], options={"threshold": 1.0})
        assert exact == [(0, "drop", "repeats another")]

    def test_without_scores_the_choice_goes_by_content(self) -> None:
        texts = [messy.answer(0, 0), messy.answer(0, 0).upper(), messy.answer(5, 1)]
        kept = []
        for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
            dropped = {index for index, _, _ in verdicts("duplicate_responses", [texts[i] for i in order])}
            kept.append({texts[place] for number, place in enumerate(order) if number not in dropped})
        assert kept[0] == kept[1] == kept[2]
        assert len(kept[0]) == 2

    def test_across_prompts_the_largest_group_stays(self) -> None:
        rows = messy.pool(8, n=3, scores=False)
        rows[3]["responses"].append("One more.")
        rows.append({"id": "again", "prompt": rows[5]["prompt"].upper(), "responses": ["Only one."]})
        curated = curate(Dataset.from_list(rows), ["duplicate_prompts"])
        assert sorted(curated.groups["id"]) == ["g0", "g2", "g3", "g4", "g5", "g6", "g7"]
        assert curated.ledger.entries[0].reasons == {"drop: near another prompt": 1, "drop: repeats another prompt": 1}
        exact = curate(Dataset.from_list(rows), [{"duplicate_prompts": {"threshold": 1.0}}])
        assert len(exact.groups) == 8


class TestLeakage:
    def test_prompts_of_a_benchmark_are_dropped(self, tmp_path: Path) -> None:
        file = tmp_path / "bench.jsonl"
        file.write_text(json.dumps({"question": messy.prompt(4).replace("small", "smaller")}) + "\n")
        options = {"files": [str(file)], "column": "question"}
        groups = Dataset.from_list(messy.pool(8))
        curated = curate(groups, [{"leakage": options}])
        assert "g4" not in curated.groups["id"]
        assert len(curated.groups) == 7
        flagged = curate(groups, [{"leakage": {**options, "action": "flag"}}])
        assert len(flagged.groups) == 8
        assert flagged.ledger.entries[0].flagged == 1

    def test_a_column_or_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        file = tmp_path / "bench.jsonl"
        file.write_text('{"question": "x"}\n')
        with pytest.raises(ValueError, match=r"the row has question.*column"):
            curate(Dataset.from_list(messy.pool(4)), [{"leakage": {"files": [str(file)]}}])
        with pytest.raises(ValueError, match="there is no such file: nowhere.jsonl"):
            parse_rules([{"leakage": {"files": ["nowhere.jsonl"]}}])


class TestConfig:
    def test_names_options_and_default(self) -> None:
        rules = parse_rules(["format", {"token_length": {"response_max": 512}}, {"repetition": None}])
        assert [rule.name for rule in rules] == ["format", "token_length", "repetition"]
        assert rules[1].response_max == 512  # type: ignore[attr-defined]
        assert [rule.name for rule in parse_rules("default")] == list(DEFAULT)
        assert [rule.name for rule in parse_rules(["default", "sample"][:1])] == list(DEFAULT)
        assert parse_rules(None) == []

    @pytest.mark.parametrize(
        ("specs", "message"),
        [
            (["refusal"], "did you mean refusals"),
            (["nonsense"], "the rules are .*format, truncation"),
            ([{"repetition": {"share": 2.0}}], r"curation\[0\] \(repetition\): share=2.0"),
            (["format", {"repetition": {"words": 3}}], r"curation\[1\] \(repetition\) has no option 'words'"),
            ([{"sample": None}], "needs the option 'groups'"),
            ([{"repetition": 3}], "`name: value` pairs"),
            ([{"repetition": {}, "format": {}}], "one name with its options"),
            ([3], "the name of a rule"),
            (3, "a list of rules"),
            ([{"token_length": {"response_max": "many"}}], "response_max='many'"),
        ],
    )
    def test_what_is_wrong_is_named(self, specs: object, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            parse_rules(specs)  # type: ignore[arg-type]

    def test_every_rule_has_its_name_and_its_reason(self) -> None:
        for name in RULES:
            kind = rule_class(name)
            assert kind.model_construct().name == name
            assert len(kind.__doc__ or "") > 80
            assert all(field.description for field in kind.model_fields.values())

    def test_the_page_is_that_of_the_code(self) -> None:
        page = (Path(__file__).parent.parent / "docs" / "curation-reference.md").read_text()
        _, *entries = page.split("\n### ")
        assert entries
        for entry in entries:
            name = entry.split("`")[1]
            assert f"### {entry}".strip() == markdown(name), "run: python -m mrt_plugin.curation, and paste the entry"


OUTSIDE = """
from mrt_plugin.curation import Decision, GroupRule, PoolDecisions, PoolRule


class NoLinks(GroupRule):
    max: int = 0

    def judge(self, group, tools):
        for index, text in enumerate(group.texts):
            if text.count("http") > self.max:
                yield Decision("drop", "too many links", index)


class FirstOnly(PoolRule):
    def judge_pool(self, groups, tools):
        return PoolDecisions(dropped=dict.fromkeys(range(1, len(groups)), "not the first"))


def function(group, tools):
    return []
"""


class TestOutside:
    @pytest.fixture
    def mine(self, tmp_path: Path) -> Path:
        (tmp_path / "mine.py").write_text(OUTSIDE)
        return tmp_path / "mine.py"

    @pytest.mark.processes
    @pytest.mark.parametrize("num_proc", [None, 2])
    def test_a_class_of_the_users_is_a_rule(self, mine: Path, num_proc: int | None) -> None:
        rows = [{"id": str(n), "prompt": "p", "responses": ["a", "http b", "http http c"]} for n in range(4)]
        rules = [{f"{mine}:NoLinks": {"max": 1}}, f"{mine}:FirstOnly"]
        curated = curate(Dataset.from_list(rows), rules, num_proc=num_proc)
        assert curated.groups["responses"][:] == [["a", "http b"]]
        assert [entry.rule for entry in curated.ledger.entries] == [f"{mine}:NoLinks", f"{mine}:FirstOnly"]
        assert parse_rules(rules)[0].dependencies() == [mine]

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ({"NoLinks": {"min": 1}}, r"curation\[0\] .*NoLinks\) has no option 'min': its options are max"),
            ({"NoLinks": {"max": "x"}}, "max='x'"),
            ("function", "is no curation rule: write a subclass of GroupRule or PoolRule"),
            ("Gone", "has no function Gone"),
        ],
    )
    def test_what_is_wrong_is_named(self, spec: str | dict, message: str, mine: Path) -> None:
        rules = [f"{mine}:{spec}" if isinstance(spec, str) else {f"{mine}:{name}": spec[name] for name in spec}]
        with pytest.raises(ValueError, match=message):
            parse_rules(rules)

    def test_on_the_command_line(self, mine: Path, tmp_path: Path) -> None:
        from helpers.cli import CliRunner

        from mrt_plugin.cli import app

        (tmp_path / "pool.jsonl").write_text(json.dumps({"q": "p", "a": ["a", "http b"]}))
        mine.write_text(OUTSIDE + "\n\ndef asked(row):\n    yield {'prompt': row['q'], 'responses': row['a']}\n")
        command = ["select", str(tmp_path / "pool.jsonl"), "--output", str(tmp_path / "chosen.jsonl"), "--k", "1"]
        for rules in (f"[{mine}:NoLinks]", f"{{{mine}:NoLinks: {{max: 0}}}}", f"{mine}:NoLinks"):
            done = CliRunner().invoke(app, [*command, "--source", f"{mine}:asked", "--curation", rules])
            assert done.exit_code == 0, done.output
            assert json.loads((tmp_path / "chosen.jsonl").read_text())["responses"] == ["a"]


def test_statistics_of_a_known_pool() -> None:
    found = statistics(Dataset.from_list(messy.pool(12, n=4)))
    assert found["groups"] == 12
    assert found["responses"] == 48
    assert found["tokens"] == "estimated"
    assert sum(kind["groups"] for kind in found["task_types"].values()) == 12
    assert found["responses_per_prompt"]["mean"] == 4
    tokenizer = tiny.tokenizer()
    counted = statistics(
        Dataset.from_list([{"id": "g", "prompt": "p", "responses": ["The sea is calm."]}]), tokenizer=tokenizer
    )
    assert counted["response_length"]["mean"] == len(tokenizer("The sea is calm.")["input_ids"])
    assert counted["tokens"] == "counted"


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        ("Write a function that sorts a list.", "code"),
        ("How many apples are left?", "mathematics"),
        ("Translate this to French: hello", "translation"),
        ("Summarize the text below.", "summarisation"),
        ("Write a poem about rain.", "creative writing"),
        ("xyzzy", "other"),
        ([{"role": "user", "content": "Explain the tides."}], "explanation"),
    ],
)
def test_task_types(prompt: object, kind: str) -> None:
    assert task_type(prompt) == kind
