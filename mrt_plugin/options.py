"""Define every user-facing option once: its type, default, bounds and help text.

The TRL config, the Axolotl schema, the command line and `docs/options.md` are built from these fields.
"""

import math
import operator
from collections.abc import Callable, Collection
from dataclasses import Field, dataclass, field, fields
from inspect import Parameter, signature
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from mrt_plugin.extension import is_extension, load_extension

Layout = Literal["auto", "shared_prefix", "expanded"]
LossAggregation = Literal["token", "prompt", "response"]
Similarity = Literal["paper", "rescaled"]
PromptFormat = Literal["auto", "chat", "plain"]
TurnContext = Literal["inference", "conversation"]
AllocationKind = Literal["fixed", "adaptive"]
WeightSource = Literal["column", "softmax"]
Redraw = Literal["never", "epoch"]
ObjectiveName = Literal["nll", "pro", "plackett_luce", "dft", "gem"]
PaidLayout = Literal["shared_prefix", "expanded"]
Engine = Literal["local", "ray"]
Api = Literal["chat", "completions"]

PREFIX_BACKENDS = {
    "flex": "mrt_plugin.attention.masks:FlexBackend",
    "sdpa": "mrt_plugin.attention.two_part:TwoPartBackend",
    "fork": "mrt_plugin.attention.fork:ForkBackend",
    "dense": "mrt_plugin.attention.masks:DenseBackend",
}
"""The shared-prefix backends of the package by name, each with the place of its class."""


def check_prefix_backend(name: str) -> None:
    """Raise ValueError unless `name` is `auto`, a backend of the package, or the place of a user's own class."""
    known = ("auto", *PREFIX_BACKENDS)
    if name not in known and not is_extension(name):
        own = "your own class as package.module:name or file.py:name"
        raise ValueError(f"prefix_backend={name!r} is unknown: choose one of {', '.join(known)}, or {own}.")
    if name not in known and not isinstance(load_extension(name), type):
        raise ValueError(f"prefix_backend={name!r}: this is no class.")


