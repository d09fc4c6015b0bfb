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
        "### Prices and tuned settings\n",
        _prices(found),
        _settings(found),
        "### Equal prompts, equal pairs\n",
        _equal(found),
        "### Equal cost\n",
        _costs(found),
        "![KL against cost, shared](claim/cost-shared_prefix.png)\n",
        "![KL against cost, expanded](claim/cost-expanded.png)\n",
        "![KL saved at equal cost](claim/gain.png)\n",
        "### What the seeds can show\n",
        _power(found),
        "### Other prices and settings\n",
        _variants(found),
        "### Grouping correlates a step\n",
        _grouping(found),
        "### Tuning checked afterwards\n" if found.get("checks") else "",
        _checks(found),
    ]
    return "\n".join(part for part in parts if part)


def table(columns: Row, rows: Sequence[Row]) -> str:
    """Format a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def grouped(rows: Sequence[Row], count: int) -> list[list[str]]:
    """Leave out what the first `count` cells of a row repeat from the row above.

    Example:

    >>> grouped([["a", "b", "1"], ["a", "c", "2"], ["b", "c", "3"]], 2)
    [['a', 'b', '1'], ['', 'c', '2'], ['b', 'c', '3']]
    """
    kept = [list(row) for row in rows]
    for above, row, blank in zip(rows, rows[1:], kept[1:], strict=False):
        same = next((place for place in range(count) if above[place] != row[place]), count)
        blank[:same] = [""] * same
    return kept


def percent(estimate: Mapping[str, float], digits: int = 0) -> str:
    """Format a share with its interval, both in percent; the sign stands in the column's head.

    Example:

    >>> percent({"value": 0.123, "low": -0.02, "high": 0.2})
    '12 [-2,20]'
    """
    value, low, high = (f"{100 * estimate[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low},{high}]"


def nats(estimate: Mapping[str, float]) -> str:
    """Format a KL with its interval."""
    return f"{estimate['value']:.3f} [{estimate['low']:.3f},{estimate['high']:.3f}]"


def _pick(rows: Sequence[Mapping[str, Any]], layout: str, k: int, rival: str = "k1") -> Mapping[str, Any] | None:
    return next((row for row in rows if (row["layout"], row["k"], row["rival"]) == (layout, k, rival)), None)


def _answer(found: Mapping[str, Any]) -> str:
    primary = found["lengths"].get(PRIMARY_LENGTH)
    if primary is None:
        return ""
    rows = {layout: _pick(primary["comparisons"], layout, PRIMARY_K) for layout in LAYOUTS}
    verdicts = [
        f"{LAYOUTS[layout]} {percent(row['gain'], 1)}: **{row['verdict']}**"
        for layout, row in rows.items()
        if row is not None
    ]
    holds = [row is not None and row["verdict"] == "supported" for row in rows.values()]
    return (
        f"Primary endpoint (P = {PRIMARY_LENGTH}, K = {PRIMARY_K}), gain in %: {'; '.join(verdicts)}. The hypothesis "
        f"{'holds' if holds == [True, False] else 'does not hold'}.\n"
    )


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
    columns = ("P", "C_p, ms", "C_r, ms", "C_p/C_r", "in tokens", "selection, ms per prompt", "proof, s")
    machine, fit = found["machine"], found["fit"]
    return (
        f"`mrt bench` on {machine['device']}, {machine['threads']} threads, load {machine['load']:g} at the start, "
        f"torch {machine['torch']}. {len(fit['measured'])} measurements of both layouts fit "
        f"{1e6 * fit['token']:.0f} µs per token and {1e9 * fit['meeting']:.0f} ns per query-key pair, within "
        f"{100 * fit['worst']:.0f}%.\n\n" + table(columns, rows)
    )


def _settings(found: Mapping[str, Any]) -> str:
    tuned = [
        f"`{arm}` {' and '.join(_setting(item) for item in settings)}" for arm, settings in found["settings"].items()
    ]
    return f"Tuned learning rate/pairs per step: {', '.join(tuned)}.\n"


def _equal(found: Mapping[str, Any]) -> str:
    """Compare the arms at equal prompts and at equal pairs, with the prompt lengths side by side."""
    lengths = found["lengths"]
    base = ", ".join(f"{values['base']:.3f} (P = {length})" for length, values in lengths.items())
    text = f"KL in nats, mean over seeds; after it the share saved against K = 1, %. Base models: {base}.\n"
    heads = [f"P = {length}" for length in lengths]
    for kind, name in (("equal_prompts", "n prompts each"), ("equal_pairs", "8n pairs each")):
        rows: dict[str, list[str]] = {}
        for values in lengths.values():
            gains = values[f"gain_{kind}"]
            for point in values[kind]:
                arm = point["arm"]
                label = LABELS[arm] if kind == "equal_pairs" else f"K = {ARMS[arm].k}"
                saved = f"; {percent(gains[arm])}" if arm in gains else ""
                rows.setdefault(label, [label]).append(nats(point) + saved)
        text += "\n" + table((name, *heads), list(rows.values()))
    return text


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
                        *_place(length, layout, k),
                        f"{row['rival_kl']:.3f} ({row['rival_pairs']:.2f}n)",
                        percent(row["gain"]),
                        _share(values, row),
                        f"{row['wins']}/{row['seeds']}",
                        row["verdict"],
                        *("" if other is None else percent(other["gain"]) for other in others),
                    ]
                )
    columns = (
        *("P, layout", "K", "KL, K = 1 (prompts)", "saved, %", "affordable share, %", "seeds won", "by the rule"),
        *("saved against more epochs, %", "against redrawing, %"),
    )
    return "K responses for n prompts, against K = 1 at the same cost.\n\n" + table(columns, grouped(rows, 1))


def _place(length: str, layout: str, k: int) -> tuple[str, str]:
    return f"{length}, {layout.removesuffix('_prefix')}", f"{k}"


def _power(found: Mapping[str, Any]) -> str:
    """Report the gains pooled over all lengths, and the rule's results in simulated experiments with a known gain."""
    rows = []
    for length, values in found["lengths"].items():
        pooled = [values["pooled"][f"k{k}"] for k in KS]
        power = values["power"]
        shares = ["", ""] if power is None else [f"{100 * power[name]:.0f}%" for name in ("supported", "coverage")]
        rows.append([length, *("" if gain is None else percent(gain) for gain in pooled), *shares])
    columns = ("P", *(f"K = {k}, %" for k in KS), "a gain of 5% is supported", "the interval covers it")
    return (
        "Prompts say the same at every P; only their price differs. Pooled gain: each seed's KL averaged over all P, "
        "at equal cost in the shared layout, at the price of this P. Last two columns: simulated experiments with the "
        "measured covariance and a true gain of 5% for K = 4.\n\n" + table(columns, rows)
    )


