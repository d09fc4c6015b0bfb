"""Write the results as Markdown tables from the numbers of `analysis`, between two marks of docs/results.md."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.claim.arms import ARMS
from recipes.claim.figures import LABELS, LAYOUTS, cost_curves, gain_by_budget, grouping

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
PRIMARY_LENGTH, PRIMARY_K = "256", 4
KS = (2, 4, 8)

Row = Sequence[str]


def write_report(found: Mapping[str, Any], folder: Path) -> None:
    """Write `summary.json`, with every number of the tables and figures to 6 digits, and the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = json.loads(json.dumps(found, allow_nan=False), parse_float=lambda text: float(f"{float(text):.6g}"))
    (folder / "summary.json").write_text(json.dumps(digits) + "\n", encoding="utf-8")
    for layout in LAYOUTS:
        cost_curves(dict(found), layout).savefig(folder / f"cost-{layout}.png", dpi=90)
    gain_by_budget(dict(found)).savefig(folder / "gain.png", dpi=90)
    if found.get("grouping"):
        grouping(found["grouping"]).savefig(folder / "grouping.png", dpi=90)


def put_into(page: Path, text: str) -> None:
    """Replace the text between the marks of a page.

    Raises:
        ValueError: if the marks are not there.
    """
    whole = page.read_text(encoding="utf-8")
    if BEGIN not in whole or END not in whole:
        raise ValueError(f"{page} has no {BEGIN} ... {END}: put both on lines of their own, where the results go.")
    head, rest = whole.split(BEGIN, 1)
    unfinished = page.with_name(page.name + ".unfinished")
    unfinished.write_text(f"{head}{BEGIN}\n{text.strip()}\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")
    unfinished.replace(page)


def results_text(found: Mapping[str, Any]) -> str:
    """Return the complete results text."""
    parts = [
        _answer(found),
        "### What was bought\n",
        _prices(found),
        _settings(found),
        "### Equal prompts, equal pairs\n",
        _equal(found),
        "### Equal cost\n",
        _costs(found),
        "![KL against cost, shared](claim/cost-shared_prefix.png)\n",
        "![KL against cost, expanded](claim/cost-expanded.png)\n",
        "### Where the gain is, and where it vanishes\n",
        "![KL saved at equal cost](claim/gain.png)\n",
        "### What the seeds can show\n",
        _power(found),
        "### The responses sampled too\n",
        "A third of C_p for each prompt once and of C_r for each response that had to exist, on top.\n",
        _short(found["lengths"], "sampled"),
        "### The proof charged whole\n",
        f"To a run of {found['n']} prompts. Lines are missing where it pays for more pairs than K = 1 saw.\n",
        _short(found["lengths"], "proof_whole"),
        "### Priced in tokens\n",
        "Tokens of a forward instead of measured seconds, and nothing else charged.\n",
        _short(found["lengths"], "tokens"),
        "### Grouping correlates a step\n",
        _grouping(found),
        "### Checks made afterwards\n" if found.get("checks") else "",
        _checks(found),
    ]
    return "\n".join(part for part in parts if part)


