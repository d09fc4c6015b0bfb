"""Show a plan: as sentences, as tables and as an HTML page."""

import math
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np

from mrt_plugin.groups.problems import plural
from mrt_plugin.options import PaidLayout
from mrt_plugin.planning.documents import DocumentPlan
from mrt_plugin.planning.paired import FEWEST
from mrt_plugin.planning.plan import BestRow, ModelPlan, Plan
from mrt_plugin.report import PHONE, NextStep, Report, figure, legible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES: dict[PaidLayout, dict[str, Any]] = {
    "shared_prefix": {"marker": "o", "linestyle": "-", "color": "black", "label": "prompt shared"},
    "expanded": {"marker": "s", "linestyle": "--", "color": "0.45", "label": "prompt copied"},
}

DOCUMENT_COLUMNS = ("m, prompts of a document", "K", "documents", "prompts", "variance")

CHOICE_COLUMNS = ("K", "prompts, prompt shared", "variance", "prompts, prompt copied", "variance")

ROUND_KS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
MOST_ROWS = 10
"""Most values of K in a table."""

OUTLOOK_COLUMNS = ("budget, in ordinary epochs", "K", "interval", "prompts", "variance")


SYMBOLS = (
    "V_x is the variance of the prompts' mean losses, V_{y|x} that of the losses of responses to one prompt, averaged "
    "over prompts, and rho the correlation of the losses of two responses to a prompt. A loss estimated on n prompts "
    "with K responses each has the variance V_x/n + V_{y|x}/(n·K)."
)


def advise(plan: Plan) -> list[str]:
    """Return the advice of a plan, followed by its qualifications, with one or two sentences per line.

    The first line names the K to keep and why, the second the cost and the interval of K, the third where the spread
    of the loss is. Without a model there is one line, and no K.

    Example:

    ```python
    from mrt_plugin import load_groups, make_plan
    from mrt_plugin.planning import advise

    for line in advise(make_plan(load_groups("pool.jsonl"))):
        print(line)
    ```
    """
    found = plan.model
    if found is None:
        return [
            "Without a model, the number of responses to keep is unknown: add --model. The tables describe the data, "
            "and topic spread is not loss variance."
        ]
    best, prompts = found.best, plan.data.prompts
    lines = [_headline(found, prompts), _cost(found), _shares(found)]
    if found.v_yx == 0:
        lines.append(
            "Only one prompt has responses that differ in loss. One prompt is no estimate of V_{y|x}, so it is taken "
            "as 0. Sample other responses for more prompts (mrt sample), and plan again."
            if found.prompts_differing
            else "V_{y|x} is 0: the responses to a prompt do not differ in loss, so a second one adds nothing. Check "
            "that they are not copies; if they are draws, raise the temperature (mrt sample) before you pay for more."
        )
    elif best.k == 1:
        later = next((row for row in found.outlook if row.k > 1), None)
        if later is not None:
            lines.append(f"At {later.times} times the cost of an ordinary epoch, {_keep(later, prompts)}.")
    else:
        one = found.choices[found.layout][0]
        rest = " at the same cost" if one.cost > 0.99 * found.budget else ", which cannot use up the budget"
        lines.append(
            f"The variance of the loss estimate is then predicted to be {best.saves:.0%} below that of K = 1{rest}."
        )
    if found.all_prompts.extra is not None and best.prompts < prompts:
        lines.append(
            f"If you would rather keep all {prompts:,} prompts, the same cost buys K = {found.all_prompts.k}, and the "
            f"variance is {found.all_prompts.extra:.1%} higher."
        )
    if found.v_x <= 0 < found.v_yx:
        lines.append(
            "V_x came out at or below zero: the prompts' mean losses differ by chance alone. Prompts are not the "
            "bottleneck here, responses are: k* has no upper end, and more responses win."
        )
    else:
        if found.v_x_interval is not None and found.v_x_interval.low <= 0:
            lines.append("The interval of V_x reaches zero: these prompts may not differ in their mean loss at all.")
        if found.k_star_interval is not None and found.k_star_interval.high == math.inf:
            lines.append("The interval of V_x / V_{y|x} reaches zero, so k* has no upper end.")
    low, high = best.k_interval or (1, 1)
    if high - low > max(2, best.k):
        lines.append(
            f"The data does not pin K down: everything from {low} to {high} is within the interval. Measure more "
            "prompts to narrow it."
        )
    if plan.data.pool_least < best.k and found.loss_aggregation != "prompt":
        more = best.one_vote_per_prompt
        lines.append(
            f"Pools are unequal: prompts would keep {plan.data.pool_least} to {best.k} responses, and with "
            f"loss_aggregation: {found.loss_aggregation} a prompt with more of them counts for more. This is in the "
            "figures above. With one vote per prompt (loss_aggregation: prompt) the variance at this K would be "
            f"{abs(more):.1%} {'higher' if more > 0 else 'lower'}."
        )
    if plan.data.repeated_responses:
        lines.append(_copies(plan, found))
    if found.layout == "expanded":
        lines.append("In the expanded layout each response pays for its prompt: K = 1 is best until all are used.")
    adaptive = found.adaptive
    if adaptive is not None and adaptive.response_variance_ratio is not None:
        gain = 1 - adaptive.response_variance_ratio
        lines.append(
            f"Giving more responses to prompts that vary more would lower the responses' part of the variance by "
            f"{gain:.0%} against {adaptive.mean_k} for each. Train with loss_aggregation: prompt then."
            if gain > 0.02
            else "An adaptive allocation gains nothing here: the responses' part of the variance would change by "
            f"{-gain:+.0%} against {adaptive.mean_k} responses for each prompt."
        )
    if found.documents is not None:
        lines += _documents(found.documents, found.level)
    return lines


