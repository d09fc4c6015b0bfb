"""`make_audit`: a selection against its pool, its numbers against known truths, and what it refuses."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import tiny
from helpers.cli import CliRunner
from interval_coverage import audit_coverage
from peft import LoraConfig, get_peft_model

from mrt_plugin import load_groups, select
from mrt_plugin.cli import app
from mrt_plugin.cli.planning import audit_json
from mrt_plugin.encoding import Encoder
from mrt_plugin.groups import DataError
from mrt_plugin.models.load import open_model
from mrt_plugin.models.named_model import parse_models
from mrt_plugin.planning.audit import (
    AuditedGroup,
    SelectorCall,
    audit_loss,
    audit_splits,
    make_audit,
    match,
    mean_interval,
)
from mrt_plugin.planning.audit_report import audit_report, headline, next_step, notes, strips, warnings
from mrt_plugin.planning.measure import cosine, gradient_products
from mrt_plugin.planning.variance import Interval

FRUIT = "apple pear plum cherry dog river moon water red green blue story sea sky".split()


def make_pool(prompts=20, seed=0):
    """Eight responses each: six say the same words in another order, two say others and are longer and better."""
    random = np.random.default_rng(seed)
    rows = []
    for index in range(prompts):
        common = [" ".join(random.permutation(["apple", "pear", "plum"])) + f" {j}" for j in range(6)]
        rare = [" ".join(random.permutation(["river", "moon", "water", "sea", "sky"])) + f" {j}." for j in range(2)]
        order = random.permutation(8)
        pool = [*common, *rare]
        scores = [0.1] * 6 + [0.9] * 2
        rows.append(
            {
                "id": f"g{index}",
                "prompt": f"Say something about number {index}.",
                "responses": [pool[place] for place in order],
                "scores": [scores[place] + 0.001 * place for place in order],
            }
        )
    return load_groups(Dataset.from_list(rows))


@pytest.fixture(scope="module")
def pool():
    return make_pool()


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny.llama(tokenizer).eval()


@pytest.fixture(scope="module")
def audit(pool, model, tokenizer):
    return make_audit(
        select(pool, "best_k", k=2),
        pool,
        rule=SelectorCall("best_k", {}),
        model=model,
        encoder=Encoder(tokenizer),
        gradient_prompts=10,
        splits=6,
    )


def test_what_was_kept_is_found_again(pool):
    for selector in ("best_k", "random_k"):
        chosen = select(pool, selector, k=3)
        mixed = chosen.select(np.random.default_rng(0).permutation(len(chosen)))
        for kept, group in zip(match(mixed, pool), mixed, strict=True):
            assert pool[kept.row]["id"] == group["id"]
            assert [pool[kept.row]["responses"][place] for place in kept.places] == group["responses"]
            assert [pool[kept.row]["scores"][place] for place in kept.places] == group["scores"]
    renamed = select(pool, "best_k", k=3).map(lambda row: {"id": "x" + row["id"]})
    assert len(match(renamed, pool)) == len(pool)


def test_copies_are_told_apart_by_score():
    pool = load_groups(
        Dataset.from_list([{"prompt": "p", "id": "1", "responses": ["a", "a", "b"], "scores": [1.0, 5.0, 2.0]}])
    )
    chosen = load_groups(Dataset.from_list([{"prompt": "p", "id": "1", "responses": ["a"], "scores": [5.0]}]))
    assert match(chosen, pool)[0].places == [1]
    twice = load_groups(Dataset.from_list([{"prompt": "p", "id": "1", "responses": ["b", "b"], "scores": [2.0, 2.0]}]))
    with pytest.raises(DataError, match="response 1 is not in the pool"):
        match(twice, pool)


def test_a_selection_must_be_a_subset(pool):
    rows = [dict(row) for row in select(pool, "best_k", k=2)]
    rows[1]["responses"] = [rows[1]["responses"][0], "never seen"]
    rows.append({"id": "new", "prompt": "A new prompt.", "responses": ["a"], "scores": [1.0]})
    with pytest.raises(DataError) as raised:
        make_audit(load_groups(Dataset.from_list(rows)), pool, name="chosen.jsonl")
    assert len(raised.value.problems) == 2
    assert "chosen.jsonl" in str(raised.value)
    assert "row 1, column `responses`: response 1" in str(raised.value)
    assert "row 20, column `prompt`" in str(raised.value)
    with pytest.raises(ValueError, match="nothing to audit"):
        make_audit(select(pool, "all"), pool)


@pytest.mark.slow
def test_length_and_coverage_beside_random_k(pool):
    best = make_audit(select(pool, "best_k", k=2), pool)
    assert best.length.kept > best.length.random_k_interval.high
    assert best.length.ratio == pytest.approx(7 / ((6 * 4 + 2 * 7) / 8))
    assert any("longer than their pools'" in line for line in warnings(best))
    turned = pool.map(lambda row: {"scores": [-score for score in row["scores"]]})
    common = make_audit(select(turned, "best_k", k=2), turned)
    assert common.coverage.clusters_covered < common.coverage.random_k
    assert any("lack kinds of answers" in line for line in warnings(common))
    spread = make_audit(select(pool, "diverse_k", k=2, similarity="rescaled"), pool)
    assert spread.coverage.clusters_covered > common.coverage.clusters_covered
    # What random_k covers on average is what is written down for it.
    covered, lengths = [], []
    for seed in range(40):
        found = make_audit(select(pool, "random_k", k=2, seed=seed), pool)
        covered.append(found.coverage.clusters_covered)
        low, high = found.length.random_k_interval
        lengths.append(low <= found.length.kept <= high)
    assert np.mean(covered) == pytest.approx(found.coverage.random_k, abs=3 * np.std(covered) / np.sqrt(40))
    assert 0.75 <= np.mean(lengths) <= 1.0


@pytest.mark.slow
def test_a_selection_away_from_its_pool_is_warned_of(audit):
    gradient, loss = audit.gradient, audit.loss
    assert gradient.cosine < gradient.random_k_cosine
    assert gradient.difference_interval.high < 0
    assert any("points" in line and "gradient" in line for line in warnings(audit))
    assert loss.emse > loss.random_k_emse
    splits = audit.splits
    assert splits.selection.bias_squared_interval.low > 0
    assert splits.selection.bias_squared > 2 * abs(splits.random_k.bias_squared)
    assert splits.selection.cosine < splits.random_k.cosine


@pytest.mark.slow
def test_random_k_passes_its_own_audit(pool, model, tokenizer):
    chosen = select(pool, "random_k", k=3, seed=1)
    found = make_audit(
        chosen, pool, rule=SelectorCall("random_k", {}), model=model, encoder=Encoder(tokenizer), gradient_prompts=10
    )
    assert not any("points" in line for line in warnings(found))
    assert abs(found.gradient.cosine - found.gradient.random_k_cosine) < 0.05
    assert abs(found.splits.selection.bias_squared) < found.splits.selection.variance / 5


def cases(prompts, size, k, random, choose):
    """Groups with normal losses, and what `choose(losses, scores)` keeps."""
    made = []
    for index in range(prompts):
        losses = random.normal(random.normal(0, 3), 1, size)
        columns = {"responses": [f"response {place}" for place in range(size)], "scores": (-losses).tolist()}
        made.append(AuditedGroup(f"g{index}", choose(losses), losses, columns))
    return made


def test_error_of_the_loss_against_known_values():
    random = np.random.default_rng(0)
    fair = audit_loss(cases(3000, 12, 3, random, lambda losses: random.choice(12, 3, replace=False).tolist()))
    # s²/K·(1 - K/N) with s² = 1.
    assert fair.random_k_emse == pytest.approx(1 / 3 * (1 - 3 / 12), rel=0.05)
    assert fair.emse == pytest.approx(fair.random_k_emse, rel=0.1)
    assert fair.emse_difference_interval.low < 0 < fair.emse_difference_interval.high
    low = audit_loss(cases(300, 12, 3, random, lambda losses: np.argsort(losses)[:3].tolist()))
    assert low.kept_minus_pool < -1
    assert low.emse_difference_interval.low > 0


@pytest.mark.slow
def test_intervals_of_few_prompts_cover_more_than_plain_percentiles():
    """Nominal 90 %; docs/planning-explained.md has 4,000 repetitions."""
    for prompts in (5, 8, 10, 20):
        for plain, used in audit_coverage(prompts, 300).values():
            assert plain < used
            assert used >= 0.78
        assert used >= 0.80 or prompts == 5
    assert mean_interval(np.array([1.0, 2.0, 3.0, 4.0])) is None


def test_a_cosine_below_zero_by_chance_is_no_warning(audit):
    for high, warned in ((-0.01, True), (0.05, False)):
        ends = {"cosine_interval": Interval(-0.1, high), "difference_interval": Interval(-1.0, 1.0)}
        changed = replace(audit, gradient=replace(audit.gradient, cosine=-0.02, **ends))
        assert any("points away from its pool" in line for line in warnings(changed)) == warned


def test_few_prompts_have_no_intervals_and_the_report_says_so(pool):
    found = make_audit(select(pool.select(range(4)), "best_k", k=2), pool.select(range(4)))
    assert found.coverage.difference_interval is None
    assert any("Fewer than 5 prompts" in line for line in notes(found))
    assert "clusters covered" in audit_report(found)


def test_length_of_text_without_spaces_counts_characters_and_says_so():
    rows = [{"id": f"{n}", "prompt": f"{n}?", "responses": ["苹果很甜", "我喜欢吃苹果和梨", "梨"]} for n in range(6)]
    pool = load_groups(Dataset.from_list(rows))
    kept = load_groups(Dataset.from_list([{**row, "responses": row["responses"][:1]} for row in rows]))
    length = make_audit(kept, pool).length
    assert (length.kept, length.pool) == (4, pytest.approx(13 / 3))
    assert length.unit == "words or characters"


@pytest.mark.slow
def test_splits_tell_bias_from_variance():
    random = np.random.default_rng(1)
    made = cases(60, 16, 4, random, lambda losses: [0, 1, 2, 3])
    found = audit_splits(made, SelectorCall("best_k", {}), 30, 0, lambda *_: None)
    # The four lowest of eight normal losses lie 0.76 below the mean of all.
    normal = np.sort(random.standard_normal((20000, 8)), axis=1)[:, :4].mean(axis=1)
    assert found.selection.bias_squared == pytest.approx(normal.mean() ** 2, rel=0.25)
    assert found.selection.variance < found.random_k.variance
    assert abs(found.random_k.bias_squared) < 0.02
    assert found.random_k.variance == pytest.approx(1 / 4 * (1 - 4 / 16), rel=0.15)
    assert found.selection.cosine is None
    tiny_pools = cases(5, 4, 2, random, lambda losses: [0, 1])
    assert audit_splits(tiny_pools, SelectorCall("best_k", {}), 3, 0, lambda *_: None) is None


def test_gradient_products_are_those_of_the_lora_parameters_and_follow_the_full_gradient(model, tokenizer):
    encoder = Encoder(tokenizer)
    pairs = encoder.encode_group("Name a fruit.", ["apple pear", "pear apple", "the river and the sea", "apple pear"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (products,) = gradient_products(model, [[[pair] for pair in pairs]], seed=3)
    assert {name for name, _ in model.named_parameters()} == set(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.requires_grad for value in model.parameters())
    assert all(value.grad is None for value in model.parameters())

    full = []
    for pair in pairs:
        ids = torch.tensor([list(pair.input_ids)])
        labels = torch.where(torch.tensor(list(pair.trained)), ids, -100)
        (model(input_ids=ids, labels=labels).loss * pair.trained_length).backward()
        linear = [
            module.weight.grad.flatten()
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and name != "lm_head"
        ]
        full.append(torch.cat(linear).double())
        model.zero_grad(set_to_none=True)
    rows = torch.stack(full)
    exact = (rows @ rows.T).numpy()
    assert cosine(products, [0], [3]) == pytest.approx(1, abs=1e-6)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert cosine(products, [one], [other]) == pytest.approx(cosine(exact, [one], [other]), abs=0.15)
    assert cosine(exact, [0], [1]) > cosine(exact, [0], [2])
    assert cosine(products, [0], [1]) > cosine(products, [0], [2])


def test_gradients_of_an_adapter_are_its_own(tokenizer):
    adapted = get_peft_model(
        tiny.llama(tokenizer), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    )
    for value in adapted.parameters():
        value.requires_grad_(False)
    pair = Encoder(tokenizer).encode("Name a fruit.", "apple pear")
    (products,) = gradient_products(adapted, [[[pair]]])
    assert not any(value.requires_grad for value in adapted.parameters())
    for name, value in adapted.named_parameters():
        value.requires_grad_("lora_" in name)
    ids = torch.tensor([list(pair.input_ids)])
    labels = torch.where(torch.tensor(list(pair.trained)), ids, -100)
    adapted.eval()
    (adapted(input_ids=ids, labels=labels).loss * pair.trained_length).backward()
    squares = sum(float(value.grad.double().pow(2).sum()) for value in adapted.parameters() if value.grad is not None)
    assert products[0, 0] == pytest.approx(squares, rel=1e-4)


def test_the_page_is_whole_and_offline(audit):
    json.dumps(audit_json(audit), allow_nan=False)
    page = audit_report(audit)
    assert page.count("<svg") == 2
    assert not re.search(r"<script|<link|@import|(?:src|href)=\"(?:https?:)?//", page)
    assert f'<p class="headline">{headline(audit)[0]}</p>' in page.replace("&#x27;", "'")
    last = page.replace("&#x27;", "'").replace("\\\n  ", "").rstrip()
    assert last.endswith(f"<pre>{next_step(audit).command}</pre></div>\n</body></html>")


def test_the_headline_is_the_largest_tilt_and_then_comes_the_loss(audit):
    """Twice as long is more than a quarter fewer kinds; both come before the loss and the gradient."""
    length = replace(audit.length, kept=14.0, pool=7.0, ratio=2.0, random_k_interval=Interval(6.5, 7.5))
    fewer = {"clusters_covered": 0.3, "random_k": 0.4, "difference_interval": Interval(-0.12, -0.08)}
    tilted = replace(audit, length=length, coverage=replace(audit.coverage, **fewer))
    first, second, third, *_, how = headline(tilted)
    assert first == "Kept answers are 100% longer than their pools': 14 words, not 7 (by chance 6.5 to 7.5)."
    assert second == "Kept answers lack kinds of answers: they cover 30% of their pools' clusters, random_k 40%."
    below = "their loss is 0.041 below their pools' (-0.0493 to -0.032)."
    assert third == f"Kept answers are easier for the model: {below}"
    even = replace(tilted.loss, kept_minus_pool=0.1, kept_minus_pool_interval=Interval(-0.2, 0.4))
    assert headline(replace(tilted, loss=even))[-2] == (
        "Their loss is not tilted: 0.1 above their pools' (-0.2 to 0.4)."
    )
    assert how == (
        "Judged on 20 pools of 8 responses (median) with 2 kept of each, against random_k at the same K, by 90% "
        "intervals. The loss was measured on 20 of them, the gradient on 10."
    )
    slight = replace(tilted, length=replace(length, kept=8.0, ratio=8 / 7))
    assert "lack kinds of answers" in headline(slight)[0]
    assert "14% longer" in headline(slight)[1]


def test_without_a_tilt_the_headline_says_so_and_how_that_was_judged(audit):
    length = replace(audit.length, kept=7.0, pool=7.1, ratio=7 / 7.1, random_k_interval=Interval(6.5, 7.5))
    same = {"clusters_covered": 0.41, "random_k": 0.4, "difference_interval": Interval(-0.02, 0.04)}
    plain = replace(
        audit,
        length=length,
        coverage=replace(audit.coverage, **same),
        loss=None,
        gradient=None,
        splits=None,
        with_model=False,
        name="a b.jsonl",
    )
    first, how = headline(plain)
    assert first == (
        "No tilt was found in a b.jsonl: kept answers have 7 words, their pools' 7.1 (by chance 6.5 to 7.5); they "
        "cover 41% of the kinds of answers (random_k 40%)."
    )
    assert how.endswith("Loss and gradient were not measured: no model was given.")
    assert next_step(plain).command == "mrt audit 'a b.jsonl' --pool POOL --model MODEL"
    few = replace(plain, groups=replace(audit.groups, audited=3))
    assert headline(few)[0].startswith("3 prompts are too few to find a tilt: ")


def test_strips_turn_the_error_round_so_that_better_is_right(audit):
    rows = {row.name: row for row in strips(audit)}
    assert audit.loss.emse > audit.loss.random_k_emse
    assert rows["error of the prompt's loss"].value == audit.loss.random_k_emse - audit.loss.emse
    assert rows["error of the prompt's loss"].interval[1] == -audit.loss.emse_difference_interval.low
    assert rows["gradient"].value < 0
    assert (rows["gradient"].verdict, rows["length"].verdict) == ("worse", "longer")
    assert rows["length"].usual[0] == audit.length.random_k_interval.low - audit.length.pool


@pytest.mark.slow
def test_on_the_command_line_with_the_manifest(tmp_path, pool):
    data, chosen, model = tmp_path / "pool.jsonl", tmp_path / "chosen.jsonl", tmp_path / "model"
    data.write_text("".join(json.dumps(row) + "\n" for row in pool))
    tiny.model_dir(model)
    run = CliRunner()
    made = run.invoke(app, ["select", str(data), "--selector", "best_k", "--k", "2", "--output", str(chosen)])
    assert made.exit_code == 0, made.output
    arguments = ["audit", str(chosen), "--pool", str(data), "--model", str(model), "--splits", "3"]
    arguments += ["--gradient-prompts", "5"]
    shown = run.invoke(app, [*arguments, "--report", str(tmp_path / "audit.html")])
    assert shown.exit_code == 0, shown.output
    lines = [line for line in shown.stdout.splitlines() if line]
    assert lines[0].startswith("Kept answers are 47% longer than their pools': 7 words, not 4.75 (by chance ")
    again = f"mrt select {data} --selector random_k --k 2 --output {tmp_path / 'chosen_random_k.jsonl'}"
    assert lines[-1].startswith("Next: ")
    assert lines[-1].endswith(again)
    assert run.invoke(app, again.split()[1:]).exit_code == 0
    assert "best_k" in shown.output
    found = json.loads(run.invoke(app, [*arguments, "--json"]).stdout)
    assert found["splits"]["selector"] == "best_k"
    assert (tmp_path / "audit.html").stat().st_size > 5000
    chosen.with_name("chosen.jsonl.manifest.jsonl").unlink()
    without = json.loads(run.invoke(app, [*arguments, "--json"]).stdout)
    assert without["splits"] is None
    assert any("give --selector" in line for line in without["notes"])
    chosen.write_text(json.dumps({"prompt": "Unknown.", "responses": ["a"]}) + "\n")
    failed = run.invoke(app, arguments)
    assert failed.exit_code == 1
    assert "no group of the pool" in failed.output


def test_a_4_bit_model_on_a_cpu_keeps_its_gradients(pool, tmp_path, recwarn):
    """On CPUs with AVX512-BF16, layers that ran in evaluation mode pass no gradient on, which torch warns of."""
    pytest.importorskip("bitsandbytes")
    path = tiny.model_dir(tmp_path / "model")
    model, encoder = open_model(parse_models([path])[0], load_in_4bit=True)
    found = make_audit(select(pool, "best_k", k=2), pool, model=model, encoder=encoder, gradient_prompts=3)
    assert found.gradient is not None
    assert not [one for one in recwarn if "gemv_4bit" in str(one.message)]


def test_augment_on_the_command_line(tmp_path, pool):
    data, new, kept = tmp_path / "pool.jsonl", tmp_path / "new.jsonl", tmp_path / "kept.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in pool))
    rows = [{"prompt": "Say something about number 3.", "extra": 1}, {"prompt": "Explain how rain forms.", "extra": 2}]
    new.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = CliRunner()
    done = run.invoke(app, ["augment", str(new), "--data", str(data), "--output", str(kept)])
    assert done.exit_code == 0, done.output
    assert [json.loads(line) for line in kept.read_text().splitlines()] == [rows[1]]
    new.write_text('{"prompt": 3}\nnot json\n')
    failed = run.invoke(app, ["augment", str(new), "--data", str(data), "--output", str(kept)])
    assert failed.exit_code == 1
    assert "line 1" in failed.output
    assert "line 2" in failed.output
