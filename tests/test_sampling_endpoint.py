"""Sampling from an endpoint: a real HTTP server on loopback that answers, fails, and cuts off."""

import json
import random
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.endpoint_server import Server, serve
from helpers.processes import run_python, start_python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrt_plugin import load_groups
from mrt_plugin.endpoint.jobs import Draw, Reply
from mrt_plugin.endpoint.journal import Journal
from mrt_plugin.evaluation.cases import read_cases
from mrt_plugin.evaluation.subject import read_samples
from mrt_plugin.groups import DataError
from mrt_plugin.pipeline.files import select_file
from mrt_plugin.pipeline.job import PoolFile, SelectJob
from mrt_plugin.sampling import Endpoint, EndpointError, SamplingSettings, Unfinished, sample_pool

PROMPTS = [
    {"prompt": [{"role": "user", "content": "Name a colour."}]},
    {"id": "mine", "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A number?"}]},
    {"prompt": [{"role": "user", "content": "日本の海は?"}]},
]
FAILURES = ["500", "503", "429", "cut off", "half a body", "reset", "garbage", "html", "no choices", "empty choices"]


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as running:
        yield running


def endpoint(server: Server, **more: Any) -> Endpoint:
    return Endpoint(server.url, "tiny", **{"backoff": 0.01, **more})


def prompts(folder: Path, rows: list[Any] | None = None) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows or PROMPTS))
    return path


