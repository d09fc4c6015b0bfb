"""Sampling from a local Transformers model: the draws follow the model's distribution and depend on nothing else."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.cli import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from mrt_plugin.cli import app
from mrt_plugin.encoding import Encoder, prepare_tokenizer
from mrt_plugin.endpoint.jobs import Draw, Job, draw_seed
from mrt_plugin.sampling import LocalModel, SamplingSettings, sample_pool
from mrt_plugin.sampling.local import _Picker, draw_after

SHORT = SamplingSettings(max_tokens=6)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    texts = ["Name a fruit.", "What is the capital of France? Say it in one word.", "Why?", "Tell me about the sea."]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def generate(model: Any, encoder: Encoder, batch: list[tuple[Job, int]], how: SamplingSettings) -> list[Draw]:
    prompts = [encoder.encode_prompt(job.prompt) for job, _ in batch]
    seeds = [draw_seed(how, job.key, number) for job, number in batch]
    return draw_after(model, encoder.tokenizer, prompts, seeds, how)


def draw(
    model: Any, encoder: Encoder, how: SamplingSettings, count: int = 1, prompt: Any = "Name a fruit."
) -> list[Any]:
    job = Job("a", prompt, count)
    return generate(model, encoder, [(job, number) for number in range(count)], how)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Encoder]:
    path = tiny.model_dir(tmp_path_factory.mktemp("model"))
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return model, Encoder(prepare_tokenizer(AutoTokenizer.from_pretrained(path)))


class TestPool:
    def test_draws_do_not_depend_on_the_batch_or_on_what_was_there(
        self, tmp_path: Path, prompts: Path, tiny_model_dir: str
    ) -> None:
        report = sample_pool(
            prompts,
            LocalModel(tiny_model_dir, device="cpu", batch_size=5),
            tmp_path / "a.jsonl",
            n=3,
            settings=SHORT,
            keep_cut_off=True,
        )
        assert report.whole + report.cut_off == 12
        alone = LocalModel(tiny_model_dir, device="cpu", batch_size=1)
        for n in (1, 2, 3):
            sample_pool(prompts, alone, tmp_path / "b.jsonl", n=n, settings=SHORT, keep_cut_off=True)
        assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
        assert len({text for row in rows_of(tmp_path / "a.jsonl") for text in row["responses"]}) > 8

    def test_stopped_after_any_batch_it_ends_alike(self, tmp_path: Path, prompts: Path, tiny_model_dir: str) -> None:
        class Stopped(Exception):
            pass

        def stop_after(draws: int) -> Callable[[int, int], None]:
            def stop(done: int, total: int) -> None:
                if done > draws:
                    raise Stopped

            return stop

        model = LocalModel(tiny_model_dir, device="cpu", batch_size=3)
        sample_pool(prompts, model, tmp_path / "calm.jsonl", n=2, settings=SHORT, keep_cut_off=True)
        for draws in (0, 3, 6):
            with pytest.raises(Stopped):
                sample_pool(
                    prompts,
                    model,
                    tmp_path / "pool.jsonl",
                    n=2,
                    settings=SHORT,
                    keep_cut_off=True,
                    progress=stop_after(draws),
                )
        sample_pool(prompts, model, tmp_path / "pool.jsonl", n=2, settings=SHORT, keep_cut_off=True)
        assert (tmp_path / "pool.jsonl").read_bytes() == (tmp_path / "calm.jsonl").read_bytes()

    @pytest.mark.parametrize("output", ["pool.jsonl", "larger.jsonl"])
    def test_a_pool_is_filled_up_with_the_draws_of_a_larger_one(
        self, tmp_path: Path, prompts: Path, tiny_model_dir: str, output: str
    ) -> None:
        model = LocalModel(tiny_model_dir, device="cpu", batch_size=1)
        for name, n in (("pool.jsonl", 2), ("at_once.jsonl", 5)):
            sample_pool(prompts, model, tmp_path / name, n=n, settings=SHORT, keep_cut_off=True)
        pool = tmp_path / "pool.jsonl"
        sample_pool(pool, model, tmp_path / output, n=5, settings=SHORT, extend=True, keep_cut_off=True)
        assert rows_of(tmp_path / output) == rows_of(tmp_path / "at_once.jsonl")

    def test_another_seed_and_other_draws_differ(self, loaded: tuple[Any, Encoder]) -> None:
        model, encoder = loaded
        one = [drawn.text for drawn in draw(model, encoder, SHORT, 4)]
        assert one == [drawn.text for drawn in draw(model, encoder, SHORT, 4)]
        assert len(set(one)) == 4
        assert one != [drawn.text for drawn in draw(model, encoder, SamplingSettings(max_tokens=6, seed=1), 4)]


class TestDraws:
    def test_log_probabilities_are_those_of_the_model(
        self, loaded: tuple[Any, Encoder], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Recomputed by one forward pass over prompt and response, whatever temperature and padding were."""
        model, encoder = loaded
        how = SamplingSettings(max_tokens=8, temperature=0.7, top_p=0.9, logprobs=True)
        jobs = [(Job("a", "Name a fruit that grows on trees.", 1), 0), (Job("b", "Why?", 1), 0)]
        outputs = []
        unwatched = model.generate
        monkeypatch.setattr(model, "generate", lambda **inputs: outputs.append(unwatched(**inputs)) or outputs[0])
        draws = generate(model, encoder, jobs, how)
        for row, ((job, _), drawn) in enumerate(zip(jobs, draws, strict=True)):
            before = encoder.encode_prompt(job.prompt)
            said = outputs[0][row, -8:].tolist()
            with torch.no_grad():
                logits = model(torch.tensor([before + said])).logits[0, len(before) - 1 : -1]
            expected = logits.log_softmax(-1).gather(1, torch.tensor(said)[:, None])[:, 0]
            assert drawn.tokens == 8
            assert drawn.logprobs == pytest.approx(expected.tolist(), abs=1e-4)

    def test_an_end_token_ends_a_response(self, loaded: tuple[Any, Encoder]) -> None:
        """The likeliest token is made EOS, for some of the rows."""
        model, encoder = loaded
        eos = encoder.tokenizer.eos_token_id
        assert [drawn.finish_reason for drawn in draw(model, encoder, SHORT, 6)] == ["length"] * 6
        bias = torch.zeros(1024)
        bias[eos] = 5.0

        def lift(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return output + bias

        hook = model.get_output_embeddings().register_forward_hook(lift)
        drawn = draw(model, encoder, SamplingSettings(max_tokens=6, logprobs=True), 24)
        hook.remove()
        assert {one.finish_reason for one in drawn} == {"stop", "length"}
        for one in drawn:
            ended = one.finish_reason == "stop"
            assert one.tokens < 6 if ended else one.tokens == 6
            assert len(one.logprobs) == one.tokens + ended
            assert "<|" not in one.text

    def test_a_stop_text_ends_a_response_and_is_no_part_of_it(self, loaded: tuple[Any, Encoder]) -> None:
        model, encoder = loaded
        plain = [drawn.text for drawn in draw(model, encoder, SHORT, 4)]
        stop = plain[0][2:5]
        stopped = draw(model, encoder, SamplingSettings(max_tokens=6, stop=(stop,)), 4)
        assert stopped[0].text == plain[0][: plain[0].index(stop)]
        assert stopped[0].finish_reason == "stop"
        for before, after in zip(plain, stopped, strict=True):
            assert after.text == before.split(stop)[0]

    def test_temperature_0_takes_the_likeliest(self, loaded: tuple[Any, Encoder]) -> None:
        model, encoder = loaded
        texts = {drawn.text for drawn in draw(model, encoder, SamplingSettings(max_tokens=5, temperature=0.0), 3)}
        ids = torch.tensor([encoder.encode_prompt("Name a fruit.")])
        expected = model.generate(ids, max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(ids))
        assert texts == {encoder.tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)}

    def test_the_models_own_generation_config_is_left_alone_and_not_used(self, loaded: tuple[Any, Encoder]) -> None:
        model, encoder = loaded
        plain = draw(model, encoder, SHORT, 3)
        theirs = model.generation_config
        model.generation_config.repetition_penalty = 50.0
        try:
            assert draw(model, encoder, SHORT, 3) == plain
            assert model.generation_config is theirs
        finally:
            model.generation_config.repetition_penalty = None

    @pytest.mark.parametrize("prompt", ["Name a fruit.", [{"role": "user", "content": "Name a fruit."}]])
    def test_the_prompt_is_what_training_puts_before_a_response(
        self, loaded: tuple[Any, Encoder], prompt: Any
    ) -> None:
        _, encoder = loaded
        pair = encoder.encode(prompt, "An apple.")
        assert encoder.encode_prompt(prompt) == pair.input_ids[: pair.trained.index(True)]

    @pytest.mark.parametrize("special", [{}, {"add_bos": True}, {"add_bos": True, "add_eos": True}])
    def test_plain_prompts(self, special: dict[str, bool]) -> None:
        encoder = Encoder(tiny.tokenizer(chat_template=None, **special))
        pair = encoder.encode("Name a fruit:", " An apple.")
        assert encoder.encode_prompt("Name a fruit:") == pair.input_ids[: pair.trained.index(True)]

    def test_max_tokens_is_needed(self, tmp_path: Path, prompts: Path, tiny_model_dir: str) -> None:
        with pytest.raises(ValueError, match="max_tokens is needed"):
            sample_pool(
                prompts,
                LocalModel(tiny_model_dir),
                tmp_path / "pool.jsonl",
                settings=SamplingSettings(max_tokens=None),
            )


