"""The result of an evaluation: its measures, their labels, and which direction of each is better."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mrt_plugin.planning.paired import LEVEL

Key = tuple[str, int | None]
"""A measure and its number of samples; None if the measure does not depend on that number."""
Interval = list[float] | None
"""Low and high end; None with fewer than 5 prompts."""

MEASURES: dict[str, tuple[str, Literal["lower", "higher", "neither"]]] = {
    "truth_kl": ("KL to the truth, nats", "lower"),
    "truth_coverage": ("right answers covered", "higher"),
    "truth_elsewhere": ("probability of no right answer", "lower"),
    "nll_per_token": ("held-out NLL per token, nats", "lower"),
    "nll_per_response": ("held-out NLL per response, nats", "lower"),
    "coverage": ("coverage of M", "higher"),
    "alignment": ("alignment", "higher"),
    "diversity": ("diversity", "neither"),
    "length": ("length, words or characters", "neither"),
    "reward": ("reward, mean", "higher"),
    "best_reward": ("reward, best of M", "higher"),
    "pass": ("pass@M", "higher"),
}
"""Label and better direction of all measures, in the order in which they are shown. M is the number of samples."""

CURVES = ("coverage", "pass", "best_reward")
"""Measures that depend on the number of samples."""


@dataclass(frozen=True)
class Value:
    measure: str
    m: int | None
    value: float | None
    interval: Interval
    prompts: int


@dataclass(frozen=True)
class SampleCounts:
    draws: int
    least: int  # per prompt, as `most`
    most: int
    cut_off: int
    empty: int


@dataclass(frozen=True)
class ModelResult:
    name: str
    path: str | None
    adapter: str | None
    pool: str | None
    samples: SampleCounts | None
    measures: list[Value]

    def value(self, name: str, m: int | None) -> Value | None:
        return next((row for row in self.measures if (row.measure, row.m) == (name, m)), None)

    def curve(self, name: str) -> list[Value]:
        return [row for row in self.measures if row.measure == name and row.value is not None]


@dataclass(frozen=True)
class Difference:
    """A model minus the baseline in one measure. `scaled` is low end, value and high end in half intervals."""

    model: str
    measure: str
    m: int | None
    difference: float | None
    interval: Interval
    scaled: list[float] | None
    prompts: int
    p: float | None
    p_corrected: float | None = None
    outcome: str = "unclear"


@dataclass(frozen=True)
class ProbeChange:
    """The loss on one kind of general texts in nats per token, before and after fine-tuning, and the points lost."""

    kind: str
    texts: int
    before: float | None
    after: float | None
    points: float
    interval: Interval
    verdict: str


@dataclass(frozen=True)
class TaskChange:
    task: str
    metric: str
    before: float | None
    after: float
    points: float | None = None  # lost; None if the score has no points
    interval: Interval = None
    verdict: str | None = None


@dataclass(frozen=True)
class Forgetting:
    model: str
    before: str | None
    probe: list[ProbeChange] | None
    tasks: list[TaskChange]

    @property
    def losses(self) -> list[ProbeChange | TaskChange]:
        """What was flagged: the probe over all its texts, and tasks."""
        parts: list[ProbeChange | TaskChange] = [part for part in self.probe or [] if part.kind == "all"]
        return [part for part in [*parts, *self.tasks] if part.verdict in ("flagged", "significant")]


@dataclass(frozen=True)
class RewardAgreement:
    """How a judge's verdicts agree with differences in reward. `decided` are the pairs that neither of them ties."""

    pairs: int
    decided: int
    accuracy: float | None
    interval: Interval
    spearman: float | None
    kendall: float | None


