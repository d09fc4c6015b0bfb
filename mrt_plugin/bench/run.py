"""Measure TRL's trainer and ours on the same pairs, in turn."""

import gc
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mrt_plugin.attention import NotShareable, resolve_backend
from mrt_plugin.bench.arms import Arm, Data, all_arms, make_data
from mrt_plugin.bench.breakdown import StepProfile, losses
from mrt_plugin.bench.memory import MIB, PeakMemory
from mrt_plugin.bench.model import ModelChoice, load_model, resolve_dtype
from mrt_plugin.bench.shapes import DEFAULT_SHAPES, Shape, draw_groups, token_ratio
from mrt_plugin.bench.turn import Setting, Turn, take_turn
from mrt_plugin.versions import libraries

Progress = Callable[[str, int, int], None]

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Largest relative difference of loss and gradient norm at which an arm still counts as the same training."""

SLOWER = 1.15
"""Larger micro-batches are no longer tried once one takes this many times as long as the best."""


@dataclass(frozen=True)
class BenchSettings:
    """Settings of a benchmark."""

    shapes: Sequence[Shape] = DEFAULT_SHAPES
    mixed: bool = False
    """Draw log-normal lengths with the means of a shape, instead of equal lengths."""
    model: ModelChoice = field(default_factory=ModelChoice)
    prefix_backends: Sequence[str] = ("auto",)
    only: str = ""
    """Run only the arms whose name contains this text."""
    groups: int = 2
    """Groups per optimizer step; TRL gets their pairs."""
    steps: int = 3
    """Timed steps per turn, after one warm-up step."""
    rounds: int = 5
    """Number of turns of every arm. The time of a step is its median over these turns."""
    gradient_checkpointing: bool = False
    breakdown: bool = False
    """Also measure how much of the token ratio each piece of a step loses."""
    cpu: bool = False
    """Use the CPU even if there is a GPU."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("groups", "steps", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")


def run_bench(settings: BenchSettings, progress: Progress = lambda stage, done, total: None) -> dict[str, Any]:
    """Measure every shape.

    The arms are `trl.SFTTrainer` in its modes, and `MultiResponseSFTTrainer` in its layouts, each at its own fastest
    micro-batch size. They train the same pairs in every optimizer step, from the same weights, through
    `Trainer.train()`. The arms take turns (A B C A B C ...). A step is timed from the end of the previous step to its
    own end.

    Args:
        settings: settings of the benchmark.
        progress: called with a stage, the amount done and the total.

    Returns:
        `machine`, `settings` and `shapes`. Each shape has its token ratio and its arms. Each arm has its micro-batch
        `size`, the seconds of every step by round, `pairs_per_second`, its `loss` and `gradient_norm`, and its peak
        memory. If a TRL arm ran, an arm also has `speedup` over TRL's fastest and `fraction` of the token ratio. An
        arm that did not train the same thing, or could not run, has an `error` instead of a speed-up.

    Raises:
        ValueError: if a setting is invalid.

    Example:

    ```python
    result = run_bench(BenchSettings(shapes=[Shape(64, 16, 4)], rounds=1))
    for arm in result["shapes"][0]["arms"]:
        print(arm["name"], arm.get("pairs_per_second"))
    ```
    """
    device = "cuda" if torch.cuda.is_available() and not settings.cpu else "cpu"
    dtype = resolve_dtype(settings.model, device)
    machine = describe_machine(device)
    model, tokenizer = load_model(settings.model, device)
    setting = Setting(model, tokenizer, dtype == "bfloat16", settings.gradient_checkpointing)
    gc.collect()
    gc.freeze()  # every turn collects garbage: existing objects need not be scanned again
    try:
        shapes = [_measure(shape, settings, setting, dtype, progress) for shape in settings.shapes]
    finally:
        gc.unfreeze()
    described = {**asdict(settings), "shapes": [str(shape) for shape in settings.shapes], "dtype": dtype}
    return {"machine": machine, "settings": described, "shapes": shapes}


def _measure(
    shape: Shape, settings: BenchSettings, setting: Setting, dtype: str, progress: Progress
) -> dict[str, Any]:
    vocabulary = setting.model.config.get_text_config().vocab_size
    steps = settings.steps + 1
    groups = draw_groups(shape, settings.groups * steps, vocabulary, mixed=settings.mixed, seed=settings.seed)
    data = make_data(groups, settings.groups)
    arms = [arm for arm in all_arms(_backends(settings, setting)) if settings.only in arm.name]
    if not arms:
        raise ValueError(f"only={settings.only!r}: no trainer's name contains it.")
    results = {arm: {"name": arm.name, "trl": arm.trl} for arm in arms}
    stages = _Stages(
        progress, str(shape), len(arms) * (settings.rounds + 2) + 2 * settings.rounds * settings.breakdown
    )

    sizes = {}
    for arm in arms:
        try:
            sizes[arm] = _best_size(arm, setting, data)
        except (NotShareable, torch.OutOfMemoryError) as error:
            results[arm]["error"] = str(error)
        stages.advance()
    turns: dict[Arm, list[Turn]] = {arm: [] for arm in sizes}
    for _ in range(settings.rounds):
        for arm, size in sizes.items():
            turns[arm].append(take_turn(arm, setting, data, size, steps=steps))
            stages.advance()
    for arm, size in sizes.items():
        results[arm] |= _summarise(arm, size, turns[arm], data)
        memory = PeakMemory()
        take_turn(arm, setting, data, size, steps=2, probe=memory)
        results[arm] |= {"peak_mib": (memory.resting + memory.step) / MIB, "step_mib": memory.step / MIB}
        stages.advance()

    found = [results[arm] for arm in arms]
    # Only the timed steps, without the warm-up step.
    ratio = token_ratio(groups[settings.groups :])
    _compare(found, ratio, TOLERANCE[dtype])
    summary = {"shape": str(shape), **asdict(shape), "token_ratio": ratio, "arms": found}
    if settings.breakdown:
        probed = token_ratio(groups[settings.groups : 2 * settings.groups])
        summary["breakdown"] = _break_down(results, sizes, setting, data, probed, settings.rounds, stages)
    stages.finish()
    return summary