def picks(how: SamplingSettings, logits: list[float], rows: int) -> Counter[int]:
    """How often each token is picked."""
    picker = _Picker(how, list(range(rows)))
    scores = picker(torch.zeros(rows, 1, dtype=torch.long), torch.tensor([logits] * rows))
    assert (torch.isfinite(scores).sum(-1) == 1).all()
    return Counter(scores.argmax(-1).tolist())


class TestDistribution:
    """Draws are exact: by frequency, and by what can never be drawn."""

    @pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
    def test_frequencies(self, temperature: float) -> None:
        logits = [2.0, 1.0, 0.0, -1.0, -2.0]
        how = SamplingSettings(max_tokens=1, temperature=temperature)
        found = picks(how, logits, 20000)
        expected = torch.tensor(logits).div(temperature).softmax(0).numpy() * 20000
        chi_square = sum((found[token] - count) ** 2 / count for token, count in enumerate(expected))
        assert chi_square < 18.5  # the 99.9 % quantile for 4 degrees of freedom; the draws are seeded

    def test_top_p(self) -> None:
        logits = np.log([0.5, 0.3, 0.15, 0.05]).tolist()
        found = picks(SamplingSettings(max_tokens=1, top_p=0.75), logits, 4000)
        assert set(found) == {0, 1}
        assert found[0] / 4000 == pytest.approx(0.5 / 0.8, abs=0.03)

    @settings(max_examples=50, deadline=None)
    @given(
        st.lists(st.one_of(st.floats(-30, 30), st.just(-float("inf"))), min_size=1, max_size=50), st.integers(0, 99)
    )
    def test_what_has_no_probability_is_never_drawn(self, logits: list[float], seed: int) -> None:
        logits = [*logits, 0.0]
        found = picks(SamplingSettings(max_tokens=1, seed=seed), logits, 64)
        assert all(logits[token] > -float("inf") for token in found)


