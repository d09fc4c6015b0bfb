"""The third level of a plan: documents, their prompts and the responses to these."""

import json
import math
from itertools import product

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import tiny
from typer.testing import CliRunner

from mrt_plugin import load_groups
from mrt_plugin.cli import app
from mrt_plugin.cli.planning import plan_json
from mrt_plugin.encoding import Encoder
from mrt_plugin.planning.documents import DocumentCosts, document_variances, find_documents, price_documents
from mrt_plugin.planning.nested import estimate_nested, nested_intervals
from mrt_plugin.planning.plan import make_plan
from mrt_plugin.planning.plan_report import advise, plan_report
from mrt_plugin.planning.variance import estimate_components
from recipes.benchmarks.documents import components_of, linear_losses, sketched_gradients, step_variance

V_D, V_P, V_R = 0.4, 0.3, 1.2
COSTS = DocumentCosts(document=400, prompt=40, response=20)
WORDS = "apple pear plum cherry dog river moon water red green blue story sea sky".split()


def draw(random, documents, prompts=(2, 3, 6), responses=(2, 4), parts=(V_D, V_P, V_R), skewed=False):
    """Losses [documents][prompts][responses] of unequal numbers, with components of known variance."""

    def effect(variance):
        value = (random.gamma(4) - 4) / 2 if skewed else random.standard_normal()
        return math.sqrt(variance) * value

    found = []
    for _ in range(documents):
        above = 5 + effect(parts[0])
        rows = []
        for _ in range(random.choice(prompts)):
            mean = above + effect(parts[1])
            rows.append(mean + math.sqrt(parts[2]) * random.standard_normal(random.choice(responses)))
        found.append(rows)
    return found


def reference(documents):
    """The three estimates written out, one document at a time."""
    within, between, means, corrections = [], [], [], []
    for prompts in documents:
        y = [sum(row) / len(row) for row in prompts]
        s = [sum((x - m) ** 2 for x in row) / (len(row) - 1) for row, m in zip(prompts, y, strict=True)]
        mean = sum(y) / len(y)
        spread = sum((m - mean) ** 2 for m in y) / (len(y) - 1)
        within.append(sum(s) / len(s))
        between.append(spread - sum(v / len(row) for v, row in zip(s, prompts, strict=True)) / len(s))
        means.append(mean)
        corrections.append(spread / len(y))
    n, centre = len(means), sum(means) / len(means)
    v_d = sum((m - centre) ** 2 for m in means) / (n - 1) - sum(corrections) / n
    return v_d, sum(between) / n, sum(within) / n


def test_estimates_are_those_of_the_formula():
    random = np.random.default_rng(0)
    documents = draw(random, 7)
    found = estimate_nested(documents)
    assert (found.v_d, found.v_p, found.v_r) == pytest.approx(reference(documents), rel=1e-9)
    alone = [[[1.0, 9.0]], [[2.0], [3.0]], [[4.0, 5.0], [7.0]]]  # no document with two prompts of two responses
    more = estimate_nested([*documents, *alone])
    assert (more.v_d, more.documents, more.prompts) == (found.v_d, 7, sum(map(len, documents)))
    with pytest.raises(ValueError, match="Only 0 documents have 2 prompts"):
        estimate_nested(alone)


def test_balanced_estimates_are_those_of_the_analysis_of_variance():
    """With equal numbers they are the classical mean squares' (Searle, Casella and McCulloch, section 3.2)."""
    random = np.random.default_rng(1)
    n, m, k = 9, 4, 3
    y = np.array(draw(random, n, (m,), (k,)))
    means, grand = y.mean(axis=2), y.mean()
    ms_d = m * k * ((means.mean(axis=1) - grand) ** 2).sum() / (n - 1)
    ms_p = k * ((means - means.mean(axis=1, keepdims=True)) ** 2).sum() / (n * (m - 1))
    ms_r = ((y - means[..., None]) ** 2).sum() / (n * m * (k - 1))
    found = estimate_nested(list(map(list, y)))
    assert found.v_r == pytest.approx(ms_r)
    assert found.v_p == pytest.approx((ms_p - ms_r) / k)
    assert found.v_d == pytest.approx((ms_d - ms_p) / (m * k))