def _documents(third: DocumentPlan, level: float) -> list[str]:
    """Return the advice on documents."""
    best, rho = third.best, third.correlation(third.best.k)
    counts = f"{third.prompts:,} prompts share the beginnings of {third.documents:,} documents"
    alike = f"The mean losses of two prompts of a document correlate by {rho:.2f}"
    if best.m == 1:
        return [
            f"{counts}. {alike}: within this cost one prompt of each document has the least variance, so leave "
            "group_by_prefix off."
        ]
    sure = ""
    if third.m_interval is not None and third.k_interval is not None:
        sure = f" ({level:.0%} intervals: m {interval_text(third.m_interval)}, K {interval_text(third.k_interval)})"
    effective = best.m / (1 + (best.m - 1) * rho)
    return [
        f"{counts}, each computed once for its prompts in a micro-batch if group_by_prefix is set. The same cost then "
        f"buys m = {best.m} prompts of each of {best.documents:,} documents with K = {best.k}{sure}, and the variance "
        f"is {third.saves:.0%} below that of one prompt per document. Give a micro-batch at least {best.m} groups.",
        f"{alike}: {best.m} of them tell as much as {effective:.1f} of different documents."
        if third.components.v_d > 0
        else "V_d came out at or below zero: the documents' mean losses differ by chance alone, so prompts of one "
        "document tell as much as others.",
    ]


def _headline(found: ModelPlan, prompts: int) -> str:
    between, why = 1 - found.rho, "at this cost, more prompts tell more than more responses"
    if found.v_yx == 0:
        why = "answers to one prompt do not differ in loss"
        if found.prompts_differing:
            why = "only one prompt has answers that differ in loss"
    elif found.best.k > 1:
        why = f"{between:.0%} of the spread in loss is between answers to one prompt"
    elif found.layout == "expanded":
        why = "in the expanded layout, each response pays for its prompt again"
    keep = _keep(found.best, prompts)
    return f"{keep[0].upper()}{keep[1:]}: {why}."


