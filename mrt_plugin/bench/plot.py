"""Say what a benchmark found: in one sentence, and as a picture of the speed-up of each arm at each shape."""

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from mrt_plugin.bench.run import ArmResult, BenchResult, ShapeResult
from mrt_plugin.groups.write import whole_file
from mrt_plugin.report import figure, legible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW = 0.27
"""Height of an arm in the picture, in inches."""


def headline(result: BenchResult) -> str:
    """Return one sentence: the largest speed-up of a shared prompt, and at how many shapes sharing is slower."""
    fastest = [(best, found) for found in result.shapes if (best := _fastest_shared(found)) is not None]
    if not fastest:
        return "No shared prompt ran beside another trainer, so there is no speed-up to report."
    best, found = max(fastest, key=lambda pair: pair[0].speedup or 0.0)
    slower = sum((arm.speedup or 0.0) < 1 for arm, _ in fastest)
    text = f"{best.name} trains {best.speedup:.2g} times as many pairs per second as {rival(result)} at {_name(found)}"
    if len(fastest) > 1:
        text += f", its best of {len(fastest)} shapes"
        text += f", and is slower at {slower} of them" if slower else ""
    return f"{text}."


def rival(result: BenchResult) -> str:
    return "TRL's fastest mode" if result.settings["objective"] == "nll" else "the expanded layout"


def plot(result: BenchResult, path: Path) -> None:
    """Plot the result of `run_bench`, in the format of the path's suffix. The plot is readable in black and white."""
    with whole_file(path) as file:
        picture(result).savefig(file, dpi=120, format=path.suffix[1:])


@legible()
def picture(result: BenchResult) -> "Figure":
    """Draw a bar per arm, in a block per shape. The token ratio is a line through its block."""
    rows = sum(len(found.arms) + 1.5 for found in result.shapes)
    made, (axis,) = figure(6.5, 2 + ROW * rows)
    place, ticks, right = 0.0, list[tuple[float, str]](), axis.get_yaxis_transform()
    for number, found in enumerate(result.shapes):
        ticks.append((place, _name(found)))
        top = place + 0.5
        for arm in found.arms:
            place += 1
            ticks.append((place, arm.name))
            shade = "0.85" if arm.trl else "0.35" if arm.name.startswith("mrt shared") else "0.65"
            axis.barh(place, arm.speedup or 0, 0.75, color=shade, edgecolor="black")
            said = "no result" if arm.speedup is None else f"{arm.speedup:.2f}"
            axis.text(1.02, place, said, transform=right, va="center")
        label = "token ratio: of copied prompts over shared ones" if number == 0 else None
        axis.vlines(found.token_ratio, top, place + 0.5, color="black", linestyle="--", label=label)
        place += 1.5
    axis.axvline(1, color="black", linewidth=1, label=f"1: {rival(result)}")
    axis.set_yticks([tick for tick, _ in ticks], [name for _, name in ticks])
    for label, (_, name) in zip(axis.get_yticklabels(), ticks, strict=True):
        if name in map(_name, result.shapes):
            label.set_fontweight("bold")
    axis.set_ylim(place - 0.5, -0.8)
    axis.set_xlabel(f"pairs per second over {rival(result)}\n{result.machine['device']}")
    made.suptitle(fill(headline(result), 58), fontsize=13)
    made.legend(loc="outside lower center", ncols=1, frameon=False)
    return made


def _name(found: ShapeResult) -> str:
    return ", ".join(f"{symbol} {number}" for symbol, number in found.shape.lengths.items())


def _fastest_shared(found: ShapeResult) -> ArmResult | None:
    ran = [arm for arm in found.arms if arm.name.startswith("mrt shared") and arm.speedup is not None]
    return max(ran, key=lambda arm: arm.speedup or 0.0, default=None)
