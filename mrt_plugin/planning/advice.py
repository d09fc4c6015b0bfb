"""Write a plan as sentences: advice, assumptions and limits."""

from typing import Any

from mrt_plugin.planning.paired import FEWEST


def advise(plan: dict[str, Any]) -> list[str]:
    """Return the advice, followed by its qualifications, with one or two sentences per line."""
    found = plan["model"]
    if found is None:
        return [
            "How many responses to keep cannot be told without a model: add --model. What is above describes the "
            "data, and topic spread is not loss variance."
        ]
    best, prompts = found["best"], plan["data"]["prompts"]
    lines = [f"{_cost(found)}, {_keep(best, prompts)} ({_interval_of_k(found)})."]
    if found["v_yx"] == 0:
        lines.append(_why_one(found))
    elif best["k"] == 1:
        later = next((row for row in found["outlook"] if row["k"] > 1), None)
        if later is not None:
            lines.append(f"At {later['times']} times the cost of an ordinary epoch, {_keep(later, prompts)}.")
    else:
        one = found["choices"][found["layout"]][0]
        rest = " at the same cost" if one["cost"] > 0.99 * found["budget"] else ", which cannot use up the budget"
        lines.append(
            f"The variance of the loss estimate is then predicted to be {best['saves']:.0%} below that of K = 1{rest}."
        )
    whole = found["all_prompts"]
    if whole["k"] and best["prompts"] < prompts:
        lines.append(
            f"If you would rather keep all {prompts:,} prompts, the same cost buys K = {whole['k']}, and the variance "
            f"is {whole['extra']:.1%} higher."
        )
    if found["v_x"] <= 0 < found["v_yx"]:
        lines.append(
            "V_x came out at or below zero: the prompts' mean losses differ no more than chance differences between "
            "responses make them. Prompts are not the bottleneck here, responses are, so k* has no upper end and more "
            "responses win wherever they can be had."
        )
    else:
        lines += _near_zero(found)
    low, high = best["k_interval"] or (1, 1)
    if high - low > max(2, best["k"]):
        lines.append(
            f"The data does not pin K down: everything from {low} to {high} is within the interval. Measure more "
            "prompts to narrow it."
        )
    if plan["data"]["pool_least"] < best["k"] and found["loss_aggregation"] != "prompt":
        lines.append(_votes(plan, best))
    if plan["data"]["repeated_responses"]:
        lines.append(_copies(plan))
    if found["layout"] == "expanded":
        lines.append(
            "In the expanded layout every response pays for its own copy of the prompt: K = 1 is the best until every "
            "prompt is used, and only then does K rise."
        )
    adaptive = found["adaptive"]
    if adaptive is not None and adaptive["response_variance_ratio"] is not None:
        gain = 1 - adaptive["response_variance_ratio"]
        if gain > 0.02:
            lines.append(
                f"Giving more responses to prompts that vary more would lower the responses' part of the variance by "
                f"{gain:.0%} against {adaptive['mean_k']} for each. Train with loss_aggregation: prompt then."
            )
        else:
            lines.append(
                f"An adaptive allocation gains nothing here: the responses' part of the variance would change by "
                f"{-gain:+.0%} against {adaptive['mean_k']} responses for each prompt."
            )
    return lines


def cannot_know(plan: dict[str, Any]) -> list[str]:
    """Return the plan's assumptions and open questions."""
    found = plan["model"]
    if found is None:
        return [
            "Diversity of embeddings and n-grams says nothing about how much the loss varies, and so nothing about K.",
            "k_eff is a heuristic: similar embeddings are not equal losses.",
        ]
    lines = [
        "This is the variance of an estimate of the training loss, at the model as it is now. It is not the test "
        "loss: train with two values of K and compare them on held-out prompts (mrt evaluate).",
        f"Costs are {found['cost_unit']} of one epoch. What attention adds with the square of a length, and what "
        "generating and scoring responses cost, is not in them.",
        "The pool is taken for independent draws from the distribution you want to learn. Answers that were filtered, "
        "deduplicated or written by several models are not quite that.",
    ]
    if found["prompts_sampled"]:
        lines.append(
            f"The model was measured on {found['prompts_measured']:,} of {plan['data']['prompts']:,} prompts, drawn "
            "at random."
        )
    if found["single"] is not None:
        lines.append(_single(found))
    if found["responses_too_long"]:
        lines.append(
            f"{found['responses_too_long']:,} responses exceed {found['max_length']:,} tokens with their prompt and "
            "were not measured: training leaves them out too."
        )
    return lines


def yaml_block(plan: dict[str, Any]) -> str | None:
    """Return the YAML for an Axolotl recipe; None without a model."""
    found = plan["model"]
    if found is None:
        return None
    best, data = found["best"], plan["data"]
    note = (
        ""
        if best["prompts"] >= data["prompts"]
        else f"   # a random {best['prompts']:,} of its {data['prompts']:,} prompts"
    )
    ending = data["name"].rsplit(".", 1)[-1]
    kind = (
        f"    ds_type: {'parquet' if ending == 'parquet' else 'json'}\n"
        if ending in ("json", "jsonl", "parquet")
        else ""
    )
    return (
        "plugins:\n"
        "  - mrt_plugin.axolotl.MultiResponsePlugin\n"
        "datasets:\n"
        f"  - path: {data['name']}{note}\n"
        f"{kind}"
        "    type: mrt_plugin.axolotl.random_k\n"
        "mrt:\n"
        f"  k: {best['k']}\n"
        f"  layout: {'auto' if found['layout'] == 'shared_prefix' else 'expanded'}\n"
        f"  loss_aggregation: {found['loss_aggregation']}\n"
    )


