"""What each controlled experiment found. The fields have the names of `results.json`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mrt_plugin.planning.budget import BudgetRow, Costs

Table = list[list[float]]
"""Numbers by K (responses per prompt), then by run."""
BySelector = dict[str, list[float]]
"""One number per K for each selector."""


@dataclass(frozen=True)
class Found:
    """The numbers of an experiment. A subclass lists them."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Line:
    """Fit a + b/K of the measured variance."""

    a: float
    b: float
    r_squared: float


@dataclass(frozen=True)
class OneDataset:
    """Estimates of V_x and V_{y|x} from one dataset, with their intervals."""

    v_x: float
    v_x_interval: tuple[float, float]
    v_yx: float
    v_yx_interval: tuple[float, float]


@dataclass(frozen=True)
class VarianceFound(Found):
    prompts: int
    repeats: int
    v_x: float
    v_yx: float
    k: Sequence[int]
    variance: list[float]
    variance_error: list[float]
    predicted: list[float]
    fit: Line
    one_dataset: OneDataset


@dataclass(frozen=True)
class Components:
    """V_x and V_{y|x}, and their standard errors when measured on 300 prompts."""

    v_x: float
    v_yx: float
    v_x_error_of_300_prompts: float
    v_yx_error_of_300_prompts: float


@dataclass(frozen=True)
class AtStep:
    """NLL at one step of the training, and how often each K is the best one in bootstrap draws of the repeats."""

    best_k: BySelector
    nll: dict[str, Table]


@dataclass(frozen=True)
class BudgetFound(Found):
    costs: Costs
    budget: float
    repeats: int
    steps: int
    components: Components
    """At the network before training."""
    k_star: float
    integer_best_k: int
    rows: list[BudgetRow]
    k: Sequence[int]
    prompts: list[int]
    pairs: list[int]
    last: AtStep
    best: AtStep

    def as_json(self) -> dict[str, Any]:
        return {
            "costs": {"prompt": self.costs.prompt, "response": self.costs.response},
            "budget": self.budget,
            "repeats": self.repeats,
            "steps": self.steps,
            **asdict(self.components),
            "k_star": self.k_star,
            "integer_best_k": self.integer_best_k,
            "variance_curve": [{"k": row.k, "prompts": row.prompts, "variance": row.variance} for row in self.rows],
            "k": self.k,
            "prompts": self.prompts,
            "pairs": self.pairs,
            "best_k_last_step": self.last.best_k,
            "nll_last_step": self.last.nll,
            "best_k_best_step": self.best.best_k,
            "nll_best_step": self.best.nll,
        }


@dataclass(frozen=True)
class LotteryFound(Found):
    k: Sequence[int]
    prompts: int
    pool: int
    runs: int
    steps: int
    nll: Table
    nll_mean: list[float]
    nll_sd: list[float]
    mode_error: Table
    mode_error_mean: list[float]
    mode_error_sd: list[float]


@dataclass(frozen=True)
class BySelectorFound(Found):
    k: Sequence[int]
    prompts: int
    pool: int
    repeats: int
    steps: int
    nll: dict[str, Table]
    nll_mean: BySelector
    mode_error_mean: BySelector


@dataclass(frozen=True)
class PublishedGradients:
    emse: float
    cosine: float


@dataclass(frozen=True)
class GradientError:
    """Error of the loss of the selected answers, and the cosine of their gradient with the true one."""

    bias_squared: float
    variance: float
    emse: float
    cosine: float
    cosine_error: float


@dataclass(frozen=True)
class SelectorGradients(GradientError):
    """The error at the paper's network, the published one, and the range over other networks."""

    published: PublishedGradients | None
    emse_other_networks: tuple[float, float]
    cosine_other_networks: tuple[float, float]


@dataclass(frozen=True)
class GradientsFound(Found):
    trials: int
    networks: int
    k: int
    pool: int
    prompts: int
    selectors: dict[str, SelectorGradients]


@dataclass(frozen=True)
class Bin:
    """Mean gradient cosine of the pairs of answers whose similarity lies in one interval, given by its middle."""

    similarity: float
    cosine: float
    error: float
    pairs: int


@dataclass(frozen=True)
class BridgeFound(Found):
    prompts: int
    pool: int
    pairs: int
    correlation: float
    cosine_same_mode: float
    cosine_other_mode: float
    bins: list[Bin]
    points: Table
    """Similarity and gradient cosine of some pairs."""
    k: Sequence[int]
    k_eff: BySelector


@dataclass(frozen=True)
class TokensFound(Found):
    k: Sequence[int]
    prompts: int
    pool: int
    repeats: int
    steps: int
    pairs_per_step: int
    generated: Sequence[float]
    mode_kl: dict[str, Table]
    mode_kl_mean: BySelector
    nll_mean: BySelector
    kept_modes: dict[str, Table]
    """The share of each mode among the responses kept, by K."""


@dataclass(frozen=True)
class Comparison:
    """A published figure beside ours. The remark explains why the two differ."""

    experiment: str
    quantity: str
    published: str
    ours: str
    remark: str


@dataclass(frozen=True)
class Finished:
    found: Found
    seconds: float


@dataclass(frozen=True)
class SimulationResults:
    """What experiments found, by name, and the comparison with the published figures. `as_json` is `results.json`."""

    seed: int
    experiments: dict[str, Finished]
    published: list[Comparison]

    def as_json(self) -> dict[str, Any]:
        found = {name: {**one.found.as_json(), "seconds": one.seconds} for name, one in self.experiments.items()}
        return {"seed": self.seed, "experiments": found, "published": [asdict(row) for row in self.published]}
