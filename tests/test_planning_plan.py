"""`make_plan` on a real tiny model: what it measures, what it says, and what it refuses."""

import json
import math
import re
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import tiny
from helpers.cli import CliRunner
from helpers.page import check_page

from mrt_plugin import load_groups
from mrt_plugin.cli import app
from mrt_plugin.cli.planning import plan_json
from mrt_plugin.encoding import Encoder
from mrt_plugin.groups.write import write_groups
from mrt_plugin.planning.budget import parse_budget
from mrt_plugin.planning.measure import MeasuredGroup, Measurement, measure, token_costs
from mrt_plugin.planning.plan import compare_single, estimate_adaptive, make_plan
from mrt_plugin.planning.plan_report import (
    advise,
    cannot_know,
    choice_rows,
    choices_figure,
    next_step,
    plan_report,
    table_ks,
    variance_rows,
    yaml_block,
)
from mrt_plugin.planning.variance import Interval, estimate_components

FRUIT = "apple pear plum cherry dog river moon water red green blue story sea sky".split()


def make_rows(prompts=12, responses=6, seed=0):
    random = np.random.default_rng(seed)
    return [
        {
            "id": f"g{index}",
            "prompt": f"Name a fruit, number {index}. " + "Please think first. " * (index % 3),
            "responses": [
                " ".join(random.choice(FRUIT, size=random.integers(2, 12))) + f" {j}." for j in range(responses)
            ],
        }
        for index in range(prompts)
    ]


@pytest.fixture(scope="module")
def groups():
    return load_groups(Dataset.from_list(make_rows()))


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny.llama(tokenizer).eval()


@pytest.fixture(scope="module")
def made(groups, model, tokenizer):
    return make_plan(groups, model=model, encoder=Encoder(tokenizer), budget="2x", data="pool.jsonl")


@pytest.fixture(scope="module")
def plan(made):
    """What `mrt plan --json` prints."""
    return as_read(made)


def as_read(made):
    return json.loads(json.dumps(plan_json(made), allow_nan=False))


def changed(made, **values):
    """The plan with other values measured on the model."""
    return replace(made, model=replace(made.model, **values))


def test_losses_and_costs_are_those_of_the_pairs(groups, model, tokenizer):
    encoder = Encoder(tokenizer)
    found = measure(model, encoder, groups)
    group, row = found.groups[4], groups[4]
    pairs = encoder.encode_group(row["prompt"], row["responses"])
    for place, pair in enumerate(pairs):
        ids = torch.tensor([list(pair.input_ids)])
        labels = torch.where(torch.tensor(list(pair.trained)), ids, -100)
        with torch.no_grad():
            loss = model(input_ids=ids, labels=labels).loss.item()
        assert group.nll[place] / pair.trained_length == pytest.approx(loss, rel=1e-4)
    # One copy of the prompt and all responses: the tokens of the shared layout, and of the expanded one.
    prompts, responses = [], []
    for item, data in zip(found.groups, groups, strict=True):
        encoded = encoder.encode_group(data["prompt"], data["responses"])
        costs = token_costs([item.responses], "shared_prefix")
        assert len(encoded) * costs.of_prompt(1) == pytest.approx(sum(len(pair.input_ids) for pair in encoded))
        prompts.append(costs.prompt)
        responses.append(costs.response)
    costs = token_costs([item.responses for item in found.groups], "shared_prefix")
    assert costs.prompt == pytest.approx(np.mean(prompts))
    assert costs.response == pytest.approx(np.mean(responses))


def test_token_losses_have_the_variance_of_the_ratio_that_training_minimises(groups, model, tokenizer):
    found = measure(model, Encoder(tokenizer), groups)
    losses = found.losses("token")
    assert np.mean([row.mean() for row in losses]) == pytest.approx(found.nll_per_token)
    # Draw one response per prompt over and over: the token-weighted loss scatters as the linear form says.
    random = np.random.default_rng(0)
    nll, length, linear = [], [], []
    for _ in range(3000):
        drawn = [random.integers(len(row)) for row in losses]
        nll.append(sum(group.nll[j] for group, j in zip(found.groups, drawn, strict=True)))
        length.append(sum(group.trained_tokens[j] for group, j in zip(found.groups, drawn, strict=True)))
        linear.append(np.mean([row[j] for row, j in zip(losses, drawn, strict=True)]))
    assert np.var(np.array(nll) / np.array(length)) == pytest.approx(np.var(linear), rel=0.15)
    for aggregation in ("prompt", "response"):
        assert len(found.losses(aggregation)) == len(losses)
    assert found.losses("response")[0][0] == found.groups[0].nll[0] / found.groups[0].trained_tokens[0]


