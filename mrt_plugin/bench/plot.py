"""Plot a benchmark: the speed-up of each arm at each shape, with the token ratio."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from mrt_plugin.bench.run import BenchResult
from mrt_plugin.groups.write import whole_file

HATCHES = ("", "//", "xx", "..", "\\\\", "++", "oo")


def plot(result: BenchResult, path: Path) -> None:
    """Plot the result of `run_bench`, in the format of the path's suffix. The plot is readable in black and white."""
    names = list(dict.fromkeys(arm.name for found in result.shapes for arm in found.arms))
    places = range(len(result.shapes))
    width = 0.8 / len(names)
    figure, axis = plt.subplots(figsize=(max(5, 1.9 * len(places)), 4), layout="constrained")
    for number, name in enumerate(names):
        axis.bar(
            [place - 0.4 + (number + 0.5) * width for place in places],
            [sum(arm.speedup or 0 for arm in found.arms if arm.name == name) for found in result.shapes],
            width,
            label=name,
            color=str(0.95 - 0.6 * number / len(names)),
            edgecolor="black",
            hatch=HATCHES[number % len(HATCHES)],
        )
    for place, found in enumerate(result.shapes):
        label = "token ratio" if place == 0 else "_"  # matplotlib leaves `_` out of the legend
        axis.hlines(found.token_ratio, place - 0.45, place + 0.45, color="black", linestyle="--", label=label)
    shapes = [found.shape.lengths.items() for found in result.shapes]
    axis.set_xticks(places, ["\n".join(f"{symbol} {number}" for symbol, number in shape) for shape in shapes])
    rival = "TRL's fastest" if result.settings["objective"] == "nll" else "the expanded layout"
    axis.set_ylabel(f"pairs per second over {rival}")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8)
    axis.set_title(result.machine["device"], fontsize=10)
    with whole_file(path) as file:
        figure.savefig(file, dpi=120, format=path.suffix[1:])
    plt.close(figure)
