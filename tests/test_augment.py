"""Generating prompts: from an endpoint or a local model, filtered, with provenance, and on to a pool."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from helpers.cli import CliRunner
from helpers.endpoint_server import Server, serve

from mrt_plugin import load_groups
from mrt_plugin.cli import app
from mrt_plugin.endpoint.jobs import Draw
from mrt_plugin.endpoint.journal import journal_path
from mrt_plugin.pipeline.augment import PROMPT_FILE, AugmentSettings, Generated, candidate_of, generate_prompts
from mrt_plugin.planning.diversity import words
from mrt_plugin.sampling import Endpoint, LocalModel, SamplingSettings, Unfinished

OWNED = [
    "Name a river that flows through two countries.",
    "Write a short letter to a friend who moved away.",
    "How many minutes are in a week?",
    "Explain why leaves turn red in autumn.",
    "Suggest three names for a small bakery.",
]


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as running:
        yield running


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    path = tmp_path / "pool.jsonl"
    rows = [{"id": f"p{number}", "prompt": text, "responses": ["a", "b"]} for number, text in enumerate(OWNED)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def bigrams(text: str) -> set[tuple[str, str]]:
    return set(pairwise(words(text)))


def r_and_d(prompts: list[str]) -> tuple[float, float]:
    every = [pair for text in prompts for pair in pairwise(words(text))]
    r = len(set(every)) / len(every)
    return r, r * len(prompts) ** 0.5


def generate(server: Server, pool: Path, output: Path, **settings: Any) -> Generated:
    how = AugmentSettings(**{"supports": (1, 2, 3), "candidates": 12, "steps": 2, **settings})
    return generate_prompts(
        load_groups(pool), Endpoint(server.url, "tiny", backoff=0.01), output, how, SamplingSettings(seed=3)
    )


class TestGenerate:
    def test_what_is_kept_and_what_it_gains(self, server: Server, pool: Path, tmp_path: Path) -> None:
        output = tmp_path / "new.jsonl"
        found = generate(server, pool, output)
        rows = rows_of(output)
        assert found.kept == len(rows) > 4
        assert len(server.asked) == found.report.wanted == 2 * 3 * 12
        # Every kept candidate was generated from prompts that were there before its step, and overlaps little.
        texts = dict(zip([f"p{number}" for number in range(5)], OWNED, strict=True))
        for step in (1, 2):
            here = [row for row in rows if row["step"] == step]
            assert here
            for row in here:
                assert row["supports"] == [texts[name] for name in row["support_ids"]]
                assert len(set(row["support_ids"])) == len(row["supports"]) in (1, 2, 3)
            texts |= {row["id"]: row["prompt"] for row in here}
        assert any(name.startswith("augmented-") for row in rows for name in row["support_ids"])
        known = list(OWNED)
        for row in rows:
            for other in [*row["supports"], *known]:
                one, two = bigrams(row["prompt"]), bigrams(other)
                assert len(one & two) / len(one | two) < 0.3
            known.append(row["prompt"])
        assert {(row["model"], row["seed"]) for row in rows} == {("tiny", 3)}
        # The gains, computed directly.
        before = list(OWNED)
        for step in (1, 2):
            here = [row for row in rows if row["step"] == step]
            for count in (1, 2, 3, None):
                (gain,) = [one for one in found.gains if (one.step, one.supports) == (step, count)]
                new = [row["prompt"] for row in here if count in (None, len(row["supports"]))]
                assert (gain.candidates, gain.kept) == (36 if count is None else 12, len(new))
                (r, d), (r_before, d_before) = r_and_d([*before, *new]), r_and_d(before)
                assert (gain.after.r, gain.after.d) == pytest.approx((r, d))
                assert (gain.r, gain.d) == pytest.approx((r - r_before, d - d_before))
                if count is None:
                    assert gain.d_at_equal is None
                else:
                    fewest = min(sum(len(row["supports"]) == other for row in here) for other in (1, 2, 3))
                    assert gain.d_at_equal == pytest.approx(r_and_d([*before, *new[:fewest]])[1] - d_before)
            before += [row["prompt"] for row in here]
        assert (found.after.r, found.after.d) == pytest.approx(r_and_d(before))
        total = sum(one.candidates - one.unusable - one.kept for one in found.gains if one.supports is None)
        assert len(found.dropped) == total
        assert sum(one.unusable for one in found.gains if one.supports is None) == found.report.cut_off > 0

    def test_the_supports_are_what_the_model_is_shown(self, server: Server, pool: Path, tmp_path: Path) -> None:
        instruction = tmp_path / "mine.txt"
        instruction.write_text("EXAMPLES\n{examples}\nNow {one} of yours.")
        generate_prompts(
            load_groups(pool),
            Endpoint(server.url, "tiny"),
            tmp_path / "new.jsonl",
            AugmentSettings(supports=(2,), candidates=20),
            SamplingSettings(),
            instruction=instruction,
        )
        shown = [body["messages"][0]["content"] for body in server.asked]
        pairs = [tuple(text for text in OWNED if text in prompt) for prompt in shown]
        assert all(len(pair) == 2 for pair in pairs)
        assert len(set(pairs)) > 5
        assert all(prompt.startswith("EXAMPLES\n1. ") and "{one} of yours" in prompt for prompt in shown)

    def test_the_same_call_resumes_and_ends_with_the_same_file(
        self, server: Server, pool: Path, tmp_path: Path
    ) -> None:
        whole, output = tmp_path / "whole.jsonl", tmp_path / "new.jsonl"
        generate(server, pool, whole)
        asked = len(server.asked)
        server.behave = lambda number, body: "ok" if number < asked + 20 else "say 401 stopped"
        with pytest.raises(RuntimeError):
            generate(server, pool, output)
        assert not output.exists()
        server.behave = lambda number, body: "ok"
        found = generate(server, pool, output)
        assert 0 < found.report.reused < asked
        assert found.report.requests == asked - found.report.reused
        assert output.read_bytes() == whole.read_bytes()
        assert generate(server, pool, output).report.requests == 0

    def test_failures_are_named(self, server: Server, pool: Path, tmp_path: Path) -> None:
        """A rejected request is counted; one that fails for another reason must be repeated."""
        server.behave = lambda number, body: "say 422 unfit" if number % 4 == 3 else "ok"
        one = Endpoint(server.url, "tiny", concurrency=1)
        how = AugmentSettings(supports=(2,), candidates=12)
        found = generate_prompts(load_groups(pool), one, tmp_path / "new.jsonl", how, SamplingSettings())
        assert found.report.rejected == 3
        assert found.gains[-1].unusable == 3 + found.report.cut_off
        endpoint = Endpoint(server.url, "tiny", backoff=0.01, retries=0)
        server.behave = lambda number, body: "ok" if number % 5 else "500"
        with pytest.raises(Unfinished, match=r"of 36 candidates of step 1 could not be had .* goes on from there"):
            generate_prompts(
                load_groups(pool),
                endpoint,
                tmp_path / "other.jsonl",
                AugmentSettings(supports=(1, 2, 3), candidates=12),
                SamplingSettings(),
            )

    @pytest.mark.parametrize(
        ("text", "reason", "expected"),
        [
            ("  Name a lake.\n", "stop", "Name a lake."),
            ('"Name a lake."', "stop", "Name a lake."),
            ("“Name a lake.”", "stop", "Name a lake."),
            ('"Hi" and "there"', "stop", '"Hi" and "there"'),
            ("New task: Name a lake.", "stop", "Name a lake."),
            ("**Task 3:** Name a lake.", "stop", "Name a lake."),
            ("3. Name a lake.", "stop", "Name a lake."),
            ("Task scheduling: explain it.", "stop", "Task scheduling: explain it."),
            ("3 lakes, please", "stop", "3 lakes, please"),
            ("Name a lake", "length", None),
            ("Name a lake.", None, "Name a lake."),
            (' "" ', "stop", None),
            ("\u200b", "stop", None),
        ],
    )
    def test_replies(self, text: str, reason: str | None, expected: str | None) -> None:
        assert candidate_of(Draw(text, reason)) == expected

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"supports": ()}, "must be different whole numbers"),
            ({"supports": (2, 2)}, "must be different whole numbers"),
            ({"supports": (6,)}, "there are only 5 prompts"),
            ({"candidates": 0}, "candidates=0"),
            ({"threshold": 2.0}, "threshold=2.0"),
        ],
    )
    def test_settings(self, settings: Any, words: str, server: Server, pool: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=words):
            generate(server, pool, tmp_path / "new.jsonl", **settings)

    def test_prompts_of_messages_stay_messages(self, server: Server, tmp_path: Path) -> None:
        path = tmp_path / "chats.jsonl"
        rows = [{"prompt": [{"role": "user", "content": text}], "responses": ["a"]} for text in OWNED]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        generate(server, path, tmp_path / "new.jsonl")
        assert all(row["prompt"][0]["role"] == "user" for row in rows_of(tmp_path / "new.jsonl"))

    def test_the_instruction_of_the_package_has_a_place_for_the_supports(self) -> None:
        assert PROMPT_FILE.read_text().count("{examples}") == 1


class TestTheChain:
    """`mrt augment`, `mrt sample`, `mrt select`: from prompts to what is trained on."""

    def run(self, *arguments: Any) -> Any:
        done = CliRunner().invoke(app, [*map(str, arguments)])
        assert done.exit_code == 0, done.output + repr(done.exception)
        return done

    def test_with_an_endpoint(self, server: Server, pool: Path, tmp_path: Path) -> None:
        new, drawn, chosen = tmp_path / "new.jsonl", tmp_path / "drawn.jsonl", tmp_path / "chosen.jsonl"
        source = ["--endpoint", server.url, "--model", "tiny"]
        options = ["--supports", "1,2", "--per-step", 15, "--steps", 2, "--seed", 1]
        shown = self.run("augment", "--data", pool, "--output", new, *source, *options).stdout
        assert "step 2, n = 2" in shown
        again = json.loads(self.run("augment", "--data", pool, "--output", new, *source, *options, "--json").stdout)
        assert again["report"]["reused"] == again["report"]["wanted"] == 60
        assert again["kept"] == len(rows_of(new)) > 2
        self.run("sample", new, *source, "--n", 6, "--output", drawn)
        self.run("select", drawn, "--selector", "random_k", "--k", 2, "--output", chosen)
        groups = load_groups(chosen)
        provenance = {row["id"]: row for row in rows_of(new)}
        assert set(groups["id"]) <= provenance.keys()
        assert len(groups) > 2
        for group in groups:
            assert provenance[group["id"]]["prompt"] == group["prompt"]
            assert len(group["responses"]) <= 2

    def test_with_a_local_model(self, pool: Path, tmp_path: Path, tiny_model_dir: str) -> None:
        """The tiny model's texts are noise, which a full stop ends."""
        new, drawn, chosen = tmp_path / "new.jsonl", tmp_path / "drawn.jsonl", tmp_path / "chosen.jsonl"
        ends = ["--model", tiny_model_dir, "--max-tokens", 40, "--stop", "e"]
        self.run("augment", "--data", pool, "--output", new, *ends, "--supports", "2", "--per-step", 24)
        rows = rows_of(new)
        assert {row["model"] for row in rows} == {tiny_model_dir}
        assert len(rows) > 1
        self.run("sample", new, *ends, "--n", 3, "--keep-cut-off", "--output", drawn)
        self.run("select", drawn, "--selector", "random_k", "--k", 1, "--output", chosen)
        assert set(load_groups(chosen)["id"]) <= {row["id"] for row in rows}

    def test_a_local_model_is_named_in_the_journal(self, pool: Path, tmp_path: Path, tiny_model_dir: str) -> None:
        settings, output = AugmentSettings(candidates=2), tmp_path / "new.jsonl"
        generate_prompts(
            load_groups(pool), LocalModel(tiny_model_dir), output, settings, SamplingSettings(max_tokens=4)
        )
        header = json.loads(journal_path(output).read_text().splitlines()[0])
        assert header["settings"]["model"] == tiny_model_dir
        with pytest.raises(ValueError, match="made with other settings"):
            generate_prompts(
                load_groups(pool), LocalModel(tiny_model_dir), output, settings, SamplingSettings(max_tokens=5)
            )

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ("augment --data pool.jsonl --output new.jsonl", "give a file of candidates, or what generates them"),
            ("augment pool.jsonl --data pool.jsonl --output n.jsonl --steps 2", "--steps 2 changes nothing here"),
            ("augment --data pool.jsonl --output n.jsonl --model gone/model/x", "there is no folder"),
            (
                "augment --data pool.jsonl --output n.jsonl --endpoint http://x --supports 0",
                "--supports 0: write whole",
            ),
            ("augment --data pool.jsonl --output n.jsonl --endpoint http://x --instruction no.txt", "no such file"),
            ("augment --data pool.jsonl --output pool.jsonl --endpoint http://x", "the same file"),
        ],
    )
    def test_refusals(
        self, arguments: str, words: str, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        done = CliRunner().invoke(app, arguments.split())
        assert done.exit_code == 1
        assert words in " ".join(done.output.split())

    def test_nothing_new_and_a_file_of_another_command(self, server: Server, pool: Path, tmp_path: Path) -> None:
        output = tmp_path / "new.jsonl"
        command = ["augment", "--data", pool, "--endpoint", server.url, "--model", "tiny", "--output", output]
        shown = self.run(*command, "--per-step", 5, "--ngram", 9).stdout
        assert output.read_text() == ""
        assert "Nothing new: raise --threshold" in shown
        assert "Next:" not in shown
        output.with_name("new.jsonl.journal").unlink()
        done = CliRunner().invoke(app, [*map(str, command)])
        assert done.exit_code == 1
        assert "not from this command" in done.output

    def test_an_instruction_without_a_place(self, server: Server, pool: Path, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("Write a task.")
        arguments = ["--data", pool, "--output", tmp_path / "n.jsonl", "--instruction", tmp_path / "mine.txt"]
        done = CliRunner().invoke(app, ["augment", *map(str, arguments), "--endpoint", server.url, "--model", "tiny"])
        assert done.exit_code == 1
        assert "write {examples} once" in done.output