def _cost(found: ModelPlan) -> str:
    times, best, count = found.budget / found.ordinary_epoch, found.best, found.prompts_differing
    cost = "the cost" if abs(times - 1) < 1e-9 else f"{times:.3g} times the cost"
    amount = f"{found.budget:,.0f} {'tokens' if found.cost_unit == 'tokens' else 'units of cost'}"
    what = {0: "no prompt has", 1: "1 prompt has"}.get(count, f"only {count} prompts have")
    sure = f"No interval: {what} responses that differ in loss, and an interval takes {FEWEST}"
    if best.k_interval is not None:
        low, high = best.k_interval
        sure = f"{found.level:.0%} interval of K: {low}" + (f" to {high}" if high > low else "")
    return f"This is for {cost} of an ordinary epoch, every prompt with one response ({amount}). {sure}."


def _shares(found: ModelPlan) -> str:
    """Say which share of the variance is V_x and which V_{y|x}, and what the symbols are."""
    within, sure = 1 - found.rho, ""
    if found.rho_interval is not None:
        low, high = (1 - end for end in found.rho_interval[::-1])
        sure = f", {found.level:.0%} interval {100 * low:.0f} to {high:.0%}"
    return (
        f"Of the variance of the loss, {within:.0%} is between responses to one prompt (V_{{y|x}}{sure}), and "
        f"{found.rho:.0%} between prompts (V_x)."
    )


def _keep(best: BestRow, prompts: int) -> str:
    which = f"each of your {prompts:,} prompts"
    if best.prompts < prompts:
        which = f"each of {best.prompts:,} of your {prompts:,} prompts, drawn at random"
    return f"keep {plural(best.k, 'response')} for {which}"


def _copies(plan: Plan, found: ModelPlan) -> str:
    data, copies = plan.data, found.copies
    line = (
        f"{data.repeated_responses:,} of {data.responses:,} responses repeat another of their pool, in "
        f"{data.prompts_with_repeats:,} of {data.prompts:,} prompts. If one model drew them, keep them: draws repeat."
    )
    remedy = "remove them (curation rule duplicate_responses with threshold 1) and plan again"
    if copies is not None:
        without = "there is nothing to estimate V_{y|x} from without them"
        if copies.v_x is not None:
            without = (
                f"V_x and V_{{y|x}} are {copies.v_x:.3g} and {copies.v_yx:.3g} rather than {found.v_x:.3g} and "
                f"{found.v_yx:.3g}, and the same cost buys K = {copies.k}"
            )
        remedy = f"{without}: {remedy}"
    return f"{line} If they are copies, {remedy}."


def cannot_know(plan: Plan) -> list[str]:
    found = plan.model
    if found is None:
        return [
            "Diversity of embeddings and n-grams says nothing about how much the loss varies, and so nothing about K.",
            "k_eff is a heuristic: similar embeddings are not equal losses.",
        ]
    lines = [
        "This is the variance of an estimate of the training loss, at the model as it is now. It is not the test "
        "loss: train with two values of K and compare them on held-out prompts (mrt evaluate).",
        f"Costs are {found.cost_unit} of one epoch. What attention adds with the square of a length, and what "
        "generating and scoring responses cost, is not in them.",
        "The pool is taken for independent draws from the distribution you want to learn. Answers that were filtered, "
        "deduplicated or written by several models are not quite that.",
    ]
    count, single = f"{found.prompts_measured:,}", found.single
    if found.prompts_sampled:
        lines.append(f"The model was measured on {count} of {plan.data.prompts:,} prompts, drawn at random.")
    if single is not None:
        so = "; one prompt does not show whether they differ."
        if single.adds_to_v_x:
            larger = f"V_x is about {single.adds_to_v_x:.3g} larger than {found.v_x:.3g}"
            so = f": over all prompts {larger}, and the best K no larger than the one advised."
        elif single.gap_error is not None:
            so = f", a difference within chance (standard error {single.gap_error:.2g})."
        lines.append(
            f"{single.prompts:,} of {count} prompts measured have one response. They count as owned prompts, and V_x "
            "and V_{y|x} are estimated without them. "
            f"Their mean loss is {single.mean:.3g} and that of the others {single.others:.3g}{so}"
        )
    if found.responses_too_long:
        lines.append(
            f"{found.responses_too_long:,} responses exceed {found.max_length:,} tokens with their prompt and were "
            "not measured: training leaves them out too."
        )
    return lines