def _backends(settings: BenchSettings, setting: Setting) -> list[str]:
    """Return the requested backends, with `auto` resolved to a name."""
    model = setting.model
    names = [
        resolve_backend(
            "auto",
            model.config,
            device_type=model.device.type,
            gradient_checkpointing=settings.gradient_checkpointing,
        ).name
        if name == "auto"
        else name
        for name in settings.prefix_backends
    ]
    return list(dict.fromkeys(names))


def _best_size(arm: Arm, setting: Setting, data: Data) -> int:
    """Return the fastest micro-batch size. Sizes are tried in ascending order."""
    best, best_time = 0, float("inf")
    for size in arm.sizes(data.k, data.groups_per_step):
        try:
            turn = take_turn(arm, setting, data, size, steps=min(3, data.steps))
        except torch.OutOfMemoryError:
            if not best:
                raise
            break
        seconds = min(turn.seconds)
        if seconds < best_time:
            best, best_time = size, seconds
        if seconds > SLOWER * best_time:
            break
    return best


def _summarise(arm: Arm, size: int, turns: Sequence[Turn], data: Data) -> dict[str, Any]:
    seconds = [turn.seconds for turn in turns]
    typical = [median(step) for step in zip(*seconds, strict=True)]
    pairs = data.groups_per_step * data.k * len(typical)
    return {
        "size": size,
        "size_counts": "pairs" if arm.trl else "groups",
        "step_seconds": seconds,
        "pairs_per_second": pairs / sum(typical),
        "loss": turns[0].loss,
        "gradient_norm": turns[0].gradient_norm,
    }


def _compare(arms: list[dict[str, Any]], ratio: float, tolerance: float) -> None:
    """Set `speedup` and `fraction`, or `error` if an arm did not train the same thing as the first."""
    ran = [arm for arm in arms if "loss" in arm]
    for arm in ran:
        for name in ("loss", "gradient_norm"):
            if abs(arm[name] - ran[0][name]) > tolerance * abs(ran[0][name]):
                arm["error"] = (
                    f"{name} {arm[name]:.6g}, {ran[0]['name']} has {ran[0][name]:.6g}: not the same training"
                )
    theirs = max((arm["pairs_per_second"] for arm in ran if arm["trl"] and "error" not in arm), default=None)
    for arm in ran:
        if theirs is not None and "error" not in arm:
            arm["speedup"] = arm["pairs_per_second"] / theirs
            arm["fraction"] = arm["speedup"] / ratio


def _break_down(
    results: dict[Arm, dict[str, Any]],
    sizes: dict[Arm, int],
    setting: Setting,
    data: Data,
    ratio: float,
    rounds: int,
    stages: "_Stages",
) -> dict[str, Any] | None:
    """Return the pieces of TRL's fastest arm and of our fastest shared one, as medians over turns."""
    good = [arm for arm in sizes if "speedup" in results[arm]]
    theirs = [arm for arm in good if arm.trl]
    shared = [arm for arm in good if dict(arm.options).get("layout") == "shared_prefix"]
    if not theirs or not shared:
        return None
    sides = {
        side: max(candidates, key=lambda arm: results[arm]["pairs_per_second"])
        for side, candidates in (("theirs", theirs), ("ours", shared))
    }
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, arm in sides.items():
            probe = StepProfile(setting.model.config.get_text_config().vocab_size)
            take_turn(arm, setting, data, sizes[arm], steps=2, probe=probe)
            found[side].append(probe.seconds)
            stages.advance()
    seconds = {
        side: {piece: median(turn[piece] for turn in turns) for piece in turns[0]} for side, turns in found.items()
    }
    return {**seconds, "lost": losses(seconds["ours"], seconds["theirs"], ratio)}


class _Stages:
    """Counts the turns of a shape and reports them."""

    def __init__(self, progress: Progress, name: str, total: int) -> None:
        self.progress, self.name, self.total, self.done = progress, name, total, 0
        progress(name, 0, total)

    def advance(self) -> None:
        self.done += 1
        self.progress(self.name, self.done, self.total)

    def finish(self) -> None:
        self.progress(self.name, self.total, self.total)


def describe_machine(device: str) -> dict[str, Any]:
    """Return the hardware, the library versions and the system load before the measurement."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    versions = {
        library.name: library.found for library in libraries() if library.name in ("torch", "transformers", "trl")
    }
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        **versions,
    }