def test_the_plan_is_json_and_hangs_together(plan, groups, model, tokenizer):
    found = plan["model"]
    estimate = estimate_components(measure(model, Encoder(tokenizer), groups).losses("token"))
    assert found["v_x"] == pytest.approx(estimate.v_x)
    assert found["v_yx"] == pytest.approx(estimate.v_yx)
    ordinary = len(groups) * (found["costs"]["prompt"] + found["costs"]["response"])
    assert found["ordinary_epoch"] == pytest.approx(ordinary)
    assert found["budget"] == pytest.approx(2 * ordinary)
    rows = found["choices"]["shared_prefix"]
    assert len(rows) == 6
    best = min((row for row in rows if row["variance"] is not None), key=lambda row: row["variance"])
    assert found["best"]["k"] == best["k"]
    assert found["best"]["k_interval"][0] <= best["k"] <= found["best"]["k_interval"][1]
    assert all(row["cost"] <= found["budget"] * (1 + 1e-9) for row in rows)
    # A shared prompt never buys less than a copied one, and as much at K = 1.
    for one, two in zip(rows, found["choices"]["expanded"], strict=True):
        assert one["prompts"] >= two["prompts"]
    assert rows[0] == found["choices"]["expanded"][0]
    assert len(found["per_prompt"]) == len(groups)
    assert plan["advice"][0].startswith(f"Keep {best['k']} response")
    assert f"  k: {best['k']}\n" in plan["yaml"]


def test_the_recipe_block_is_valid_yaml_with_known_options(plan):
    import yaml

    from mrt_plugin.options import MultiResponseOptions, check_options

    block = yaml.safe_load(plan["yaml"])
    assert block["mrt"].pop("curation") == [{"sample": {"groups": plan["model"]["best"]["prompts"]}}]
    check_options(MultiResponseOptions(**block["mrt"]))
    assert block["datasets"][0]["path"] == "pool.jsonl"
    assert block["plugins"] == ["mrt_plugin.axolotl.MultiResponsePlugin"]


def test_the_page_is_whole_and_offline(made, plan):
    page = plan_report(made)
    assert page.count("<svg") == 2
    assert page.index("<svg") < page.index("<table")
    assert page.index('class="headline"') < page.index("<svg")
    assert page.index("mrt select pool.jsonl") > page.index("What this cannot know")
    assert not re.search(r"<script|<link|@import|url\(http|(?:src|href)=\"(?:https?:)?//", page)
    assert plan["advice"][0] in page
    colours = {value.lower() for value in re.findall(r"#[0-9a-fA-F]{6}\b", page[page.index("<svg") :])}
    assert all(value[1:3] == value[3:5] == value[5:7] for value in colours), f"not grey: {colours}"


def test_the_page_in_chromium(made, chromium):
    check_page(chromium, plan_report(made), advise(made)[0], pictures_fit_a_phone=True)


def test_the_shares_are_those_of_the_components(made):
    parts = [made.model.v_yx, max(made.model.v_x, 0.0)]
    within, between = (f"{part / sum(parts):.0%}" for part in parts)
    headline, _, shares, *_ = advise(made)
    assert headline.endswith(f": {within} of the spread in loss is between answers to one prompt.")
    assert f"{within} is between responses to one prompt (V_{{y|x}}, 90% interval " in shares
    assert f"and {between} between prompts (V_x)" in shares
    assert [row[3] for row in variance_rows(made.model)[:2]] == [between, within]
    none = advise(changed(made, v_x=-0.01, rho=0.0, rho_interval=Interval(0.0, 0.4)))[2]
    assert "100% is between responses to one prompt (V_{y|x}, 90% interval 60 to 100%), and 0% between" in none