def yaml_block(plan: Plan) -> str | None:
    """Return the YAML for an Axolotl recipe; None without a model."""
    found, data = plan.model, plan.data
    if found is None:
        return None
    ending = data.name.rsplit(".", 1)[-1]
    kind = {"json": "json", "jsonl": "json", "parquet": "parquet"}.get(ending)
    return (
        "plugins:\n  - mrt_plugin.axolotl.MultiResponsePlugin\n"
        f"datasets:\n  - path: {data.name}\n"
        + (f"    ds_type: {kind}\n" if kind else "")
        + "    type: mrt_plugin.axolotl.random_k\n"
        f"mrt:\n  k: {found.best.k}\n  layout: {'auto' if found.layout == 'shared_prefix' else 'expanded'}\n"
        f"  loss_aggregation: {found.loss_aggregation}\n"
        + (f"  curation: {_draw(found.best.prompts)}\n" if found.best.prompts < data.prompts else "")
    )


def _draw(prompts: int) -> str:
    """Return the curation rules that draw this many prompts, as YAML."""
    return f"[{{sample: {{groups: {prompts}}}}}]"


def next_step(plan: Plan) -> NextStep:
    """Return what to do with the plan, as a command."""
    name, found = quote(plan.data.name), plan.model
    if found is None:
        return NextStep("measure the loss with the model to fine-tune", f"mrt plan {name} --model path/or/name")
    line = ["mrt select", name, "--selector random_k", f"--k {found.best.k}", "--held-out 0.1"]
    # `--held-out` removes about a tenth of the prompts. If fewer are left than it draws, `sample` repeats prompts.
    if found.best.prompts < 0.85 * plan.data.prompts:
        line.append(f"--curation {quote(_draw(found.best.prompts))}")
    why = "keep these responses and set prompts aside for evaluation, or train on this recipe"
    return NextStep(why, " ".join([*line, "--output chosen.jsonl"]))


def plan_report(plan: Plan) -> str:
    """Build the HTML page of a plan from `make_plan`."""
    report = Report(f"How many responses to keep: {plan.data.name}")
    found, (first, *rest) = plan.model, advise(plan)
    report.headline(first, *rest[:2])
    if found is not None:
        report.figure(
            choices_figure(found),
            "Shared: a group pays for its prompt once. Copied: once per response. Where a line rises, the prompts "
            "given up cost more than the responses bring.",
        )
        if rest[2:]:
            report.list(rest[2:])
        report.heading("For the recipe")
        report.code(yaml_block(plan) or "")
        with report.folded(f"What {found.budget:,.0f} {found.cost_unit} an epoch buy, for each K"):
            ks = table_ks(found)
            report.table(CHOICE_COLUMNS, choice_rows(found), marked=[ks.index(found.best.k)])
        with report.folded("Where the variance comes from"):
            report.text(SYMBOLS)
            report.table(variance_columns(found), variance_rows(found))
            report.figure(
                _spread_figure(found), "One mark per prompt: its mean loss, and the variance of its responses."
            )
        with report.folded("The best K with more to spend"):
            report.table(OUTLOOK_COLUMNS, outlook_rows(found))
        adaptive = found.adaptive
        if adaptive is not None:
            counts = np.bincount(list(adaptive.allocation.values()))
            with report.folded("More responses for prompts that vary more"):
                report.text(
                    f"The same {adaptive.total:,} responses (mean K = {adaptive.mean_k}), more of them where losses "
                    f"vary more. Their part of the variance is {number(adaptive.response_variance_ratio)} of that of "
                    f"a fixed K (cross-fitted). {adaptive.at_lower_limit:,} prompts are at the lower limit of 1, "
                    f"{adaptive.at_upper_limit:,} at the size of their pool."
                )
                report.table(("K", "prompts"), [(str(k), f"{count:,}") for k, count in enumerate(counts) if count])
        if found.documents is not None:
            with report.folded("Documents, prompts and responses"):
                report.table(("", "estimate", f"{found.level:.0%} interval"), document_rows(found))
                report.table(DOCUMENT_COLUMNS, document_choices(found))
    with report.folded("The data"):
        report.table(("", ""), data_rows(plan))
    report.heading("What this cannot know")
    report.list(cannot_know(plan))
    report.next_step(next_step(plan))
    return report.html()


