"""The experiment behind docs/results.md: its world, its prices by hand, its decision rule, and a tiny one whole."""

import json

import numpy as np
import pytest
from transformers import set_seed

from mrt_plugin.evaluation.truth import truth_distance
from recipes.claim import run as runs
from recipes.claim.analysis import analyse
from recipes.claim.arms import ARMS, arm_groups, responses_drawn
from recipes.claim.checks import analyse_checks
from recipes.claim.decision import Estimate, affordable_share, bootstrap, decide, relative_gain
from recipes.claim.exact import ExactDistance
from recipes.claim.grouping import compare, intraclass_correlation, pair_gradients
from recipes.claim.model import build_encoder, random_model
from recipes.claim.power import rule_power
from recipes.claim.pricing import Price, fit_bench, token_price
from recipes.claim.records import read_records
from recipes.claim.report import put_into, results_text, write_report
from recipes.claim.run import CALM
from recipes.claim.train import RunKey, Scale, Setting, train_run
from recipes.claim.tuning import Tuned, kl_at
from recipes.claim.world import POOL, RESPONSE, World, draw_pool

TINY = Scale(n=8, held_out=2, base_steps=3)


@pytest.fixture(autouse=True)
def seeded():
    set_seed(0)


def test_world_is_as_described():
    world = World(seed=3)
    encoder = build_encoder()
    for length in (16, 64):
        prompts = world.prompts(20, length=length, stream=0)
        for prompt in prompts:
            assert sum(prompt.probabilities) == pytest.approx(1)
            words = prompt.prompt.split()
            mentioned = [words.count(word) for word in prompt.id.split("-")]
            assert mentioned == [length // 8] * 4
            for pair in encoder.encode_group(prompt.prompt, prompt.modes):
                assert len(pair.input_ids) == length + RESPONSE
                assert pair.trained_length == RESPONSE
        assert len({mode for prompt in prompts for mode in prompt.modes}) > 6
    short, long = world.prompts(5, length=64, stream=0), world.prompts(9, length=256, stream=0)
    assert [p.probabilities for p in short] == [p.probabilities for p in long[:5]]
    assert not {p.id for p in world.prompts(1000, length=16, stream=0)} & {
        p.id for p in world.prompts(1000, length=16, stream=1)
    }
    with pytest.raises(ValueError, match="1536 subjects"):
        world.prompts(1537, length=16, stream=0)


def test_pool_is_drawn_from_the_truth():
    world = World(seed=3)
    prompt = world.prompts(1, length=16, stream=0)[0]
    drawn = draw_pool(world, [prompt], n=20_000)[0]["responses"]
    shares = [drawn.count(mode) / len(drawn) for mode in prompt.modes]
    assert shares == pytest.approx(prompt.probabilities, abs=0.015)


def test_shared_measure_is_the_plain_one():
    world, encoder, model = World(seed=3), build_encoder(), random_model(0)
    prompts = world.prompts(18, length=24, stream=1)
    before = model.config._attn_implementation
    found, plain = ExactDistance(prompts, encoder)(model), truth_distance(model, encoder, prompts)
    assert model.config._attn_implementation == before
    assert found.kl == pytest.approx(plain.kl, rel=1e-6)
    assert found.elsewhere == pytest.approx(plain.elsewhere)


def test_arms_see_as_many_pairs_and_scattering_loses_none():
    assert {arm.pairs(16) for arm in ARMS.values()} == {8 * 16}
    assert all(arm.checkpoints[-1] == 8 for arm in ARMS.values())
    world = World(seed=3)
    pool = draw_pool(world, world.prompts(32, length=16, stream=0))
    groups = arm_groups(ARMS["k8"], pool, 4, seed=0)
    scattered = arm_groups(ARMS["k8_scattered"], pool, 4, seed=0)
    assert (len(groups), len(scattered)) == (4, 4 * POOL)
    assert sorted((g["prompt"], r) for g in groups for r in g["responses"]) == sorted(
        (g["prompt"], r) for g in scattered for r in g["responses"]
    )
    places = [group["prompt"] == pool[0]["prompt"] for group in scattered]
    assert np.ptp(np.flatnonzero(places)) > POOL  # not side by side
    assert arm_groups(ARMS["k1"], pool, 4, seed=0) == pool[:32]
    assert responses_drawn(ARMS["k1_redraw"], 100, n=50) == (50, 50 * POOL)
    assert responses_drawn(ARMS["k8_scattered"], 100, n=50) == (50, 100)


def test_prices_by_hand():
    price = Price(prompt=10, response=2, selection=1, proof=500)
    # 100 prompts: 100·(10 + 8·2) + 100·1 + 500·100/10,000
    assert price.cost(ARMS["k8"], 800, 100, "shared_prefix") == pytest.approx(2600 + 100 + 5)
    assert price.cost(ARMS["k8"], 800, 100, "shared_prefix", proof_over=None) == pytest.approx(2600 + 100 + 500)
    # 800·(10 + 2), no proof
    assert price.cost(ARMS["k8"], 800, 100, "expanded") == pytest.approx(9600 + 100)
    # and (100·10 + 800·2)/3 for sampling
    assert price.cost(ARMS["k8"], 800, 100, "expanded", sampled=True) == pytest.approx(9700 + 2600 / 3)
    # pairs that share nothing cost the same in both
    for name in ("k1", "k1_epochs", "k8_scattered"):
        costs = {price.cost(ARMS[name], 400, 100, layout) for layout in ("shared_prefix", "expanded")}
        assert len(costs) == 1
    # 400 pairs on 100 prompts: selection of 100 prompts once, or 400 draws
    assert price.cost(ARMS["k1_epochs"], 400, 100, "expanded") == pytest.approx(4800 + 100)
    assert price.cost(ARMS["k1_redraw"], 400, 100, "expanded") == pytest.approx(4800 + 400)
    # 2705 buys 2705 / (12 + 1) pairs of K = 1
    assert price.pairs_for(ARMS["k1"], 2705, 100, "shared_prefix") == pytest.approx(2705 / 13)
    assert price.pairs_for(ARMS["k8"], 2705, 100, "shared_prefix") == pytest.approx(800)
    assert price.pairs_for(ARMS["k1"], 1e12, 100, "expanded") == np.inf


def test_prices_from_a_benchmark():
    def arm(name, k, p, r, token=1e-3, meeting=1e-6):
        pairs = 1 if name == "mrt shared sdpa" else k
        copies = k // pairs
        tokens = pairs * (p - 1 + copies * (r + 1))
        meetings = pairs * ((p - 1) ** 2 / 2 + copies * ((r + 1) * (p - 1) + (r + 1) ** 2 / 2))
        return {"name": name, "pairs_per_second": k / (token * tokens + meeting * meetings)}

    def shape(p, r, k):
        names = ("mrt expanded", "mrt shared sdpa")
        arms = [{"name": "trl nll", "pairs_per_second": 1.0}, *(arm(name, k, p, r) for name in names)]
        return {"prompt": p, "response": r, "k": k, "arms": arms}

    bench = {"settings": {"mixed": False}, "shapes": [shape(1024, 64, 8), shape(64, 256, 4)]}
    fit = fit_bench(bench)
    assert (fit.token, fit.meeting) == pytest.approx((1e-3, 1e-6))
    assert fit.worst < 1e-9
    assert [row["arm"] for row in fit.measured] == ["mrt expanded", "mrt shared sdpa"] * 2
    price = fit.price(256, selection=0.5, proof=3.0)
    # 255 tokens and 255²/2 meetings; 65 tokens that meet 255 and, causally, each other
    assert price.prompt == pytest.approx(0.255 + 255**2 / 2 * 1e-6)
    assert price.response == pytest.approx(0.065 + (65 * 255 + 65**2 / 2) * 1e-6)
    assert (price.selection, price.proof) == (0.5, 3.0)
    with pytest.raises(ValueError, match="2 measurements"):
        fit_bench({**bench, "shapes": bench["shapes"][:1]})
    with pytest.raises(ValueError, match="without --mixed"):
        fit_bench({**bench, "settings": {"mixed": True}})
    turns = {"shape": "20x64,128,16", "turns": 20, "user": 64, "thinking": 128, "answer": 16, "arms": []}
    for other in (turns, {"shape": "9,64,256,4", "system": 9, **shape(64, 256, 4)}):
        with pytest.raises(ValueError, match="is not P,R,K"):
            fit_bench({**bench, "shapes": [*bench["shapes"], other]})
    tokens = token_price(64)
    assert tokens.fit(ARMS["k8"], 8, "shared_prefix") == 63 + 8 * 65
    assert tokens.fit(ARMS["k8"], 8, "expanded") == 8 * (64 + 64)


def test_decision_rule():
    assert decide(Estimate(0.05, 0.01, 0.09)) == "supported"
    assert decide(Estimate(0.049, 0.01, 0.09)) == "undecided"
    assert decide(Estimate(0.06, -0.01, 0.13)) == "undecided"
    assert decide(Estimate(0.02, 0.01, 0.049)) == "too small to matter"
    assert decide(Estimate(-0.02, -0.06, 0.02)) == "too small to matter"
    assert decide(Estimate(-0.02, -0.06, -0.01)) == "harmful"


def test_bootstrap_is_paired():
    random = np.random.default_rng(0)
    seed_effect = random.normal(5, 2, size=12)
    one, several = seed_effect + 1, seed_effect
    difference = bootstrap(lambda a, b: a - b, one, several)
    assert (difference.low, difference.high) == pytest.approx((1, 1))
    gain = bootstrap(relative_gain, one, several)
    assert gain.low < gain.value < gain.high
    assert gain.value == pytest.approx(1 - several.mean() / one.mean())
    share = bootstrap(affordable_share, several + 0.5, several + 2.0, several)
    assert (share.value, share.low, share.high) == pytest.approx((0.25, 0.25, 0.25))


def test_power_and_coverage_of_the_rule():
    random = np.random.default_rng(1)
    one = random.normal(0.4, 0.02, 10)
    quiet = rule_power(one, 0.7 * one + random.normal(0, 0.001, 10), gain=0.3, repetitions=200)
    assert (quiet["supported"], quiet["seeds"]) == (1.0, 10)
    noisy = rule_power(one, one + random.normal(0, 0.05, 10), gain=0.05, repetitions=200)
    assert noisy["supported"] < 0.5
    assert 0.8 < noisy["coverage"] < 0.97


@pytest.mark.slow
def test_a_spike_at_one_length_weighs_less_when_lengths_are_pooled():
    records = made_up_records(range(5), length=64) + made_up_records(range(5), length=256)
    for record in records:
        if record["length"] == 256 and record["arm"] == "k4":
            record["curve"] = [{**point, "kl": 2 * point["kl"]} for point in record["curve"]]
    found = analyse(records, made_up_records([1000]), {64: Price(2.0, 1.0), 256: Price(2.0, 1.0)}, 64)
    gains = [found["lengths"][length]["pooled"]["k4"]["value"] for length in ("64", "256")]
    assert gains == pytest.approx([1 - (0.4 + 0.8) / 2 / 0.5] * 2)


def test_kl_between_checkpoints():
    curve = [{"pairs": 0, "kl": 9.0}, {"pairs": 100, "kl": 1.0}, {"pairs": 200, "kl": 0.6}, {"pairs": 400, "kl": 0.5}]
    assert kl_at(curve, 200) == 0.6
    assert kl_at(curve, 200 * 2**0.5) == pytest.approx(0.55)
    with pytest.raises(ValueError, match="100 to 400"):
        kl_at(curve, 50)


@pytest.mark.slow
def test_correlation_of_known_gradients():
    random = np.random.default_rng(0)
    # rho = 1 / (1 + 3) in every direction
    gradients = random.standard_normal((600, 1, 40)) + 3**0.5 * random.standard_normal((600, 8, 40))
    assert intraclass_correlation(gradients) == pytest.approx(0.25, abs=0.02)
    found = compare(gradients, (2, 4, 8), seed=0)
    for row in found["ratios"]:
        assert row["measured"] == pytest.approx(1 + (row["k"] - 1) * 0.25, rel=0.1)
        assert row["predicted"] == pytest.approx(1 + (row["k"] - 1) * 0.25, rel=0.1)


def test_gradient_of_a_pair_is_that_of_its_mean_loss():
    world, encoder, model = World(seed=3), build_encoder(), random_model(0)
    groups = draw_pool(world, world.prompts(2, length=16, stream=0), n=2)
    gradients, losses = pair_gradients(model, groups, encoder)
    assert gradients.shape == (2, 2, sum(p.numel() for p in model.parameters()))
    step = 1e-3
    direction = gradients[0, 0] / np.linalg.norm(gradients[0, 0])
    place = 0
    for parameter in model.parameters():
        size = parameter.numel()
        part = direction[place : place + size].reshape(parameter.shape)
        parameter.data += step * parameter.data.new_tensor(part)
        place += size
    after = pair_gradients(model, groups[:1], encoder)[1][0, 0]
    assert (after - losses[0, 0]) / step == pytest.approx(np.linalg.norm(gradients[0, 0]), rel=0.05)


def test_a_run_does_not_depend_on_the_layout(tmp_path):
    key = RunKey(24, "k4", 0, Setting(1e-2, 8))
    shared, _ = train_run(key, TINY, tmp_path, layout="shared_prefix")
    expanded, _ = train_run(key, TINY, tmp_path, layout="expanded")
    assert [p["kl"] for p in shared["curve"]] == pytest.approx([p["kl"] for p in expanded["curve"]], abs=2e-4)
    assert shared["curve"][-1]["kl"] < shared["curve"][0]["kl"] - 0.01
    with pytest.raises(ValueError, match="12 pairs a step"):
        train_run(RunKey(24, "k4", 0, Setting(1e-2, 12)), TINY, tmp_path)


@pytest.mark.slow
def test_a_tiny_experiment_whole_and_resumed(tmp_path):
    path = tmp_path / "runs.jsonl"
    chosen = {name: [Setting(1e-2, 8 if arm.k == 8 else 4)] for name, arm in ARMS.items()}
    keys = runs.main_keys(chosen, lengths=(16,), seeds=(0,))
    assert runs.run_all(keys, path, TINY, stop_at=0) == len(keys)
    assert not path.exists()
    assert runs.run_all(keys, path, TINY) == 0
    records = read_records(path)
    assert [record["arm"] for record in records] == list(ARMS)
    for record in records:
        points = [round(place * TINY.n) for place in ARMS[record["arm"]].checkpoints]
        assert [point["pairs"] for point in record["curve"]] == [0, *points]
        assert np.isfinite([point["kl"] for point in record["curve"]]).all()
    assert len({record["curve"][0]["kl"] for record in records}) == 1  # one base model

    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3] + lines[4:]))
    trained = []
    assert runs.run_all(keys, path, TINY, progress=lambda stage, done, total: trained.append(stage)) == 0
    assert trained == ["P = 16, k8, seed 0", "done"]
    again = {record["arm"]: record["curve"] for record in read_records(path)}
    assert again == {record["arm"]: record["curve"] for record in records}

    tuned = Tuned(records)
    assert tuned.chosen(TINY.n) == chosen
    assert json.loads(lines[0])["pairs_per_step"] == 4


