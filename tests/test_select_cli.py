"""`mrt select`: the file, its manifest, and the same file again, whatever happens in between."""

import json
import os
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from helpers import messy
from helpers.cli import CliRunner
from helpers.processes import Started, run_python, start_python
from helpers.selecting import job, write_lines

from mrt_plugin import load_groups
from mrt_plugin import select as select_groups
from mrt_plugin.cli import app
from mrt_plugin.groups.manifest import manifest_path, read_manifest
from mrt_plugin.groups.write import sha256_of, whole_file, write_groups
from mrt_plugin.options import SelectionOptions
from mrt_plugin.pipeline.exports import export, find_rare_pair
from mrt_plugin.pipeline.files import remake, select_file


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "pool.jsonl", messy.pool(40))


def run(*arguments: Any, status: int = 0) -> Any:
    result = CliRunner().invoke(app, ["select", *map(str, arguments)])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result


class TestTheFile:
    @pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
    def test_it_is_what_select_gives(self, pool: Path, tmp_path: Path, ending: str) -> None:
        output = tmp_path / f"chosen{ending}"
        result = select_file(job(pool, output))
        expected = select_groups(load_groups(pool), "diverse_best_k", k=3, alpha=0.75, seed=7)
        assert load_groups(output).to_list() == expected.to_list()
        assert (result.output.groups, result.output.responses) == (40, 120)
        assert result.output.sha256 == sha256_of(output)
        assert result.output.bytes == output.stat().st_size

    @pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
    def test_messages_with_fields_of_their_own_survive(self, tmp_path: Path, ending: str) -> None:
        call = {"function": {"name": "add", "arguments": {"a": 2, "b": 0.1}}}
        rows = [
            {
                "id": str(number),
                "prompt": [{"role": "system", "content": "Küçük"}, {"role": "user", "content": f"2 + {number}?"}],
                "responses": [
                    [{"role": "assistant", "content": "4", "tool_calls": [call]}],
                    [{"role": "assistant", "content": "四"}],
                    [{"role": "assistant", "content": "x", "reasoning_content": "y"}],
                ],
            }
            for number in range(5)
        ]
        output = tmp_path / f"chosen{ending}"
        result = select_file(job(write_lines(tmp_path / "pool.jsonl", rows), output, {"selector": "random_k", "k": 2}))
        for group in load_groups(output):
            row = rows[int(group["id"])]
            assert group["prompt"] == row["prompt"]
            assert len(group["responses"]) == 2
            assert all(response in row["responses"] for response in group["responses"])
        remake(result.manifest, tmp_path / f"again{ending}")
        assert (tmp_path / f"again{ending}").read_bytes() == output.read_bytes()

    def test_the_ledger_ends_with_the_file(self, pool: Path, tmp_path: Path) -> None:
        result = select_file(job(pool, tmp_path / "c.jsonl", curation="default", held_out=0.2))
        result.ledger.check()
        assert [entry.rule for entry in result.ledger.entries][:3] == ["reading", "held out", "format"]
        assert result.ledger.entries[-1].rule == "selection"
        assert result.ledger.entries[0].responses_in == 240
        assert result.ledger.responses_out == result.output.responses
        assert sum(map(len, load_groups(tmp_path / "c.jsonl")["responses"])) == result.output.responses

    @pytest.mark.processes
    def test_neither_processes_nor_order_change_a_pick(self, pool: Path, tmp_path: Path) -> None:
        more = {"curation": ["default", "duplicate_responses"], "held_out": 0.2}
        first = select_file(job(pool, tmp_path / "a.jsonl", **more))
        second = select_file(job(pool, tmp_path / "b.jsonl", num_proc=2, **more))
        assert first.output.sha256 == second.output.sha256
        one, two = (path.read_text().replace('"a.', '"b.') for path in (first.manifest, second.manifest))
        assert one == two
        rows = messy.pool(40)
        random.Random(1).shuffle(rows)
        select_file(job(write_lines(tmp_path / "shuffled.jsonl", rows), tmp_path / "c.jsonl", **more))
        ordered = [{group["id"]: group for group in load_groups(tmp_path / name)} for name in ("a.jsonl", "c.jsonl")]
        assert ordered[0] == ordered[1]

    def test_scores_of_the_users_own(self, pool: Path, tmp_path: Path) -> None:
        result = select_file(
            job(
                pool,
                tmp_path / "c.jsonl",
                {"selector": "best_k", "k": 1},
                scorer=lambda prompt, responses: [-len(response) for response in responses],
            )
        )
        shortest = {row["id"]: min(map(len, row["responses"])) for row in messy.pool(40)}
        for group in load_groups(tmp_path / "c.jsonl"):
            assert group["scores"] == [-shortest[group["id"]]]
        remake(result.manifest, tmp_path / "d.jsonl")
        assert (tmp_path / "d.jsonl").read_bytes() == (tmp_path / "c.jsonl").read_bytes()

    def test_weights_from_the_scores(self, pool: Path, tmp_path: Path) -> None:
        result = select_file(job(pool, tmp_path / "c.jsonl", weights="softmax", weight_temperature=0.5))
        expected = select_groups(
            load_groups(pool), "diverse_best_k", k=3, alpha=0.75, seed=7, weights="softmax", weight_temperature=0.5
        )
        assert load_groups(tmp_path / "c.jsonl").to_list() == expected.to_list()
        remake(result.manifest, tmp_path / "d.jsonl")
        assert (tmp_path / "d.jsonl").read_bytes() == (tmp_path / "c.jsonl").read_bytes()

    def test_several_scorers_and_how_far_they_agree(self, pool: Path, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(
            "def short(prompt, responses):\n    return [-len(text) for text in responses]\n"
            "def long(prompt, responses):\n    return [len(text) for text in responses]\n"
        )
        scorer = f"{tmp_path}/mine.py:short, {tmp_path}/mine.py:long"
        result = select_file(job(pool, tmp_path / "c.jsonl", {"selector": "best_k", "k": 1}, scorer=scorer))
        assert any("would change 40 of 40 picks" in line for line in result.summary)
        header, _ = read_manifest(result.manifest)
        assert header["scorers"] == scorer.split(", ")
        for group in load_groups(tmp_path / "c.jsonl"):
            assert group["scores"] == [-len(group["responses"][0])]

    def test_adaptive_k(self, pool: Path, tmp_path: Path) -> None:
        adaptive = {"selector": "random_k", "k": 3, "allocation": "adaptive", "allocation_score": "length"}
        result = select_file(job(pool, tmp_path / "c.jsonl", adaptive))
        sizes = Counter(map(len, load_groups(tmp_path / "c.jsonl")["responses"]))
        assert result.output.responses == 120
        assert len(sizes) > 1

    def test_statistics_before_and_after(self, pool: Path, tmp_path: Path) -> None:
        found = select_file(job(pool, tmp_path / "c.jsonl", stats=True)).statistics
        assert found is not None
        assert (found["pool"]["responses"], found["selected"]["responses"]) == (240, 120)


class TestTheManifest:
    def test_it_says_what_and_how(self, pool: Path, tmp_path: Path) -> None:
        result = select_file(job(pool, tmp_path / "c.jsonl", curation=["format"], held_out=0.2))
        header, lines = read_manifest(result.manifest)
        expected = asdict(SelectionOptions("diverse_best_k", k=3, alpha=0.75))
        for name in ("scorer", "score_cache", "weights", "weight_temperature"):
            del expected[name]  # they are under other keys, or change nothing
        assert header["selection"] == {**expected, "seed": 7}
        assert header["pools"] == [{"path": str(pool), "source": None, "sha256": sha256_of(pool)}]
        assert header["curation"] == [{"format": {}}]
        assert header["output"]["sha256"] == sha256_of(tmp_path / "c.jsonl")
        assert {"python", "torch", "numpy", "datasets"} <= set(header["versions"])
        source = {row["id"]: row for row in messy.pool(40)}
        chosen = {group["id"]: group for group in load_groups(tmp_path / "c.jsonl")}
        parts = Counter()
        for line in lines:
            parts[line.get("part", "chosen")] += 1
            if "part" in line:
                continue
            row = source[line["id"]]
            assert line["scores"] == [row["scores"][index] for index in line["kept"]]
            texts = [row["responses"][index] for index in line["kept"]]
            for place, text in line.get("changed", {}).items():
                texts[int(place)] = text
            assert texts == chosen[line["id"]]["responses"]
        assert parts["chosen"] + parts["held_out"] == 40
        assert parts["held_out"] == header["held_out_output"]["groups"] > 0

    @pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
    def test_the_same_bytes_from_all_of_it_together(self, pool: Path, tmp_path: Path, ending: str) -> None:
        """Two pools with the same ids, changed responses, copies, a held-out part."""
        other = write_lines(
            tmp_path / "other.jsonl", [{**row, "prompt": row["prompt"][::-1]} for row in messy.pool(12)]
        )
        output = tmp_path / f"c{ending}"
        result = select_file(
            job(
                [pool, other],
                output,
                curation=["format", "truncation", "duplicate_prompts"],
                held_out=0.2,
                proportions={"pool": 1, "other": 1},
                total=50,
            )
        )
        assert any("#2" in line["id"] for line in read_manifest(result.manifest)[1])
        assert any("changed" in line for line in read_manifest(result.manifest)[1])
        assert Counter(name.split("/")[0] for name in load_groups(output)["id"]) == {"pool": 25, "other": 25}
        again, aside = tmp_path / f"again{ending}", tmp_path / f"aside{ending}"
        files = remake(result.manifest, again, held_out_output=aside)
        assert again.read_bytes() == output.read_bytes()
        assert result.held_out is not None
        assert aside.read_bytes() == result.held_out.path.read_bytes()
        assert [written.groups for written in files] == [50, result.held_out.groups]

    def test_another_pool_is_refused(self, pool: Path, tmp_path: Path) -> None:
        result = select_file(job(pool, tmp_path / "c.jsonl"))
        again = tmp_path / "again.jsonl"
        moved = pool.rename(tmp_path / "moved.jsonl")
        with pytest.raises(ValueError, match=r"the pool .*pool.jsonl is not there: say where"):
            remake(result.manifest, again)
        remake(result.manifest, again, pools=[str(moved)])
        assert again.read_bytes() == (tmp_path / "c.jsonl").read_bytes()
        again.unlink()
        moved.write_text(moved.read_text().replace("sea", "lake"))
        with pytest.raises(ValueError, match="not the file that was selected from"):
            remake(result.manifest, again, pools=[str(moved)])
        assert not again.exists()

    def test_bytes_that_would_differ_are_refused(self, pool: Path, tmp_path: Path) -> None:
        result = select_file(job(pool, tmp_path / "c.jsonl"))
        lines = result.manifest.read_text().splitlines(keepends=True)
        record = json.loads(lines[1])
        record["kept"] = record["kept"][::-1]
        result.manifest.write_text("".join([lines[0], json.dumps(record) + "\n", *lines[2:]]))
        with pytest.raises(ValueError, match="would not be the file that was asked for"):
            remake(result.manifest, tmp_path / "again.jsonl")
        assert not list(tmp_path.glob("*again*"))
        result.manifest.write_text("".join([lines[0], lines[1].replace('"g0"', '"g99"'), *lines[2:]]))
        with pytest.raises(ValueError, match="g99.*the pools do not have"):
            remake(result.manifest, tmp_path / "again.jsonl")

    def test_a_folder_of_save_to_disk(self, pool: Path, tmp_path: Path) -> None:
        load_groups(pool).save_to_disk(tmp_path / "folder")
        result = select_file(job(tmp_path / "folder", tmp_path / "c.jsonl"))
        assert result.output.sha256 == select_file(job(pool, tmp_path / "d.jsonl")).output.sha256
        remake(result.manifest, tmp_path / "e.jsonl")
        assert (tmp_path / "e.jsonl").read_bytes() == (tmp_path / "c.jsonl").read_bytes()

    def test_what_is_no_manifest(self, pool: Path, tmp_path: Path) -> None:
        for text in ("", "not json\n", "[1]\n", '{"id": 1}\n'):
            with pytest.raises(ValueError, match="not the manifest of a selection"):
                remake(write_text(tmp_path / "m.jsonl", text), tmp_path / "c.jsonl")
        with pytest.raises(ValueError, match="mrt-selection/99"):
            remake(write_text(tmp_path / "m.jsonl", '{"format": "mrt-selection/99"}\n'), tmp_path / "c.jsonl")
        result = select_file(job(pool, tmp_path / "c.jsonl"))
        with pytest.raises(ValueError, match=r"was a \.jsonl file"):
            remake(result.manifest, tmp_path / "c.parquet")


def write_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


class TestExports:
    def test_flat_rows(self, tmp_path: Path) -> None:
        rows = [{"id": "a", "prompt": "p", "responses": ["r", "s"], "weights": [1.0, 2.0]}]
        done = export(rows, "sft", tmp_path / "s.jsonl")
        lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
        assert lines == [
            {"prompt": "p", "completion": "r", "weight": 1.0},
            {"prompt": "p", "completion": "s", "weight": 2.0},
        ]
        assert (done.rows, done.skipped) == (2, 0)
        again = load_groups(tmp_path / "s.jsonl")
        assert again[0]["responses"] == ["r", "s"]

    def test_pairs_of_the_best_and_the_worst(self, tmp_path: Path) -> None:
        rows = [
            {"id": "a", "prompt": "p", "responses": ["r", "s", "t"], "scores": [0.5, 0.9, 0.1]},
            {"id": "b", "prompt": "q", "responses": ["r", "s"], "scores": [0.5, 0.5]},
            {"id": "c", "prompt": "q", "responses": ["r"], "scores": [0.5]},
        ]
        done = export(rows, "dpo", tmp_path / "d.jsonl")
        (line,) = map(json.loads, (tmp_path / "d.jsonl").read_text().splitlines())
        assert line == {"prompt": "p", "chosen": "s", "rejected": "t", "score_chosen": 0.9, "score_rejected": 0.1}
        assert (done.rows, done.skipped) == (1, 2)

    def test_pairs_of_a_rare_good_and_a_common_bad_response(self, tmp_path: Path) -> None:
        """Two good answers are alike and one is rare; of the bad ones, two are alike."""
        good = ["The sea is calm", "The sea is calm tonight", "Bright moons rise"]
        bad = ["I do not know that", "I do not know", "Zebra"]
        plain = ["Some words about fruit"] * 6
        row = {
            "id": "a",
            "prompt": "p",
            "responses": [*bad, *plain, *good],
            "scores": [0.0] * 3 + [0.5] * 6 + [1.0] * 3,
        }
        same = {"id": "b", "prompt": "q", "responses": ["r", "s"], "scores": [0.5, 0.5]}
        alone = {"id": "c", "prompt": "q", "responses": ["r"], "scores": [0.5]}
        done = export([row, same, alone], "divpo", tmp_path / "d.jsonl")
        (line,) = map(json.loads, (tmp_path / "d.jsonl").read_text().splitlines())
        assert (line["chosen"], done.rows, done.skipped) == ("Bright moons rise", 1, 2)
        assert line["rejected"] in bad[:2]
        assert (line["score_chosen"], line["score_rejected"]) == (1.0, 0.0)
        assert line["rarity_chosen"] > line["rarity_rejected"]

    def test_the_rare_pair_by_its_definition(self) -> None:
        """Against all pairs of a good and a bad response, over random pools with ties."""
        rng = np.random.default_rng(0)
        for _ in range(200):
            size = int(rng.integers(2, 12))
            scores = rng.integers(0, 4, size).tolist()
            vectors = rng.normal(size=(size, 3))
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            cosines = vectors @ vectors.T
            rare = [1 - np.mean([cosines[i, j] for j in range(size) if j != i]) for i in range(size)]
            ranked = sorted(scores)
            count = max(1, size // 4)
            good = [i for i in range(size) if scores[i] >= ranked[-count]]
            bad = [i for i in range(size) if scores[i] <= ranked[count - 1]]
            found = find_rare_pair(scores, cosines)
            if ranked[-count] == ranked[count - 1]:
                assert found is None
                continue
            assert found is not None
            assert found[0] in good
            assert found[1] in bad
            assert rare[found[0]] == pytest.approx(max(rare[i] for i in good), abs=1e-5)
            assert rare[found[1]] == pytest.approx(min(rare[i] for i in bad), abs=1e-5)

    def test_divpo_pairs_come_from_the_complete_pools(self, pool: Path, tmp_path: Path) -> None:
        result = select_file(job(pool, tmp_path / "c.jsonl", exports={"divpo": tmp_path / "d.jsonl"}))
        assert result.exports[0].rows > 0
        kept = {response for row in load_groups(tmp_path / "c.jsonl") for response in row["responses"]}
        lines = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
        everything = {response for row in load_groups(pool) for response in row["responses"]}
        used = {line[name] for line in lines for name in ("chosen", "rejected")}
        assert used <= everything
        assert used - kept, "some pairs have responses that were not selected"

    def test_strings_and_messages_become_alike(self, tmp_path: Path) -> None:
        said = [{"role": "assistant", "content": "r"}]
        asked = [{"role": "user", "content": "p"}]
        rows = [{"id": "a", "prompt": "p", "responses": [said]}, {"id": "b", "prompt": asked, "responses": ["r"]}]
        export(rows, "sft", tmp_path / "s.jsonl")
        lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
        assert lines == [{"prompt": asked, "completion": said}] * 2

    def test_trl_reads_both(self, pool: Path, tmp_path: Path) -> None:
        from trl.data_utils import is_conversational, maybe_extract_prompt

        exports = {"sft": tmp_path / "s.jsonl", "dpo": tmp_path / "d.jsonl"}
        result = select_file(job(pool, tmp_path / "c.jsonl", exports=exports))
        assert [item.rows for item in result.exports] == [120, 40]
        flat, pairs = (Dataset.from_json(str(path)) for path in exports.values())
        assert flat.column_names == ["prompt", "completion"]
        assert not is_conversational(flat[0])
        assert maybe_extract_prompt(pairs[0]) == pairs[0]

    def test_what_cannot_be_exported(self, tmp_path: Path) -> None:
        rows = [{"id": "a", "prompt": "p", "responses": ["r", "s"]}]
        with pytest.raises(ValueError, match="need scores"):
            export(rows, "dpo", tmp_path / "d.jsonl")
        with pytest.raises(ValueError, match="choose one of sft, dpo"):
            export(rows, "ppo", tmp_path / "d.jsonl")
        with pytest.raises(ValueError, match=r"\.jsonl"):
            export(rows, "sft", tmp_path / "d.csv")
        assert not list(tmp_path.iterdir())


CHILD = """
import sys
from pathlib import Path
from mrt_plugin.pipeline.files import select_file
from mrt_plugin.pipeline.job import PoolFile, SelectJob

pool, output = sys.argv[1:]
job = SelectJob(
    "diverse_best_k", k=3, alpha=0.75, seed=7, pools=[PoolFile(pool)], output=Path(output),
    curation=["default", "duplicate_responses"], held_out=0.2, exports={"sft": Path(output).with_suffix(".sft.jsonl")},
)
print("ready", flush=True)
select_file(job)
"""


class TestWhateverHappens:
    @pytest.mark.processes
    def test_killed_at_any_point_and_run_again(self, tmp_path: Path) -> None:
        pool = write_lines(tmp_path / "pool.jsonl", messy.pool(200))
        (tmp_path / "calm").mkdir()
        (tmp_path / "killed").mkdir()

        def begin(folder: str) -> Started:
            process = start_python(["-c", CHILD, pool, tmp_path / folder / "chosen.jsonl"])
            process.wait_for("ready")
            return process

        process, began = begin("calm"), time.monotonic()
        assert process.wait(timeout=300) == 0
        duration = time.monotonic() - began
        expected = {path.name: path.read_bytes() for path in (tmp_path / "calm").iterdir()}
        assert len(expected) == 4

        drawn = random.Random(time.time_ns())
        killed = 0
        for share in [drawn.random() for _ in range(3)] + [0.95]:
            process = begin("killed")
            time.sleep(share * duration)
            process.kill()
            killed += process.wait() != 0
            for path in (tmp_path / "killed").iterdir():  # what bears its name is whole
                assert path.name.endswith(".partial") or path.read_bytes() == expected[path.name]
        assert killed
        process = begin("killed")
        assert process.wait(timeout=300) == 0
        assert {path.name: path.read_bytes() for path in (tmp_path / "killed").iterdir()} == expected

    @pytest.mark.processes
    def test_a_disk_that_is_full(self, pool: Path, tmp_path: Path) -> None:
        script = (
            "import sys\nfrom datasets import Dataset\nfrom mrt_plugin.groups.write import write_groups\n"
            "rows = [{'id': str(n), 'prompt': 'p', 'responses': ['r' * 100]} for n in range(1000)]\n"
            "write_groups(Dataset.from_list(rows), sys.argv[1])"
        )
        target = tmp_path / "new" / "chosen.jsonl"
        done = run_python(["-c", script, target], file_size=20_000)
        assert f"File too large: '{target}'" in done.stderr
        assert list(target.parent.iterdir()) == []

    @pytest.mark.processes
    def test_a_disk_that_is_full_before_anything_is_written(self, pool: Path, tmp_path: Path) -> None:
        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

        done = subprocess.run(
            [sys.executable, "-c", "from mrt_plugin.cli import app; app()", "select", pool, "--output", "c.jsonl"],
            preexec_fn=limit,
            cwd=tmp_path,
            env={**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 1
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "File too large" in line
        assert f"writes to {tmp_path}/cache (HF_DATASETS_CACHE)" in line
        assert not (tmp_path / "c.jsonl").exists()

    def test_two_that_write_the_same_file(self, tmp_path: Path) -> None:
        target = tmp_path / "a.txt"
        with whole_file(target) as file:
            file.write(b"first")
            with pytest.raises(OSError, match="another process is writing it"), whole_file(target) as other:
                other.write(b"second")
        assert target.read_bytes() == b"first"
        assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]

    def test_an_error_leaves_what_was_there(self, tmp_path: Path) -> None:
        target = tmp_path / "a.txt"
        target.write_bytes(b"old")

        def fail() -> None:
            with whole_file(target) as file:
                file.write(b"new")
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert target.read_bytes() == b"old"
        assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]

    def test_what_a_killed_process_left_is_written_anew(self, tmp_path: Path) -> None:
        (tmp_path / ".a.jsonl.partial").write_text("half a li")
        write_groups(Dataset.from_list([{"id": "a", "prompt": "p", "responses": ["r"]}]), tmp_path / "a.jsonl")
        assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
        assert json.loads((tmp_path / "a.jsonl").read_text())["id"] == "a"


class TestTheCommand:
    def test_from_a_pool_and_from_its_manifest(self, pool: Path, tmp_path: Path) -> None:
        output = tmp_path / "c.jsonl"
        arguments = ["--selector", "diverse_best_k", "--k", 3, "--curation", "default", "--held-out", 0.2]
        more = ["--export", f"dpo={tmp_path}/d.jsonl", "--decisions", tmp_path / "why.jsonl", "--stats"]
        shown = run(pool, "--out", output, *arguments, *more).output
        assert "duplicate_prompts" in shown
        assert "held out" in shown
        assert "leakage: 0 of" in shown
        assert "task type" in shown
        assert len((tmp_path / "why.jsonl").read_text().splitlines()) > 10
        again = tmp_path / "again.jsonl"
        assert "the same bytes" in run("--from-manifest", manifest_path(output), "--output", again).output
        assert again.read_bytes() == output.read_bytes()

    def test_json(self, pool: Path, tmp_path: Path) -> None:
        shown = run(pool, "--output", tmp_path / "c.jsonl", "--selector", "random_k", "--k", 2, "--json").stdout
        found = json.loads(shown)
        assert (found["groups"], found["responses"]) == (40, 80)
        assert found["ledger"]["responses_in"] == 240
        assert found["sha256"] == sha256_of(tmp_path / "c.jsonl")
        shown = run("--from-manifest", found["manifest"], "--output", tmp_path / "d.jsonl", "--json").stdout
        assert json.loads(shown)["files"][0]["sha256"] == found["sha256"]

    @pytest.mark.parametrize("form", ["text", "list", "recipe"])
    def test_rules_from_text_a_file_and_a_recipe(self, pool: Path, tmp_path: Path, form: str) -> None:
        rules = "[format, {repetition: {min_words: 20}}]"
        if form != "text":
            text = rules if form == "list" else f"base_model: x\nmrt:\n  k: 3\n  curation: {rules}\n"
            rules = str(write_text(tmp_path / "rules.yaml", text))
        run(pool, "--output", tmp_path / "c.jsonl", "--curation", rules)
        header, _ = read_manifest(manifest_path(tmp_path / "c.jsonl"))
        assert [next(iter(rule)) for rule in header["curation"]] == ["format", "repetition"]
        assert header["curation"][1]["repetition"]["min_words"] == 20

    def test_a_mix(self, pool: Path, tmp_path: Path) -> None:
        other = write_lines(tmp_path / "other.jsonl", [{**row, "id": "o" + row["id"]} for row in messy.pool(10)])
        run(pool, other, "--output", tmp_path / "c.jsonl", "--proportion", "pool=1", "--proportion", "other=1")
        assert Counter(name[0] for name in load_groups(tmp_path / "c.jsonl")["id"]) == {"g": 25, "o": 25}

    def test_sources(self, tmp_path: Path) -> None:
        rows = [{"prompt": f"p{n}", "chosen": "good", "rejected": "bad"} for n in range(4)]
        pairs = write_lines(tmp_path / "pairs.jsonl", rows)
        run(pairs, "--source", "trl_preference", "--output", tmp_path / "c.jsonl", "--selector", "best_k", "--k", 1)
        assert load_groups(tmp_path / "c.jsonl")["responses"][:] == [["good"]] * 4
        header, _ = read_manifest(manifest_path(tmp_path / "c.jsonl"))
        assert header["pools"][0]["source"] == "trl_preference"
        remake(manifest_path(tmp_path / "c.jsonl"), tmp_path / "d.jsonl")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "say where to write"),
            (["--output", "c.jsonl"], "say what to select from"),
            (["POOL", "--output", "c.csv"], ".jsonl or a .parquet file"),
            (["nowhere.jsonl", "--output", "c.jsonl"], "no such file"),
            (["POOL", "--output", "c.jsonl", "--source", "netcar"], "nectar"),
            (["POOL", "--output", "c.jsonl", "--selector", "best"], "choose one of random_k"),
            (["POOL", "--output", "c.jsonl", "--engine", "spark"], "is not one of 'local', 'ray'"),
            (["POOL", "--output", "c.jsonl", "--curation", "refusal"], "did you mean refusals"),
            (["POOL", "--output", "c.jsonl", "--curation", "[a: b: c"], "not YAML"),
            (["POOL", "--output", "c.jsonl", "--held-out", "2"], "above 0 and below 1"),
            (["POOL", "POOL", "--output", "c.jsonl"], "two pools are called pool"),
            (["POOL", "--output", "c.jsonl", "--proportion", "pool"], "write it as in --proportion chat=0.7"),
            (
                ["POOL", "--output", "c.jsonl", "--proportion", "pool=x"],
                "pool=x: write it as in --proportion",
            ),
            (["POOL", "--output", "c.jsonl", "--proportion", "other=1"], "give one for each"),
            (["POOL", "--output", "c.jsonl", "--proportion", "pool=1", "--total", "1000"], "Lower the total to 160"),
            (["POOL", "--output", "c.jsonl", "--total", "10"], "needs --proportion"),
            (["POOL", "--output", "c.jsonl", "--export", "ppo=x.jsonl"], "choose one of sft, dpo"),
            (["POOL", "--output", "c.jsonl", "--scorer", "nowhere:f"], "No module named 'nowhere'"),
            (["POOL", "--output", "c.jsonl", "--source", "a", "--source", "b"], "2 sources for 1 pools"),
            (["--from-manifest", "POOL", "--output", "c.jsonl"], "not the manifest"),
            (["POOL", "--output", "POOL/c.jsonl"], "POOL"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(
        self, arguments: list[str], message: str, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        result = run(*(argument.replace("POOL", str(pool)) for argument in arguments), status=1)
        assert "error: " in result.output
        assert message.replace("POOL", str(pool)) in result.output
        assert not (tmp_path / "c.jsonl").exists()
        assert not list(tmp_path.glob(".*.partial"))