def data_rows(plan: Plan) -> list[tuple[str, str]]:
    data, found = plan.data, plan.diversity
    prompt, near = found.prompt, found.redundancy
    rows = [
        ("prompts", f"{data.prompts:,}"),
        ("responses", f"{data.responses:,}"),
        ("of them repeated within their pool", f"{data.repeated_responses:,}"),
        ("pool: least, median, most", f"{data.pool_least}, {data.pool_median:g}, {data.pool_most}"),
        (
            f"prompt diversity d = r·n^p ({prompt.order}-grams of {found.tokens}, p = {prompt.p:g})",
            f"{prompt.d:.3f}  (r = {prompt.r:.3f})",
        ),
    ]
    if near is not None:
        rows.append(("prompt redundancy: mean cosine to the nearest other prompt", f"{near.nearest:.3f}"))
        rows.append((f"prompts with another at {near.near:g} or nearer", f"{near.share:.1%}"))
    if found.response_diversity is not None:
        k, k_eff = list(found.effective_k.items())[-1]
        rows.append(("response diversity: 1 - mean cosine in a pool", f"{found.response_diversity:.3f}"))
        rows.append((f"k_eff of K = {k} (a heuristic)", f"{k_eff:.1f}"))
    return [*rows, ("embedder", found.embedder)]


def variance_columns(found: ModelPlan) -> tuple[str, ...]:
    return ("", "estimate", f"{found.level:.0%} interval", "share")


def variance_rows(found: ModelPlan) -> list[tuple[str, ...]]:
    unit = ": tokens of a" if found.cost_unit == "tokens" else ""
    rows = (
        ("V_x: between prompts", found.v_x, found.v_x_interval, f"{found.rho:.0%}"),
        ("V_{y|x}: between responses", found.v_yx, found.v_yx_interval, f"{1 - found.rho:.0%}"),
        ("rho: correlation of responses", found.rho, found.rho_interval, ""),
        ("k*: the formula's best K", found.k_star, found.k_star_interval, ""),
        (f"C_p{unit and f'{unit} prompt'}", found.costs.prompt, None, ""),
        (f"C_r{unit and f'{unit} response'}", found.costs.response, None, ""),
    )
    return [(name, number(value), interval_text(ends), share) for name, value, ends, share in rows]


def table_ks(found: ModelPlan) -> list[int]:
    """Return the values of K for a table: round numbers, the best and the largest, at most `MOST_ROWS`."""
    ends = {found.best.k, len(found.choices[found.layout])}
    between = [k for k in ROUND_KS if k < max(ends) and k not in ends]
    return sorted({*between[: MOST_ROWS - len(ends)], *ends})


def choice_rows(found: ModelPlan) -> list[tuple[str, ...]]:
    """Return what the budget buys in either layout, for the values of K of `table_ks`."""
    pairs = [[found.choices[name][k - 1] for name in LINES] for k in table_ks(found)]
    return [
        (str(one.k), f"{one.prompts:,}", number(one.variance), f"{two.prompts:,}", number(two.variance))
        for one, two in pairs
    ]


