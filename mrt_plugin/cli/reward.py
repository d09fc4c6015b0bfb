"""`mrt reward-model`: train a reward model on a pool's scores, for use on other prompts."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mrt_plugin
from mrt_plugin.cli.option import argument, command, flag, switch
from mrt_plugin.cli.progress import loading, stages
from mrt_plugin.cli.show import command_line, finish, json_ready, say, table
from mrt_plugin.trainer.reward_options import RewardOptions

if TYPE_CHECKING:
    from mrt_plugin.trainer.reward_model import RewardModelResult


@dataclass(kw_only=True)
class RewardModelOptions:
    data: str = argument(..., "The pool, with scores: JSONL, JSON, Parquet, or a hub id.", "data")
    model: str = flag(..., "The base: a language model, or any model for sequence classification.", "base")
    output: Path = flag(Path("reward-model"), "The folder to write. It is a --scorer everywhere.")
    source: str | None = flag(None, "The public format of the pool.")
    held_out_output: Path | None = flag(None, "Also write the prompts that it was not trained on: .jsonl or .parquet.")
    score_cache: Path | None = flag(None, "Folder of the cache of scores.")
    json: bool = switch("Print the result as JSON.")


@command(RewardModelOptions, RewardOptions)
def reward_model(given: RewardModelOptions, **options: Any) -> None:
    """Train a reward model on the scores of one half of the prompts, and measure it on the other half.

    Example: `mrt reward-model pool.jsonl --model path/or/name --output reward --held-out-output rest.jsonl`
    """
    with loading():
        from mrt_plugin.groups.paths import check_paths
        from mrt_plugin.groups.write import check_ending, write_groups
        from mrt_plugin.scoring.cache import cache_file
        from mrt_plugin.trainer.reward_model import split_prompts, train_reward_model

    aside = given.held_out_output
    if aside is not None:
        check_ending(aside)
    written: list[Any] = [("--held-out-output", aside), ("the score cache", cache_file(given.score_cache))]
    written.append(("the reward model", given.output / "config.json"))
    check_paths(written, [("the data", given.data)], [given.model])
    training = RewardOptions(**options)
    with stages() as progress:
        progress(f"reading {given.data}")
        groups = mrt_plugin.load_groups(given.data, source=given.source)
        how: dict[str, Any] = {"score_cache": given.score_cache, "progress": progress}
        found = train_reward_model(groups, given.model, given.output, training, **how)
    if aside is not None:
        write_groups(split_prompts(groups, training.share, training.seed)[1], aside)

    def show(found: "RewardModelResult") -> None:
        rows = []
        for name, part in (("trained on", found.training), ("held out", found.held_out)):
            ends = "" if part.interval is None else f"{part.interval[0]:.1%} to {part.interval[1]:.1%}"
            accuracy = "" if part.accuracy is None else f"{part.accuracy:.1%}"
            kendall = "" if part.agreement.kendall is None else f"{part.agreement.kendall:.2f}"
            rows.append((name, f"{part.prompts:,}", f"{part.pairs:,}", f"{part.ties:,}", accuracy, ends, kendall))
        columns = ("prompts", "number", "pairs", "ties", "accuracy", f"{found.level:.0%} interval", "Kendall")
        table(columns, rows)
        counts = f"{found.trained_pairs:,} pairs trained on in {found.steps:,} steps, mean loss {found.loss:.4f}"
        long = f"; {found.too_long:,} are longer than {training.max_length} tokens" if found.too_long else ""
        say(f"{counts}{long}.")
        interval = found.held_out.interval
        if interval is not None and interval[0] <= 0.5:
            say("WARNING: on held-out prompts it may be no better than chance: train on more prompts, or longer.")
        pool = aside or given.data
        how: dict[str, Any] = {"scorer": found.output, "selector": "best_k", "output": "chosen.jsonl"}
        how |= {"source": given.source} if aside is None else {}
        say(f"Next: {command_line('mrt select', pool, **how)}")

    finish(given, found, json_ready, show)