def test_the_headline_gives_the_reason_for_one_response(made):
    one = replace(made.model.best, k=1, k_interval=(1, 1))
    assert advise(changed(made, best=one))[0].endswith("at this cost, more prompts tell more than more responses.")
    assert advise(changed(made, best=one, layout="expanded"))[0].endswith("each response pays for its prompt again.")


@pytest.mark.parametrize(("most", "best"), [(1, 1), (2, 2), (6, 3), (14, 5), (14, 14), (32, 4), (64, 50), (200, 2)])
def test_a_table_has_at_most_ten_values_of_k_with_the_best(made, most, best):
    row = made.model.choices["shared_prefix"][0]
    rows = [replace(row, k=k, variance=1 + abs(k - best)) for k in range(1, most + 1)]
    choices = {"shared_prefix": rows, "expanded": rows}
    plan = changed(made, choices=choices, best=replace(made.model.best, k=best, variance=1.0, k_interval=None))
    ks = table_ks(plan.model)
    assert len(ks) <= 10
    assert {1, best, most} <= set(ks) <= set(range(1, most + 1))
    assert ks == sorted(ks)
    shown = choice_rows(plan.model)
    assert [int(k) for k, *_ in shown] == ks
    assert [float(row[2]) for row in shown] == [1 + abs(k - best) for k in ks]
    page = plan_report(plan)
    (marked,) = re.findall(r'<tr class="mark"><td class="text">(\d+)</td>', page)
    assert int(marked) == best
    if most > 1:
        (axis,) = choices_figure(plan.model).axes
        assert axis.get_xscale() == "log"
        (star,) = (line for line in axis.lines if line.get_marker() == "*")
        assert star.get_xdata() == [best]


def test_without_a_model_there_is_no_k(groups):
    made = make_plan(groups)
    plan = as_read(made)
    assert plan["model"] is None
    assert plan["yaml"] is None
    assert "Without a model" in plan["advice"][0]
    assert plan["diversity"]["prompt"]["d"] > 0
    assert 0 < plan["diversity"]["response_diversity"] < 1
    assert not re.search(r"K = \d", " ".join(plan["advice"]))
    assert "<svg" not in plan_report(made)


def test_the_order_of_rows_does_not_matter(groups, model, tokenizer):
    mixed = groups.select(np.random.default_rng(1).permutation(len(groups)))
    one = make_plan(groups, model=model, encoder=Encoder(tokenizer), max_prompts=8).model
    other = make_plan(mixed, model=model, encoder=Encoder(tokenizer), max_prompts=8).model
    assert one.prompts_sampled
    assert {row.id for row in one.per_prompt} == {row.id for row in other.per_prompt}
    assert one.v_x == pytest.approx(other.v_x, rel=1e-4)
    assert one.best.k == other.best.k


def test_a_prompt_paid_per_response_keeps_one_response(groups, model, tokenizer):
    plan = as_read(make_plan(groups, model=model, encoder=Encoder(tokenizer), layout="expanded"))
    assert plan["model"]["best"]["k"] == 1
    assert plan["model"]["k_star"] == 1
    assert any("expanded layout" in line for line in plan["advice"])
    assert "layout: expanded" in plan["yaml"]


def test_no_variance_between_prompts_is_said_in_words(made):
    # The words depend on the numbers alone: take a real plan, and put a V_x below zero into it.
    text = " ".join(advise(changed(made, v_x=-0.01, k_star=math.inf, k_star_interval=Interval(3.0, math.inf))))
    assert "V_x came out at or below zero" in text
    assert "Prompts are not the bottleneck" in text


