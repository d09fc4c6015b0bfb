"""Measure TRL's trainer and ours on the same pairs, in turn."""

import gc
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mrt_plugin.attention import NotShareable, resolve_backend
from mrt_plugin.bench.model import BenchModel, ModelChoice, load_model
from mrt_plugin.bench.probes import MIB, PeakMemory, StepProfile, losses
from mrt_plugin.bench.shapes import DEFAULT_SHAPES, AnyShape, draw_groups, token_ratio
from mrt_plugin.bench.turn import Arm, Turn, all_arms, make_data, take_turn
from mrt_plugin.options import ObjectiveName
from mrt_plugin.versions import libraries

Progress = Callable[[str, int, int], None]

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Largest relative difference of loss and gradient norm at which an arm still counts as the same training."""

SLOWER = 1.15
"""Larger micro-batches are not tried once one takes this many times as long as the best."""


@dataclass(frozen=True)
class BenchSettings:
    shapes: Sequence[AnyShape] = DEFAULT_SHAPES
    mixed: bool = False
    """Draw log-normal lengths with the means of a shape."""
    model: ModelChoice = field(default_factory=ModelChoice)
    prefix_backends: Sequence[str] = ("auto",)
    only: str = ""
    """Run only the arms whose name contains this text."""
    objective: ObjectiveName = "nll"
    """What is minimised. With another than the NLL only our arms run, and speed-ups are over the expanded layout."""
    groups: int = 2
    """Groups per optimizer step; TRL gets their pairs."""
    steps: int = 3
    """Timed steps per turn, after one warm-up step."""
    rounds: int = 5
    """Number of turns of every arm. The time of a step is its median over these turns."""
    gradient_checkpointing: bool = False
    breakdown: bool = False
    time_limit: float | None = None
    """Seconds after which no further shape or round is started. Every shape that is started gets one round."""
    cpu: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("groups", "steps", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")


@dataclass(frozen=True)
class ArmResult:
    """What one arm measured. An arm that could not run has its name and an error only."""

    name: str
    trl: bool
    size: int | None = None
    """The fastest micro-batch size, in what `size_counts` says: pairs for TRL, groups for ours."""
    size_counts: str | None = None
    step_seconds: list[list[float]] | None = None
    pairs_per_second: float = math.nan
    """In a multi-turn shape each turn is a pair."""
    loss: float | None = None
    gradient_norm: float | None = None
    peak_mib: float | None = None
    step_mib: float | None = None
    """Peak memory of a step, without weights and optimizer state."""
    error: str | None = None
    """Why the arm could not run, or what differs in its training."""
    speedup: float | None = None
    """Pairs per second over those of TRL's fastest arm, or with an objective over the expanded layout; None if that
    did not run."""
    fraction: float | None = None
    """The speed-up over the token ratio."""

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None and value == value}


@dataclass(frozen=True)
class Breakdown:
    """Seconds of each piece of a step, and the share of the token ratio that it loses."""

    theirs: dict[str, float]
    ours: dict[str, float]
    lost: dict[str, float]


@dataclass(frozen=True)
class ShapeResult:
    shape: AnyShape
    token_ratio: float
    arms: list[ArmResult]
    breakdown: Breakdown | None


@dataclass(frozen=True)
class BenchResult:
    machine: dict[str, Any]
    settings: dict[str, Any]
    shapes: list[ShapeResult]
    """In the order of the settings, without those that the time limit left out."""

    def as_json(self) -> dict[str, Any]:
        """Return the result as `mrt bench --json` prints it, without the fields that were not measured."""
        shapes = []
        for found in self.shapes:
            arms = [arm.as_json() for arm in found.arms]
            pieces = {} if found.breakdown is None else {"breakdown": asdict(found.breakdown)}
            lengths = {"shape": str(found.shape), **asdict(found.shape)}
            shapes.append({**lengths, "token_ratio": found.token_ratio, "arms": arms, **pieces})
        return {"machine": self.machine, "settings": self.settings, "shapes": shapes}


def run_bench(settings: BenchSettings, progress: Progress = lambda stage, done, total: None) -> BenchResult:
    """Measure every shape: the arms take turns (A B C A B C ...) on the same pairs in every optimizer step, each at
    its own fastest micro-batch size. `progress` is called with a stage, the amount done and the total."""
    began = time.monotonic()

    def late() -> bool:
        return settings.time_limit is not None and time.monotonic() - began > settings.time_limit

    device = "cuda" if torch.cuda.is_available() and not settings.cpu else "cpu"
    machine = describe_machine(device)
    trained = load_model(settings.model, device, gradient_checkpointing=settings.gradient_checkpointing)
    gc.collect()
    gc.freeze()  # every turn collects garbage: existing objects need not be scanned again
    try:
        shapes = []
        for shape in settings.shapes:
            if not late():
                shapes.append(_Measurement(shape, settings, trained, progress, late).run())
    finally:
        gc.unfreeze()
    described = {**asdict(settings), "shapes": [str(shape) for shape in settings.shapes], "dtype": trained.dtype}
    return BenchResult(machine, described, shapes)


class _Measurement:
    def __init__(
        self,
        shape: AnyShape,
        settings: BenchSettings,
        trained: BenchModel,
        progress: Progress,
        late: Callable[[], bool],
    ) -> None:
        self.shape, self.settings, self.trained, self.progress = shape, settings, trained, progress
        self.late = late
        self.vocabulary: int = trained.model.config.get_text_config().vocab_size
        self.steps = settings.steps + 1
        count = settings.groups * self.steps
        self.groups = draw_groups(shape, count, self.vocabulary, mixed=settings.mixed, seed=settings.seed)
        self.data = make_data(self.groups, settings.groups, settings.objective)
        chosen = partial(resolve_backend, device_type=trained.model.device.type)
        names = settings.prefix_backends
        backends = [chosen(name, trained.model.config).name if name == "auto" else name for name in names]
        self.arms = [
            arm for arm in all_arms(list(dict.fromkeys(backends)), settings.objective) if settings.only in arm.name
        ]
        if not self.arms:
            raise ValueError(f"only={settings.only!r}: no trainer's name contains it.")
        self.turns_done = 0
        self.turns = len(self.arms) * (settings.rounds + 2) + 2 * settings.rounds * settings.breakdown

    def run(self) -> ShapeResult:
        settings = self.settings
        self.progress(str(self.shape), 0, self.turns)
        sizes, errors = dict[Arm, int](), dict[Arm, str]()
        for arm in self.arms:
            try:
                sizes[arm] = self._best_size(arm)
            except (NotShareable, torch.OutOfMemoryError) as error:
                errors[arm] = str(error)
            self._advance()
        turns: dict[Arm, list[Turn]] = {arm: [] for arm in sizes}
        for number in range(settings.rounds):
            if number > 0 and self.late():
                break
            for arm, size in sizes.items():
                turns[arm].append(take_turn(arm, self.trained, self.data, size, steps=self.steps))
                self._advance()
        found = {arm: ArmResult(arm.name, arm.trl, error=error) for arm, error in errors.items()}
        found |= {arm: self._summarise(arm, size, turns[arm]) for arm, size in sizes.items()}
        ratio = token_ratio(self.groups[settings.groups :], settings.groups)  # without the warm-up step
        rival = "trl" if settings.objective == "nll" else "mrt expanded"
        results = _compare([found[arm] for arm in self.arms], ratio, TOLERANCE[self.trained.dtype], rival)
        breakdown = self._break_down(results, sizes) if settings.breakdown else None
        self.progress(str(self.shape), self.turns, self.turns)
        return ShapeResult(self.shape, ratio, results, breakdown)

    def _advance(self) -> None:
        self.turns_done += 1
        self.progress(str(self.shape), self.turns_done, self.turns)

    def _best_size(self, arm: Arm) -> int:
        """Return the fastest micro-batch size. Sizes are tried in ascending order."""
        best, best_time = 0, float("inf")
        for size in arm.sizes(self.shape.pairs, self.settings.groups):
            try:
                turn = take_turn(arm, self.trained, self.data, size, steps=min(3, self.steps))
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

    def _summarise(self, arm: Arm, size: int, turns: Sequence[Turn]) -> ArmResult:
        """Return the arm's times over its turns, and the memory of one more turn."""
        seconds = [turn.seconds for turn in turns]
        typical = [median(step) for step in zip(*seconds, strict=True)]
        speed = self.settings.groups * self.shape.pairs * len(typical) / sum(typical)
        memory = PeakMemory()
        take_turn(arm, self.trained, self.data, size, steps=2, probe=memory)
        self._advance()
        peak, step = (memory.resting + memory.step) / MIB, memory.step / MIB
        unit = "pairs" if arm.trl else "groups"
        loss, norm = turns[0].loss, turns[0].gradient_norm
        return ArmResult(arm.name, arm.trl, size, unit, seconds, speed, loss, norm, peak, step)

    def _break_down(self, results: list[ArmResult], sizes: dict[Arm, int]) -> Breakdown | None:
        """Return the pieces of TRL's fastest arm and of our fastest shared one, as medians over turns."""
        speeds = {result.name: result.pairs_per_second for result in results if result.speedup is not None}
        good = [arm for arm in sizes if arm.name in speeds]
        sides = {
            "theirs": [arm for arm in good if arm.trl],
            "ours": [arm for arm in good if dict(arm.options).get("layout") == "shared_prefix"],
        }
        if not all(sides.values()):
            return None
        fastest = {side: max(arms, key=lambda arm: speeds[arm.name]) for side, arms in sides.items()}
        found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for _ in range(self.settings.rounds):
            for side, arm in fastest.items():
                probe = StepProfile(self.vocabulary)
                take_turn(arm, self.trained, self.data, sizes[arm], steps=2, probe=probe)
                found[side].append(probe.seconds)
                self._advance()
        medians = {
            side: {piece: median(turn[piece] for turn in turns) for piece in turns[0]} for side, turns in found.items()
        }
        ratio = token_ratio(self.groups[self.settings.groups : 2 * self.settings.groups], self.settings.groups)
        return Breakdown(**medians, lost=losses(**medians, token_ratio=ratio))


