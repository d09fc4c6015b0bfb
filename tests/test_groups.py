"""Reading groups: what comes out, what is counted, and that every problem names its row, column and remedy."""

import csv
import json
import logging
import multiprocessing
import os
import random
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict, Features, IterableDataset, Value
from helpers.processes import start_python
from hypothesis import given, settings
from hypothesis import strategies as st

from mrt_plugin import load_groups, select
from mrt_plugin.engine import map_batches
from mrt_plugin.groups import DataError, batches, held_out, prompt_key, read_groups
from mrt_plugin.groups.messages import has_text
from mrt_plugin.groups.overlap import overlap_problem
from mrt_plugin.groups.regroup import Collector, scratch_folder
from mrt_plugin.groups.write import write_groups


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def jsonl(folder: Path, *rows: Any, name: str = "pool.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def without_id(groups: Iterable[Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "id"} for row in groups]


PLAIN = [
    {"id": "a", "prompt": "2 + 2?", "responses": ["4", "Four."], "scores": [1.0, 0.5], "weights": [0.25, 2.0]},
    {"id": "b", "prompt": "Capital of Chad?", "responses": ["N'Djamena"], "scores": [-3.0], "weights": [1.0]},
]

CALL = {
    "type": "function",
    "function": {"name": "add", "arguments": {"x": 0.1 + 0.2, "unit": None, "deep": [{"a": 1}]}},
}
TOOLS = [
    {
        "prompt": [{"role": "system", "content": "Use tools."}, user("2 + 2?")],
        "responses": [
            [
                assistant("", reasoning_content="I should add.", tool_calls=[CALL]),
                {"role": "tool", "name": "add", "tool_call_id": "1", "content": '{"sum": 4}'},
                assistant("4"),
            ],
            [assistant('{"answer": 4}')],
        ],
    },
    {
        "prompt": [
            user([{"type": "text", "text": "What is a 'null'?"}]),
            assistant("?"),
            user("\u2028 <b>None</b> 😀"),
        ],
        "responses": [[assistant("None", tool_calls=[{"function": {"name": "add", "arguments": {"x": "text"}}}])]],
    },
]


class TestForms:
    @pytest.mark.parametrize("rows", [PLAIN, TOOLS], ids=["strings", "tools"])
    @pytest.mark.parametrize("form", ["jsonl", "json", "json holding lines", "ndjson"])
    def test_json_files(self, tmp_path: Path, rows: list[Any], form: str) -> None:
        if form == "json":
            path = tmp_path / "pool.json"
            path.write_text(json.dumps(rows, indent=1))
        else:
            path = jsonl(tmp_path, *rows, name=f"pool.{form.split()[0]}")
        groups = load_groups(path)
        assert without_id(groups) == without_id(rows)
        assert [len(name) for name in groups["id"]] == ([1, 1] if rows is PLAIN else [16, 16])

    @pytest.mark.parametrize("rows", [PLAIN, TOOLS], ids=["strings", "tools"])
    def test_nothing_changes_when_groups_are_read_again(self, tmp_path: Path, rows: list[Any]) -> None:
        """Through a Dataset, Parquet and a saved folder: tool calls with other keys and explicit nulls survive."""
        groups = load_groups(jsonl(tmp_path, *rows))
        groups.to_parquet(tmp_path / "pool.parquet")
        groups.save_to_disk(tmp_path / "saved")
        DatasetDict(train=groups, test=groups.select([0])).save_to_disk(tmp_path / "splits")
        for source in (groups, tmp_path / "pool.parquet", tmp_path / "saved", tmp_path / "splits"):
            assert load_groups(source).to_list() == groups.to_list()
        assert len(load_groups(tmp_path / "splits", split="test")) == 1
        assert without_id(groups) == without_id(rows)

    def test_none_that_arrow_fills_in_is_taken_out(self, tmp_path: Path) -> None:
        """Structs of a column share their keys: a plain message would gain tool_calls=None, name=None."""
        rows = [
            {"prompt": [user("a")], "responses": [[assistant("b", tool_calls=[{"id": "1", "f": {"x": 1}}])]]},
            {"prompt": [user("c")], "responses": [[assistant("d", name="me")]]},
        ]
        dataset = Dataset.from_list(rows, on_mixed_types=None)
        assert dataset[1]["responses"][0][0]["tool_calls"] is None
        dataset.to_parquet(tmp_path / "pool.parquet")
        assert without_id(load_groups(dataset)) == rows
        assert without_id(load_groups(tmp_path / "pool.parquet")) == rows
        assert without_id(load_groups(IterableDataset.from_generator(lambda: iter(rows)))) == rows

    def test_the_content_null_of_tool_calls_is_left_out(self, tmp_path: Path) -> None:
        row = {"prompt": "a", "responses": [[assistant(None, tool_calls=[CALL]), {"role": "tool", "content": ""}, assistant("b")]]}  # fmt: skip # noqa: E501
        assert "content" not in load_groups(jsonl(tmp_path, row))[0]["responses"][0][0]

    def test_strings_that_look_like_json_stay_strings(self, tmp_path: Path) -> None:
        row = {"prompt": "42", "responses": ["null", '{"a": 1}', "[1]", "true"]}
        assert without_id(load_groups(jsonl(tmp_path, row))) == [row]

    def test_first_line_with_byte_order_mark(self, tmp_path: Path) -> None:
        path = tmp_path / "pool.jsonl"
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(PLAIN[0]).encode() + b"\r\n\r\n" + json.dumps(PLAIN[1]).encode())
        assert load_groups(path).to_list() == PLAIN

    def test_absent_columns_stay_absent(self, tmp_path: Path) -> None:
        path = jsonl(tmp_path, {"prompt": "a", "responses": ["b"], "scores": None, "weights": None})
        assert load_groups(path).column_names == ["id", "prompt", "responses"]

    def test_changed_content_is_never_taken_for_the_old(self, tmp_path: Path) -> None:
        first = load_groups(jsonl(tmp_path, *PLAIN))
        again = load_groups(jsonl(tmp_path, *PLAIN))
        changed = load_groups(jsonl(tmp_path, PLAIN[0], {**PLAIN[1], "scores": [-2.0]}))
        assert first._fingerprint == again._fingerprint
        assert changed._fingerprint != first._fingerprint
        assert changed[1]["scores"] == [-2.0]
        assert not list(tmp_path.glob("cache/mrt_groups/*.partial"))

    def test_more_rows_than_a_chunk(self, tmp_path: Path) -> None:
        rows = [{"prompt": f"{number}?", "responses": [str(number), "x"]} for number in range(2100)]
        groups = load_groups(jsonl(tmp_path, *rows))
        assert without_id(groups) == rows
        assert len(set(groups["id"])) == 2100