def made_up_records(seeds, length=64, n=64):
    """K = 1 has a KL of s·n/pairs after so many pairs, K = 4 one of 0.4·s on n prompts; s is the seed's factor."""
    records = []
    for seed in seeds:
        factor = 1 + 0.1 * seed
        for name, arm in ARMS.items():
            curve = [{"pairs": 0, "kl": 9.0, "coverage": 0.5, "elsewhere": 0.1}]
            for place in arm.checkpoints:
                kl = factor * (0.4 * 4 / place if name == "k4" else 1 / place)
                curve.append({"pairs": round(place * n), "kl": kl, "coverage": 0.5, "elsewhere": 0.1})
            records.append(
                {
                    "length": length,
                    "arm": name,
                    "seed": seed,
                    "learning_rate": 0.01,
                    "pairs_per_step": 8,
                    "curve": curve,
                }
            )
    return records


@pytest.mark.slow
def test_equal_cost_by_hand(tmp_path):
    # C_p = 2·C_r: K = 4 on n prompts costs 6 C_r a prompt, as 2n pairs of K = 1 do; copied, as 4n pairs do.
    records, tuning = made_up_records(range(4)), made_up_records([1000])
    found = analyse(records[:-1], tuning, {64: Price(2.0, 1.0), 256: Price(8.0, 1.0)}, 64)
    assert list(found["lengths"]) == ["64"]
    values = found["lengths"]["64"]
    assert values["seeds"] == [0, 1, 2]  # the last seed is not complete
    rows = {(row["layout"], row["k"], row["rival"]): row for row in values["comparisons"]}
    shared, copied = rows["shared_prefix", 4, "k1"], rows["expanded", 4, "k1"]
    assert (shared["rival_pairs"], copied["rival_pairs"]) == pytest.approx((2, 4))
    # 1 - 0.4/0.5, and (0.5 - 0.4)/(1 - 0.4) of the gain at equal prompts
    assert (shared["gain"]["value"], shared["share"]["value"]) == pytest.approx((0.2, 1 / 6))
    assert (shared["verdict"], shared["wins"], shared["seeds"]) == ("supported", 3, 3)
    assert (copied["gain"]["value"], copied["verdict"]) == (pytest.approx(1 - 0.4 / 0.25), "harmful")
    assert values["gain_equal_prompts"]["k4"]["value"] == pytest.approx(0.6)
    assert [point["prompts"] for point in values["by_budget"]["expanded"]["k4"]] == [0.5, 1, 1.5, 2]

    machine = {"device": "a machine", "threads": 1, "load": 0.1, "torch": "2"}
    found |= {"grouping": [], "machine": machine, "fit": {"measured": [], "token": 1, "meeting": 1, "worst": 0}}
    write_report(found, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["lengths"]["64"]["seeds"] == [0, 1, 2]
    text = results_text(found)
    assert values["pooled"]["k4"] == pytest.approx(shared["gain"])  # one length alone
    assert "20 [20,20]" in text.split("### What the seeds can show")[1].split("###")[0]
    row = "|  | 4 | 0.550 (2.00n) | 20 [20,20] | 17 [17,17] | 3/3 | supported |"
    assert "| K = 4 | 0.440 [0.400,0.480]; 60 [60,60] |" in text
    assert row in text.split("| 64, shared | 2 |")[1].split("| 64, expanded | 2 |")[0]
    assert {path.stem for path in tmp_path.glob("*.png")} == {"cost-shared_prefix", "cost-expanded", "gain"}

    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results: begin -->\nold\n<!-- results: end -->\nafter\n")
    put_into(page, "new\n")
    assert page.read_text() == "before\n<!-- results: begin -->\nnew\n<!-- results: end -->\nafter\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="no <!-- results: begin -->"):
        put_into(page, "new")


def test_checks_by_hand():
    tuning, records = made_up_records([1000, 1001]), made_up_records(range(2))

    def at(records, rate, pairs, factor=1.0, length=64):
        changed = []
        for record in records:
            curve = [{**point, "kl": factor * point["kl"]} for point in record["curve"]]
            setting = {"length": length, "learning_rate": rate, "pairs_per_step": pairs, "curve": curve}
            changed.append({**record, **setting})
        return changed

    calm = [at([r], CALM[r["arm"]].learning_rate, CALM[r["arm"]].pairs_per_step) for r in records if r["arm"] in CALM]
    alone = [record for record in tuning if record["arm"] == "k1"]
    checks = [
        *(record for part in calm for record in part),
        *at(alone, 0.01, 2, 0.5),
        *at(alone, 0.01, 8, 3.0, 1024),
        *at(alone, 0.001, 4, 2.0, 1024),
    ]
    tuned = [*tuning, *at(tuning, 0.001, 4, 9.0), *at(tuning, 0.001, 8, 9.0)]
    found = analyse_checks(tuned, records, checks, {64: Price(2.0, 1.0)}, 64)
    mean = 1 + 0.1 * 1000.5  # the factor of the two tuning seeds
    kls = {(row["pairs_per_step"], row["learning_rate"]): row["kl"] for row in found["small_steps"]}
    assert kls[2, 0.01] == pytest.approx([0.5 * mean, 0.25 * mean, 0.125 * mean, 0.0625 * mean])
    first, last = found["long_prompts"]
    assert (first["here"]["pairs_per_step"], first["there"]["pairs_per_step"]) == (8, 4)
    assert (last["place"], last["kl_here"], last["kl_there"]) == pytest.approx((8, 3 / 8 * mean, 2 / 8 * mean))
    rows = found["one_rate"]["64"]["comparisons"]
    assert [(row["layout"], row["k"]) for row in rows][:2] == [("shared_prefix", 2), ("shared_prefix", 4)]
    assert rows[1]["gain"]["value"] == pytest.approx(0.2)