def test_a_drawn_pool_of_equal_prompts_plans_for_many_responses(model, tokenizer):
    # Every prompt has the same distribution of answers, so V_x is 0 in truth.
    random = np.random.default_rng(3)
    rows = [
        {
            "prompt": f"Name a fruit. {'I' * (index % 2)}",
            "id": str(index),
            "responses": [" ".join(random.choice(FRUIT, size=random.integers(1, 14))) for _ in range(8)],
        }
        for index in range(30)
    ]
    groups = load_groups(Dataset.from_list(rows))
    found = make_plan(groups, model=model, encoder=Encoder(tokenizer), budget="3x").model
    assert found.ratio_interval.low < 0.05
    assert found.best.k > 3


def test_too_long_responses_are_left_out_and_counted(groups, model, tokenizer):
    longest = max(
        len(pair.input_ids)
        for row in groups
        for pair in Encoder(tokenizer).encode_group(row["prompt"], row["responses"])
    )
    plan = as_read(make_plan(groups, model=model, encoder=Encoder(tokenizer), max_length=longest - 1))
    assert plan["model"]["responses_too_long"] >= 1
    assert plan["model"]["responses_measured"] + plan["model"]["responses_too_long"] == 72
    assert any("exceed" in line for line in plan["cannot_know"])
    with pytest.raises(ValueError, match="No response fits max_length=5"):
        make_plan(groups, model=model, encoder=Encoder(tokenizer), max_length=5)


def test_bad_input_is_refused_in_words(model, tokenizer, groups):
    encoder = Encoder(tokenizer)
    single = load_groups(Dataset.from_list([{"prompt": f"p{i}", "responses": ["a"]} for i in range(5)]))
    with pytest.raises(ValueError, match="0 of 5 prompts have 2 responses"):
        make_plan(single, model=model, encoder=encoder)
    same = load_groups(
        Dataset.from_list([{"prompt": "Say yes.", "id": str(i), "responses": ["yes"] * 3} for i in range(4)])
    )
    with pytest.raises(ValueError, match="All losses are equal"):
        make_plan(same, model=model, encoder=encoder)
    small = tiny.llama(tokenizer, vocab_size=300)
    with pytest.raises(ValueError, match="this tokenizer is not the model's"):
        make_plan(groups, model=small, encoder=encoder)
    with pytest.raises(ValueError, match="does not pay for one prompt"):
        make_plan(groups, model=model, encoder=encoder, budget=3)
    for budget in ("much", "-2x", "0", "nanx"):
        with pytest.raises(ValueError, match="neither a number"):
            parse_budget(budget, 100)
    assert parse_budget("2x", 100) == 200
    assert parse_budget("1,500", 100) == 1500


def test_a_model_worse_than_guessing_is_told(groups, tokenizer, caplog):
    model = tiny.llama(tokenizer)
    with torch.no_grad():
        model.lm_head.weight *= 60
    measure(model, Encoder(tokenizer), groups)
    assert "is this tokenizer the model's?" in caplog.text


def test_adaptive_allocation_pays_where_prompts_differ_in_spread():
    def measured(spreads):
        random = np.random.default_rng(4)
        groups = []
        for index, spread in enumerate(spreads):
            nll = 20 + spread * random.standard_normal(16)
            tokens = np.full(16, 10)
            groups.append(MeasuredGroup(str(index), list(range(16)), [], tokens, nll))
        return Measurement(groups, 0, None)

    unequal = estimate_adaptive(measured([0.1] * 40 + [3.0] * 10), "response", 4, 0)
    equal = estimate_adaptive(measured([1.0] * 50), "response", 4, 0)
    # Neyman's optimum, within what 8 responses tell of a spread and k >= 1 allows.
    best = (40 * 0.1 + 10 * 3.0) ** 2 / (50 * (40 * 0.01 + 10 * 9.0))
    assert unequal.response_variance_ratio < 0.5
    assert unequal.response_variance_ratio > best
    assert 0.95 < equal.response_variance_ratio < 1.35
    assert unequal.total == unequal.wanted == 200
    assert estimate_adaptive(measured([1.0] * 5), "response", 4, 0) is None


