"""Evaluation of real tiny models: what is measured on them, and which of them are refused."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.cli import CliRunner
from helpers.selecting import write_lines
from peft import LoraConfig, get_peft_model
from transformers import LlamaForSequenceClassification

from mrt_plugin.cli import app
from mrt_plugin.encoding import Encoder
from mrt_plugin.evaluation.cases import Case, load_checker, read_cases
from mrt_plugin.evaluation.evaluate import evaluate
from mrt_plugin.evaluation.evaluate_report import evaluation_report
from mrt_plugin.evaluation.held_out import held_out_nll, response_nll
from mrt_plugin.evaluation.result import Evaluation, Sample
from mrt_plugin.evaluation.subject import How, add_rewards
from mrt_plugin.models.load import load_model, load_tokenizer
from mrt_plugin.models.named_model import NamedModel, add_pools, parse_models
from mrt_plugin.sampling import LocalModel, SamplingSettings
from mrt_plugin.sampling.options import LocalOptions
from mrt_plugin.scoring import load_embedder

SHORT = SamplingSettings(max_tokens=4)


def save_adapter(
    folder: Path,
    base: Any,
    *,
    layers: int = 2,
    hidden: int = 64,
    targets: tuple[str, ...] = ("q_proj", "down_proj"),
    size: float = 0.05,
) -> str:
    """A LoRA adapter with random weights, on a model of this shape."""
    model = get_peft_model(
        tiny.llama(tiny.tokenizer(), layers=layers, hidden=hidden),
        LoraConfig(r=4, lora_alpha=8, target_modules=list(targets)),
    )
    torch.manual_seed(0)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data.normal_(0, size)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    base = tiny.model_dir(path / "base")
    save_adapter(path / "run", base)
    merged = load_model(base, path / "run").merge_and_unload()
    merged.save_pretrained(path / "merged")
    tiny.tokenizer(path / "merged")
    rows = [
        {"id": f"p{index}", "prompt": f"Name fruit number {index}.", "responses": ["An apple.", "A pear is a fruit."]}
        for index in range(6)
    ]
    (path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def cases(folder: Path) -> list[Case]:
    return read_cases(folder / "data.jsonl")


@pytest.fixture(scope="module")
def evaluation(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """A base model, the same with an adapter, and the two merged."""
    how = How(
        tmp_path_factory.mktemp("samples"),
        m=3,
        at=[1, 2, 3, 8],
        settings=SHORT,
        embedder=load_embedder("lexical"),
        scorer=lambda prompt, responses: [float(len(response)) for response in responses],
        checker=load_checker(lambda prompt, response, references: "a" in response),
    )
    models = parse_models([f"{folder}/base", f"tuned={folder}/base+{folder}/run", f"{folder}/merged"])
    return evaluate(read_cases(folder / "data.jsonl"), models, how, outputs=12, data="data.jsonl")


@pytest.fixture(scope="module")
def result(evaluation: Evaluation) -> Any:
    """The result as the command prints it."""
    return json.loads(json.dumps(evaluation.as_dict(), allow_nan=False))


def evaluated(*arguments: Any, **more: Any) -> dict[str, Any]:
    return evaluate(*arguments, **more).as_dict()


def value(result: dict[str, Any], model: str, measure: str, m: int | None = None) -> Any:
    (found,) = [one for one in result["models"] if one["name"] == model]
    (row,) = [row for row in found["measures"] if (row["measure"], row["m"]) == (measure, m)]
    return row["value"]


class TestSideBySide:
    def test_the_held_out_nll_is_that_of_the_model(self, result: dict[str, Any], folder: Path) -> None:
        for name, adapter in (("base", None), ("tuned", folder / "run")):
            model = load_model(folder / "base", adapter)
            encoder = Encoder(load_tokenizer(folder / "base"))
            groups = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
            per_token, per_response = held_out_nll(model, encoder, groups)
            assert value(result, name, "nll_per_token") == pytest.approx(per_token.value, rel=1e-6)
            assert value(result, name, "nll_per_response") == pytest.approx(per_response.value, rel=1e-6)
        assert value(result, "base", "nll_per_token") != pytest.approx(
            value(result, "tuned", "nll_per_token"), abs=1e-4
        )

    def test_a_merged_model_is_the_adapter_on_its_base(self, result: dict[str, Any]) -> None:
        for measure in ("nll_per_token", "diversity", "length", "alignment"):
            assert value(result, "merged", measure) == pytest.approx(value(result, "tuned", measure), rel=1e-3)
        tuned, merged = ({r["kind"]: r for r in row["probe"]} for row in result["forgetting"])
        assert merged["all"]["points"] == pytest.approx(tuned["all"]["points"], abs=0.05)

    def test_every_m_comes_from_the_same_samples(self, result: dict[str, Any], folder: Path) -> None:
        assert value(result, "base", "pass", 3) >= value(result, "base", "pass", 1)
        assert value(result, "base", "coverage", 3) > value(result, "base", "coverage", 1)
        texts = [out["text"] for row in result["outputs"] for out in row["models"]["base"]]
        assert len(texts) == 4
        rows = {row["id"]: row["models"]["base"] for row in result["per_prompt"]}
        assert np.mean([row["reward"] for row in rows.values()]) == pytest.approx(value(result, "base", "reward"))
        assert not [row for row in result["models"][0]["measures"] if row["m"] == 8]
        assert "base: no prompt has more than 3 samples, so nothing at M = 8." in result["notes"]

    def test_before_is_the_model_with_its_adapter_off(self, result: dict[str, Any]) -> None:
        tuned, merged = result["forgetting"]
        assert tuned["before"].endswith("base")
        assert merged["before"] == "base"
        for one, other in zip(tuned["probe"], merged["probe"], strict=True):
            assert one["before"] == pytest.approx(other["before"], rel=1e-5)

    def test_differences_are_those_of_the_values(self, result: dict[str, Any]) -> None:
        rows = [row for row in result["differences"] if row["model"] == "tuned"]
        assert {row["measure"] for row in rows} > {"nll_per_token", "coverage", "diversity", "pass", "best_reward"}
        for row in rows:
            expected = value(result, "tuned", row["measure"], row["m"]) - value(
                result, "base", row["measure"], row["m"]
            )
            assert row["difference"] == pytest.approx(expected, abs=1e-9)
            assert row["interval"][0] <= row["difference"] <= row["interval"][1]

    def test_the_page_is_complete_and_works_offline(self, evaluation: Evaluation, result: dict[str, Any]) -> None:
        page = evaluation_report(evaluation)
        assert page.count("<svg") == 2
        assert not re.search(r"<script|<link|@import|(?:src|href)=\"(?:https?:)?//", page)
        assert page.count("<section>") == len(result["outputs"]) == 4
        for line in result["notes"]:
            assert line[:40].split("<")[0] in page.replace("&#x27;", "'").replace("&quot;", '"')

    def test_it_ends_with_what_to_do(self, result: dict[str, Any]) -> None:
        assert result["next"].startswith("Next: ")


class TestForgetting:
    def test_an_adapter_that_breaks_the_model_is_called_significant(self, folder: Path, tmp_path: Path) -> None:
        save_adapter(tmp_path / "wild", folder / "base", targets=("lm_head",), size=1.0)
        models = parse_models([f"{folder}/base+{tmp_path}/wild"])
        found = evaluated([Case("a", "Name a fruit.")], models, How(tmp_path, m=0))
        (row,) = found["forgetting"]
        assert row["probe"][0]["verdict"] == "significant"
        assert "a significant drop of" in found["notes"][0]
        assert found["next"].startswith("Next: base+wild lost general ability")

    @pytest.mark.slow
    def test_tasks_of_the_harness_before_and_after(self, folder: Path, tmp_path: Path) -> None:
        pytest.importorskip("lm_eval")
        from mrt_plugin.evaluation.forgetting import check_tasks, run_tasks

        questions = [
            {"question": f"Number {index}: name a fruit.", "choices": ["apple", "river"], "answer": index % 2}
            for index in range(12)
        ]
        (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
        (tmp_path / "own.yaml").write_text(
            f"task: own_fruit\ndataset_path: json\ndataset_kwargs:\n  data_files: {{test: {tmp_path}/q.jsonl}}\n"
            "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{question}}'\ndoc_to_target: answer\n"
            "doc_to_choice: choices\nmetric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
        )
        manager = check_tasks(["own_fruit"], tmp_path)
        with pytest.raises(ValueError, match="no task made_up"):
            check_tasks(["own_fruit", "made_up"], tmp_path)
        how = How(tmp_path / "out", m=0, probe=False, tasks=["own_fruit"], task_manager=manager, task_limit=10)
        models = parse_models([f"{folder}/base", f"tuned={folder}/base+{folder}/run"])
        found = evaluated([Case("a", "Name a fruit.")], models, how)
        (row,) = found["forgetting"]
        (task,) = row["tasks"]
        assert (task["task"], task["metric"]) == ("own_fruit", "acc")
        assert 0 <= task["before"] <= 1
        assert task["points"] == pytest.approx(100 * (task["before"] - task["after"]))
        model, encoder = LocalModel(f"{folder}/base").load()
        scores = run_tasks(model, encoder.tokenizer, how.tasks, manager, limit=10)["own_fruit"]["acc"]
        assert np.mean(list(scores.documents.values())) == pytest.approx(task["before"])
        assert len(scores.documents) == 10
        assert task["interval"][0] <= task["points"] <= task["interval"][1]

    @pytest.mark.slow
    def test_a_group_of_tasks_has_one_score_and_all_documents(self, folder: Path, tmp_path: Path) -> None:
        pytest.importorskip("lm_eval")
        from mrt_plugin.evaluation.forgetting import check_tasks, compare_tasks, run_tasks

        choices = ["apple", "river"]
        for name, count in (("one", 4), ("two", 8)):
            lines = [{"question": f"{name} {n}?", "choices": choices, "answer": n % 2} for n in range(count)]
            data = write_lines(tmp_path / f"{name}.jsonl", lines)
            (tmp_path / f"{name}.yaml").write_text(
                f"task: own_{name}\ndataset_path: json\ndataset_kwargs:\n  data_files: {{test: {data}}}\n"
                "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{question}}'\ndoc_to_target: answer\n"
                "doc_to_choice: choices\nmetric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
            )
        weighted = "aggregate_metric_list:\n  - {metric: acc, weight_by_size: true}\n"
        (tmp_path / "all.yaml").write_text(f"group: own_all\ntask: [own_one, own_two]\n{weighted}")
        manager = check_tasks(["own_all"], tmp_path)
        model, encoder = LocalModel(f"{folder}/base").load()
        scores = run_tasks(model, encoder.tokenizer, ["own_all"], manager, chat=True)
        assert list(scores) == ["own_all"]
        assert scores["own_all"]["acc"].documents is not None
        assert len(scores["own_all"]["acc"].documents) == 12
        (row,) = compare_tasks(scores, scores)
        assert (row.points, row.interval) == (0, [0, 0])

    def test_abilities_are_names_of_tasks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("lm_eval")
        from mrt_plugin.evaluation import abilities
        from mrt_plugin.evaluation.forgetting import check_tasks

        names = abilities.expand_abilities(["abilities"], run_code=True)
        assert names == ["ifeval", "gsm8k", "mmlu", "humaneval"]
        known = check_tasks(names).all_tasks  # the harness has each of them ...
        assert not {*abilities.ABILITIES, abilities.PRESET} & set(known)  # ... and no task has an ability's name
        assert abilities.expand_abilities(["reasoning", "gsm8k", "mine"]) == ["gsm8k", "mine"]
        with pytest.raises(ValueError, match="running code that the model writes .humaneval.: allow it in a sandbox"):
            abilities.expand_abilities(["abilities"])
        monkeypatch.setattr(abilities, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match="needs langdetect, immutabledict, nltk: pip install"):
            abilities.expand_abilities(["instructions"])

    def test_without_the_harness_the_package_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import importlib.util

        from mrt_plugin.evaluation.forgetting import check_tasks

        found = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else found(name))
        with pytest.raises(ImportError, match=r'pip install "lm_eval\[hf\]"'):
            check_tasks(["arc_easy"])


class TestWrongModels:
    def test_an_adapter_of_another_model(self, folder: Path, tmp_path: Path) -> None:
        deep = save_adapter(tmp_path / "deep", "deep", layers=3)
        wide = save_adapter(tmp_path / "wide", "wide", hidden=128)
        with pytest.raises(ValueError, match="does not fit .*base: 4 of its weights find no place there"):
            load_model(folder / "base", deep)
        with pytest.raises(ValueError, match="does not fit .*base: size mismatch"):
            load_model(folder / "base", wide)
        tiny.model_dir(tmp_path / "three", layers=3)
        with pytest.raises(ValueError, match="0 of its weights find no place there, 4 are missing"):
            load_model(tmp_path / "three", folder / "run")

    def test_a_tokenizer_with_tokens_that_the_model_lacks(self, tmp_path: Path, cases: list[Case]) -> None:
        tiny.model_dir(tmp_path / "small", vocab_size=128)
        with pytest.raises(ValueError, match="has embeddings for 128 tokens: this tokenizer is not the model's"):
            evaluate(cases, parse_models([f"{tmp_path}/small"]), How(tmp_path / "out", m=0))

    def test_another_tokenizer_is_told_by_its_tokens(self, folder: Path, tmp_path: Path, cases: list[Case]) -> None:
        tiny.model_dir(tmp_path / "other", tiny.tokenizer(kind="sentencepiece"))
        models = parse_models([f"{folder}/base", f"{tmp_path}/other"])
        found = evaluated(cases, models, How(tmp_path / "out", m=0))
        measures = {row["measure"] for row in found["differences"]}
        assert measures == {"nll_per_response"}
        assert any("compare the NLL per response" in note for note in found["notes"])
        assert any("no before and after on the probe" in note for note in found["notes"])
        assert found["forgetting"] == []

    def test_a_loss_worse_than_guessing(self, folder: Path, tmp_path: Path, cases: list[Case]) -> None:
        model = tiny.llama(tiny.tokenizer())
        model.lm_head.weight.data *= 100
        model.save_pretrained(tmp_path / "odd")
        tiny.tokenizer(tmp_path / "odd")
        found = evaluated(cases, parse_models([f"{tmp_path}/odd"]), How(tmp_path / "out", m=0))
        assert any("is this tokenizer the model's?" in note for note in found["notes"])

    def test_the_adapters_own_tokenizer_is_used(self, folder: Path, tmp_path: Path) -> None:
        save_adapter(tmp_path / "run", folder / "base")
        tiny.tokenizer(tmp_path / "run", family="gemma")
        mine = load_tokenizer(folder / "base", tmp_path / "run").chat_template
        assert mine != load_tokenizer(folder / "base").chat_template
        assert (
            load_tokenizer(folder / "base", folder / "run").chat_template
            == load_tokenizer(folder / "base").chat_template
        )
        assert load_tokenizer(folder / "base", tmp_path / "run", folder / "base").chat_template != mine


class TestWhatIsMissing:
    def test_no_references(self, folder: Path, tmp_path: Path) -> None:
        cases = [Case("a", "One?"), Case("b", "Two?")]
        how = How(tmp_path, m=2, settings=SHORT, embedder=load_embedder("lexical"), checker=load_checker("exact"))
        found = evaluated(cases, parse_models([f"{folder}/base"]), how)
        assert value(found, "base", "diversity") > 0
        for measure, m in (("coverage", 2), ("alignment", None), ("pass", 2)):
            assert value(found, "base", measure, m) is None
        assert any("No prompt has references" in note for note in found["notes"])
        assert any("2 prompts give the checker nothing" in note for note in found["notes"])
        assert found["references"] is None
        again = evaluate(cases, parse_models([f"{folder}/base"]), how)
        assert "<svg" not in evaluation_report(again)

    def test_some_references_and_one_sample(self, folder: Path, tmp_path: Path) -> None:
        cases = [Case("a", "One?", ["1"]), Case("b", "Two?"), Case("c", "Three?", ["3", "three"])]
        how = How(tmp_path, m=1, settings=SHORT, embedder=load_embedder("lexical"))
        found = evaluated(cases, parse_models([f"{folder}/base"]), how)
        (row,) = [row for row in found["models"][0]["measures"] if row["measure"] == "coverage"]
        assert row["prompts"] == 2
        assert any("1 of 3 prompts have no references" in note for note in found["notes"])
        assert any("Diversity needs at least 2 samples" in note for note in found["notes"])
        assert value(found, "base", "diversity") is None
        assert found["per_prompt"][1]["models"]["base"]["nll_per_token"] is None

    def test_nothing_at_all(self, folder: Path, tmp_path: Path, cases: list[Case]) -> None:
        models = parse_models([f"{folder}/base"])
        with pytest.raises(ValueError, match="at least one prompt and one model"):
            evaluate([], models, How(tmp_path))
        with pytest.raises(ValueError, match="There is nothing to measure"):
            evaluate([Case("a", "One?")], models, How(tmp_path, m=0, probe=False))
        with pytest.raises(ValueError, match="baseline='x' is none of the models: base"):
            evaluate(cases, models, How(tmp_path, m=0), baseline="x")
        with pytest.raises(ValueError, match="A scorer, a checker or a judge needs samples"):
            evaluate(cases, models, How(tmp_path, m=0, checker=load_checker("exact")))
        with pytest.raises(ValueError, match="Tasks need a model on this machine"):
            evaluate(cases, add_pools([], ["pool.jsonl"]), How(tmp_path, tasks=["own_fruit"]))
        with pytest.raises(ValueError, match="there is no file"):
            evaluate(cases, models, How(tmp_path, scorer="no_such.py:score"))

    def test_references_that_do_not_fit(self, folder: Path, tmp_path: Path) -> None:
        cases = [Case("a", "One?", ["1", "apple " * 50])]
        found = evaluated(cases, parse_models([f"{folder}/base"]), How(tmp_path, m=0, max_length=40))
        assert any("1 references do not fit 40 tokens" in note for note in found["notes"])
        model, encoder = load_model(folder / "base"), Encoder(load_tokenizer(folder / "base"))
        alone = response_nll(model, encoder, [{"prompt": "One?", "responses": ["1"]}])
        assert value(found, "base", "nll_per_token") == pytest.approx(alone.nll[0] / alone.tokens[0], rel=1e-6)


class TestOneSetOfReferences:
    def test_equal_weights_with_different_limits_are_equal(self, tmp_path: Path) -> None:
        """One model accepts 40 tokens, the other 512: both are measured on what fits in 40."""
        for name, limit in (("short", 40), ("long", 512)):
            model = tiny.llama(tiny.tokenizer(tmp_path / name))
            model.config.max_position_embeddings = limit
            model.save_pretrained(tmp_path / name)
        cases = [Case(f"p{n}", "Name fruits.", ["An apple.", "pear " * (4 + 36 * (n % 2))]) for n in range(6)]
        cases.append(Case("all too long", "Name fruits.", ["plum " * 60]))
        models = parse_models([f"{tmp_path}/short", f"{tmp_path}/long"])
        found = evaluated(cases, models, How(tmp_path / "out", m=0, probe=False))
        assert {row["difference"] for row in found["differences"]} == {0.0}
        assert {row["outcome"] for row in found["differences"]} == {"unclear"}
        assert found["data"]["references_left_out"] == 4
        assert found["per_prompt"][-1]["models"]["long"]["nll_per_token"] is None
        (note,) = (note for note in found["notes"] if "do not fit" in note)
        assert note.startswith("short: 4 references do not fit 40 tokens")
        assert "every model's NLL, which rests on 9 of 13" in note
        alone = evaluated(cases, models[1:], How(tmp_path / "out", m=0, probe=False))
        assert alone["data"]["references_left_out"] == 0
        assert value(alone, "long", "nll_per_response") != value(found, "long", "nll_per_response")

    def test_no_reference_fits_in_every_model(self, folder: Path, tmp_path: Path) -> None:
        models = parse_models([f"{folder}/base", f"again={folder}/base"])
        found = evaluated([Case("a", "One?", ["apple " * 50])], models, How(tmp_path, m=0, max_length=40))
        assert value(found, "again", "nll_per_token") is None
        assert found["data"]["references_left_out"] == 1
        assert any("rests on 0 of 1" in note for note in found["notes"])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["BASE+RUN", "RUN", "--adapter"])
def test_every_command_opens_a_model_with_the_adapters_tokenizer(folder: Path, tmp_path: Path, form: str) -> None:
    """plan, audit and sample, as evaluate does: training saves its tokenizer and template beside the adapter."""
    run = save_adapter(tmp_path / "run", folder / "base")
    tiny.tokenizer(run, family="gemma")
    named = {
        "BASE+RUN": ["--model", f"{folder}/base+{run}"],
        "RUN": ["--model", run],
        "--adapter": ["--model", f"{folder}/base", "--adapter", run],
    }[form]
    data, chosen = str(folder / "data.jsonl"), tmp_path / "chosen.jsonl"
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    chosen.write_text("".join(json.dumps({**row, "responses": row["responses"][:1]}) + "\n" for row in rows))
    found = {}
    for tokenizer in ([], ["--tokenizer", run], ["--tokenizer", f"{folder}/base"]):
        plan = command("plan", data, *named, *tokenizer)
        audit = command("audit", str(chosen), "--pool", data, *named, *tokenizer, "--gradient-prompts", "0")
        found[" ".join(tokenizer)] = plan["model"]["costs"], plan["model"]["v_x"], audit["loss"]
    own, named_so, of_the_base = found.values()
    assert own == named_so != of_the_base
    (tmp_path / "prompts.txt").write_text("Name a fruit.\n")
    output = tmp_path / "pool.jsonl"
    command("sample", str(tmp_path / "prompts.txt"), *named, "--n", "1", "--max-tokens", "2", "--output", str(output))
    drawn = json.loads(output.read_text())
    (sample,) = [*drawn["samples"], *drawn["truncated"]]
    assert sample["model"] == f"{folder}/base+{run}"


def command(*arguments: str) -> Any:
    """What a command prints as JSON."""
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_quantised_base_with_its_adapter(folder: Path, tmp_path: Path, cases: list[Case]) -> None:
    how = How(tmp_path, m=2, settings=SHORT, local=LocalOptions(load_in_4bit=True), embedder=load_embedder("lexical"))
    found = evaluated(cases, parse_models([f"{folder}/base", f"tuned={folder}/base+{folder}/run"]), how)
    whole, _ = held_out_nll(
        load_model(folder / "base", load_in_4bit=True),
        Encoder(load_tokenizer(folder / "base")),
        [{"prompt": case.prompt, "responses": case.references} for case in cases],
    )
    assert value(found, "base", "nll_per_token") == pytest.approx(whole.value, rel=1e-5)
    (row,) = found["forgetting"]
    assert row["probe"][0]["before"] != row["probe"][0]["after"]
    assert found["how"]["load_in_4bit"] is True


def test_a_reward_model_scores_every_sample_an_empty_one_too(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer(tmp_path / "reward")
    config = tiny.llama(tokenizer, hidden=32).config
    config.num_labels = 1
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "reward")
    cases = [Case("a", "One?"), Case("b", [{"role": "user", "content": "Two?"}])]
    samples = [[Sample("An apple."), Sample("")], [Sample("A pear.")]]
    add_rewards(cases, samples, str(tmp_path / "reward"), tmp_path)
    for prompt, response, score in (
        ("One?", "An apple.", samples[0][0].reward),
        ("One?", "", samples[0][1].reward),
        ("Two?", "A pear.", samples[1][0].reward),
    ):
        said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        ids = tokenizer(tokenizer.apply_chat_template(said, tokenize=False), return_tensors="pt")["input_ids"]
        with torch.no_grad():
            assert model(ids).logits.item() == pytest.approx(score, abs=1e-5)


def test_the_code_of_the_documentation_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[1] / "docs" / "evaluation.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for name, local in (
        ("path/to/base", f"{folder}/base"),
        ("outputs/run", f"{folder}/run"),
        ("held_out.jsonl", f"{folder}/data.jsonl"),
        ("sentence-transformers", "lexical"),
        ("m=8", "m=2, settings=SHORT"),
    ):
        assert name in code
        code = code.replace(name, local)
    monkeypatch.chdir(tmp_path)
    exec(code, {"SHORT": SHORT})
    assert (tmp_path / "evaluation.html").stat().st_size > 5000


class TestSamplesKept:
    def test_a_file_of_samples_beside_a_model(self, tmp_path: Path, cases: list[Case]) -> None:
        pool = tmp_path / "pool.jsonl"
        pool.write_text("".join(json.dumps({"prompt": case.prompt, "responses": case.texts}) + "\n" for case in cases))
        models = add_pools([], [f"perfect={pool}"])
        how = How(tmp_path, embedder=load_embedder("lexical"), checker=load_checker("exact"))
        found = evaluated(cases, models, how)
        assert value(found, "perfect", "coverage", 2) == pytest.approx(1.0)
        assert value(found, "perfect", "alignment") == pytest.approx(1.0)
        assert value(found, "perfect", "pass", 1) == 1.0
        assert value(found, "perfect", "diversity") == pytest.approx(found["references"]["diversity"])
        assert any("has only samples" in note for note in found["notes"])

    def test_samples_of_a_model_that_was_trained_on_are_not_taken_again(
        self, folder: Path, tmp_path: Path, cases: list[Case]
    ) -> None:
        tiny.model_dir(tmp_path / "model")
        how = How(tmp_path / "out", m=1, settings=SHORT, probe=False)
        models = [NamedModel("model", f"{tmp_path}/model")]
        first = evaluated(cases, models, how)
        assert evaluated(cases, models, how)["outputs"] == first["outputs"]
        tiny.llama(tiny.tokenizer(), seed=1).save_pretrained(tmp_path / "model")
        with pytest.raises(ValueError, match="files was .* Choose another output, or remove it"):
            evaluate(cases, models, how)

    def test_a_model_that_is_loaded_already_draws_the_same(self, folder: Path, tmp_path: Path) -> None:
        model = LocalModel(folder / "base", device="cpu")
        loaded = LocalModel(folder / "base", device="cpu", loaded=model.load())
        assert loaded.load() is loaded.load()
        assert model.identity() == loaded.identity()
