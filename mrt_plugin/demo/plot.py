"""The demo's figure: the metrics of each run, and the distribution that each learned on one held-out prompt."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PANELS = (
    ("held_out_nll", "held-out NLL\n(nats per token, lower is better)"),
    ("kl", "KL(truth || model)\n(nats, lower is better)"),
    ("coverage", "mode coverage\n(share of the truth, higher is better)"),
)
HATCHES = ("", "//", "xx", "..")


def plot(results: dict[str, Any], path: Path) -> None:
    """Write the figure of `results` (the return value of `run_demo`) as PNG. It is readable in black and white."""
    runs = results["runs"]
    figure, axes = plt.subplots(1, len(PANELS), figsize=(10, 3.4), layout="constrained")
    for axis, (key, title) in zip(axes, PANELS, strict=True):
        for place, run in enumerate(runs):
            shade = str(0.85 - 0.25 * place)
            bar = axis.bar(place, run[key], color=shade, edgecolor="black", hatch=HATCHES[place % len(HATCHES)])
            axis.bar_label(bar, fmt="%.3f", padding=2)
        axis.set_xticks(range(len(runs)), [run["name"] for run in runs])
        axis.set_title(title, fontsize=10)
        axis.margins(y=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    prompts = results["settings"]["train_prompts"]
    figure.suptitle(f"QLoRA on {prompts} prompts, measured on {results['settings']['held_out_prompts']} others")
    figure.savefig(path, dpi=120)
    plt.close(figure)