@pytest.mark.slow
@pytest.mark.parametrize("skewed", [False, True])
def test_estimates_are_unbiased_and_intervals_cover(skewed):
    random, repetitions = np.random.default_rng(2), 120
    values, covered = [], np.zeros(3)
    truth = np.array([V_D, V_P, V_R])
    naive = []
    for number in range(repetitions):
        documents = draw(random, 40, skewed=skewed)
        found, ends = estimate_nested(documents), nested_intervals(documents, draws=300, seed=number)
        values.append((found.v_d, found.v_p, found.v_r))
        covered += [low <= value <= high for (low, high), value in zip(vars(ends).values(), truth, strict=True)]
        naive.append(estimate_components([row for prompts in documents for row in prompts]).v_x)
    errors = np.std(values, axis=0) / math.sqrt(repetitions)
    assert (np.abs(np.mean(values, axis=0) - truth) < 3.5 * errors).all()
    assert (covered / repetitions >= 0.84).all(), covered / repetitions
    assert np.mean(naive) == pytest.approx(V_D + V_P, rel=0.1), "two levels see documents and prompts as one"


def test_no_variance_between_documents_is_zero_on_average():
    random = np.random.default_rng(3)
    found = np.array([estimate_nested(draw(random, 30, parts=(0.0, V_P, V_R))).v_d for _ in range(150)])
    assert 0.3 < (found < 0).mean() < 0.7
    assert abs(found.mean()) < 3.5 * found.std() / math.sqrt(150)
    assert nested_intervals(draw(random, 4)) is None


@pytest.mark.parametrize("aggregation", ["token", "prompt"])
def test_the_variance_of_unequal_documents_is_that_of_simulated_means(aggregation):
    """The factors of a choice, times its number of documents, against drawing documents over and over."""
    random = np.random.default_rng(4)
    sizes, pools, n = np.array([1, 2, 5]), np.array([1, 3]), 24
    choices, factors = document_variances(
        DocumentCosts(0, 0, 1), document_sizes=list(sizes) * 20, pool_sizes=list(pools) * 80, budget=1e9,
        loss_aggregation=aggregation,
    )  # fmt: skip
    assert [choice[:2] for choice in choices] == [(m, k) for k in (1, 2, 3) for m in (1, 2, 3, 4, 5)]
    for m, k in ((5, 3), (2, 2)):
        shape = (20_000, n, m)
        asked = np.arange(m) < np.minimum(random.choice(sizes, shape[:2]), m)[..., None]
        kept = np.minimum(random.choice(pools, shape), k)
        means = random.normal(0, math.sqrt(V_D), shape[:2])[..., None] + random.normal(0, math.sqrt(V_P), shape)
        means += random.normal(0, np.sqrt(V_R / kept))
        votes = asked * (kept if aggregation == "token" else 1)
        estimates = (votes * means).sum(axis=(1, 2)) / votes.sum(axis=(1, 2))
        place = choices.index(next(choice for choice in choices if choice[:2] == (m, k)))
        predicted = factors[place] @ [V_D, V_P, V_R] * choices[place][2] / n
        assert np.var(estimates) == pytest.approx(predicted, rel=0.05)  # weights are a ratio: some 1/n more in truth