def test_on_the_command_line(tmp_path):
    pool, model, page = tmp_path / "pool.jsonl", tmp_path / "model", tmp_path / "plan.html"
    pool.write_text("".join(json.dumps(row) + "\n" for row in make_rows()))
    tiny.model_dir(model)
    run = CliRunner()
    arguments = ["plan", str(pool), "--model", str(model), "--budget", "3x"]
    shown = run.invoke(app, [*arguments, "--report", str(page)])
    assert shown.exit_code == 0, shown.output
    found = json.loads(run.invoke(app, [*arguments, "--json"]).stdout)
    assert shown.stdout.splitlines()[0] == found["advice"][0]
    assert "V_x: between prompts" in shown.output
    assert f": mrt select {pool} --selector random_k --k {found['model']['best']['k']} " in shown.output
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert found["model"]["budget"] == pytest.approx(3 * found["model"]["ordinary_epoch"])
    plain = run.invoke(app, ["plan", str(pool)])
    assert plain.exit_code == 0
    assert "Without a model, the number of responses to keep is unknown" in plain.output
    for wrong, words in (
        (["--budget", "lots"], "neither a number"),
        (["--layout", "shared"], "is not one of 'shared_prefix'"),
        (["--cost-prompt", "3"], "together"),
    ):
        failed = run.invoke(app, [*arguments, *wrong])
        assert failed.exit_code == 1
        assert words in failed.output
    costs = json.loads(run.invoke(app, [*arguments, "--cost-prompt", "100", "--cost-response", "1", "--json"]).stdout)
    assert costs["model"]["costs"] == {"prompt": 100, "response": 1}
    assert costs["model"]["best"]["k"] >= found["model"]["best"]["k"]
    assert math.isfinite(costs["model"]["best"]["variance"])


def planned(rows, model, tokenizer, **options):
    made = make_plan(load_groups(Dataset.from_list(rows)), model=model, encoder=Encoder(tokenizer), **options)
    plan_report(made)
    return as_read(made)


def test_recipe_and_command_draw_the_advised_prompts(made, groups, tmp_path):
    import yaml

    few = replace(made, model=replace(made.model, best=replace(made.model.best, prompts=7)))
    assert yaml.safe_load(yaml_block(few))["mrt"]["curation"] == [{"sample": {"groups": 7}}]
    write_groups(groups, tmp_path / "pool.jsonl")
    command = next_step(few).command.replace("pool.jsonl", str(tmp_path / "pool.jsonl"))
    program, *arguments, output = shlex.split(command)
    assert (program, output) == ("mrt", "chosen.jsonl")
    done = CliRunner().invoke(app, [*arguments, str(tmp_path / output)])
    assert done.exit_code == 0, done.output
    assert len(load_groups(tmp_path / output)) == 7

    everything = replace(made, model=replace(made.model, best=replace(made.model.best, prompts=len(groups))))
    assert "curation" not in yaml_block(everything)
    assert "--curation" not in next_step(everything).command


@pytest.mark.parametrize("differing", [0, 1])
def test_where_responses_do_not_differ_one_is_kept_and_the_reason_given(differing, model, tokenizer):
    rows = [{**row, "responses": row["responses"][:1] * 6} for row in make_rows()]
    rows[:differing] = make_rows()[:differing]
    plan = planned(rows, model, tokenizer, budget="4x")
    found = plan["model"]
    assert (found["v_yx"], found["ratio"], found["ratio_interval"], found["best"]["k"]) == (0.0, None, None, 1)
    assert found["v_x"] > 0
    why = ("answers to one prompt do not differ in loss", "only one prompt has answers that differ in loss")[differing]
    assert plan["advice"][0] == f"Keep 1 response for each of your 12 prompts: {why}."
    assert "No interval:" in plan["advice"][1]
    assert "0% is between responses to one prompt (V_{y|x}), and 100% between prompts (V_x)" in plan["advice"][2]
    assert ("do not differ in loss", "One prompt is no estimate of V_{y|x}")[differing] in plan["advice"][3]
    assert not any("bottleneck" in line or "cannot use up" in line for line in plan["advice"])
    assert "  k: 1\n" in plan["yaml"]