class TestLargeGroups:
    """The bound made small: 32 KiB, and groups of 8 KiB."""

    @pytest.fixture(autouse=True)
    def _small_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(batches, "BYTES", 2**15)

    def test_batches_are_bounded_by_their_text(self) -> None:
        same = Dataset.from_dict({"responses": [["x" * 4096, "y" * 4096]] * 64})
        assert batches.batch_size(same, 256) == 4
        assert batches.batch_size(same, 3) == 3
        assert batches.batch_size(same.select([0] * 9 + [5]), 256) == 2  # through indices, of 10 rows
        one_giant = Dataset.from_dict({"responses": [["x"]] * 63 + [["y" * 2**16]]})
        assert batches.batch_size(one_giant, 256) == 64
        giants = Dataset.from_dict({"responses": [["y" * 2**16]] * 8})
        assert batches.batch_size(giants, 256) == 2
        assert batches.batch_size(Dataset.from_dict({"responses": []}), 256) == 1
        assert batches.pool_sizes(one_giant.select([63, 0])) == [1, 1]

    def test_messages_numbers_and_slices_are_measured(self, tmp_path: Path) -> None:
        rows = [{**row, "scores": [1.0] * len(row["responses"])} for row in TOOLS]
        groups = load_groups(jsonl(tmp_path, *rows * 8))
        whole = sum(len(json.dumps(row["responses"], ensure_ascii=False).encode()) for row in rows) * 8
        measured = batches._of_rows(groups.select_columns(["responses"]), "responses", batches._bytes)
        assert len(measured) == 16
        assert 0.8 * whole < measured.sum() < 1.2 * whole

    def test_what_is_written_at_a_time_is_bounded(self, tmp_path: Path) -> None:
        rows = [{"id": f"{n}", "prompt": f"{n}?", "responses": ["x" * 4096, "y" * 4096]} for n in range(40)]
        groups = load_groups(jsonl(tmp_path, *rows))
        assert groups.to_list() == rows
        assert [len(chunk) for chunk in groups.data.column("id").chunks] == [4] * 10
        write_groups(groups, tmp_path / "again.parquet")
        assert pyarrow.parquet.ParquetFile(tmp_path / "again.parquet").num_row_groups == 10
        assert load_groups(tmp_path / "again.parquet").to_list() == rows

    def test_every_function_over_groups_gets_bounded_batches(self, tmp_path: Path) -> None:
        rows = [{"prompt": f"{n}?", "responses": ["x" * 4096, "y" * 4096], "scores": [0, 1]} for n in range(40)]
        groups = load_groups(jsonl(tmp_path, *rows))
        seen: list[int] = []

        def count(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            seen.append(len(batch["id"]))
            return {"n": seen[-1:] * len(batch["id"])}

        map_batches(groups, count, {}, Features({"n": Value("int64")}), batch_size=64, description="Counting")
        assert set(seen) == {2}  # the prompt and the scores count as well
        kept = select(groups, "best_k", k=1)
        assert kept["responses"][:] == [["y" * 4096]] * 40
        assert {len(chunk) for chunk in kept.data.column("responses").chunks} == {2}


class TestKilled:
    @pytest.mark.processes
    def test_what_a_killed_reader_left_is_removed(self, tmp_path: Path) -> None:
        cache = datasets.config.HF_DATASETS_CACHE
        code = (
            "import sys, time, datasets, mrt_plugin\n"
            "def rows():\n"
            "    yield {'prompt': 'a', 'responses': ['b']}\n"
            "    print('reading', flush=True)\n"
            "    time.sleep(600)\n"
            "mrt_plugin.load_groups(datasets.IterableDataset.from_generator(rows))\n"
        )
        code = f"import datasets; datasets.config.HF_DATASETS_CACHE = {str(cache)!r}\n{code}"
        reader = start_python(["-c", code])
        reader.wait_for("reading")
        folder = Path(cache) / "mrt_groups"
        (alive,) = folder.glob("*.partial")
        load_groups(jsonl(tmp_path, *PLAIN))
        assert alive.exists()
        reader.kill()
        reader.wait()
        load_groups(jsonl(tmp_path, *PLAIN))
        assert not list(folder.glob("*.partial"))


class TestFlatRows:
    def test_completions_are_regrouped(self, tmp_path: Path) -> None:
        rows = [
            {"prompt": "a", "completion": "1", "score": 1, "weight": 2},
            {"prompt": "b", "completion": "2", "score": 0.5, "weight": 1},
            {"prompt": "a", "completion": "3", "score": -1, "weight": 0},
        ]
        groups, report = read_groups(jsonl(tmp_path, *rows))
        assert without_id(groups) == [
            {"prompt": "a", "responses": ["1", "3"], "scores": [1, -1], "weights": [2, 0]},
            {"prompt": "b", "responses": ["2"], "scores": [0.5], "weights": [1]},
        ]
        assert (report.rows, report.groups, report.responses, report.regrouped) == (3, 2, 3, True)

    def test_trl_conversational_completions(self, tmp_path: Path) -> None:
        rows = [{"prompt": [user("a")], "completion": [assistant(text)]} for text in "bc"]
        assert without_id(load_groups(Dataset.from_list(rows))) == [
            {"prompt": [user("a")], "responses": [[assistant("b")], [assistant("c")]]}
        ]

    def test_null_fields_do_not_split_a_prompt(self, tmp_path: Path) -> None:
        rows = [{"prompt": [user("a")], "completion": [assistant("b")]}]
        rows.append({"prompt": [{**user("a"), "name": None}], "completion": [assistant("c", name=None)]})
        assert without_id(load_groups(jsonl(tmp_path, *rows))) == [
            {"prompt": [user("a")], "responses": [[assistant("b")], [assistant("c")]]}
        ]

    def test_conversations_split_after_the_last_question(self, tmp_path: Path) -> None:
        tool = {"role": "tool", "content": "4"}
        opening = [{"role": "system", "content": "s"}, user("a"), assistant("b"), user("c")]
        answers = [[assistant("d")], [assistant("", tool_calls=[CALL]), tool, assistant("4")]]
        rows = [{"messages": [*opening, *answer], "score": number} for number, answer in enumerate(answers)]
        assert without_id(load_groups(jsonl(tmp_path, *rows))) == [
            {"prompt": opening, "responses": answers, "scores": [0, 1]}
        ]

    def test_ids_do_not_depend_on_the_order_of_rows(self, tmp_path: Path) -> None:
        rows = [{"prompt": prompt, "completion": text} for prompt in "ab" for text in ("1", "2", "3")]
        one = load_groups(jsonl(tmp_path, *rows))
        two = load_groups(jsonl(tmp_path, *reversed(rows)))
        assert dict(zip(one["prompt"], one["id"], strict=True)) == dict(zip(two["prompt"], two["id"], strict=True))


class TestDelimited:
    """CSV and TSV: cells without types."""

    def test_flat_rows(self, tmp_path: Path) -> None:
        path = tmp_path / "pool.csv"
        path.write_bytes(
            b'\xef\xbb\xbfprompt,completion,score,weight\r\n"2 + 2?",4,true,1\r\n'
            b'"A list, please","one\ntwo ""three""",0.5,2\r\n\r\n2 + 2?,five,FALSE,3\r\n'
        )
        groups = load_groups(path)
        assert groups["prompt"][:] == ["2 + 2?", "A list, please"]
        assert groups["responses"][:] == [["4", "five"], ['one\ntwo "three"']]
        assert groups["scores"][:] == [[1.0, 0.0], [0.5]]
        assert groups["weights"][:] == [[1.0, 3.0], [2.0]]

    def test_groups_with_lists_as_json(self, tmp_path: Path) -> None:
        path = tmp_path / "pool.tsv"
        path.write_text('id\tprompt\tresponses\tscores\n7\t[1]\t["a", "b"]\t[1, false]\n8\tc\t["d"]\t[2]\n')
        groups = load_groups(path)
        assert groups["id"][:] == ["7", "8"]
        assert groups["prompt"][0] == "[1]"
        assert groups["responses"][0] == ["a", "b"]
        assert groups["scores"][:] == [[1.0, 0.0], [2.0]]

    def test_alpaca_and_fields(self, tmp_path: Path) -> None:
        path = tmp_path / "alpaca.csv"
        path.write_text("instruction,input,output\nAdd.,1 and 2,3\nName a river.,,The Elbe\nName a river.,,Oder\n")
        groups = load_groups(path)
        assert groups["prompt"][:] == ["Add.\n\nInput:\n1 and 2", "Name a river."]
        assert groups["responses"][:] == [["3"], ["The Elbe", "Oder"]]
        path = tmp_path / "numbered.csv"
        path.write_text("q,a_1,a_10,a_2,a_1_ok,a_10_ok,a_2_ok\nHot?,Yes,10,2,1,0,true\nCold?,No,,1,0,,1\n")
        groups, report = read_groups(path, source="fields:prompt=q,responses=a_*,scores=a_*_ok")
        assert groups["responses"][:] == [["Yes", "2", "10"], ["No", "1"]]
        assert groups["scores"][:] == [[1.0, 1.0, 0.0], [0.0, 1.0]]
        assert {what: tally.count for what, tally in report.left_out.items()} == {"empty responses of `a_*`": 1}

    def test_a_row_is_named_by_the_line_that_it_starts_in(self, tmp_path: Path) -> None:
        path = tmp_path / "pool.csv"
        path.write_text('prompt,completion,score\n"a\nb\nc",d,1\n"e\nf",g,high\n')
        with pytest.raises(DataError) as caught:
            load_groups(path)
        assert [(problem.place, problem.column) for problem in caught.value.problems] == [("line 5", "score")]

    def test_long_cells(self, tmp_path: Path) -> None:
        path = tmp_path / "pool.csv"
        path.write_text(f"prompt,completion\na,{'word ' * 100_000}\n")
        assert len(load_groups(path)["responses"][0][0]) == 500_000

    def test_what_python_writes_is_read_back(self, tmp_path: Path) -> None:
        texts = ["plain", 'a "quoted", text', "two\nlines", "\ttab", "4", "True", "é"]
        with (tmp_path / "pool.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerows([["prompt", "completion"], *(["a", text] for text in texts)])
        assert load_groups(tmp_path / "pool.csv")["responses"][0] == texts

    @settings(deadline=None)
    @given(st.lists(st.text(st.characters(exclude_categories=["Cs"])).filter(has_text), min_size=1, max_size=5))
    def test_any_text_survives(self, texts: list[str]) -> None:
        with TemporaryDirectory() as folder:
            for ending, separator in (("csv", ","), ("tsv", "\t")):
                path = Path(folder) / f"pool.{ending}"
                with path.open("w", newline="", encoding="utf-8") as file:
                    writer = csv.writer(file, delimiter=separator)
                    writer.writerows([["prompt", "completion"], *(["a", text] for text in texts)])
                assert load_groups(path)["responses"][0] == texts


class TestTruthValues:
    def test_they_are_scores_of_1_and_0(self, tmp_path: Path) -> None:
        pooled = jsonl(tmp_path, {"prompt": "a", "responses": ["b", "c"], "scores": [True, False]})
        assert load_groups(pooled)[0]["scores"] == [1.0, 0.0]
        rows = [{"prompt": "a", "completion": text, "score": text == "b"} for text in "bc"]
        assert load_groups(jsonl(tmp_path, *rows))[0]["scores"] == [1.0, 0.0]
        assert load_groups(Dataset.from_list(rows))[0]["scores"] == [1.0, 0.0]


class TestCollector:
    """Rows that belong together, in bounded memory."""

    @pytest.mark.parametrize("held", [0, 300, 10**6])
    def test_order_and_content_are_those_of_a_dict(self, held: int) -> None:
        draws = random.Random(held)
        rows = [
            (str(int(draws.random() ** 2 * 40)).encode(), (number, "x" * draws.randrange(9))) for number in range(500)
        ]
        expected: dict[bytes, list[Any]] = {}
        with Collector(held=held, sets=7) as collected:
            for key, item in rows:
                assert (key in collected) == (key in expected)
                expected.setdefault(key, []).append(item)
                collected.add(key, item)
            assert list(collected) == list(expected.values())

    def test_the_file_is_removed(self) -> None:
        before = set(scratch_folder().glob("*"))
        with Collector(held=0) as collected:
            collected.add(b"a", 1)
            assert len(set(scratch_folder().glob("tmp*")) - before) == 1
        with pytest.raises(TypeError), Collector(held=0) as collected:
            collected.add(b"a", (item for item in b"b"))  # a generator cannot be pickled
        assert set(scratch_folder().glob("*")) == before

    def test_regrouped_through_a_file_the_groups_are_the_same(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = [{"prompt": f"p{n * n % 30}", "completion": f"c{n}", "score": n} for n in range(200)]
        path = jsonl(tmp_path, *rows)
        expected = load_groups(path).to_list()
        spilled = partial(Collector, held=500, sets=4)
        monkeypatch.setattr("mrt_plugin.groups.shapes.Collector", spilled)
        assert load_groups(path).to_list() == expected
        with pytest.raises(DataError) as caught:
            load_groups(jsonl(tmp_path, *rows, {"prompt": "p0", "completion": 3, "score": 1}))
        assert [problem.place for problem in caught.value.problems] == ["line 201"]


class TestDecisions:
    def test_what_is_dropped_and_what_is_kept(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        rows = [
            {"prompt": "a", "responses": ["x", " \n", "x", "y"], "scores": [1, 2, 3, 4], "weights": [1, 2, 3, 0]},
            {"prompt": "b", "responses": [], "scores": [], "weights": []},
            {"prompt": "c", "responses": ["", None], "scores": [1, 2], "weights": [1, 1]},
            {"prompt": "a", "responses": ["z"], "scores": [1], "weights": [1], "note": "?"},
        ]
        with caplog.at_level(logging.INFO, logger="mrt_plugin"):
            groups, report = read_groups(jsonl(tmp_path, *rows))
        assert without_id(groups) == [
            {"prompt": "a", "responses": ["x", "x", "y"], "scores": [1, 3, 4], "weights": [1, 3, 0]},
            {"prompt": "a", "responses": ["z"], "scores": [1], "weights": [1]},
        ]
        assert (report.rows, report.groups, report.responses) == (4, 2, 4)
        assert (report.empty_responses.count, report.empty_responses.first) == (3, "line 1, response 1")
        assert (report.groups_without_responses.count, report.groups_without_responses.first) == (2, "line 2")
        assert (report.duplicate_responses.count, report.duplicate_responses.first) == (1, "line 1")
        assert (report.duplicate_prompts.count, report.duplicate_prompts.first) == (1, "line 4")
        warned = " ".join(record.message for record in caplog.records if record.levelno == logging.WARNING)
        for part in (
            "dropped: 3 (first: line 1, response 1)",
            "no response: 2 (first: line 2)",
            "kept: 1 (first: line 1)",
        ):
            assert part in warned
        assert "2 groups, 4 responses (1 to 3 each)" in caplog.text

    def test_a_response_of_messages_that_says_nothing_is_empty(self, tmp_path: Path) -> None:
        row = {"prompt": "a", "responses": [[assistant("  ")], [], [assistant("b")]]}
        groups, report = read_groups(jsonl(tmp_path, row))
        assert groups[0]["responses"] == [[assistant("b")]]
        assert report.empty_responses.count == 2

    def test_unused_columns_are_named(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        rows = [{"prompt": "a", "responses": ["b"], "score": [1], "tools": []}, {"prompt": "b", "responses": ["c"]}]
        rows.append({"prompt": "c", "responses": ["d"], "score": [2], "topic": "late", "context": " "})
        _, report = read_groups(jsonl(tmp_path, *rows))
        assert {name: (tally.count, tally.first) for name, tally in report.unused.items()} == {
            "score": (2, "line 1"),
            "topic": (1, "line 3"),
        }
        assert caplog.text.count("these columns are not used: score (2 rows), topic (1 row).") == 1

    @pytest.mark.parametrize("nothing", ["\u200b", "\x00", "\ufeff\u2060 \u200d", "\u3164\u2800\xad"])
    def test_characters_that_nobody_sees_are_no_response(self, nothing: str, tmp_path: Path) -> None:
        groups, report = read_groups(jsonl(tmp_path, {"prompt": "a", "responses": ["b", nothing, f"{nothing}c"]}))
        assert groups[0]["responses"] == ["b", f"{nothing}c"]
        assert report.empty_responses.count == 1

    def test_equal_rows_get_different_ids(self, tmp_path: Path) -> None:
        ids = load_groups(jsonl(tmp_path, *[{"prompt": "a", "responses": ["b"]}] * 3))["id"]
        assert len(set(ids)) == 3
        assert [name.split("-")[1:] for name in ids] == [[], ["2"], ["3"]]


def row(**changes: Any) -> dict[str, Any]:
    return {"prompt": "a", "responses": ["b", "c"], "scores": [1, 2], "weights": [1, 1], **changes}


CHAT = {"prompt": [user("a")], "responses": [[assistant("b")]]}
BAD_ROWS = {
    "prompt missing": (row(prompt=None), "prompt", "missing"),
    "prompt empty": (row(prompt=" "), "prompt", "empty"),
    "prompt a number": (row(prompt=3), "prompt", "a number"),
    "prompt an object": (row(prompt={"a": 1}), "prompt", "an object"),
    "responses a string": (row(responses="bc"), "responses", "must be a list"),
    "response a number": (row(responses=["b", 3]), "responses", "response 1"),
    "scores a number": (row(scores=3), "scores", "a list of numbers"),
    "scores too few": (row(scores=[1]), "scores", "1 for 2"),
    "scores too many": (row(scores=[1, 2, 3]), "scores", "3 for 2"),
    "score missing": (row(scores=[1, None]), "scores", "response 1"),
    "score NaN": (row(scores=[float("nan"), 1]), "scores", "finite"),
    "score infinite": (row(scores=[1, float("-inf")]), "scores", "finite"),
    "score too large": (row(scores=[1, 10**400]), "scores", "finite"),
    "score a string": (row(scores=[1, "2"]), "scores", "a string"),
    "score a truth value as a string": (row(scores=[1, "True"]), "scores", "write true or 1, without quotes"),
    "scores absent": (row(scores=None), "scores", "for all groups or for none"),
    "weights too few": (row(weights=[1]), "weights", "1 for 2"),
    "weight NaN": (row(weights=[1, float("nan")]), "weights", "finite"),
    "weight negative": (row(weights=[1, -0.5]), "weights", "at least 0"),
    "weights all 0": (row(weights=[0, 0]), "weights", "positive"),
    "weights all 0 but of an empty response": (row(weights=[0, 1], responses=["b", ""]), "weights", "positive"),
    "prompt in another form": (row(prompt=[user("a")]), "prompt", "one form"),
    "response in another form": (row(responses=["b", [assistant("c")]]), "responses", "one form"),
    "broken emoji": (row(responses=["b", "\ud83d"]), "responses", "surrogate"),
    "prompt of zero-width characters": (row(prompt="\u200b\x00"), "prompt", "empty"),
    "id a list": (row(id=["x"]), "id", "string or a whole number"),
    "id empty": (row(id=""), "id", "empty"),
    "id a broken emoji": (row(id="\ud83d"), "id", "surrogate"),
    "no responses column": ({"prompt": "a"}, "responses", "the first row has it"),
}
BAD_CHATS = {
    "prompt without messages": ({"prompt": []}, "prompt", "empty"),
    "prompt ends with the assistant": ({"prompt": [user("a"), assistant("b")]}, "prompt", "into the responses"),
    "prompt without user": ({"prompt": [{"role": "system", "content": "s"}]}, "prompt", "no user message"),
    "prompt starts with the assistant": ({"prompt": [assistant("a"), user("b")]}, "prompt", "message 0"),
    "two user messages": ({"prompt": [user("a"), user("b")]}, "prompt", "after a message from `user`"),
    "late system message": ({"prompt": [user("a"), {"role": "system", "content": "s"}]}, "prompt", "`system` after"),
    "user says nothing": ({"prompt": [user(" ")]}, "prompt", "no text"),
    "unknown role": ({"prompt": [{"role": "bot", "content": "a"}]}, "prompt", "system, developer, user"),
    "no role": ({"prompt": [{"from": "human", "value": "a"}]}, "prompt", "rename `from`"),
    "a message that is a string": ({"prompt": ["a"]}, "prompt", "a string"),
    "content a number": ({"prompt": [user(3)]}, "prompt", "a number"),
    "an image": ({"prompt": [user([{"type": "image", "url": "x"}])]}, "prompt", "not text"),
    "response starts with the user": (
        {"responses": [[user("a"), assistant("b")]]},
        "responses",
        "belongs to the prompt",
    ),
    "response ends with the user": ({"responses": [[assistant("a"), user("b")]]}, "responses", "must end"),
    "response ends with a tool": (
        {"responses": [[assistant("a"), {"role": "tool", "content": "b"}]]},
        "responses",
        "end",
    ),
    "two assistant messages": ({"responses": [[assistant("a"), assistant("b")]]}, "responses", "merge"),
    "system in a response": ({"responses": [[{"role": "system", "content": "a"}]]}, "responses", "`system` at the"),
    "assistant without content": ({"responses": [[assistant(None)]]}, "responses", "`tool_calls`"),
    "too large a number": ({"responses": [[assistant("a", tool_calls=[{"id": 10**30}])]]}, "responses", "as a string"),
    "broken emoji": ({"responses": [[assistant("\ud83d")]]}, "responses", "surrogate"),
    "tool calls a number": ({"responses": [[assistant("a", tool_calls=3)]]}, "responses", "not a list of objects"),
    "a tool call a number": ({"responses": [[assistant("a", tool_calls=[3])]]}, "responses", "not a list of objects"),
    "tool calls in a prompt": (
        {"prompt": [user("a"), assistant("b", tool_calls=True), user("c")]},
        "prompt",
        "not a list of objects",
    ),
    "user says zero-width characters": ({"prompt": [user("\u200b\ufeff")]}, "prompt", "no text"),
}


class TestProblems:
    @pytest.mark.parametrize("name", BAD_ROWS)
    def test_rows(self, tmp_path: Path, name: str) -> None:
        bad, column, words = BAD_ROWS[name]
        with pytest.raises(DataError) as caught:
            load_groups(jsonl(tmp_path, row(), row(prompt="b"), bad))
        (problem,) = caught.value.problems
        assert problem.place.startswith("line 3")
        assert problem.column == column
        assert words in str(problem)
        assert "pool.jsonl" in str(caught.value)

    @pytest.mark.parametrize("name", BAD_CHATS)
    def test_conversations(self, tmp_path: Path, name: str) -> None:
        changes, column, words = BAD_CHATS[name]
        with pytest.raises(DataError) as caught:
            load_groups(jsonl(tmp_path, CHAT, {**CHAT, **changes}))
        (problem,) = caught.value.problems
        assert problem.place.startswith("line 2")
        assert problem.column == column
        assert words in str(problem)

    @pytest.mark.parametrize(
        ("rows", "place", "column", "words"),
        [
            (
                [{"prompt": "a", "completion": "b", "score": 1}, {"prompt": "a", "completion": "c"}],
                "line 2",
                "score",
                "missing",
            ),
            (
                [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": 3}],
                "line 2",
                "completion",
                "a number",
            ),
            ([{"prompt": "a", "completion": "b"}, {"prompt": None, "completion": "c"}], "line 2", "prompt", "missing"),
            ([{"prompt": "a", "completion": "b", "weight": -1}], "line 1", "weight", "at least 0"),
            ([{"prompt": "a \ud83d", "completion": "b"}], "line 1", "prompt", "surrogates"),
            ([{"messages": [user("a")]}], "line 1", "messages", "answer is missing"),
            ([{"messages": [assistant("a")]}], "line 1", "messages", "no message from `user`"),
            ([{"messages": "a"}], "line 1", "messages", "a string"),
            ([{"messages": [user("a"), assistant("b"), assistant("c")]}], "line 1", "messages", "message 1"),
        ],
    )
    def test_flat_rows(self, tmp_path: Path, rows: list[Any], place: str, column: str, words: str) -> None:
        with pytest.raises(DataError) as caught:
            load_groups(jsonl(tmp_path, *rows))
        (problem,) = caught.value.problems
        assert (problem.place, problem.column) == (place, column)
        assert words in str(problem)

    def test_lines_that_are_not_json(self, tmp_path: Path) -> None:
        path = tmp_path / "pool.jsonl"
        path.write_bytes(b'{"prompt": "a", "responses": ["b"]}\n\n{"prompt": oops}\n[1]\n\xff\n{"prompt": "a"')
        with pytest.raises(DataError) as caught:
            load_groups(path)
        places = [problem.place for problem in caught.value.problems]
        assert places == ["line 3", "line 4", "line 5", "line 6"]
        for words in ("character 12", "not a JSON object", "UTF-8"):
            assert words in str(caught.value)

    @pytest.mark.parametrize("name", ["pool.jsonl", "pool.json"])
    @pytest.mark.parametrize(
        ("value", "words"), [("1" * 5000, "thousands of digits"), ("[" * 400 + "]" * 400, "nested too deeply")]
    )
    def test_json_that_nothing_can_carry(self, name: str, value: str, words: str, tmp_path: Path) -> None:
        text = f'{{"prompt": "a", "responses": ["b"], "extra": {value}}}'
        (tmp_path / name).write_text(f"[{text}]" if name == "pool.json" else text)
        with pytest.raises(DataError, match=words):
            load_groups(tmp_path / name)

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("a.json", b'[{"prompt": "a",\n "responses": ["b"},]', "line 2 column 19"),
            ("a.json", b'[{"prompt": "a", "responses": ["b"]}, 3]', "row 1"),
            ("a.json", b"[]", "empty"),
            ("a.jsonl", b"", "empty"),
            ("a.jsonl", b"\n \n", "empty"),
            ("a.jsonl", b'{"question": "a", "answers": ["b"]}', "`question`, `answers`"),
            (
                "a.jsonl",
                b'{"prompt": "a", "responses": []}\n{"prompt": "b", "responses": [""]}',
                "all 2 groups were dropped",
            ),
            ("a.parquet", b"PAR1", "Parquet"),
            ("a.xls", b"prompt,responses", ".jsonl, .ndjson, .json, .parquet, .csv, .tsv"),
            ("a.csv", b"prompt,completion\n", "empty"),
            ("a.csv", b"", "empty"),
            ("a.csv", b"prompt;completion\na;b", "is one column: separate columns by commas"),
            ("a.tsv", b"prompt,completion\na,b", "is one column: separate columns by tabs"),
            ("a.csv", b"prompt,prompt\na,b", "the column 'prompt' twice"),
            ("a.csv", b"prompt,,\na,b,c", "a column without a name"),
            ("a.csv", b"prompt,completion\na,b\nc", "line 3: it has 1 cells for 2 columns"),
            ("a.csv", b"prompt,completion\na,b, and c", "line 2: it has 3 cells for 2 columns"),
            ("a.csv", b'prompt,completion\na,"b\nc', "line 2 cannot be read"),
            ("a.csv", b"prompt,completion\na,\xff", "not UTF-8"),
            ("a.csv", b"prompt,completion,score\na,b,good", "the score is 'good'; it must be a number"),
            ("a.csv", b"prompt,completion,score\na,b,nan", "must be finite"),
            ("a.csv", b"prompt,responses\na,b", "must be a list in JSON"),
        ],
    )
    def test_files(self, tmp_path: Path, name: str, content: bytes, words: str) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            load_groups(path)
        assert words in str(caught.value)
        assert name in str(caught.value)
        assert not list(tmp_path.glob("cache/mrt_groups/*"))

    def test_sources_that_are_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no such file"):
            load_groups(tmp_path / "gone.jsonl")
        with pytest.raises(DataError, match="no split 'train': choose one of test"):
            load_groups(DatasetDict(test=Dataset.from_list(PLAIN)))
        with pytest.raises(DataError, match="int cannot be read"):
            load_groups(3)
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match="could not be loaded as a dataset"):
            load_groups(tmp_path / "empty")

    def test_a_folder_of_files_is_loaded_like_a_hub_dataset(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        jsonl(tmp_path / "data", *PLAIN, name="train.jsonl")
        assert load_groups(tmp_path / "data").to_list() == PLAIN
        with pytest.raises(DataError, match="validation"):
            load_groups(tmp_path / "data", split="validation")

    def test_a_name_that_is_not_utf8(self, tmp_path: Path) -> None:
        name = os.fsdecode(os.fsencode(tmp_path) + b"/pool-\xff.jsonl")
        Path(name).write_bytes(jsonl(tmp_path, *PLAIN).read_bytes())
        with pytest.raises(ValueError, match="not UTF-8") as caught:
            load_groups(name)
        assert str(caught.value).isascii()
        with pytest.raises(ValueError, match="not UTF-8"):
            write_groups(load_groups(tmp_path / "pool.jsonl"), name)

    def test_given_ids_differ(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"line 2, column `id`: '1' is the id of an earlier row"):
            load_groups(jsonl(tmp_path, row(id="1"), row(id=1)))

    def test_problems_come_together_up_to_a_limit(self, tmp_path: Path) -> None:
        with pytest.raises(DataError) as caught:
            load_groups(jsonl(tmp_path, row(prompt=3, scores=[1]), row(weights="x"), row(), row(responses=3)))
        assert [problem.place for problem in caught.value.problems] == ["line 1", "line 1", "line 2", "line 4"]
        with pytest.raises(DataError, match="stopped after 20") as caught:
            load_groups(jsonl(tmp_path, *[row(prompt=3)] * 50))
        assert len(caught.value.problems) == 20
        assert not list(tmp_path.glob("cache/mrt_groups/*"))

    @pytest.mark.processes
    def test_the_error_crosses_process_borders(self, tmp_path: Path) -> None:
        path = jsonl(tmp_path, row(scores=[1]), row(prompt=""))
        with multiprocessing.get_context("spawn").Pool(1) as pool, pytest.raises(DataError) as caught:
            pool.apply(load_groups, (str(path),))
        assert [problem.column for problem in caught.value.problems] == ["scores", "prompt"]

    def test_rows_of_a_dataset_count_from_0(self) -> None:
        with pytest.raises(DataError, match="row 1, column `prompt`"):
            load_groups(Dataset.from_list([row(), row(prompt="")]))


class TestKeys:
    def test_key_order_does_not_matter(self) -> None:
        assert prompt_key([{"role": "user", "content": "a"}]) == prompt_key([{"content": "a", "role": "user"}])
        assert prompt_key("a") != prompt_key("b")

    def test_split_is_by_prompt_and_nested(self) -> None:
        prompts = [f"prompt {number}" for number in range(4000)]
        tenth = {prompt for prompt in prompts if held_out(prompt, 0.1)}
        fifth = {prompt for prompt in prompts if held_out(prompt, 0.2)}
        other = {prompt for prompt in prompts if held_out(prompt, 0.1, seed=1)}
        assert 330 < len(tenth) < 470  # 400 expected, sd 19
        assert tenth < fifth
        assert 20 < len(tenth & other) < 65  # independent: 40 expected
        assert not any(held_out(prompt, 0.0) for prompt in prompts)
        assert all(held_out(prompt, 1.0) for prompt in prompts)
        with pytest.raises(ValueError, match="between 0 and 1"):
            held_out("a", 10)

    def test_prompts_on_both_sides_are_found_counted_and_named(self) -> None:
        train = load_groups(Dataset.from_list([{"prompt": f"prompt {n}", "responses": ["a"]} for n in range(20)]))
        chats = [{"prompt": [user(f"prompt {n}")], "responses": ["b"]} for n in range(12, 24)]
        problem = overlap_problem(train, load_groups(Dataset.from_list(chats)))
        assert "8 of the 12 prompts" in problem
        assert "'prompt 12', 'prompt 13', 'prompt 14', ..." in problem
        assert not overlap_problem(train.select(range(12)), load_groups(Dataset.from_list(chats)))

    def test_the_held_out_prompts_stay_the_same(self) -> None:
        assert sum(held_out(f"prompt {number}", share=0.1) for number in range(1000)) == 112


texts = st.text(st.characters(codec="utf-8"), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


class TestProperties:
    @pytest.mark.slow
    @given(st.lists(st.tuples(texts.filter(has_text), st.lists(texts, max_size=4)), min_size=1, max_size=6))
    @settings(deadline=None)
    def test_every_response_is_kept_or_counted(self, pools: list[tuple[str, list[str]]]) -> None:
        rows = [{"prompt": prompt, "responses": responses} for prompt, responses in pools]
        wanted = [[text for text in responses if has_text(text)] for _, responses in pools]
        if not any(wanted):
            with pytest.raises(DataError, match="dropped"):
                read_groups(IterableDataset.from_generator(lambda: iter(rows)))
            return
        groups, report = read_groups(IterableDataset.from_generator(lambda: iter(rows)))
        assert list(groups["responses"]) == [kept for kept in wanted if kept]
        assert report.groups + report.groups_without_responses.count == report.rows == len(rows)
        assert report.responses + report.empty_responses.count == sum(len(responses) for _, responses in pools)
        repeats = sum(count - 1 for kept in wanted for count in Counter(kept).values())
        assert report.duplicate_responses.count == repeats

    @pytest.mark.slow
    @given(st.lists(st.dictionaries(texts, values, max_size=3), min_size=1, max_size=3))
    @settings(deadline=None)
    def test_any_json_in_a_message_survives(self, extras: list[dict[str, Any]]) -> None:
        responses = [[assistant(f"answer {index}", extra=extra)] for index, extra in enumerate(extras)]
        rows = [{"prompt": [user("a")], "responses": responses}]
        groups = load_groups(IterableDataset.from_generator(lambda: iter(rows)))
        assert groups[0]["responses"] == responses
        assert load_groups(groups)[0] == groups[0]