def _share(values: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Format the affordable share, if there is a gain at equal prompts."""
    return percent(row["share"]) if values["gain_equal_prompts"][f"k{row['k']}"]["low"] > 0 else "-"


def _variants(found: Mapping[str, Any]) -> str:
    """Compare both layouts with K = 1 on more prompts, at other prices and with other settings."""
    priced = {"sampling": "sampled", "complete proof": "proof_whole", "tokens": "tokens"}
    checks = found.get("checks") or {}
    trained = {"one rate": checks["one_rate"], "single pairs": checks["single_pairs"]} if checks else {}
    rows = []
    unpriced = False
    for length, values in found["lengths"].items():
        for layout in LAYOUTS:
            for k in KS:
                cells = []
                main = _gain(_pick(values["comparisons"], layout, k))
                for kind in priced.values():
                    cell = _gain(_pick(values[kind], layout, k))
                    cells.append("same" if cell and cell == main else cell)
                unpriced |= "" in cells
                for other in trained.values():
                    row = _pick(other[length]["comparisons"], layout, k)
                    cells.append("" if row is None else percent(row["gain"]))
                rows.append([*_place(length, layout, k), *cells])
    empty = " Empty: it pays for more pairs than K = 1 saw." if unpriced else ""
    text = (
        "KL saved at equal cost, %. Before the colon: prompts of K = 1. *Same*: as under equal cost.\n\n"
        "- *Sampling*: a third of C_p per prompt and of C_r per sampled response is charged too.\n"
        f"- *Complete proof*: charged to {found['n']} prompts.{empty}\n"
        "- *Tokens*: tokens of a forward pass instead of seconds; nothing else is charged.\n"
    )
    if checks:
        text += (
            "- *One rate*: 0.001 in all arms, 4 pairs per step, 8 with K = 8.\n"
            "- *Single pairs*: K = 1 with one pair per step and 0.001; the others as tuned.\n\n"
            "The last two, not fixed before, have the prices of equal cost.\n"
        )
    return text + "\n" + table(("P, layout", "K", *priced, *trained), grouped(rows, 1))


def _gain(row: Mapping[str, Any] | None) -> str:
    """Format the prompts of K = 1, and the gain over it."""
    return "" if row is None else f"{row['rival_pairs']:.2f}n: {percent(row['gain'])}"


def _checks(found: Mapping[str, Any]) -> str:
    if not found.get("checks"):
        return ""
    checks = found["checks"]
    text = (
        "Not fixed before; tuning worlds, mean KL of two seeds. Fewer pairs per step for K = 1, at P = 64: learning "
        "rate/pairs per step, and the KL after n, 2n, 4n and 8n pairs.\n\n"
    )
    for row in checks["small_steps"]:
        text += f"- {_setting(row)}: {', '.join(f'{kl:.3f}' for kl in row['kl'])}\n"
    if checks["long_prompts"]:
        best = [
            f"- `{row['arm']}` after {row['place']:g}n pairs: {_setting(row['here'])} ({row['kl_here']:.3f}), "
            f"{_setting(row['there'])} ({row['kl_there']:.3f})\n"
            for row in checks["long_prompts"]
        ]
        text += "\nThe best setting at P = 64, then at P = 1,024, with their KL at P = 1,024:\n\n" + "".join(best)
    return text


def _setting(setting: Mapping[str, Any]) -> str:
    return f"{setting['learning_rate']:g}/{setting['pairs_per_step']}"


def _grouping(found: Mapping[str, Any]) -> str:
    if not found.get("grouping"):
        return ""
    rows = []
    for row in found["grouping"]:
        ratios = [f"{ratio['measured']:.2f} ({ratio['predicted']:.2f})" for ratio in row["ratios"]]
        loss = row["loss"]
        model = f"{row['seed']}, {row['stage'].removesuffix(' model')}"
        rows.append([model, f"{row['rho']:.2f}", *ratios, f"{loss['rho']:.2f}"])
    ks = [f"K = {ratio['k']}" for ratio in found["grouping"][0]["ratios"]]
    effects = [f"{percent(values['grouping'])} at P = {length}" for length, values in found["lengths"].items()]
    return (
        "Variance of a step's gradient (16 pairs) with K responses per prompt, relative to 16 different prompts. In "
        "brackets: 1 + (K-1)·rho, with rho from other prompts.\n\n"
        + table(("seed, model", "rho of gradients", *ks, "rho of losses"), rows)
        + "\n![Variance of a step](claim/grouping.png)\n\n"
        "After all 8n pairs, shuffling the pairs over the steps saves this share of KL (%) against groups of K = 8, "
        f"both as tuned: {'; '.join(effects)}. Shuffled pairs pay the expanded price in both layouts.\n"
    )