def test_fewer_than_five_prompts_have_no_interval(model, tokenizer):
    for prompts in (4, 5):
        plan = planned(make_rows(prompts), model, tokenizer, budget="2x")
        intervals = [plan["model"][f"{name}_interval"] for name in ("v_x", "v_yx", "ratio", "rho", "k_star")]
        intervals += [row["k_interval"] for row in [plan["model"]["best"], *plan["model"]["outlook"]]]
        assert all((interval is None) == (prompts < 5) for interval in intervals)
        assert ("No interval: only 4 prompts have responses that differ" in plan["advice"][1]) == (prompts < 5)


def test_each_sentence_on_an_interval_comes_from_that_interval(made):
    for v_x_low, ratio_low in ((0.1, 0.1), (-0.1, 0.1), (0.1, -0.1), (-0.1, -0.1)):
        ends = {"v_x_interval": Interval(v_x_low, 1.0), "ratio_interval": Interval(ratio_low, 1.0)}
        k_star = Interval(1.0, math.inf if ratio_low < 0 else 9.0)
        text = " ".join(advise(changed(made, v_x=0.5, k_star_interval=k_star, **ends)))
        assert ("The interval of V_x reaches zero" in text) == (v_x_low < 0)
        assert ("no upper end" in text) == (ratio_low < 0)


def test_copied_responses_are_counted_with_what_they_do_to_the_plan(model, tokenizer):
    drawn = make_rows(prompts=30, responses=4)
    copied = [{**row, "responses": row["responses"] * 2} for row in drawn]
    plain, doubled = (planned(rows, model, tokenizer, budget="2x") for rows in (drawn, copied))
    copies = doubled["model"]["copies"]
    assert plain["model"]["copies"] is None
    assert (doubled["data"]["repeated_responses"], doubled["data"]["prompts_with_repeats"]) == (120, 30)
    assert copies["measured"] == 120
    assert copies["v_x"] == pytest.approx(plain["model"]["v_x"], rel=1e-6)
    assert copies["v_yx"] == pytest.approx(plain["model"]["v_yx"], rel=1e-6)
    assert doubled["model"]["v_x"] > copies["v_x"]  # the noise of the means is taken for half of what it is
    (line,) = (line for line in doubled["advice"] if "repeat another" in line)
    assert "120 of 240 responses" in line
    assert f"K = {copies['k']}" in line
    assert "duplicate_responses" in line
    assert not any("repeat another" in line for line in plain["advice"])


def test_a_plan_on_unequal_pools_names_the_vote_and_its_price(model, tokenizer):
    rows = make_rows(prompts=20, responses=8)
    for index, row in enumerate(rows):
        row["responses"] = row["responses"][: 2 if index % 2 else 8]
    by_token = planned(rows, model, tokenizer, budget="6x")
    by_prompt = planned(rows, model, tokenizer, budget="6x", loss_aggregation="prompt")
    assert by_token["model"]["best"]["k"] > 2
    (line,) = (line for line in by_token["advice"] if "Pools are unequal" in line)
    assert f"{abs(by_token['model']['best']['one_vote_per_prompt']):.1%}" in line
    assert by_prompt["model"]["best"]["one_vote_per_prompt"] == 0
    assert not any("Pools are unequal" in line for line in by_prompt["advice"])


def test_prompts_with_one_response_that_differ_are_said_to(made, model, tokenizer):
    rows = make_rows(prompts=30)
    others = [{**row, "responses": ["Ω≈ç√ Ω≈ç√"]} for row in rows[:10]] + rows[10:]
    plan = planned(others, model, tokenizer)
    single = plan["model"]["single"]
    assert single["adds_to_v_x"] == pytest.approx(2 / 9 * (single["mean"] - single["others"]) ** 2)
    (line,) = (line for line in plan["cannot_know"] if "have one response" in line)
    assert "10 of 30 prompts measured" in line
    assert f"{single['adds_to_v_x']:.3g} larger than {plan['model']['v_x']:.3g}" in line
    near = [np.array([1.0, 1.2]), np.array([2.0, 2.2]), np.array([1.1]), np.array([2.1])]
    assert compare_single(near).adds_to_v_x == 0
    assert any("within chance" in line for line in cannot_know(changed(made, single=compare_single(near))))
    assert compare_single(near[:2]) is None
