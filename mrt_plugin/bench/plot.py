"""Plot a benchmark: the speed-up of each arm at each shape, with the token ratio."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from mrt_plugin.groups.write import whole_file

HATCHES = ("", "//", "xx", "..", "\\\\", "++", "oo")


def plot(result: dict[str, Any], path: Path) -> None:
    """Plot the result of `run_bench`, in the format of the path's suffix. The plot is readable in black and white."""
    shapes = result["shapes"]
    names = list(dict.fromkeys(arm["name"] for shape in shapes for arm in shape["arms"]))
    width = 0.8 / len(names)
    figure, axis = plt.subplots(figsize=(max(5, 1.9 * len(shapes)), 4), layout="constrained")
    for number, name in enumerate(names):
        found: list[dict[str, Any]] = [
            next((arm for arm in shape["arms"] if arm["name"] == name), {}) for shape in shapes
        ]
        axis.bar(
            [place - 0.4 + (number + 0.5) * width for place in range(len(shapes))],
            [arm.get("speedup", 0) for arm in found],
            width,
            label=name,
            color=str(0.95 - 0.6 * number / len(names)),
            edgecolor="black",
            hatch=HATCHES[number % len(HATCHES)],
        )
    for place, shape in enumerate(shapes):
        label = "token ratio" if place == 0 else "_"  # matplotlib leaves `_` out of the legend
        axis.hlines(shape["token_ratio"], place - 0.45, place + 0.45, color="black", linestyle="--", label=label)
    axis.set_xticks(range(len(shapes)), [f"P {s['prompt']}\nR {s['response']}\nK {s['k']}" for s in shapes])
    axis.set_ylabel("pairs per second over TRL's fastest")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8)
    axis.set_title(result["machine"]["device"], fontsize=10)
    with whole_file(path) as file:
        figure.savefig(file, dpi=120, format=path.suffix[1:])
    plt.close(figure)