class TestCommand:
    def test_pairs_are_filled_up_to_four(self, tmp_path: Path, tiny_model_dir: str) -> None:
        """2-rankings to 4, as arXiv 2403.11124 does, from HH-RLHF's shape."""
        pairs = Path(__file__).parent / "data" / "sources" / "hh_rlhf.jsonl"
        output = tmp_path / "pool.jsonl"
        options = ["--model", tiny_model_dir, "--max-tokens", "5", "--temperature", "0.9", "--output", str(output)]
        command = ["sample", "--extend", str(pairs), "--to", "4", "--source", "hh_rlhf", "--keep-cut-off", *options]
        done = CliRunner().invoke(app, [*command, "--json"])
        assert done.exit_code == 0, done.output
        counts = json.loads(done.stdout)
        assert counts["wanted"] == counts["whole"] + counts["cut_off"] == 4
        for row in rows_of(output):
            assert len(row["responses"]) == 4
            assert row["samples"][:2] == [None, None]
            assert row["samples"][2]["model"] == tiny_model_dir
            assert row["samples"][3]["temperature"] == 0.9
            assert row["scores_before"] == [1.0, 0.0, None, None]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["prompts.jsonl"], "give --endpoint URL, or --model PATH"),
            ([], "either a file of prompts, or --extend POOL"),
            (["--extend", "prompts.jsonl", "--model", "m"], "--extend POOL and --to N go together"),
            (["prompts.jsonl", "--endpoint", "http://h/v1", "--extra", "{"], "is not JSON"),
            (
                ["prompts.jsonl", "--endpoint", "http://h/v1", "--temperature", "-1"],
                "-1.0 must be a finite number, at least 0",
            ),
            (["prompts.jsonl", "--endpoint", "http://h/v1", "--top-p", "0"], "0.0 must be a finite number, above 0"),
            (["no-such-file.jsonl", "--endpoint", "http://127.0.0.1:9/v1", "--model", "m"], "there is no such file"),
        ],
    )
    def test_mistakes(self, arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "prompts.jsonl").write_text('{"prompt": "p"}\n')
        done = CliRunner().invoke(app, ["sample", *arguments])
        assert done.exit_code == 1
        assert words in done.stderr
        assert not (tmp_path / "pool.jsonl").exists()
