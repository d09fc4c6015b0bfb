"""A plan in words: what to do, what it rests on, and what it cannot know."""

from typing import Any


def advise(plan: dict[str, Any]) -> list[str]:
    """The advice first, then what qualifies it: one sentence or two per line."""
    found = plan["model"]
    if found is None:
        return [
            "How many responses to keep cannot be told without a model: add --model. What is above describes the "
            "data, and topic spread is not loss variance."
        ]
    best, prompts = found["best"], plan["data"]["prompts"]
    lines = [
        f"{_cost(found)}, {_keep(best, prompts)} ({found['level']:.0%} interval of K: {_range(best['k_interval'])})."
    ]
    if best["k"] == 1:
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
    if found["v_x"] <= 0:
        lines.append(
            "V_x came out at or below zero: the prompts' mean losses differ no more than chance differences between "
            "responses make them. Prompts are not the bottleneck here, responses are, so k* has no upper end and more "
            "responses win wherever they can be had."
        )
    elif found["k_star_interval"][1] is None:
        lines.append("The interval of V_x reaches zero, so k* has no upper end: these prompts do not bound it.")
    low, high = best["k_interval"]
    if high - low > max(2, best["k"]):
        lines.append(
            f"The data does not pin K down: everything from {low} to {high} is within the interval. Measure more "
            "prompts to narrow it."
        )
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
                f"Giving more responses to prompts that vary more (mean K = {adaptive['mean_k']}) would lower the "
                f"responses' part of the variance by a further {gain:.0%}; train with loss_aggregation: prompt then."
            )
        else:
            lines.append(
                "An adaptive allocation would gain nothing to speak of: how much a prompt varies in one half of its "
                "pool says little about the other half."
            )
    return lines


def cannot_know(plan: dict[str, Any]) -> list[str]:
    """What the plan rests on, and what it leaves open."""
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
    if plan["data"]["prompts_with_one_response"]:
        lines.append(
            f"{plan['data']['prompts_with_one_response']:,} prompts have one response: they count as owned prompts, "
            "and say nothing about V_{y|x}."
        )
    if found["responses_too_long"]:
        lines.append(
            f"{found['responses_too_long']:,} responses exceed {found['max_length']:,} tokens with their prompt and "
            "were not measured: training leaves them out too."
        )
    return lines


def yaml_block(plan: dict[str, Any]) -> str | None:
    """What goes into an Axolotl recipe; None without a model."""
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


def _range(ends: list[int]) -> str:
    return f"{ends[0]}" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