@dataclass(frozen=True)
class WinRate:
    """How often a judge prefers a model's samples, each pair shown in both orders.

    A win in both orders counts 1, a win and a tie 3/4, two ties or opposite verdicts 1/2. Every prompt has one vote.
    """

    model: str
    against: str
    prompts: int
    pairs: int
    identical: int
    """Pairs of equal texts, which are ties that no judge was asked about."""
    unreadable: int
    """Pairs left out, since the answer in one of the orders gives no verdict."""
    wins: int
    ties: int
    losses: int
    rate: float | None
    interval: Interval
    """Wilson's, with the number of prompts."""
    bootstrap: Interval
    """Over prompts; without width where all pairs are won or lost."""
    length_controlled: float | None
    """The win rate at equal lengths; None if the longer sample is always of the same side."""
    length_controlled_interval: Interval
    length_difference: float | None
    """Mean length of the model's sample minus that of the other, in words or characters."""
    longer: float | None
    """Share of pairs in which the model's sample is longer."""
    first_shown: float | None
    """Share of verdicts, without ties, for the response that is shown first: 1/2 without a position bias."""
    first_shown_interval: Interval
    consistent: float | None
    """Share of pairs with two verdicts that name the same response in both orders."""
    reward: RewardAgreement | None
    p: float | None
    p_corrected: float | None = None
    outcome: str = "unclear"

    @property
    def position_bias(self) -> bool:
        ends = self.first_shown_interval
        return ends is not None and not ends[0] <= 0.5 <= ends[1]


@dataclass
class Sample:
    """A model's sample, and whether it was stopped before its end. `right` and `reward` are None if not measured."""

    text: str
    cut_off: bool = False
    right: bool | None = None
    reward: float | None = None


@dataclass(frozen=True)
class Outputs:
    """A prompt with its first references (`more_references` are not shown), and each model's first samples."""

    id: str
    prompt: str
    references: list[str]
    more_references: int
    models: dict[str, list[Sample]]


@dataclass(frozen=True)
class RightAnswer:
    """A right response to a prompt: its true probability, and by model its probability and its number of draws."""

    text: str
    probability: float
    models: dict[str, float]
    draws: dict[str, int]


@dataclass(frozen=True)
class TruthExample:
    """All right responses to one prompt, the likeliest first."""

    prompt: str
    answers: list[RightAnswer]


@dataclass(frozen=True)
class CaseCounts:
    """The name of the data, and counts of its prompts and references; those left out are too long for some model."""

    name: str
    prompts: int
    with_references: int
    references: int
    references_least: int
    references_median: float
    references_most: int
    references_left_out: int


@dataclass(frozen=True)
class ReferenceMeans:
    length: float
    coverage: float | None = None
    diversity: float | None = None


@dataclass
class Evaluation:
    """The result of `evaluate`. `as_dict` is its JSON."""

    data: CaseCounts
    baseline: str
    models: list[ModelResult]
    references: ReferenceMeans | None
    differences: list[Difference]
    forgetting: list[Forgetting]
    outputs: list[Outputs]
    per_prompt: list[dict[str, Any]]
    """For each prompt its `id`, the number of `references`, and by model the values of all measures."""
    intervals: dict[str, float]
    points: dict[str, float]
    """The points lost from which a drop is called flagged and significant."""
    how: dict[str, Any]
    example: TruthExample | None = None
    """With a known truth: the prompt whose KL of the last model minus that of the baseline is the median."""
    judged: list[WinRate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    next: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def others(self) -> list[str]:
        return [model.name for model in self.models if model.name != self.baseline]

    @property
    def keys(self) -> list[Key]:
        return sorted({(row.measure, row.m) for model in self.models for row in model.measures}, key=order)

    def ends(self, name: str) -> tuple[int | None, ...]:
        """Return the smallest and the largest M that a measure was taken at, or None for one without M."""
        ms = [m for found, m in self.keys if found == name and m is not None]
        return (min(ms), max(ms)) if ms else (None,)


def order(key: Key) -> tuple[int, int]:
    return list(MEASURES).index(key[0]), key[1] or 0


def label(name: str, m: int | None = None) -> str:
    """Return the label of a measure at m samples, for example `coverage of 4` or `pass@1`."""
    text, _ = MEASURES[name]
    return text if m is None else text.replace("M", str(m))


def outcome(name: str, interval: Interval, chance: float | None = None) -> str:
    """Classify a difference as better, worse, different or unclear, by its interval and its corrected p-value."""
    if interval is None or interval[0] <= 0 <= interval[1] or (chance is not None and chance > 1 - LEVEL):
        return "unclear"
    _, better = MEASURES[name]
    if better == "neither":
        return "different"
    return "better" if (interval[0] > 0) == (better == "higher") else "worse"