def test_the_best_choice_is_that_of_a_search_over_all():
    """Equal documents: every m, K and n that the budget and the data allow, priced by the formula."""
    documents = draw(np.random.default_rng(5), 40, (6,), (5,))
    for budget, costs in product((3000, 20_000, 60_000), (COSTS, DocumentCosts(5, 40, 20), DocumentCosts(4000, 9, 1))):
        if budget < costs.of_document(1, 1):
            with pytest.raises(ValueError, match="does not pay for one document"):
                price(documents, costs, budget)
            continue
        found = price(documents, costs, budget)
        part = found.components
        cells = []
        for m, k in product(range(1, 7), range(1, 6)):
            n = min(40, int(budget // (costs.document + m * (costs.prompt + k * costs.response))))
            if n:
                cells.append((part.v_d / n + part.v_p / (n * m) + part.v_r / (n * m * k), m, k, n))
        variance, m, k, n = min(cells)
        assert (found.best.m, found.best.k, found.best.documents) == (m, k, n)
        assert found.best.variance == pytest.approx(variance)
        assert found.best.cost <= budget
        assert found.m_interval.low <= m <= found.m_interval.high
        assert found.k_interval.low <= k <= found.k_interval.high


def price(documents, costs, budget):
    return price_documents(
        documents,
        costs,
        document_sizes=[len(prompts) for prompts in documents],
        pool_sizes=[len(row) for prompts in documents for row in prompts],
        budget=budget,
        loss_aggregation="token",
        level=0.9,
        draws=200,
    )


def test_formulas_agree_with_the_search_where_nothing_binds():
    random = np.random.default_rng(6)
    found = price(draw(random, 400, (30,), (30,)), COSTS, 60_000)
    assert 1 < found.best.m < 30
    assert 1 < found.best.k < 30
    assert found.best.m == pytest.approx(found.m_star, abs=1.5)
    assert found.best.k == pytest.approx(found.k_star, abs=1.5)


def test_documents_that_do_not_differ_give_all_their_prompts():
    (document,) = draw(np.random.default_rng(6), 1, (9,), (4,))
    found = price([document] * 30, COSTS, 20_000)
    assert found.components.v_d < 0
    assert (found.best.m, found.m_star) == (9, math.inf)


def rows_with_documents(count=8, questions=4, alone=3, system=""):
    random = np.random.default_rng(7)
    rows = []
    for document in range(count):
        text = " ".join(random.choice(WORDS, size=150))
        for question in range(questions):
            pool = [" ".join(random.choice(WORDS, size=random.integers(2, 9))) + f" {j}." for j in range(4)]
            prompt = f"{system}Text {document}: {text} Question {question}: {random.choice(WORDS)}?"
            rows.append({"id": f"{document}/{question}", "prompt": prompt, "responses": pool})
    for number in range(alone):
        text = " ".join(random.choice(WORDS, size=150))
        rows.append({"id": f"alone {number}", "prompt": f"{system}{number} {text}", "responses": ["a b.", "c.", "d."]})
    order = np.random.default_rng(8).permutation(len(rows))
    return [rows[place] for place in order]


@pytest.mark.parametrize("system", ["", "Answer in one short sentence and name no source. " * 12])
def test_documents_are_found_below_a_system_text(system):
    rows = rows_with_documents(system=system)
    labels = find_documents(load_groups(Dataset.from_list(rows)), Encoder(tiny.tokenizer()))
    known = {}
    for row, label in zip(rows, labels, strict=True):
        assert (label == -1) == row["id"].startswith("alone")
        if label >= 0:
            assert known.setdefault(row["id"].split("/")[0], label) == label
    assert len(set(known.values())) == len(known) == 8


@pytest.fixture(scope="module")
def model():
    return tiny.llama(tiny.tokenizer(), max_position_embeddings=1024).eval()


@pytest.mark.slow
def test_a_plan_prices_documents(model, tmp_path):
    groups, encoder = load_groups(Dataset.from_list(rows_with_documents())), Encoder(tiny.tokenizer())
    made = make_plan(groups, model=model, encoder=encoder, budget="1x")
    third = made.model.documents
    assert (third.documents, third.prompts, third.most_prompts) == (8, 32, 4)
    assert (third.components.documents, third.components.prompts) == (8, 32)
    assert third.costs.document > 4 * third.costs.prompt
    assert third.costs.document + third.costs.prompt == pytest.approx(made.model.costs.prompt, rel=0.15)
    assert third.costs.of_document(third.best.m, third.best.k) * third.best.documents <= made.model.budget
    assert third.best.m > 1, "an ordinary epoch pays each document four times"
    text = " ".join(advise(made))
    assert f"m = {third.best.m} prompts of each of {third.best.documents} documents" in text
    assert "Documents, prompts and responses" in plan_report(made)
    printed = json.loads(json.dumps(plan_json(made), allow_nan=False))["model"]["documents"]
    assert printed["best"]["m"] == third.best.m
    # Two levels are measured as before, and a sample of the prompts is completed by those of some documents.
    less = make_plan(groups, model=model, encoder=encoder, budget="1x", max_prompts=12)
    assert less.model.prompts_measured == 12
    assert 2 <= less.model.documents.components.documents <= 3
    assert less.model.documents.documents == 8
    scaled = made.model.costs
    costs = type(scaled)(10 * scaled.prompt, 10 * scaled.response)
    dear = make_plan(groups, model=model, encoder=encoder, budget="1x", costs=costs).model.documents
    assert dear.costs.document == pytest.approx(10 * third.costs.document)
    assert dear.best.m == third.best.m
    assert make_plan(groups, model=model, encoder=encoder, layout="expanded").model.documents is None


def test_without_documents_nothing_is_said(model):
    rows = [row for row in rows_with_documents(alone=12) if row["id"].startswith(("alone", "0/"))]
    assert sum(row["id"].startswith("0/") for row in rows) == 4, "one document is no population of documents"
    made = make_plan(load_groups(Dataset.from_list(rows)), model=model, encoder=Encoder(tiny.tokenizer()))
    assert made.model.documents is None
    assert not any("document" in line for line in advise(made))
    assert "Documents" not in plan_report(made)


def test_the_command_shows_documents(model, tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    data = tmp_path / "pool.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows_with_documents()))
    shown = CliRunner().invoke(app, ["plan", str(data), "--model", str(tmp_path / "model")])
    assert shown.exit_code == 0, shown.output
    for words in ("V_d, between documents", "group_by_prefix", "m, prompts of a document"):
        assert words in shown.output


@pytest.mark.slow
def test_steps_of_the_recipe_scatter_as_known_components_say():
    """`recipes.benchmarks.documents` on losses whose components are known; gradients are several such figures."""
    random = np.random.default_rng(9)
    n, m, k = 1600, 8, 2
    effects = (V_D**0.5, (n, 1, 1)), (V_P**0.5, (n, m, 1)), (V_R**0.5, (n, m, k))
    nll = 5 + sum(scale * random.standard_normal(shape) for scale, shape in effects)
    tokens = np.ones((n, m, k))
    assert components_of(linear_losses(nll, tokens)) == pytest.approx((V_D, V_P, V_R), rel=0.12)
    twice = np.stack([nll, 2 * nll], axis=-1)
    assert components_of(linear_losses(twice, tokens)) == pytest.approx(
        [5 * part for part in components_of(linear_losses(nll, tokens))]
    )
    for each in (1, 4, 8):
        formula = V_D / (32 / each) + V_P / 32 + V_R / 64
        found = step_variance(nll, tokens, each, 32, 60, seed=0)
        assert found == pytest.approx(formula, rel=0.15)
        assert step_variance(twice, tokens, each, 32, 60, seed=0) == pytest.approx(5 * found)


def test_the_recipes_projection_keeps_lengths(model):
    encoder = Encoder(tiny.tokenizer())
    pairs = [encoder.encode_group("Name a fruit.", [f" {word} {word}."])[0] for word in WORDS]
    sketch = sketched_gradients(model, pairs)
    lengths = []
    for pair in pairs:
        ids = torch.tensor([list(pair.input_ids)])
        labels = torch.where(torch.tensor(list(pair.trained)), ids, -100)
        loss = model(input_ids=ids, labels=labels).loss * pair.trained_length
        lengths.append(sum((part**2).sum().item() for part in torch.autograd.grad(loss, list(model.parameters()))))
    ratios = (sketch**2).sum(axis=1) / lengths
    assert np.mean(ratios) == pytest.approx(1, abs=0.25)
    assert np.std(ratios) < 0.5