def document_rows(found: ModelPlan) -> list[tuple[str, str, str]]:
    """Return what was estimated on documents: name, estimate, interval."""
    third = found.documents
    if third is None:
        return []
    parts = third.components
    v_d, v_p, v_r = vars(third.intervals).values() if third.intervals is not None else (None, None, None)
    unit = " in tokens" if found.cost_unit == "tokens" else ""
    rows = (
        ("V_d, between documents", parts.v_d, v_d),
        ("V_p, between prompts of a document", parts.v_p, v_p),
        ("V_r, between responses to a prompt", parts.v_r, v_r),
        ("m*, the formula's best prompts per document", third.m_star, None),
        ("K*, the formula's best responses per prompt", third.k_star, None),
        (f"C_d, a document{unit}", third.costs.document, None),
        (f"C_p, a prompt without its document{unit}", third.costs.prompt, None),
        (f"C_r, a response{unit}", third.costs.response, None),
    )
    return [(name, number(value), interval_text(interval)) for name, value, interval in rows]


def document_choices(found: ModelPlan) -> list[tuple[str, ...]]:
    """Return what the budget buys for powers of two of m, its best value and its largest."""
    third = found.documents
    if third is None:
        return []
    rows: list[tuple[str, ...]] = []
    for row in third.choices:
        if row.m & (row.m - 1) == 0 or row.m in (third.best.m, third.most_prompts):
            m = f"{row.m} *" if row.m == third.best.m else str(row.m)
            rows.append((m, str(row.k), f"{row.documents:,}", f"{row.prompts:,.0f}", number(row.variance)))
    return rows


def outlook_rows(found: ModelPlan) -> list[tuple[str, ...]]:
    return [
        (f"{row.times}x", str(row.k), interval_text(row.k_interval), f"{row.prompts:,}", number(row.variance))
        for row in found.outlook
    ]


def number(value: float | None) -> str:
    """Format a number with three digits; "?" for None, which is unknown."""
    if value is None:
        return "?"
    return (f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}").replace("inf", "∞")


def interval_text(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{number(ends[0])} to {number(ends[1])}"


@legible()
def choices_figure(found: ModelPlan) -> "Figure":
    """Draw the predicted variance at each K, relative to that of K = 1, in either layout."""
    made, (axis,) = figure(PHONE, 3.8)
    one, best = found.choices[found.layout][0].variance, found.best
    if best.k_interval is not None:
        low, high = best.k_interval
        axis.axvspan(low / 1.08, high * 1.08, color="0.9", label=f"{found.level:.0%} interval of K")
    for name, rows in found.choices.items():
        known = [(row.k, 100 * row.variance / one) for row in rows if math.isfinite(row.variance)]
        axis.plot(*np.reshape(known, (-1, 2)).T, **LINES[name])
    star = {"markersize": 20, "markerfacecolor": "white", "markeredgecolor": "black", "zorder": 3}
    axis.plot(best.k, 100 * best.variance / one, "*", label=f"best: K = {best.k}", **star)
    axis.set_xscale("log", base=2)
    ks = [k for k in table_ks(found) if k in ROUND_KS or k == best.k]
    axis.set_xticks(ks, [str(k) for k in ks])
    axis.set(xlabel="K, responses per prompt", ylabel="variance, % of that at K = 1", ylim=(0, None))
    than = f"{best.saves:.0%} below K = 1" if best.k > 1 else "with the most prompts"
    axis.set_title(f"Least variance at K = {best.k}, {than}")
    made.legend(loc="outside lower center", ncols=2, frameon=False)
    return made


@legible()
def _spread_figure(found: ModelPlan) -> "Figure":
    made, (axis,) = figure(PHONE, 3.5)
    rows = [(row.mean, row.variance) for row in found.per_prompt if row.variance is not None]
    axis.plot(*np.transpose(rows), "o", markersize=4, color="black", markerfacecolor="none", alpha=0.7)
    axis.axhline(found.v_yx, linestyle="--", color="black", linewidth=1)
    axis.annotate("V_{y|x}", (1, found.v_yx), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    axis.set(xlabel=f"mean loss of a prompt's responses ({found.loss_aggregation})", ylabel="variance between them")
    return made