def _cost(found: dict[str, Any]) -> str:
    times = found["budget"] / found["ordinary_epoch"]
    amount = f"{found['budget']:,.0f} {'tokens' if found['cost_unit'] == 'tokens' else 'units of cost'}"
    if abs(times - 1) < 1e-9:
        return f"For the cost of an ordinary epoch, every prompt with one response ({amount})"
    return f"For {times:.3g} times the cost of an ordinary epoch ({amount})"


def _keep(best: dict[str, Any], prompts: int) -> str:
    responses = "1 response" if best["k"] == 1 else f"{best['k']} responses"
    if best["prompts"] >= prompts:
        return f"keep {responses} for each of your {prompts:,} prompts"
    return f"keep {responses} for each of {best['prompts']:,} of your {prompts:,} prompts, drawn at random"


def _interval_of_k(found: dict[str, Any]) -> str:
    ends = found["best"]["k_interval"]
    if ends is None:
        return f"no interval: {_differing(found)}"
    return f"{found['level']:.0%} interval of K: {ends[0]}" + (f" to {ends[1]}" if ends[1] > ends[0] else "")


def _differing(found: dict[str, Any]) -> str:
    count = found["prompts_differing"]
    what = "no prompt has" if count == 0 else "1 prompt has" if count == 1 else f"only {count} prompts have"
    return f"{what} responses that differ in loss, and an interval takes {FEWEST}"


def _why_one(found: dict[str, Any]) -> str:
    if found["prompts_differing"]:
        return (
            "The responses of one prompt alone differ in loss. One prompt is no estimate of V_{y|x}, so it is taken "
            "as 0. Sample other responses for more prompts (mrt sample), and plan again."
        )
    return (
        "V_{y|x} is 0: the responses to a prompt do not differ in loss, so a second one adds nothing. Check that they "
        "are not copies; if they are draws, raise the temperature (mrt sample) before you pay for more."
    )


def _near_zero(found: dict[str, Any]) -> list[str]:
    """Explain the intervals of V_x and of the ratio that reach zero, with one sentence for each."""
    lines = []
    if found["v_x_interval"] is not None and found["v_x_interval"][0] <= 0:
        lines.append("The interval of V_x reaches zero: these prompts may not differ in their mean loss at all.")
    if found["ratio_interval"] is not None and found["k_star_interval"][1] is None:
        lines.append("The interval of V_x / V_{y|x} reaches zero, so k* has no upper end.")
    return lines


def _votes(plan: dict[str, Any], best: dict[str, Any]) -> str:
    """Explain the effect of unequal pools on a loss in which every response or token has one vote."""
    name, more = plan["model"]["loss_aggregation"], best["one_vote_per_prompt"]
    change = f"{abs(more):.1%} {'higher' if more > 0 else 'lower'}"
    return (
        f"Pools are unequal: prompts would keep {plan['data']['pool_least']} to {best['k']} responses, and with "
        f"loss_aggregation: {name} a prompt with more of them counts for more. This is in the figures above. With one "
        f"vote per prompt (loss_aggregation: prompt) the variance at this K would be {change}."
    )


def _copies(plan: dict[str, Any]) -> str:
    """Explain how many responses are repeated, the effect on the plan, and what to do in either case."""
    data, found = plan["data"], plan["model"]
    copies = found["copies"]
    line = (
        f"{data['repeated_responses']:,} of {data['responses']:,} responses repeat another of their pool, in "
        f"{data['prompts_with_repeats']:,} of {data['prompts']:,} prompts. Each is taken for a draw of its own, which "
        "is right where one model drew them: keep them then, since a likely answer comes back."
    )
    remedy = "remove them (curation rule duplicate_responses with threshold 1) and plan again"
    if copies is None:
        return f"{line} If they are copies, {remedy}."
    if copies["v_x"] is None:
        return f"{line} If they are copies, there is nothing to estimate V_{{y|x}} from without them: {remedy}."
    return (
        f"{line} If they are copies, V_x and V_{{y|x}} are {copies['v_x']:.3g} and {copies['v_yx']:.3g} rather than "
        f"{found['v_x']:.3g} and {found['v_yx']:.3g}, and the same cost buys K = {copies['k']}: {remedy}."
    )


def _single(found: dict[str, Any]) -> str:
    """Explain how V_x changes when the prompts with one response are left out."""
    single = found["single"]
    line = (
        f"{single['prompts']:,} of {found['prompts_measured']:,} prompts measured have one response. They count as "
        "owned prompts, and V_x and V_{y|x} are estimated without them."
    )
    means = f"Their mean loss is {single['mean']:.3g} and that of the others {single['others']:.3g}"
    if single["adds_to_v_x"]:
        return (
            f"{line} {means}: over all prompts V_x is about {single['adds_to_v_x']:.3g} larger than "
            f"{found['v_x']:.3g}, and the best K no larger than the one advised."
        )
    if single["gap_error"] is None:
        return f"{line} {means}; one prompt does not show whether they differ."
    return f"{line} {means}, a difference within chance (standard error {single['gap_error']:.2g})."
