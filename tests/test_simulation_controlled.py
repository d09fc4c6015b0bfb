"""The controlled experiments: their parts against plain computations, and short runs of each."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.cli import CliRunner

from mrt_plugin.cli import app
from mrt_plugin.simulation import experiments, tokens, world
from mrt_plugin.simulation.density import (
    Densities,
    gradient_products,
    mode_masses,
    output_gradients,
    output_nll,
    train,
    true_nll,
)
from mrt_plugin.simulation.run import EXPERIMENTS, run_experiments, write_report
from mrt_plugin.simulation.world import SELECTORS, choose


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_integration_over_answers_is_that_of_the_world(random):
    prompts = world.draw_prompts(3, random)
    responses, modes = world.draw_responses(prompts, 40_000, random)
    nodes, weights = world.quadrature()
    for power in (1, 2, 3, 4):
        sampled = ((responses - world.centre(prompts)[:, None]) ** power).mean(axis=1)
        assert sampled == pytest.approx(np.full(3, nodes**power @ weights), abs=0.05)
    assert np.bincount(modes.ravel()) == pytest.approx(np.full(3, 40_000), rel=0.02)
    best = world.rewards(prompts, responses).argmax(axis=1)
    assert (modes[np.arange(3), best] == 1).all()


def test_densities_are_densities_and_learn(random):
    prompts = world.draw_prompts(60, random)
    responses, _ = world.draw_responses(prompts, 16, random)
    first = Densities.initialised([1, 2])
    grid = torch.linspace(-30, 30, 6001)
    density = torch.exp(-output_nll(first.outputs(torch.zeros(1, 1, 5)), grid[None, None]))
    assert density.sum(dim=-1).numpy() * 0.01 == pytest.approx(np.ones((2, 1)), abs=2e-3)
    masses = mode_masses(first, prompts)
    assert masses.shape == (2, 60, 3)
    assert masses.sum(axis=-1) == pytest.approx(np.ones((2, 60)))

    data = np.tile(prompts, (2, 1, 1)), np.tile(responses, (2, 1, 1))
    trained = train(*data, [1, 2], steps=60)
    assert (true_nll(trained, prompts) < true_nll(first, prompts) - 0.3).all()
    # Stacked networks are trained as each would be alone.
    alone = train(data[0][1:], data[1][1:], [2], steps=60)
    assert true_nll(alone, prompts) == pytest.approx(true_nll(trained, prompts)[1:], rel=1e-3)


def test_initial_networks_are_those_of_plain_pytorch():
    torch.manual_seed(7)
    first, second = torch.nn.Linear(5, 64), torch.nn.Linear(64, 64)
    heads = [torch.nn.Linear(64, 5) for _ in range(3)]
    x = torch.randn(4, 5)
    hidden = torch.relu(second(torch.relu(first(x))))
    expected = torch.cat([head(hidden) for head in heads], dim=1)
    state = torch.get_rng_state()
    assert torch.allclose(Densities.initialised([7]).outputs(x[None])[0], expected, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)


def test_gradient_products_are_those_of_all_parameters(random):
    prompts = world.draw_prompts(2, random)
    responses, _ = world.draw_responses(prompts, 3, random)
    model = Densities.initialised([4])
    outputs, products = gradient_products(model, prompts)
    losses, deltas = output_gradients(outputs, responses)
    layers = [(weight.double().clone(), bias.double().clone()) for weight, bias in model.layers]
    parameters = [tensor.requires_grad_(True) for layer in layers for tensor in layer]
    for row in range(2):
        flat = []
        for j in range(3):
            x, y = torch.tensor(prompts[row])[None, None], torch.tensor(responses[row, j])[None, None, None]
            loss = output_nll(Densities(layers).outputs(x), y).sum()
            assert loss.item() == pytest.approx(losses[row, j])
            flat.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)]))
        exact = (torch.stack(flat) @ torch.stack(flat).T).numpy()
        assert deltas[row] @ products[row] @ deltas[row].T == pytest.approx(exact, rel=1e-8)


def test_selectors_see_numbers_as_their_authors_did(random):
    prompts = world.draw_prompts(40, random)
    responses, _ = world.draw_responses(prompts, 16, random)
    rewards = world.rewards(prompts, responses)
    for name in SELECTORS:
        kept = choose(name, responses, rewards, 4, random)
        assert kept.shape == (40, 4)
        assert all(len(set(row)) == 4 for row in kept.tolist())
    best = choose("best_k", responses, rewards, 4, random)
    assert (np.sort(best) == np.sort(np.argsort(-rewards, axis=1)[:, :4])).all()
    # Filter, then always the farthest from what is picked, written out plainly.
    spread = choose("filter_then_spread", responses, rewards, 4, random)
    for y, reward, kept in zip(responses, rewards, spread, strict=True):
        good = np.flatnonzero(reward >= np.quantile(reward, 0.5))
        picked = [int(good[reward[good].argmax()])]
        while len(picked) < 4:
            distance = np.abs(y[good][:, None] - y[picked]).min(axis=1)
            picked.append(int(good[distance.argmax()]))
        gaps = [np.abs(np.subtract.outer(y[chosen], y[chosen])).sum() for chosen in (kept, picked)]
        assert gaps[0] == pytest.approx(gaps[1], rel=1e-4)


def test_variance_follows_its_formula():
    found = experiments.variance(1, repeats=300)
    for measured, error, predicted in zip(found.variance, found.variance_error, found.predicted, strict=True):
        assert abs(measured - predicted) < 4 * error
    low, high = found.one_dataset.v_yx_interval
    assert low < found.v_yx < high


def test_best_of_k_points_away_and_random_k_does_not(random):
    prompts = world.draw_prompts(20, random)
    found = experiments.measure_gradients(experiments.PAPER_SEED, prompts, 4, 30, random)
    assert abs(found["random_k"].bias_squared) < 0.05
    assert found["random_k"].cosine > 0.4
    assert found["best_k"].cosine < 0.2
    assert found["best_k"].bias_squared > 0.2
    assert found["best_k"].variance < 0.02
    assert found["filter_then_spread"].emse < found["random_k"].emse


@pytest.mark.slow
def test_short_runs_of_the_trained_experiments():
    spent = experiments.budget(repeats=2, steps=4)
    assert spent.prompts == [80, 66, 50, 40, 33, 25, 20]
    assert all(n * (4 + k) <= 400 for n, k in zip(spent.prompts, spent.k, strict=True))
    assert spent.components.v_x == pytest.approx(0.187, abs=3 * spent.components.v_x_error_of_300_prompts)
    assert spent.components.v_yx == pytest.approx(1.33, abs=3 * spent.components.v_yx_error_of_300_prompts)
    assert 4 <= spent.integer_best_k <= 8
    assert sum(spent.last.best_k["random_k"]) == pytest.approx(1)
    drawn = experiments.lottery(runs=3, steps=150)
    assert drawn.mode_error_mean[0] > drawn.mode_error_mean[-1]
    learned = experiments.by_selector(repeats=1, steps=150)
    assert learned.mode_error_mean["random_k"][-1] < learned.mode_error_mean["best_k"][-1]
    for name, found in (("budget", spent), ("lottery", drawn), ("by_selector", learned)):
        json.dumps(found.as_json(), allow_nan=False)
        EXPERIMENTS[name].draw(found)


@pytest.mark.slow
def test_the_token_experiment_trains_on_what_was_selected():
    found = tokens.tokens(repeats=1, steps=40, ks=(1, 4), selectors=("random_k", "best_k"))
    assert found.kept_modes["random_k"][1] == pytest.approx(tokens.GENERATED, abs=0.03)
    assert found.kept_modes["best_k"][0][0] > 0.99
    # With 40 steps both have learned that A is the usual answer; only what was kept of B and C tells them apart.
    assert found.mode_kl_mean["random_k"][1] < found.mode_kl_mean["best_k"][1]
    EXPERIMENTS["tokens"].draw(found)


def test_answers_follow_from_prompt_and_mode():
    assert tokens.text_of_answer([1, 2, 3, 4], 0) == " mA c10 c27 c44 c61"
    assert tokens.text_of_answer([1, 2, 3, 4], 2) == " mC c36 c53 c70 c87"
    tokenizer = tokens.build_tokenizer()
    assert tokenizer.decode(tokenizer("x1 x2 :")["input_ids"]) == "x1 x2 :"
    assert tokens.bag_of_words([" mA c10", "mA c10"]).tolist()[0] == tokens.bag_of_words(["c10 mA"]).tolist()[0]


def test_a_seed_fixes_a_run_and_another_changes_it():
    one, again, other = (run_experiments(["bridge"], seed=seed).experiments["bridge"].found for seed in (3, 3, 4))
    assert one == again
    assert one.correlation != other.correlation
    assert 0.6 < one.correlation < 0.95
    with pytest.raises(ValueError, match="Experiment 'nothing' is unknown"):
        run_experiments(["nothing"])


@pytest.mark.slow
def test_the_folder_holds_every_number_and_opens_offline(tmp_path):
    results = run_experiments(["variance", "bridge"])
    write_report(results, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results.as_json()))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2
    assert not re.search(r"<script|<link|@import|(?:src|href)=\"(?:https?:)?//", page)
    assert {row.published for row in results.published} == {"0.0675", "0.0138"}
    assert all(row.remark and row.ours for row in results.published)
    for name in ("variance", "bridge"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_run_that_is_stopped_keeps_the_experiments_that_ended(tmp_path, monkeypatch):
    def stop(seed, progress):
        raise KeyboardInterrupt

    monkeypatch.setitem(EXPERIMENTS, "lottery", replace(EXPERIMENTS["lottery"], run=stop))
    output = tmp_path / "out"
    stopped = CliRunner().invoke(app, ["simulate", "--only", "variance,bridge,lottery", "--output", str(output)])
    assert stopped.exit_code != 0
    assert list(json.loads((output / "results.json").read_text())["experiments"]) == ["variance", "bridge"]
    assert (output / "report.html").read_text().count("<svg") == 2
    assert sorted(path.name for path in output.iterdir()) == [
        "bridge.png",
        "report.html",
        "results.json",
        "variance.png",
    ]


def test_on_the_command_line(tmp_path):
    run = CliRunner()
    shown = run.invoke(app, ["simulate", "--only", "bridge", "--output", str(tmp_path / "out")])
    assert shown.exit_code == 0, shown.output
    assert "bridge: Similar answers have similar gradients: cosine 0." in shown.output
    assert "report.html" in shown.output
    assert f"mrt simulate --only bridge --seed 1 --output {tmp_path / 'out'}_seed1" in shown.output
    runs = tmp_path / "runs.jsonl"
    runs.write_text(
        "".join(json.dumps({"k": k, "loss": 1.2 + 0.4 / k, "arm": arm}) + "\n" for arm in "ab" for k in (1, 2, 4))
    )
    fits = json.loads(run.invoke(app, ["simulate", "--fit", str(runs), "--json"]).stdout)
    assert fits["a"]["a"] == pytest.approx(1.2)
    assert fits["b"]["b"] == pytest.approx(0.4)
    assert "loss = a + b/K" in run.invoke(app, ["simulate", "--fit", str(runs)]).output
    runs.write_text('{"k": 2}\n{"k": 0, "loss": 1}\n')
    failed = run.invoke(app, ["simulate", "--fit", str(runs)])
    assert failed.exit_code == 1
    assert "line 1" in failed.output
    assert "line 2" in failed.output
    assert run.invoke(app, ["simulate", "--only", "what"]).exit_code == 1