def many(count: int) -> list[Any]:
    return [{"prompt": f"Prompt {number}?"} for number in range(count)]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class TestPool:
    def test_what_is_written(self, tmp_path: Path, server: Server) -> None:
        how = SamplingSettings(temperature=0.8, top_p=0.9, max_tokens=64, stop=("END",), seed=3)
        report = sample_pool(prompts(tmp_path), endpoint(server), tmp_path / "pool.jsonl", n=8, settings=how)
        rows = rows_of(tmp_path / "pool.jsonl")
        assert [row["prompt"] for row in rows] == [row["prompt"] for row in PROMPTS]
        assert rows[1]["id"] == "mine"
        for row in rows:
            assert len(row["responses"]) + len(row["truncated"]) == 8
            assert set(row["finish_reasons"]) == {"stop"}
            draws = [sample["draw"] for sample in (*row["samples"], *row["truncated"])]
            assert sorted(draws) == list(range(8))
            assert row["samples"][0] == {
                "draw": draws[0],
                "model": "tiny",
                "temperature": 0.8,
                "top_p": 0.9,
                "max_tokens": 64,
                "stop": ["END"],
                "seed": 3,
            }
        cut_off = [sample for row in rows for sample in row["truncated"]]
        assert len(cut_off) == report.cut_off > 0
        assert {sample["finish_reason"] for sample in cut_off} == {"length"}
        assert report.whole + report.cut_off == report.wanted == 24
        assert len(server.asked) == report.requests == 3
        assert server.asked[0] | {"messages": [], "seed": 0} == {
            "model": "tiny",
            "n": 8,
            "temperature": 0.8,
            "top_p": 0.9,
            "max_tokens": 64,
            "stop": ["END"],
            "messages": [],
            "seed": 0,
        }
        assert len({body["seed"] for body in server.asked}) == 3

    def test_load_groups_reads_it(self, tmp_path: Path, server: Server) -> None:
        sample_pool(prompts(tmp_path, many(5)), endpoint(server), tmp_path / "pool.jsonl", n=4)
        groups = load_groups(tmp_path / "pool.jsonl")
        assert len(groups) == 5
        assert groups["finish_reasons"][0] == ["stop"] * len(groups["responses"][0])

    def test_cut_off_responses_can_be_kept_marked(self, tmp_path: Path, server: Server) -> None:
        sample_pool(prompts(tmp_path), endpoint(server), tmp_path / "pool.jsonl", n=8, keep_cut_off=True)
        for row in rows_of(tmp_path / "pool.jsonl"):
            assert len(row["responses"]) == len(row["finish_reasons"]) == 8
            assert row["truncated"] == []
            assert [sample["draw"] for sample in row["samples"]] == list(range(8))

    @pytest.mark.parametrize("api", ["chat", "completions"])
    def test_log_probabilities_of_both_apis(self, tmp_path: Path, server: Server, api: Any) -> None:
        how = SamplingSettings(logprobs=True)
        path = prompts(tmp_path, many(2))
        sample_pool(path, endpoint(server, api=api), tmp_path / "pool.jsonl", n=6, settings=how)
        for row in rows_of(tmp_path / "pool.jsonl"):
            for text, sample in zip(row["responses"], row["samples"], strict=True):
                assert text
                assert set(sample["logprobs"]) == ({-0.5} if api == "chat" else {-0.25})
                assert sample["tokens"] == len(sample["logprobs"])
        assert ("messages" in server.asked[0]) == (api == "chat")

    def test_an_endpoint_that_ignores_n(self, tmp_path: Path, server: Server) -> None:
        server.behave = lambda number, body: "one choice"
        sample_pool(prompts(tmp_path, many(2)), endpoint(server), tmp_path / "pool.jsonl", n=5)
        assert len(server.asked) == 10
        assert len({body["seed"] for body in server.asked}) == 10
        assert sum(len(row["responses"]) + len(row["truncated"]) for row in rows_of(tmp_path / "pool.jsonl")) == 10

    def test_extra_fields(self, tmp_path: Path, server: Server) -> None:
        extra = {"top_k": 20, "max_tokens": None, "max_completion_tokens": 9}
        sample_pool(prompts(tmp_path), endpoint(server, extra=extra), tmp_path / "pool.jsonl", n=1)
        assert server.asked[0]["top_k"] == 20
        assert server.asked[0]["max_completion_tokens"] == 9
        assert "max_tokens" not in server.asked[0]

    def test_unknown_endings_are_counted_and_a_surrogate_is_mended(
        self, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        choice = {"message": {"content": "half \ud83d"}, "finish_reason": None}
        ended = {"message": {"content": "whole"}, "finish_reason": "\ud83d"}
        monkeypatch.setattr("helpers.endpoint_server.answer", lambda body: {"model": "m\ud83d", "choices": [choice]})
        report = sample_pool(prompts(tmp_path, many(1)), endpoint(server), tmp_path / "pool.jsonl", n=1)
        assert report.unknown == 1
        assert rows_of(tmp_path / "pool.jsonl")[0]["responses"] == ["half \ufffd"]
        assert rows_of(tmp_path / "pool.jsonl")[0]["finish_reasons"] == [None]
        monkeypatch.setattr("helpers.endpoint_server.answer", lambda body: {"model": 7, "choices": [ended]})
        sample_pool(prompts(tmp_path, many(1)), endpoint(server), tmp_path / "ended.jsonl", n=1, keep_cut_off=True)
        row = rows_of(tmp_path / "ended.jsonl")[0]
        assert (row["finish_reasons"], row["samples"][0]["model"]) == (["\ufffd"], "7")

    def test_the_only_model_is_found_out(self, tmp_path: Path, server: Server) -> None:
        sample_pool(prompts(tmp_path), Endpoint(server.url), tmp_path / "pool.jsonl", n=1)
        assert server.asked[0]["model"] == "tiny"
        server.models = ["a", 7]
        with pytest.raises(EndpointError, match="has 2 models; name one: a, 7"):
            sample_pool(prompts(tmp_path), Endpoint(server.url), tmp_path / "other.jsonl", n=1)

    @pytest.mark.parametrize("end", ["", "/", "/chat/completions", "/chat/completions?api-version=1"])
    def test_addresses(self, tmp_path: Path, server: Server, end: str) -> None:
        sample_pool(prompts(tmp_path), Endpoint(server.url + end, "tiny"), tmp_path / "pool.jsonl", n=1)
        assert len(server.asked) == 3


class TestExtend:
    def test_a_pool_of_rankings_is_filled_up(self, tmp_path: Path, server: Server) -> None:
        path = prompts(
            tmp_path,
            [
                {"id": "a", "prompt": "p", "responses": ["x", "y"], "scores": [1.0, 0.0]},
                {"id": "b", "prompt": "q", "responses": list("vwxyz"), "scores": [0.0] * 5},
            ],
        )
        report = sample_pool(path, endpoint(server), tmp_path / "pool.jsonl", n=4, extend=True, keep_cut_off=True)
        first, second = rows_of(tmp_path / "pool.jsonl")
        assert first["responses"][:2] == ["x", "y"]
        assert len(first["responses"]) == len(first["finish_reasons"]) == 4
        assert first["samples"][:2] == [None, None]
        assert first["scores_before"] == [1.0, 0.0, None, None]
        assert "scores" not in first
        assert second["responses"] == list("vwxyz")
        assert report.wanted == len(server.asked) * 2 == 2
        assert len(load_groups(tmp_path / "pool.jsonl")["responses"][0]) == 4

    def test_a_full_pool_keeps_its_scores(self, tmp_path: Path, server: Server) -> None:
        path = prompts(tmp_path, [{"prompt": "p", "responses": ["x", "y"], "scores": [1.0, 0.0]}])
        sample_pool(path, endpoint(server), tmp_path / "pool.jsonl", n=2, extend=True)
        assert rows_of(tmp_path / "pool.jsonl")[0]["scores"] == [1.0, 0.0]
        assert server.asked == []

    def test_a_sampled_pool_gets_new_draws(self, tmp_path: Path, server: Server) -> None:
        """Numbered on from the highest draw ever made, also where it was cut off or never reached the pool."""
        path, first, second = prompts(tmp_path, many(3)), tmp_path / "first.jsonl", tmp_path / "second.jsonl"
        sample_pool(path, endpoint(server), first, n=7)
        sample_pool(path, endpoint(server), first, n=4)
        assert any(row["truncated"] for row in rows_of(first))
        sample_pool(first, endpoint(server), second, n=8, extend=True)
        sample_pool(second, endpoint(server), tmp_path / "third.jsonl", n=10, extend=True)
        for before, row in zip(rows_of(first), rows_of(tmp_path / "third.jsonl"), strict=True):
            assert row["responses"][: len(before["responses"])] == before["responses"]
            assert row["samples"][: len(before["samples"])] == before["samples"]
            assert row["truncated"][: len(before["truncated"])] == before["truncated"]
            draws = [how["draw"] for how in [*row["samples"], *row["truncated"]]]
            assert len(draws) == len(set(draws))
            assert not {4, 5, 6} & set(draws)
        requests = [(str(body["messages"]), body["seed"]) for body in server.asked]
        assert len(requests) == len(set(requests))

    def test_in_place(self, tmp_path: Path, server: Server) -> None:
        path, pool = prompts(tmp_path, many(3)), tmp_path / "pool.jsonl"
        sample_pool(path, endpoint(server), pool, n=4, keep_cut_off=True)
        before = rows_of(pool)
        server.asked.clear()
        report = sample_pool(pool, endpoint(server), pool, n=8, extend=True, keep_cut_off=True)
        assert report.wanted == sum(body["n"] for body in server.asked) == 12
        assert report.reused == 0
        for old, row in zip(before, rows_of(pool), strict=True):
            assert row["responses"][:4] == old["responses"]
            assert [how["draw"] for how in row["samples"]] == list(range(8))
            assert len(set(row["responses"])) > 5
        server.asked.clear()
        sample_pool(pool, endpoint(server), pool, n=8, extend=True, keep_cut_off=True)
        assert server.asked == []

    def test_in_place_after_a_stop(self, tmp_path: Path, server: Server) -> None:
        """Draws that are in the journal, and not in the pool yet, are not made again."""
        path, pool, calm = prompts(tmp_path, many(3)), tmp_path / "pool.jsonl", tmp_path / "calm.jsonl"
        for output in (pool, calm):
            sample_pool(path, endpoint(server), output, n=2)
        start = len(server.asked)
        server.behave = lambda number, body: "ok" if number < start + 5 else "500"
        with pytest.raises(Unfinished):
            sample_pool(pool, endpoint(server, per_request=1, retries=0, concurrency=1), pool, n=6, extend=True)
        server.behave = lambda number, body: "ok"
        sample_pool(pool, endpoint(server, per_request=1), pool, n=6, extend=True)
        sample_pool(calm, endpoint(server, per_request=1), calm, n=6, extend=True)
        assert pool.read_bytes() == calm.read_bytes()
        row = rows_of(pool)[0]
        assert {how["draw"] for how in [*row["samples"], *row["truncated"]]} >= {2, 3, 4, 5}

    def test_in_place_only_for_a_pool_of_this_command(self, tmp_path: Path, server: Server) -> None:
        path = prompts(tmp_path, [{"id": "a", "prompt": "p", "responses": ["x"]}])
        with pytest.raises(ValueError, match="same file"):
            sample_pool(path, endpoint(server), path, n=2, extend=True)
        assert len(path.read_text().splitlines()) == 1

    def test_a_selection_of_a_sampled_pool_gets_new_draws(self, tmp_path: Path, server: Server) -> None:
        """`mrt select` keeps no draw numbers: none of the draws behind the pool may come again."""
        path, pool, chosen = prompts(tmp_path, many(3)), tmp_path / "pool.jsonl", tmp_path / "chosen.jsonl"
        sample_pool(path, endpoint(server, per_request=1), pool, n=8)
        select_file(SelectJob(k=2, pools=[PoolFile(str(pool))], output=chosen))
        sample_pool(chosen, endpoint(server, per_request=1), tmp_path / "more.jsonl", n=6, extend=True)
        more = tmp_path / "more.jsonl"
        sample_pool(more, endpoint(server, per_request=1), tmp_path / "most.jsonl", n=9, extend=True)
        requests = [(str(body["messages"]), body["seed"]) for body in server.asked]
        assert len(requests) == len(set(requests))

    def test_a_prompt_whose_draws_were_all_cut_off_stays(self, tmp_path: Path, server: Server) -> None:
        row = {"id": "b", "prompt": "q", "responses": [], "finish_reasons": [], "samples": []}
        cut = {"text": "half", "finish_reason": "length", "draw": 0, "model": "tiny"}
        path = prompts(tmp_path, [{"id": "a", "prompt": "p", "responses": ["x"]}, {**row, "truncated": [cut]}])
        sample_pool(path, endpoint(server), tmp_path / "pool.jsonl", n=3, extend=True, keep_cut_off=True)
        found = {row["id"]: row for row in rows_of(tmp_path / "pool.jsonl")}
        assert len(found["b"]["responses"]) == 3
        assert found["b"]["truncated"] == [cut]
        assert [how["draw"] for how in found["b"]["samples"]] == [1, 2, 3]

    def test_scores_from_before_stay(self, tmp_path: Path, server: Server) -> None:
        path = prompts(tmp_path, [{"id": "a", "prompt": "p", "responses": ["x", "y"], "scores": [1.0, 0.0]}])
        pool = tmp_path / "pool.jsonl"
        for n, data in ((3, path), (4, pool)):
            sample_pool(data, endpoint(server), pool, n=n, extend=True, keep_cut_off=True)
        assert rows_of(pool)[0]["scores_before"] == [1.0, 0.0, None, None]

    def test_samples_are_those_of_the_model_that_drew_last(self, tmp_path: Path, server: Server) -> None:
        path, pool = prompts(tmp_path, many(1)), tmp_path / "pool.jsonl"
        sample_pool(path, endpoint(server), tmp_path / "first.jsonl", n=3, keep_cut_off=True)
        other = Endpoint(server.url, "other", backoff=0.01)
        sample_pool(tmp_path / "first.jsonl", other, pool, n=5, extend=True, keep_cut_off=True)
        (row,) = rows_of(pool)
        assert [how["model"] for how in row["samples"]] == ["tiny"] * 3 + ["other"] * 2
        (found,) = read_samples(pool, read_cases(pool))
        assert [one.text for one in found] == row["responses"][3:]

    def test_pools_of_messages_and_named_sources(self, tmp_path: Path, server: Server) -> None:
        source = Path(__file__).parent / "data" / "sources" / "trl_completion.jsonl"
        output = tmp_path / "pool.jsonl"
        sample_pool(source, endpoint(server), output, n=3, extend=True, source="trl_completion", keep_cut_off=True)
        groups = load_groups(output)
        assert [len(pool) for pool in groups["responses"]] == [3, 3]
        assert groups["responses"][0][2][0]["role"] == "assistant"


class TestFailures:
    @pytest.fixture
    def undisturbed(self, tmp_path: Path) -> bytes:
        with serve() as server:
            sample_pool(prompts(tmp_path), endpoint(server), tmp_path / "undisturbed.jsonl", n=4)
        return (tmp_path / "undisturbed.jsonl").read_bytes()

    @pytest.mark.parametrize("failure", [*FAILURES, "wrong types", "wait"])
    def test_every_kind_is_tried_again(self, failure: str, tmp_path: Path, undisturbed: bytes, server: Server) -> None:
        server.behave = lambda number, body: failure if number % 2 == 0 else "ok"
        report = sample_pool(prompts(tmp_path), endpoint(server, concurrency=1), tmp_path / "pool.jsonl", n=4)
        assert (tmp_path / "pool.jsonl").read_bytes() == undisturbed
        assert report.retries == 3

    @pytest.mark.parametrize("failure", ["hang", "drip"])
    def test_an_answer_that_takes_too_long(
        self, failure: str, tmp_path: Path, undisturbed: bytes, server: Server
    ) -> None:
        server.behave = lambda number, body: failure if number == 0 else "ok"
        began = time.monotonic()
        sample_pool(prompts(tmp_path), endpoint(server, timeout=0.5), tmp_path / "pool.jsonl", n=4)
        assert time.monotonic() - began < 4
        assert (tmp_path / "pool.jsonl").read_bytes() == undisturbed

    @pytest.mark.slow
    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(script=st.lists(st.sampled_from([*FAILURES, "ok", "one choice"]), max_size=12), workers=st.integers(1, 4))
    def test_any_mixture(
        self, script: list[str], workers: int, tmp_path_factory: pytest.TempPathFactory, server: Server
    ) -> None:
        folder = tmp_path_factory.mktemp("mixture")
        start = len(server.asked)
        server.behave = lambda number, body: dict(enumerate(script, start)).get(number, "ok")
        sampler = endpoint(server, per_request=1, concurrency=workers, retries=12, backoff=0.001)
        sample_pool(prompts(folder), sampler, folder / "pool.jsonl", n=2)
        server.behave = lambda number, body: "ok"
        sample_pool(prompts(folder), endpoint(server, per_request=1), folder / "calm.jsonl", n=2)
        assert (folder / "pool.jsonl").read_bytes() == (folder / "calm.jsonl").read_bytes()

    def test_a_prompt_that_is_turned_away(self, tmp_path: Path, server: Server) -> None:
        def behave(number: int, body: dict[str, Any]) -> str:
            return "400" if "Prompt 3?" in str(body["messages"]) else "ok"

        server.behave = behave
        path = prompts(tmp_path, many(6))
        report = sample_pool(path, endpoint(server, concurrency=1), tmp_path / "pool.jsonl", n=2)
        assert report.rejected == 1
        assert "as you like: 400" in report.first_rejection
        assert [row["prompt"][7] for row in rows_of(tmp_path / "pool.jsonl")] == list("01245")
        asked = len(server.asked)
        assert sample_pool(path, endpoint(server), tmp_path / "pool.jsonl", n=2).rejected == 1
        assert len(server.asked) == asked

    def test_a_request_that_is_wrong_for_the_endpoint_is_no_verdict_on_the_prompts(
        self, tmp_path: Path, server: Server
    ) -> None:
        server.behave = lambda number, body: "400" if "top_k" in body else "ok"
        path, output = prompts(tmp_path, many(30)), tmp_path / "pool.jsonl"
        with pytest.raises(EndpointError, match="8 requests in a row failed"):
            sample_pool(path, endpoint(server, extra={"top_k": 1}), output, n=1)
        assert len(server.asked) < 30
        assert sample_pool(path, endpoint(server), output, n=1).wanted == 30
        assert len(rows_of(output)) >= 20

    @pytest.mark.parametrize("status", ["401", "403", "404", "302"])
    def test_mistakes_stop_at_once(self, status: str, tmp_path: Path, server: Server) -> None:
        server.behave = lambda number, body: status
        with pytest.raises(EndpointError, match=f"HTTP {status}"):
            sample_pool(prompts(tmp_path), endpoint(server, concurrency=1), tmp_path / "pool.jsonl", n=2)
        assert len(server.asked) == 1
        assert not (tmp_path / "pool.jsonl").exists()

    def test_an_endpoint_that_goes_away_and_comes_back(self, tmp_path: Path) -> None:
        path, output = prompts(tmp_path, many(40)), tmp_path / "pool.jsonl"
        with serve() as server:
            url, port = server.url, server.server_address[1]
            server.behave = lambda number, body: "ok" if number < 10 else "reset"
            with pytest.raises(EndpointError, match="goes on from there"):
                sample_pool(path, Endpoint(url, "tiny", backoff=0.01, retries=1, concurrency=2), output, n=2)
        with pytest.raises(EndpointError, match="ConnectError"):
            sample_pool(path, Endpoint(url, "tiny", backoff=0.01, retries=1), output, n=2)
        assert not output.exists()
        with serve(port) as server:
            report = sample_pool(path, Endpoint(url, "tiny", backoff=0.01), output, n=2)
            assert len(server.asked) == 30
            sample_pool(path, endpoint(server), tmp_path / "calm.jsonl", n=2)
        assert report.reused == 20
        assert output.read_bytes() == (tmp_path / "calm.jsonl").read_bytes()

    def test_some_draws_that_cannot_be_had(self, tmp_path: Path, server: Server) -> None:
        server.behave = lambda number, body: "500" if "Prompt 2?" in str(body["messages"]) else "ok"
        path, output = prompts(tmp_path, many(4)), tmp_path / "pool.jsonl"
        with pytest.raises(Unfinished, match=r"2 of 8 draws could not be had \(after 2 tries: HTTP 500"):
            sample_pool(path, endpoint(server, retries=1), output, n=2)
        assert not output.exists()
        report = sample_pool(path, endpoint(server, retries=0), output, n=2, partial=True)
        assert report.unfinished == 2
        assert len(rows_of(output)) == 3

    def test_nothing_at_all_is_no_pool(self, tmp_path: Path, server: Server) -> None:
        server.behave = lambda number, body: "500"
        with pytest.raises(ValueError, match="no prompt got a response"):
            sample_pool(prompts(tmp_path), endpoint(server, retries=0), tmp_path / "pool.jsonl", n=1, partial=True)
        assert not (tmp_path / "pool.jsonl").exists()

    def test_the_key_is_sent_and_never_written(
        self, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("SOME_KEY", "sk-very-secret")
        server.behave = lambda number, body: ["ok", "echo key, 500", "echo key, 500", "echo key"][min(number, 3)]
        with pytest.raises(Unfinished) as first:
            sample_pool(
                prompts(tmp_path, many(2)),
                endpoint(server, api_key_env="SOME_KEY", retries=1, concurrency=1),
                tmp_path / "pool.jsonl",
                n=1,
            )
        sampler = endpoint(server, api_key_env="SOME_KEY")
        with pytest.raises(EndpointError, match="API key is missing or wrong") as second:
            sample_pool(prompts(tmp_path, many(2)), sampler, tmp_path / "pool.jsonl", n=1)
        assert server.headers[0]["Authorization"] == "Bearer sk-very-secret"
        shown = f"{first.value}{second.value}{caplog.text}{sampler!r}"
        assert "***" in shown
        assert "secret" not in shown
        assert all(b"secret" not in path.read_bytes() for path in tmp_path.iterdir())

    @pytest.mark.slow
    @pytest.mark.parametrize(("status", "step"), [("500", 1), ("200", 6), ("400", 6), ("401", 6)])
    @pytest.mark.parametrize("key", ["sk-very-secret-0123456789", 'sk/"quoted\\"/0123456789'])
    def test_a_key_anywhere_in_a_body(
        self, status: str, step: int, key: str, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No three characters of it are shown, wherever the message cuts the body."""
        monkeypatch.setenv("SOME_KEY", key)
        sampler = endpoint(server, api_key_env="SOME_KEY", retries=0)
        begins = json.dumps({"error": key}).index("sk")
        for before in range(200 - begins - len(key) - 6, 204 - begins, step):
            server.behave = lambda number, body, before=before: f"say {status} {'x' * before}{key}"
            with pytest.raises((EndpointError, Unfinished)) as found:
                sample_pool(prompts(tmp_path, many(1)), sampler, tmp_path / "pool.jsonl", n=1)
            said = str(found.value).replace("xxx", "")
            assert not any(key[place : place + 3] in said for place in range(len(key) - 2))
            assert all(b"789" not in path.read_bytes() for path in tmp_path.iterdir())

    def test_secrets_of_the_address_and_of_further_fields(
        self, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        extra = {"api_key": "sk-body-0123456789", "headers": {"Authorization": "Bearer sk-header-0123456789"}}
        url = f"{server.url}?key=sk-query-0123456789&api-version=1"
        server.behave = lambda number, body: ["ok", "say 500 sk-body-0123456789 sk-header-0123456789"][min(number, 1)]
        sampler = Endpoint(url, "tiny", extra=extra, retries=0, concurrency=1)
        with pytest.raises(Unfinished) as first:
            sample_pool(prompts(tmp_path, many(2)), sampler, tmp_path / "pool.jsonl", n=1)
        server.behave = lambda number, body: "say 404 sk-query-0123456789"
        with pytest.raises(EndpointError, match="api-version=1") as second:
            sample_pool(prompts(tmp_path, many(2)), sampler, tmp_path / "pool.jsonl", n=1)
        assert "HTTP Request: POST" in caplog.text
        assert server.asked[0]["api_key"] == "sk-body-0123456789"
        assert "0123456789" not in f"{first.value}{second.value}{caplog.text}{sampler!r}"
        assert all(b"0123456789" not in path.read_bytes() for path in tmp_path.iterdir())
        for wrong in ("ftp://me:pass-word@host/v1", "me:pass-word@host:80", "http://host:port?key=pass-word"):
            with pytest.raises(EndpointError) as refused:
                Endpoint(wrong)
            assert "pass-word" not in str(refused.value)

    def test_a_key_in_a_good_reply_is_masked_and_a_word_is_not(
        self, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for key, kept in (("sk-very-secret-0123456789", False), ("EMPTY", True)):
            monkeypatch.setenv("SOME_KEY", key)
            choice = {"message": {"content": f"It is {key}."}, "finish_reason": "stop"}
            monkeypatch.setattr("helpers.endpoint_server.answer", lambda body, choice=choice: {"choices": [choice]})
            output = tmp_path / f"{kept}.jsonl"
            sample_pool(prompts(tmp_path, many(1)), endpoint(server, api_key_env="SOME_KEY"), output, n=1)
            assert (key in rows_of(output)[0]["responses"][0]) == kept
            assert key in (tmp_path / f"{kept}.jsonl.journal").read_text() or not kept

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"url": "localhost:8000"}, "is not an address"),
            ({"url": "http://key@localhost/v1"}, "leave the key out"),
            ({"api_key_env": "NO_SUCH_VARIABLE"}, "no such environment variable"),
            ({"api": "responses"}, "choose one of chat, completions"),
            ({"concurrency": 0}, "at least 1"),
            ({"timeout": 0}, "above 0"),
        ],
    )
    def test_wrong_options(self, change: dict[str, Any], words: str) -> None:
        with pytest.raises((EndpointError, ValueError), match=words):
            Endpoint(**{"url": "http://localhost/v1", **change})


class TestPace:
    def test_requests_are_concurrent_up_to_the_limit(self, tmp_path: Path, server: Server) -> None:
        server.delay = 0.05
        sample_pool(prompts(tmp_path, many(24)), endpoint(server, concurrency=6), tmp_path / "pool.jsonl", n=1)
        assert 3 <= server.most_under_way <= 6

    def test_the_rate_is_limited(self, tmp_path: Path, server: Server) -> None:
        sampler = endpoint(server, requests_per_minute=600)
        sample_pool(prompts(tmp_path, many(6)), sampler, tmp_path / "pool.jsonl", n=1)
        assert server.times[-1] - server.times[0] > 0.45

    def test_a_server_that_asks_for_time_gets_it_from_all(self, tmp_path: Path, server: Server) -> None:
        server.behave = lambda number, body: "wait" if number == 0 else "ok"
        server.delay = 0.1
        sample_pool(prompts(tmp_path, many(8)), endpoint(server, concurrency=2), tmp_path / "pool.jsonl", n=1)
        early = [moment for moment in server.times if moment - server.times[0] < 0.9]
        assert len(early) <= 3


class TestResuming:
    def test_a_larger_n_adds_to_what_is_there(self, tmp_path: Path, server: Server) -> None:
        path, output = prompts(tmp_path), tmp_path / "pool.jsonl"
        sample_pool(path, endpoint(server), output, n=2, keep_cut_off=True)
        before = [row["responses"] for row in rows_of(output)]
        report = sample_pool(path, endpoint(server), output, n=5, keep_cut_off=True)
        assert report.reused == 6
        assert [body["n"] for body in server.asked] == [2, 2, 2, 3, 3, 3]
        assert [row["responses"][:2] for row in rows_of(output)] == before
        sample_pool(path, endpoint(server), output, n=2, keep_cut_off=True)
        assert [row["responses"] for row in rows_of(output)] == before
        assert len(server.asked) == 6

    def test_other_settings_are_refused(self, tmp_path: Path, server: Server) -> None:
        path, output = prompts(tmp_path), tmp_path / "pool.jsonl"
        sample_pool(path, endpoint(server), output, n=2)
        with pytest.raises(ValueError, match=r"temperature was 1.0 and is 0.5"):
            sample_pool(path, endpoint(server), output, n=2, settings=SamplingSettings(temperature=0.5))
        with pytest.raises(ValueError, match=r"model was 'tiny' and is 'other'"):
            sample_pool(path, Endpoint(server.url, "other"), output, n=2)

    def test_a_changed_prompt_is_drawn_anew(self, tmp_path: Path, server: Server) -> None:
        output = tmp_path / "pool.jsonl"
        sample_pool(prompts(tmp_path, [{"id": "a", "prompt": "old"}]), endpoint(server), output, n=1)
        sample_pool(prompts(tmp_path, [{"id": "a", "prompt": "new"}]), endpoint(server), output, n=1)
        assert [body["messages"][0]["content"] for body in server.asked] == ["old", "new"]

    def test_a_file_that_is_not_ours_is_never_overwritten(self, tmp_path: Path, server: Server) -> None:
        output = tmp_path / "pool.jsonl"
        output.write_text("precious\n")
        with pytest.raises(ValueError, match="not from this command"):
            sample_pool(prompts(tmp_path), endpoint(server), output, n=1)
        (tmp_path / "pool.jsonl.journal").write_text("precious\n")
        with pytest.raises(ValueError, match="not the journal"):
            sample_pool(prompts(tmp_path), endpoint(server), output, n=1)
        assert (tmp_path / "pool.jsonl.journal").read_text() == output.read_text() == "precious\n"

    def test_two_runs_into_one_file(self, tmp_path: Path, server: Server) -> None:
        sampler = endpoint(server)
        made = {**sampler.identity(), **SamplingSettings().as_dict()}
        with Journal(tmp_path / "pool.jsonl.journal", made), pytest.raises(OSError, match="another process"):
            sample_pool(prompts(tmp_path), sampler, tmp_path / "pool.jsonl", n=1)

    @pytest.mark.parametrize("name", ["pool.parquet", "pool"])
    def test_output_names(self, name: str, tmp_path: Path, server: Server) -> None:
        with pytest.raises(ValueError, match="ends in .jsonl"):
            sample_pool(prompts(tmp_path), endpoint(server), tmp_path / name, n=1)


REPLIES = st.lists(
    st.tuples(st.sampled_from("ab"), st.lists(st.text(max_size=5), min_size=1, max_size=3)), min_size=1, max_size=6
)


class TestJournal:
    @pytest.mark.slow
    @settings(max_examples=60, deadline=None)
    @given(replies=REPLIES, cut=st.floats(0, 1), data=st.data())
    def test_cut_anywhere_it_holds_a_prefix_and_can_be_completed(
        self, replies: Any, cut: float, data: Any, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.mktemp("journal") / "journal"
        made = {"seed": 1}
        ends, counts = [], {"a": 0, "b": 0}
        with Journal(path, made) as journal:
            ends.append((path.stat().st_size, dict(counts)))
            for key, texts in replies:
                journal.add([Reply(key, counts[key], [Draw(text, "stop") for text in texts], "m")])
                counts[key] += len(texts)
                ends.append((path.stat().st_size, dict(counts)))
        whole = path.read_bytes()
        size = int(cut * len(whole))
        path.write_bytes(whole[:size])
        kept = max((end for end in ends if end[0] <= size), default=(0, {"a": 0, "b": 0}))[1]
        with Journal(path, made) as journal:
            assert {key: journal.have(key) for key in "ab"} == kept
            done = {"a": 0, "b": 0}
            for key, texts in replies:
                if done[key] >= kept[key]:
                    journal.add([Reply(key, done[key], [Draw(text, "stop") for text in texts], "m")])
                done[key] += len(texts)
        with Journal(path, made) as journal:
            for key in "ab":
                expected = [text for name, texts in replies for text in texts if name == key]
                assert [draw.text for draw, _ in journal.draws(key, 99)] == expected

    def test_a_damaged_line_is_drawn_again(self, tmp_path: Path, server: Server) -> None:
        path, output = prompts(tmp_path), tmp_path / "pool.jsonl"
        sample_pool(path, endpoint(server, concurrency=1), output, n=2)
        calm = output.read_bytes()
        journal = tmp_path / "pool.jsonl.journal"
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join([*lines[:2], b"x" * 20 + lines[2][20:], *lines[3:]]))
        sample_pool(path, endpoint(server), output, n=2)
        assert len(server.asked) == 4
        assert output.read_bytes() == calm


SAMPLE = "from mrt_plugin.cli import app; app()"


def command(server: Server, folder: Path, *more: str) -> list[str]:
    options = ["--endpoint", server.url, "--model", "tiny", "--n", "4", "--per-request", "1", "--concurrency", "3"]
    files = [str(folder / "prompts.jsonl"), "--output", str(folder / "pool.jsonl")]
    return ["-c", SAMPLE, "sample", *files, *options, "--backoff", "0.01", *more]


class TestKilled:
    @pytest.mark.processes
    def test_kill_9_at_random_points(self, tmp_path: Path, server: Server) -> None:
        """What the server answered and the journal holds is never asked for again; the pool is the undisturbed one."""
        path = prompts(tmp_path, many(25))
        sample_pool(path, endpoint(server, per_request=1), tmp_path / "calm.jsonl", n=4)
        chance = random.Random(5)
        server.asked.clear()
        server.delay = 0.02
        script = ["500", "cut off", "garbage", "reset"]
        server.behave = lambda number, body: script[number // 9 % 4] if number % 9 == 0 else "ok"
        kills = 0
        for target in sorted(chance.sample(range(5, 95), 4)):
            process = start_python(command(server, tmp_path))
            try:
                while len(server.asked) < target and process.poll() is None:
                    time.sleep(0.001)
                time.sleep(chance.random() * 0.02)
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait()
            kills += 1
            assert not (tmp_path / "pool.jsonl").exists()
        done = run_python([*command(server, tmp_path), "--json"])
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "pool.jsonl").read_bytes() == (tmp_path / "calm.jsonl").read_bytes()
        assert json.loads(done.stdout)["reused"] > 0
        answered = 100 + 3 * kills  # of each kill, the requests under way are lost
        assert len(server.asked) <= answered * 9 / 8 + 1
        assert sorted(file.name for file in tmp_path.iterdir()) == [
            "calm.jsonl",
            "calm.jsonl.journal",
            "pool.jsonl",
            "pool.jsonl.journal",
            "prompts.jsonl",
        ]

    @pytest.mark.processes
    @pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX")
    def test_a_full_disk(self, tmp_path: Path, server: Server) -> None:
        prompts(tmp_path, many(25))
        failed = run_python(command(server, tmp_path), file_size=3000)
        assert failed.returncode == 1
        assert re.search(r"error: .*File too large: what was drawn so far is kept", failed.stderr)
        assert not (tmp_path / "pool.jsonl").exists()
        assert run_python(command(server, tmp_path)).returncode == 0
        sample_pool(tmp_path / "prompts.jsonl", endpoint(server, per_request=1), tmp_path / "calm.jsonl", n=4)
        assert (tmp_path / "pool.jsonl").read_bytes() == (tmp_path / "calm.jsonl").read_bytes()

    @pytest.mark.processes
    def test_ctrl_c_and_plain_errors(self, tmp_path: Path, server: Server) -> None:
        prompts(tmp_path, many(25))
        server.delay = 0.05
        process = start_python(command(server, tmp_path))
        while len(server.asked) < 10 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) != 0
        assert (tmp_path / "pool.jsonl.journal").stat().st_size > 500
        nothing = run_python(["-c", SAMPLE, "sample", str(tmp_path / "prompts.jsonl")], cwd=tmp_path)
        assert nothing.returncode == 1
        assert "give --endpoint URL, or --model PATH" in nothing.stderr


class TestPrompts:
    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ({"question": "a"}, "column `prompt`: it is missing; the row has `question`"),
            ({"prompt": " "}, "it is empty"),
            ({"prompt": 3}, "it is a number"),
            ({"prompt": [{"role": "assistant", "content": "a"}]}, "column `prompt`"),
            ({"messages": [{"role": "system", "content": "a"}]}, "column `messages`"),
            ({"prompt": "\ud83d"}, "surrogate"),
            ({"prompt": "\u200b\x00"}, "it is empty"),
            ({"prompt": "a", "id": ""}, "column `id`: it is empty"),
            ({"prompt": "a", "id": {"n": 1}}, "column `id`: it is an object"),
            ({"prompt": "a", "id": True}, "column `id`: it is true or false"),
            ({"prompt": "a", "id": "\ud83d"}, "column `id`: .* surrogate"),
            ({"prompt": "a", "context": "b"}, "column `context`: it would be left out"),
            ({"prompt": [{"role": "user", "content": "a", "tool_calls": 3}]}, "not a list of objects"),
            ({"prompt": "a"}, "it is a string, but line 1 has a list of messages: use one form"),
        ],
    )
    def test_problems_are_found_before_anything_is_asked(
        self, row: Any, words: str, tmp_path: Path, server: Server
    ) -> None:
        with pytest.raises(DataError, match=words):
            sample_pool(prompts(tmp_path, [PROMPTS[0], row]), endpoint(server), tmp_path / "pool.jsonl", n=1)
        assert server.asked == []

    def test_forms(self, tmp_path: Path, server: Server) -> None:
        text = tmp_path / "prompts.txt"
        text.write_text("One?\n\nTwo?\r\nOne?\n\ufeff\u200b\nIn\u2028one\fline\x85here?", newline="")
        report = sample_pool(text, endpoint(server), tmp_path / "a.jsonl", n=1, keep_cut_off=True)
        written = (tmp_path / "a.jsonl").read_text().split("\n")
        found = [json.loads(line)["prompt"] for line in written if line]
        assert found == ["One?", "Two?", "In\u2028one\fline\x85here?"]
        assert report.repeated_prompts == 1
        chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
        path = prompts(tmp_path, [{"messages": chat}])
        sample_pool(path, endpoint(server), tmp_path / "b.jsonl", n=1, keep_cut_off=True)
        assert rows_of(tmp_path / "b.jsonl")[0]["prompt"] == chat[:1]

    def test_messages_need_the_chat_api(self, tmp_path: Path, server: Server) -> None:
        with pytest.raises(EndpointError, match="'mine' is a list of messages"):
            sample_pool(
                prompts(tmp_path, PROMPTS[1:2]), endpoint(server, api="completions"), tmp_path / "pool.jsonl", n=1
            )

    def test_inside_a_running_loop(self, tmp_path: Path, server: Server) -> None:
        """As in a notebook."""
        import asyncio

        async def cell() -> None:
            sample_pool(prompts(tmp_path), endpoint(server), tmp_path / "pool.jsonl", n=1)

        asyncio.run(cell())
        assert (tmp_path / "pool.jsonl").exists()