def _compare(arms: list[ArmResult], ratio: float, tolerance: float, rival: str = "trl") -> list[ArmResult]:
    """Set the speed-up over the fastest arm whose name begins with `rival`, or the error of an arm that did not train
    the same thing as the first."""
    ran = [arm for arm in arms if arm.loss is not None]
    checked = []
    for arm in arms:
        error = arm.error
        for name in ("loss", "gradient_norm") if arm.loss is not None else ():
            value, expected = getattr(arm, name), getattr(ran[0], name)
            if error is None and abs(value - expected) > tolerance * abs(expected):
                error = f"{name} {value:.6g}, {ran[0].name} has {expected:.6g}: not the same training"
        checked.append(replace(arm, error=error))
    theirs = max(
        (arm.pairs_per_second for arm in checked if arm.name.startswith(rival) and arm.error is None), default=None
    )
    if theirs is None:
        return checked
    gains = [arm.pairs_per_second / theirs for arm in checked]
    return [
        arm if arm.error is not None else replace(arm, speedup=gain, fraction=gain / ratio)
        for arm, gain in zip(checked, gains, strict=True)
    ]


def describe_machine(device: str) -> dict[str, Any]:
    """Return the hardware, the library versions and the system load before the measurement."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = [*models, platform.processor()][0]
    shown = ("torch", "transformers", "trl")
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        **{library.name: library.found for library in libraries() if library.name in shown},
    }