def table(columns: Row, rows: Sequence[Row]) -> str:
    """Format a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def percent(estimate: Mapping[str, float], digits: int = 0) -> str:
    """Format a share with its interval.

    Example:

    >>> percent({"value": 0.123, "low": -0.02, "high": 0.2})
    '12 % (-2 to 20)'
    """
    value, low, high = (f"{100 * estimate[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} % ({low} to {high})"


def nats(estimate: Mapping[str, float]) -> str:
    """Format a KL with its interval."""
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"


def _pick(rows: Sequence[Mapping[str, Any]], layout: str, k: int, rival: str = "k1") -> Mapping[str, Any] | None:
    return next((row for row in rows if (row["layout"], row["k"], row["rival"]) == (layout, k, rival)), None)


def _answer(found: Mapping[str, Any]) -> str:
    parts = []
    for length, values in found["lengths"].items():
        shared = _pick(values["comparisons"], "shared_prefix", PRIMARY_K)
        copied = _pick(values["comparisons"], "expanded", PRIMARY_K)
        if shared is not None and copied is not None:
            parts.append(
                f"at P = {length}, {percent(shared['share'])} with the prompt shared and {percent(copied['share'])} "
                f"with it copied ({shared['seeds']} seeds)"
            )
    sentence = (
        f"Of the KL that K = {PRIMARY_K} saves at equal prompts, this much is left when K = 1 may spend the same on "
        f"more prompts: {'; '.join(parts)}."
    )
    verdict = ""
    primary = found["lengths"].get(PRIMARY_LENGTH)
    if primary is not None:
        rows = {layout: _pick(primary["comparisons"], layout, PRIMARY_K) for layout in LAYOUTS}
        told = [
            f"{LAYOUTS[layout]}: K = {PRIMARY_K} {row['kl']:.3f} nats, K = 1 at the same cost {row['rival_kl']:.3f}, "
            f"gain {percent(row['gain'], 1)}, closer in {row['wins']} of {row['seeds']} seeds: **{row['verdict']}**"
            for layout, row in rows.items()
            if row is not None
        ]
        holds = [row is not None and row["verdict"] == "supported" for row in rows.values()]
        verdict = (
            f"Primary endpoint (P = {PRIMARY_LENGTH}), by the rule: {'. '.join(told)}. The hypothesis "
            f"{'holds' if holds == [True, False] else 'does not hold'}.\n"
        )
    return f"{sentence}\n\n{verdict}"


def _prices(found: Mapping[str, Any]) -> str:
    rows = []
    for length, values in found["lengths"].items():
        price = values["price"]
        rows.append(
            [
                length,
                f"{1000 * price['prompt']:.1f}",
                f"{1000 * price['response']:.1f}",
                f"{price['prompt'] / price['response']:.1f}",
                f"{(int(length) - 1) / 65:.1f}",
                f"{1000 * price['selection']:.3f}",
                f"{price['proof']:.1f}",
            ]
        )
    columns = ("P", "C_p, ms", "C_r, ms", "C_p/C_r", "in tokens", "selection, ms a prompt", "proof, s")
    machine, fit = found["machine"], found["fit"]
    return (
        f"`mrt bench` on {machine['device']}, {machine['threads']} threads, load {machine['load']:g} when it began, "
        f"torch {machine['torch']}: {len(fit['measured'])} measurements of both layouts, fitted by so much per token "
        f"({1e6 * fit['token']:.0f} µs) and so much per query and key that meet ({1e9 * fit['meeting']:.0f} ns), to "
        f"within {100 * fit['worst']:.0f} %.\n\n" + table(columns, rows)
    )


def _settings(found: Mapping[str, Any]) -> str:
    rows = [
        [f"`{arm}`", ", ".join(_setting(item) for item in settings)] for arm, settings in found["settings"].items()
    ]
    return "Tuned (learning rate, pairs per step):\n\n" + table(("arm", "run at"), rows)


def _equal(found: Mapping[str, Any]) -> str:
    rows = []
    for length, values in found["lengths"].items():
        for kind, name in (("equal_prompts", "n prompts each"), ("equal_pairs", "8n pairs each")):
            for point in values[kind]:
                arm = point["arm"]
                gains = values[f"gain_{kind}"]
                rows.append(
                    [
                        length,
                        name,
                        LABELS[arm] if kind == "equal_pairs" else f"K = {ARMS[arm].k}",
                        nats(point),
                        percent(gains[arm]) if arm in gains else "",
                    ]
                )
    base = ", ".join(f"{values['base']:.3f} at P = {length}" for length, values in found["lengths"].items())
    return f"The base models are at {base}. Means over seeds.\n\n" + table(
        ("P", "what is equal", "arm", "KL, nats", "saved against K = 1"), rows
    )


def _costs(found: Mapping[str, Any]) -> str:
    rows = []
    for length, values in found["lengths"].items():
        for layout in LAYOUTS:
            for k in KS:
                row = _pick(values["comparisons"], layout, k)
                if row is None:
                    continue
                others = [_pick(values["comparisons"], layout, k, rival) for rival in ("k1_epochs", "k1_redraw")]
                rows.append(
                    [
                        length,
                        LAYOUTS[layout],
                        f"{k}",
                        f"{row['kl']:.3f}",
                        f"{row['rival_kl']:.3f} ({row['rival_pairs']:.2f}n)",
                        percent(row["gain"]),
                        _share(values, row),
                        f"{row['wins']}/{row['seeds']}",
                        row["verdict"],
                        *("" if other is None else percent(other["gain"]) for other in others),
                    ]
                )
    columns = (
        *("P", "layout", "K", "KL, K on n prompts", "KL, K = 1 (prompts)", "saved", "affordable share", "seeds won"),
        *("by the rule", "saved against more epochs", "saved against redrawing"),
    )
    return table(columns, rows)


def _power(found: Mapping[str, Any]) -> str:
    """Report the gains pooled over all lengths, and the rule's results in simulated experiments with a known gain."""
    rows = []
    for length, values in found["lengths"].items():
        pooled = [values["pooled"][f"k{k}"] for k in KS]
        power = values["power"]
        shares = ["", ""] if power is None else [f"{100 * power[name]:.0f} %" for name in ("supported", "coverage")]
        rows.append([length, *("" if gain is None else percent(gain) for gain in pooled), *shares])
    columns = ("P", *(f"K = {k}, pooled" for k in KS), "a gain of 5 % is supported", "the interval holds it")
    return (
        "What a prompt says is the same at every P, so that only its price should differ. Pooled: each seed's KL "
        "averaged over all P, at equal cost in the shared layout at the price of this P. The last two columns: "
        "experiments drawn with the measured covariance of the two KL and a true gain of 5 % for K = 4.\n\n"
        + table(columns, rows)
    )