@dataclass(frozen=True)
class Bounds:
    """The finite numbers that an option accepts: those within `ge`, `gt`, `le` and `lt`."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __str__(self) -> str:
        limits = ((self.ge, "at least"), (self.gt, "above"), (self.le, "at most"), (self.lt, "below"))
        return " and ".join(f"{words} {limit:g}" for limit, words in limits if limit is not None)

    def check(self, name: str, value: float) -> None:
        if not self.holds(value):
            raise ValueError(f"{name}={value!r} must be a finite number, {self}.")

    def holds(self, value: float) -> bool:
        """Return whether a number is within the bounds. NaN never is."""
        compare = {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}
        limits = [(within, getattr(self, name)) for name, within in compare.items()]
        return math.isfinite(value) and all(limit is None or within(value, limit) for within, limit in limits)


def option(default: Any, help: str, **bounds: float) -> Any:
    """Define a dataclass field with its help text and its `Bounds`."""
    return field(default=default, metadata={"help": help, "bounds": Bounds(**bounds)})


@dataclass
class SelectionOptions:
    """Choose which responses are kept, and the weight of each.

    In Python, `embedder` and `scorer` may also be functions; see `mrt_plugin.select`.
    """

    selector: str = option(
        "random_k",
        "The rule that chooses the kept responses: random_k, best_k, diverse_k, diverse_best_k, filter_then_spread, "
        "all, or your own as `package.module:name` or `file.py:name`. In an Axolotl recipe the dataset's `type` names "
        "it.",
    )
    k: int = option(4, "Responses kept per prompt. A smaller pool is kept complete, and counted.", ge=1)
    n: int | None = option(None, "Candidates per prompt: a random `n` of a larger pool. By default all.", ge=1)
    alpha: float = option(
        0.25,
        "diverse_best_k: exponent of the scores. 0 ignores them; larger values favour quality over diversity.",
        ge=0,
    )
    similarity: Similarity = option(
        "rescaled",
        "diverse_k, diverse_best_k: `rescaled` stretches each pool's cosines to [0, 1]; `paper` is (cosine + 1) / 2, "
        "for replication.",
    )
    embedder: str = option(
        "lexical",
        "For selectors that compare responses: `lexical` (character n-grams), `sentence-transformers` "
        "(all-MiniLM-L6-v2), or the name or path of any sentence-transformers model.",
    )
    scorer: str | None = option(
        None,
        "Replaces the column `scores`: the name or path of a reward model, or your function of (prompt, responses), "
        "`package.module:function` or `file.py:function`, or a judge, `judge:MODEL@URL` or `judge:FILE.yaml`. Of "
        "several, separated by commas, the first decides; the log says how far the others agree.",
    )
    score_cache: str | None = option(
        None,
        "Directory of the cache of models' embeddings, scores and reference log-probabilities. By default $MRT_CACHE, "
        "or ~/.cache/mrt-plugin.",
    )
    allocation: AllocationKind = option(
        "fixed",
        "`fixed` keeps k responses of every prompt; `adaptive` keeps more where responses differ more, within the "
        "same budget. Train the latter with loss_aggregation: prompt.",
    )
    allocation_score: str = option(
        "diversity",
        "adaptive: how much a prompt's responses vary: `diversity` of embeddings, `length`, or a column with a "
        "number per prompt, or per response (their variance).",
    )
    mean_k: float | None = option(None, "adaptive: mean responses per prompt. By default k.", ge=1)
    target_total: int | None = option(None, "adaptive: responses in total, instead of mean_k.", ge=1)
    min_k: int = option(1, "adaptive: the fewest per prompt.", ge=1)
    max_k: int | None = option(None, "adaptive: the most per prompt. By default its pool.", ge=1)
    weights: WeightSource = option(
        "column",
        "Weight of a response in the loss: the column `weights` if there is one, or the `softmax` of the kept "
        "responses' scores, with mean 1.",
    )
    weight_temperature: float = option(
        1.0, "softmax: divides the scores. If small, only the best counts; if large, all count the same.", gt=0
    )


@dataclass
class DataOptions:
    """Choose how a training run reads its groups and seeds the selection."""

    source: str | None = option(
        None,
        "The public format that the data is in, with its options: `nectar`, `ultrafeedback:score=fine_grained`, "
        "`fields:prompt=question,responses=answers.text`; see docs/sources.md. By default rows hold groups, or one "
        "response each.",
    )
    redraw: Redraw = option(
        "never", "`epoch` draws another random k for every epoch (random_k); see docs/selection.md."
    )
    selection_seed: int | None = option(None, "Seed of the selection. By default data_seed, or else seed.", ge=0)


@dataclass
class LayoutOptions:
    """Choose how a group becomes rows of tokens."""

    prompt_format: PromptFormat = option(
        "auto",
        "How string prompts become text: `chat` as a user turn of the chat template, `plain` as they are, `auto` as "
        "`chat` if the tokenizer has a template. Messages are always chat.",
    )
    turn_context: TurnContext = option(
        "inference",
        "What precedes each trained turn of a response: what the chat template renders when the model is asked for "
        "that turn (`inference`), or the turns as they stand in the complete `conversation`, where most templates of "
        "thinking models have dropped earlier thinking.",
    )
    layout: Layout = option(
        "auto",
        "`shared_prefix` computes the prompt once for all its responses, `expanded` copies it for each; `auto` "
        "shares where that is exact and saves tokens.",
    )
    prefix_backend: str = option(
        "auto",
        f"Attention for a shared prefix: {', '.join(PREFIX_BACKENDS)}, or your own class as "
        "`package.module:name` or `file.py:name`. `auto` picks the fastest backend that is exact for the model.",
    )
    prefix_check: bool = option(
        True, "Prove before training, on your model and data, that the shared prefix computes the same numbers."
    )
    row_length: int | None = option(
        None,
        "Most tokens of a row, at least max_length, which is the default (in Axolotl: sequence_len). Larger rows "
        "keep long groups together.",
        ge=2,
    )
    row_packing: bool = option(
        True, "Pack several groups of a batch into one row of at most row_length. Groups never see each other."
    )
    group_by_prefix: bool = option(
        False,
        "Draw prompts that begin alike, such as one document's questions, into the same micro-batch, so that the "
        "beginning is computed once. Their losses are correlated; see docs/planning.md.",
    )


@dataclass
class LossOptions:
    """Choose how token losses become one number."""

    loss_aggregation: LossAggregation = option(
        "token",
        "What has one vote in the mean: a `token`, a `prompt` (responses keep their likelihood weights), or a "
        "`response` (favours short responses).",
    )
    objective: ObjectiveName = option(
        "nll",
        "What is minimised: `nll`; `dft` and `gem`, losses of each token; `pro` and `plackett_luce`, which rank a "
        "prompt's responses by their scores. See docs/objectives.md.",
    )


@dataclass
class ObjectiveOptions:
    """Set up an objective. These options change no rows, so prepared data can be used again."""

    sft_weight: float = option(
        0.05,
        "pro: sft_weight·(K-1)² times the summed NLL of the best response is added to the ranking loss; 0 leaves it "
        "out.",
        ge=0,
    )
    plackett_luce_beta: float = option(0.1, "plackett_luce: scale of the rewards, DPO's beta.", gt=0)
    length_normalize: bool = option(False, "plackett_luce: divide the log-probability of a response by its tokens.")
    reference: str = option(
        "initial",
        "plackett_luce: the reference model: `initial` is the model before training (without its adapters), `none` "
        "leaves it out, anything else is the path or name of another model with the same tokenizer. Its "
        "log-probabilities are computed once, before training, and cached.",
    )
    gem_beta: float = option(
        0.7,
        "gem: temperature of the distribution that is pushed down. Smaller is more diverse; 1 trains as nll.",
        gt=0,
        le=1,
    )


@dataclass
class WatchOptions:
    """Choose what is monitored during a run. These options change no rows, so prepared data can be used again."""

    early_stopping: int | None = option(
        None,
        "Stop after this many evaluations in a row that did not lower the held-out loss by min_improvement, and load "
        "the best checkpoint. Saves at every evaluation.",
        ge=1,
    )
    min_improvement: float = option(
        0.001, "early_stopping: the smallest improvement that counts, in nats per token.", ge=0
    )
    overfit_limit: float = option(
        0.2,
        "Warn if the gap between held-out and training loss has grown by more than this, in nats per token. Measured "
        "at every evaluation on at most 64 training prompts; 0 turns it off.",
        ge=0,
    )
    sample_prompts: int = option(
        0,
        "Held-out prompts answered at every evaluation, to log the coverage, alignment and diversity of the answers "
        "(by embedder).",
        ge=0,
    )
    samples_per_prompt: int = option(4, "sample_prompts: answers per prompt.", ge=2)
    sample_tokens: int | None = option(
        None,
        "Most tokens of a sampled answer, in training and in the smoke test. By default twice the longest response "
        "to these prompts, and at least 32.",
        ge=1,
    )
    smoke_steps: int | None = option(
        None,
        "Smoke test: train this many steps (100 are enough), check loss, gradients, memory of the longest prompts "
        "and a few answers, then stop with a verdict; an error if anything is wrong.",
        ge=20,
    )


@dataclass
class MultiResponseOptions(WatchOptions, ObjectiveOptions, LossOptions, LayoutOptions, DataOptions, SelectionOptions):
    """Every option that multi-response training adds to a trainer.

    Example:

    ```python
    from mrt_plugin import MultiResponseOptions
    from mrt_plugin.options import check_options

    check_options(MultiResponseOptions(k=4, layout="shared_prefix"))
    ```
    """


def names_of(*parts: type) -> tuple[str, ...]:
    return tuple(item.name for part in parts for item in fields(part))


CHANGES_NO_ROWS = names_of(WatchOptions, ObjectiveOptions)
"""Options that prepared data does not depend on."""

RANKING = ("pro", "plackett_luce")
"""The objectives that rank the responses of a group."""


def ranks(options: Any) -> bool:
    """Return whether the objective of some options ranks the responses of a group."""
    return options.objective in RANKING


Function = TypeVar("Function", bound=Callable[..., Any])


def take_options(
    part: type, annotation: Callable[[Field[Any], Any], Any] = lambda item, hint: hint
) -> Callable[[Function], Function]:
    """Give the signature of a function that takes `**options` each option of `part`, with its default and the
    `annotation` made from its field and type."""

    def decorate(function: Function) -> Function:
        found, hints = signature(function), get_type_hints(part)
        kept = [parameter for parameter in found.parameters.values() if parameter.kind != Parameter.VAR_KEYWORD]
        added = [
            Parameter(item.name, Parameter.KEYWORD_ONLY, default=item.default, annotation=annotation(item, hint))
            for item, hint in ((item, hints[item.name]) for item in fields(part))
            if "bounds" in item.metadata and item.name not in found.parameters
        ]
        ordered = sorted([*added, *kept], key=lambda parameter: parameter.kind)
        function.__signature__ = found.replace(parameters=ordered)  # type: ignore[attr-defined]
        function.__annotations__.update({parameter.name: parameter.annotation for parameter in added})
        return function

    return decorate


_KINDS: dict[type, tuple[type, str]] = {
    bool: (bool, "true or false"),
    int: (Integral, "a whole number"),
    float: (Real, "a finite number"),
}
"""For the type of an option: the values accepted, and their name in messages."""


def check_options(options: SelectionOptions | MultiResponseOptions) -> None:
    """Raise ValueError for an option outside its type or bounds, or without the options that it needs."""
    part = MultiResponseOptions if isinstance(options, MultiResponseOptions) else type(options)
    check_values(options, part)
    if isinstance(options, MultiResponseOptions):
        check_prefix_backend(options.prefix_backend)
    else:
        names = names_of(SelectionOptions)
        options = MultiResponseOptions(**{name: getattr(options, name) for name in names})
    unused = unused_options(options)
    reasons = [reason for reason, wrong in _contradictions(options).items() if wrong]
    for reason in [*reasons, *(unused[name] for name in _BUDGET if name in unused)]:
        raise ValueError(reason)


def check_values(options: Any, part: type) -> None:
    """Check the options that the dataclass `part` defines with `option`, each against its type and bounds."""
    hints = get_type_hints(part)
    for item in fields(part):
        if "bounds" in item.metadata:
            _check_value(item.name, getattr(options, item.name), hints[item.name], item.metadata["bounds"])


def _check_value(name: str, value: Any, hint: Any, bounds: Bounds) -> None:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{name}={value!r} is unknown: choose one of {', '.join(get_args(hint))}.")
        return
    kind = next((found for found in _KINDS if found is hint or found in get_args(hint)), None)
    if kind is None or (value is None and type(None) in get_args(hint)):
        return
    accepted, words = _KINDS[kind]
    fits = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
    if not fits or (kind is not bool and not bounds.holds(value)):
        raise ValueError(f"{name}={value!r} must be {', '.join(filter(None, (words, str(bounds))))}.")


def _contradictions(o: MultiResponseOptions) -> dict[str, bool]:
    adaptive, redrawn = o.allocation == "adaptive", o.redraw == "epoch"
    return {
        "selector='all' keeps every response: it takes neither n nor allocation='adaptive'.": (
            o.selector == "all" and (adaptive or o.n is not None)
        ),
        "mean_k and target_total both set the number of responses to spread: give one of them.": (
            o.mean_k is not None and o.target_total is not None
        ),
        "max_k is below min_k: a prompt cannot keep fewer than its minimum.": (
            o.max_k is not None and o.max_k < o.min_k
        ),
        "redraw='epoch' draws a random k anew, so it needs selector='random_k' and allocation='fixed': the other "
        "selectors would choose the same again.": redrawn and (o.selector != "random_k" or adaptive),
        "redraw='epoch' fixes the weights before it knows which responses are drawn: it takes weights='column'.": (
            redrawn and o.weights == "softmax"
        ),
        f"objective={o.objective!r}: the smoke test reads the trend of the loss, which may rise here while the model "
        "learns. Run it with objective='nll'.": (o.smoke_steps is not None and o.objective in ("dft", "gem")),
        **{f"objective={o.objective!r} {reason}": ranks(o) and wrong for reason, wrong in _unrankable(o).items()},
    }


def _unrankable(o: MultiResponseOptions) -> dict[str, bool]:
    """Return what an objective that ranks responses cannot be combined with."""
    return {
        "gives every prompt one vote: remove loss_aggregation, which sets the votes of token losses.": (
            o.loss_aggregation != "token"
        ),
        "reads scores as a ranking, not as weights: remove weights='softmax'.": o.weights == "softmax",
        "ranks the responses kept at preparation, and redraw='epoch' may draw some that do not differ in score: "
        "remove redraw, and raise k instead.": o.redraw == "epoch",
        "compares responses, so it needs k of at least 2.": o.k == 1 and reads(o, "k") and not _adaptive(o),
    }


_BUDGET = ("mean_k", "target_total", "min_k", "max_k")
"""Options that set a number of responses. If they had no effect, the user would get another number."""

_IGNORED = {
    "random_k": ("alpha", "similarity", "embedder"),
    "best_k": ("alpha", "similarity", "embedder"),
    "diverse_k": ("alpha",),
    "filter_then_spread": ("alpha", "similarity"),
    "all": ("k", "alpha", "similarity", "embedder"),
}
"""The options that a selector does not read. A selector that is not listed may read all of them."""


def reads(options: Any, name: str) -> bool:
    """Return whether the selector of some options reads the option `name`."""
    return name not in _IGNORED.get(options.selector, ())


def _adaptive(options: Any) -> bool:
    return bool(options.allocation == "adaptive")


def _compares(o: Any) -> bool:
    return reads(o, "embedder") or (_adaptive(o) and o.allocation_score == "diversity") or o.sample_prompts > 0


def _refers(o: Any) -> bool:
    return bool(o.objective == "plackett_luce" and o.reference != "none")


@dataclass(frozen=True)
class Need:
    """Options `names` that have no effect unless `used` returns True for an object with all options as attributes."""

    names: tuple[str, ...]
    used: Callable[[Any], bool]
    words: str
    """What they need."""


NEEDS = [
    Need(_BUDGET, _adaptive, "allocation='adaptive'; with allocation='fixed' set k"),
    Need(("allocation_score",), _adaptive, "allocation='adaptive'"),
    Need(
        ("k",),
        lambda o: reads(o, "k") and (not _adaptive(o) or o.mean_k is None is o.target_total),
        "a selector other than 'all', and neither mean_k nor target_total, which replace it",
    ),
    Need(("alpha",), lambda o: reads(o, "alpha"), "selector='diverse_best_k'"),
    Need(("similarity",), lambda o: reads(o, "similarity"), "selector='diverse_k' or 'diverse_best_k'"),
    Need(
        ("embedder",),
        _compares,
        "a selector that compares responses (diverse_k, diverse_best_k, filter_then_spread), allocation='adaptive' "
        "with allocation_score='diversity', or sample_prompts",
    ),
    Need(
        ("score_cache",),
        lambda o: o.scorer is not None or (_compares(o) and o.embedder != "lexical") or _refers(o),
        "a scorer, an embedder that is a model, or the reference of objective='plackett_luce'",
    ),
    Need(("weight_temperature",), lambda o: o.weights == "softmax", "weights='softmax'"),
    Need(("turn_context",), lambda o: o.prompt_format != "plain", "prompt_format='auto' or 'chat'"),
    Need(
        ("prefix_backend", "prefix_check"),
        lambda o: o.layout != "expanded" or o.row_packing,
        "layout='auto' or 'shared_prefix', or row_packing=True",
    ),
    Need(
        ("group_by_prefix",),
        lambda o: o.layout != "expanded" and o.row_packing,
        "layout='auto' or 'shared_prefix', and row_packing=True",
    ),
    Need(("sft_weight",), lambda o: o.objective == "pro", "objective='pro'"),
    Need(
        ("plackett_luce_beta", "length_normalize", "reference"),
        lambda o: o.objective == "plackett_luce",
        "objective='plackett_luce'",
    ),
    Need(("gem_beta",), lambda o: o.objective == "gem", "objective='gem'"),
    Need(("min_improvement",), lambda o: o.early_stopping is not None, "early_stopping"),
    Need(("samples_per_prompt",), lambda o: o.sample_prompts > 0, "sample_prompts"),
    Need(("sample_tokens",), lambda o: o.sample_prompts > 0 or o.smoke_steps, "sample_prompts or smoke_steps"),
]


def unused_options(options: MultiResponseOptions, given: Collection[str] | None = None) -> dict[str, str]:
    """Return a message for each option without effect, of those `given` (by default those with another value)."""
    if given is None:
        names = names_of(MultiResponseOptions)
        given = [name for name in names if getattr(options, name) != getattr(MultiResponseOptions, name)]
    return {
        name: f"{name}={getattr(options, name)!r} changes nothing here: it needs {need.words}."
        for need in NEEDS
        if not need.used(options)
        for name in need.names
        if name in given
    }


def markdown() -> str:
    """Return the reference page `docs/options.md`."""
    hints = get_type_hints(MultiResponseOptions)
    head = "Fields of `MultiResponseSFTConfig` and keys of a recipe's `mrt:` block, with type or values and default. "
    lines = ["# Options", "", head + "Made by `python -m mrt_plugin.options`.", ""]
    for item in fields(MultiResponseOptions):
        hint = hints[item.name]
        if get_origin(hint) is Literal:
            kind = "/".join(f"`{value}`" for value in get_args(hint))
        else:
            kind = f"{hint.__name__ if isinstance(hint, type) else hint}".replace(" | None", "")
        lines.append(f"- **`{item.name}`** ({kind}, `{item.default}`): {item.metadata['help']}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