def _share(values: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Format the affordable share, if there is a gain at equal prompts."""
    return percent(row["share"]) if values["gain_equal_prompts"][f"k{row['k']}"]["low"] > 0 else "-"


def _short(lengths: Mapping[str, Any], kind: str) -> str:
    """Compare both layouts with K = 1 on more prompts, side by side."""
    rows = []
    for length, values in lengths.items():
        for k in KS:
            cells = []
            for layout in LAYOUTS:
                row = _pick(values[kind], layout, k)
                cells += ["", ""] if row is None else [f"{row['rival_pairs']:.2f}n", percent(row["gain"])]
            rows.append([length, f"{k}", *cells])
    columns = ("P", "K", "shared: K = 1 on", "saved", "expanded: K = 1 on", "saved")
    return table(columns, rows)


def _checks(found: Mapping[str, Any]) -> str:
    if not found.get("checks"):
        return ""
    checks, parts = found["checks"], []
    parts.append(
        "Not fixed before the runs. The first two on the tuning worlds, mean KL of two seeds. Fewer pairs per step "
        "for K = 1, at P = 64:\n\n"
        + table(
            ("learning rate", "pairs per step", "KL at n pairs", "2n", "4n", "8n"),
            [
                [f"{row['learning_rate']:g}", f"{row['pairs_per_step']}", *(f"{kl:.3f}" for kl in row["kl"])]
                for row in checks["small_steps"]
            ],
        )
    )
    if checks["long_prompts"]:
        parts.append(
            "Tuning again at P = 1,024: the best setting there, and what the one chosen at P = 64 loses to it:\n\n"
            + table(
                ("arm", "pairs", "best at P = 64", "best at P = 1,024", "KL of the first", "KL of the second"),
                [
                    [
                        f"`{row['arm']}`",
                        f"{row['place']:g}n",
                        _setting(row["here"]),
                        _setting(row["there"]),
                        f"{row['kl_here']:.3f}",
                        f"{row['kl_there']:.3f}",
                    ]
                    for row in checks["long_prompts"]
                ],
            )
        )
    parts.append(
        "The main comparison with one learning rate, 0.001, in all arms (4 pairs per step; 8 with K = 8), on the main "
        "worlds:\n\n" + _short(checks["one_rate"], "comparisons")
    )
    parts.append(
        "The main comparison with single pairs per step and a learning rate of 0.001 for K = 1, which the first of "
        "these checks found better on few prompts than what was tuned; the others as they were:\n\n"
        + _short(checks["single_pairs"], "comparisons")
    )
    return "\n".join(parts)


def _setting(setting: Mapping[str, Any]) -> str:
    return f"{setting['learning_rate']:g} with {setting['pairs_per_step']} pairs"


def _grouping(found: Mapping[str, Any]) -> str:
    if not found.get("grouping"):
        return ""
    rows = []
    for row in found["grouping"]:
        ratios = [f"{ratio['measured']:.2f} ({ratio['predicted']:.2f})" for ratio in row["ratios"]]
        loss = row["loss"]
        rows.append([f"{row['seed']}", row["stage"], f"{row['rho']:.2f}", *ratios, f"{loss['rho']:.2f}"])
    ks = [f"K = {ratio['k']}" for ratio in found["grouping"][0]["ratios"]]
    text = (
        "The variance of a step's gradient (16 pairs), K responses of a prompt together, over that of 16 pairs of "
        "different prompts: measured, and in brackets 1 + (K-1)·rho with rho from other prompts.\n\n"
        + table(("seed", "model", "rho of gradients", *ks, "rho of losses"), rows)
        + "\n![Variance of a step](claim/grouping.png)\n\n"
    )
    told = [f"P = {length}: {percent(values['grouping'])}" for length, values in found["lengths"].items()]
    return text + (
        "What it costs in the end, with all 8n pairs seen: the KL that shuffling the pairs across steps saves against "
        f"K = 8 in groups, each at its own tuned setting: {'; '.join(told)}. Shuffled pairs share no prompt in a "
        "step, so they pay the expanded price in both layouts.\n"
    )
