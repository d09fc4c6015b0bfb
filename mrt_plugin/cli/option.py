"""Define the options of commands, and check their values before a command starts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, Field, field, fields
from difflib import get_close_matches
from functools import partial, wraps
from importlib.util import find_spec
from inspect import Parameter, Signature
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, get_type_hints

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from mrt_plugin.cli.progress import lines_in_logs
from mrt_plugin.cli.show import command_line, log_to_stderr, plain_errors, raise_plainly, silence_libraries
from mrt_plugin.extension import is_extension
from mrt_plugin.models.named_model import check_folders, parse_models
from mrt_plugin.options import NEEDS, Bounds, MultiResponseOptions, Need, check_prefix_backend, names_of, reads
from mrt_plugin.places import check_data, check_file, check_folder, check_model
from mrt_plugin.sampling.options import EndpointOptions, LocalOptions

Kind = Literal["option", "switch", "argument"]


def flag(
    default: Any, help: str, check: str = "", *names: str, kind: Kind = "option", min: int | None = None, **bounds: Any
) -> Any:
    """Define a field that is an option, with a check of `CHECKS` or `Bounds`. With `...` as default it is required."""
    said = {"help": help, "bounds": Bounds(**bounds), "check": check, "names": names, "kind": kind, "min": min}
    return field(default=MISSING if default is ... else default, metadata=said)


switch = partial(flag, False, kind="switch")
argument = partial(flag, kind="argument")


def training(name: str) -> Any:
    item = MultiResponseOptions.__dataclass_fields__[name]
    return field(default=item.default, metadata=item.metadata)


FIRST = {
    "card": ("evaluation", "model", "license"),
    "init": ("model", "data", "gpu", "output", "yes"),
    "demo": ("output", "quick", "seed", "json"),
    "sample": ("model", "endpoint", "n", "max_tokens", "output"),
    "select": ("selector", "k", "held_out", "curation", "output"),
    "doctor": ("measure", "json"),
    "bench": ("shape", "model", "load_in_4bit", "objective", "plot"),
    "plan": ("model", "load_in_4bit", "budget", "max_prompts", "report"),
    "simulate": ("output", "only", "seed", "fit", "json"),
    "audit": ("pool", "model", "load_in_4bit", "selector", "report"),
    "augment": ("data", "model", "endpoint", "supports", "output"),
    "evaluate": ("data", "model", "m", "load_in_4bit", "report"),
    "grid": ("recipe", "k", "budget", "repeats", "output"),
    "reward-model": ("model", "output", "held_out_output", "epochs", "max_length"),
}
"""For each command: the options that most people need first, at most five. They stand above the panels."""

_PANELS = {
    "What it works on": """
        adapter baseline data demo evaluation extend fit from_manifest hybrid instruction lm_eval lm_eval_include mixed
        model plan pool
        prompt_format recipe results shape size source split subset tiny tokenizer truth
    """,
    "Which way": """
        allocation allocation_score alpha arm axis breakdown checker curation dry_run dtype duration embedder extra
        gradient_checkpointing judge keep_cut_off layout license lm_eval_chat lm_eval_run_code load_in_4bit logprobs
        lora loss_aggregation measure objective only partial prefix_backend probe quick scorer seed selector similarity
        stats stop temperature top_p trl weights yes
    """,
    "Where it runs and writes": """
        api api_key_env cpu decisions endpoint engine export gpu held_out_output json num_proc output overwrite plot
        report score_cache threads
    """,
    "How much": """
        annotations at backoff batch_size budget concurrency cost_prompt cost_response epochs gradient_prompts groups
        held_out held_out_threshold judge_samples k layers learning_rate lm_eval_limit lora_r m max_calls max_k
        max_length max_pairs max_prompts max_repeats max_tokens mean_k min_k n ngram outputs p pairs per_request
        per_step prompts proportion repeats requests_per_minute retries rounds share splits steps supports target_total
        threshold time_limit timeout to total vocabulary weight_temperature
    """,
}
PANELS = {name: panel for panel, names in _PANELS.items() for name in names.split()}
"""For each option: the part of the help that it stands in, in this order, where it is not one of the first."""


def _panel(name: str, command: str) -> str | None:
    if name in FIRST.get(command, ()):
        return None
    if name not in PANELS:
        raise LookupError(f"option {name!r} of `mrt {command}` has no panel in the help: add it to `_PANELS`.")
    return PANELS[name]


def _rank(name: str, kind: str | None, command: str) -> int:
    """Return the place of an option in the help."""
    if kind == "argument":
        return 0
    panel = _panel(name, command)
    return 1 + FIRST[command].index(name) if panel is None else 10 + [*_PANELS].index(panel)


def command(own: type, *parts: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give Typer the options `own` of a function, and as its keyword arguments what `parts` define besides."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def run(**given: Any) -> None:
            mine = {item.name: given.pop(item.name) for item in fields(own)}
            function(own(**mine), **given)

        title, found = function.__name__.replace("_", "-"), dict[str, Parameter]()
        ranks: dict[str, int] = {}
        for part in (own, *parts):
            hints = get_type_hints(part)
            for item in fields(part):
                if "bounds" in item.metadata and item.name not in found:
                    hint: Any = Annotated[hints[item.name], _typer(item, title)]  # type: ignore[valid-type,name-defined]
                    default = Parameter.empty if item.default is MISSING else item.default
                    found[item.name] = Parameter(item.name, Parameter.KEYWORD_ONLY, default=default, annotation=hint)
                    ranks[item.name] = _rank(item.name, item.metadata.get("kind"), title)
        run.__signature__ = Signature(sorted(found.values(), key=lambda one: ranks[one.name]))  # type: ignore[attr-defined]
        run.__annotations__ = {name: parameter.annotation for name, parameter in found.items()}
        return run

    return decorate


def _typer(item: Field[Any], command: str) -> Any:
    """Return the `typer.Option` of a `flag`, or of an `option` of another room, which is checked by its name."""
    said = {"check": item.name, "names": (), "min": None, **item.metadata}
    kind = said.get("kind", "switch" if item.type is bool else "option")
    callback = _callback(CHECKS.get(said["check"], partial(_check_bounds, said["bounds"])))
    if kind == "argument":
        return typer.Argument(help=said["help"], callback=callback)
    names = [_flag(item.name)] if kind == "switch" else said["names"]
    panel = _panel(item.name, command)
    return typer.Option(*names, help=said["help"], callback=callback, min=said["min"], rich_help_panel=panel)


def part_of(part: type, options: dict[str, Any]) -> dict[str, Any]:
    return {item.name: options[item.name] for item in fields(part) if item.name in options}


def _callback(check: Callable[[Any], None]) -> Callable[[Any], Any]:
    """Return a callback for Typer that checks a value, or each of several, unless it is None."""

    def callback(value: Any) -> Any:
        try:
            for one in value if isinstance(value, list) else [value]:
                if one is not None:
                    check(one)
        except ValueError as problem:
            raise typer.BadParameter(str(problem)) from None
        return value

    return callback


def _check_bounds(bounds: Bounds, value: Any) -> None:
    if isinstance(value, int | float) and not bounds.holds(value):
        raise ValueError(f"{value} must be a finite number, {bounds}.")


def numbers(text: str, refusal: str) -> list[int]:
    """Return the whole numbers, at least 1, of a text with commas. `refusal` is the message for any other text."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if min(found, default=0) < 1:
        raise ValueError(refusal)
    return found


def _check_budget(text: str) -> None:
    from mrt_plugin.planning.budget import parse_budget

    parse_budget(text, 1.0)


def _check_code(name: str) -> None:
    place = name.rpartition(":")[0]
    if is_extension(name) and place.endswith(".py"):
        check_file(place)


def _check_scorer(names: str) -> None:
    for name in filter(None, map(str.strip, names.split(","))):
        (_check_judge if name.startswith("judge:") else _check_code if ":" in name else check_model)(name)


def _check_judge(name: str) -> None:
    from mrt_plugin.scoring.judge import is_judge, parse_judge

    if is_judge(name) or find_spec("judge") is None:  # else a function of the user's module `judge`
        parse_judge(name)


def _check_picture(path: Path, endings: tuple[str, ...] = (".png", ".svg", ".pdf")) -> None:
    if endings and path.suffix not in endings:
        raise ValueError(f"{path} must end in one of {', '.join(endings)}.")
    if find_spec("matplotlib") is None:
        raise ValueError("pictures need matplotlib: pip install 'mrt-plugin[plots]'.")


PROVIDED = ("lexical", "sentence-transformers", "none")


def _check_rules(text: str) -> None:
    """Check what is given for --curation, as far as it can be told from a file of rules, a name or YAML."""
    if Path(text).suffix in (".yaml", ".yml"):
        return check_file(text)
    if Path(text).is_dir():
        raise ValueError(f"{text} is a folder: give a .yaml file, or `default`.")
    if text != "default" and get_close_matches(text, ["default"], cutoff=0.7):
        raise ValueError(f"there are no rules {text}; did you mean default?")


def _check_recipe(path: Path) -> None:
    check_file(path)
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"{path} is no recipe: give a .yaml file.")


CHECKS: dict[str, Callable[[Any], None]] = {
    "adapter": lambda name: check_model(name, "adapter_config.json"),
    "backend": check_prefix_backend,
    "base": check_model,
    "budget": _check_budget,
    "curation": _check_rules,
    "data": check_data,
    "embedder": lambda name: None if name in PROVIDED else check_model(name, None),
    "file": check_file,
    "folder": check_folder,
    "model": lambda text: check_folders(parse_models([text])),
    "picture": _check_picture,
    "recipe": _check_recipe,
    "report": lambda path: _check_picture(path, ()),
    "judge": lambda name: _check_judge(f"judge:{name.removeprefix('judge:')}"),
    "scorer": _check_scorer,
    "selector": _check_code,
    "tokenizer": lambda name: check_model(name, None),
}
"""Raise ValueError for a value that cannot be meant. Also for the training options of these names."""


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _with(names: tuple[str, ...], *others: str) -> Need:
    return Need(names, lambda o: any(getattr(o, other) for other in others), " or ".join(map(_flag, others)))


def _without(names: tuple[str, ...], other: str) -> Need:
    return Need(names, lambda o: not getattr(o, other), f"a run without {_flag(other)}")


def _arm(name: str, arm: str) -> Need:
    return Need((name,), lambda o: o.arm is None or arm in o.arm, f"the arm {arm}")


_LOCAL = ("adapter", *names_of(LocalOptions))
_REQUESTS = tuple(
    name for name in names_of(EndpointOptions) if name not in ("requests_per_minute", "max_requests", "extra")
)
_MODEL = ("adapter", "tokenizer", "prompt_format", "loss_aggregation", "max_length", "max_prompts", "load_in_4bit")
_COSTS = ("budget", "layout", "cost_prompt", "cost_response")
_DRAWING = ("temperature", "top_p", "max_tokens", "stop", "partial")
_GENERATING = (
    *("endpoint", "model", "supports", "per_step", "steps", "instruction", "seed", "requests_per_minute", "extra"),
    *("temperature", "top_p", "max_tokens", "stop"),
)
_DRAWN = "samples that are drawn: --m above 0, and a --model or --endpoint"
_SAMPLES = ("at", "embedder", "scorer", "checker", "judge")
_SIMILAR = "--selector diverse_k or diverse_best_k"

COMMANDS: dict[str, tuple[Need, ...]] = {
    "select": (
        *NEEDS,
        _with(("held_out_output",), "held_out", "from_manifest"),
        _with(("held_out_threshold",), "held_out"),
        _with(("total", "max_repeats"), "proportion"),
        _with(("decisions",), "curation", "proportion"),
        _with(("tokenizer",), "curation", "stats"),
        Need(("num_proc",), lambda o: o.engine == "local", "--engine local"),
        Need(("max_calls", "dry_run"), lambda o: "judge:" in (o.scorer or ""), "--scorer judge:MODEL@URL"),
    ),
    "sample": (
        _with((*_REQUESTS, "requests_per_minute", "extra"), "endpoint"),
        _without(_LOCAL, "endpoint"),
        _without(("n",), "extend"),
    ),
    "augment": (
        _without((*_GENERATING, *_REQUESTS, *_LOCAL), "candidates"),
        _with((*_REQUESTS, "requests_per_minute", "extra"), "endpoint"),
        _without(_LOCAL, "endpoint"),
    ),
    "plan": (_with((*_MODEL, *_COSTS), "model"),),
    "audit": (
        _with((*_MODEL, "gradient_prompts", "splits"), "model"),
        Need(("alpha",), lambda o: o.selector and reads(o, "alpha"), "--selector diverse_best_k"),
        Need(("similarity",), lambda o: o.selector and reads(o, "similarity"), _SIMILAR),
    ),
    "evaluate": (
        _with(_REQUESTS, "endpoint"),
        _without((*_LOCAL, "tokenizer", "probe", "max_length", "lm_eval"), "endpoint"),
        _with(("lm_eval_include", "lm_eval_limit", "lm_eval_chat", "lm_eval_run_code"), "lm_eval"),
        Need(_DRAWING, lambda o: o.m > 0 and bool(o.model or o.endpoint), _DRAWN),
        Need(_SAMPLES, lambda o: bool(o.pool) or o.m > 0, "samples: --m above 0, or --pool"),
        _with(("judge_samples",), "judge"),
        Need(("max_calls", "dry_run"), lambda o: o.judge or "judge:" in (o.scorer or ""), "a judge: --judge"),
    ),
    "grid": (
        _without(("tokenizer", *_COSTS), "plan"),
        _without(("tokenizer",), "cost_prompt"),
        _without(("arm", "prompts", "pairs", "plan", *_COSTS), "annotations"),
        _with(("duration",), "annotations"),
        _arm("prompts", "equal prompts"),
        _arm("pairs", "equal pairs"),
        _arm("budget", "equal cost"),
        _with(("repeats",), "output"),
    ),
    "card": (_with(("model",), "evaluation"),),
    "bench": (_without(("hybrid", "vocabulary"), "model"),),
}
"""For each command: options that have no effect without others."""

ALONE = {
    "select": ("from_manifest", ("data", "output", "held_out_output", "overwrite", "json")),
    "grid": ("results", ("json",)),
    "simulate": ("fit", ("json",)),
}
"""For each command: an option that makes it do something else, and the options that it then accepts."""

LOGGING = ("sample", "select", "augment", "plan", "audit", "evaluate", "grid", "reward-model")
"""The commands that show the package's log messages."""

SHOWN = {
    "select": ("mrt_plugin.curation.run", "mrt_plugin.selection.run"),
    "sample": ("mrt_plugin.sampling.run",),
}
"""For a command: the loggers whose messages are among its results."""


_running: dict[str, Any] = {}
"""The context of the command that is running, as `context`."""


def again(**changes: Any) -> str:
    """Return the command line that is running, with the options that were given and these changes."""
    context = _running["context"]
    items = {str(item.name): item for item in context.command.params}
    given = {name: context.params[name] for name in items if _is_given(context, name)} | changes
    arguments: list[Any] = []
    for name in [name for name in given if items[name].param_type_name == "argument"]:
        value = given.pop(name)
        arguments += value if isinstance(value, list | tuple) else [value]
    options = {items[name].opts[0].removeprefix("--"): value for name, value in given.items()}
    return command_line(f"mrt {context.info_name}", *arguments, **options)


def _is_given(context: Any, name: str) -> bool:
    return str(context.get_parameter_source(name).name) != "DEFAULT"


_UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""The base of what a command line can have wrong. Newer releases of typer bring their own copy of click."""


@contextmanager
def _plain_usage() -> Iterator[None]:
    """Show what is wrong with a command line as one line."""
    try:
        yield
    except _UsageError as found:
        problem: Any = found
        kind = type(problem).__name__
        if kind == "NoSuchOption":
            near = [name for name in problem.possibilities or () if name != problem.option_name]
            raise_plainly(f"there is no option {problem.option_name}{meant_names(near)}")
        missing = kind == "MissingParameter" and problem.ctx is not None
        raise_plainly(problem.format_message() + (f" {_help_of(problem.ctx)} has an example." if missing else ""))


def _help_of(context: Any) -> str:
    return f"mrt {context.info_name} --help"


def meant_names(near: list[str]) -> str:
    """Return the end of a message: `; did you mean NAME?`, or a full stop if no name is near."""
    return f"; did you mean {' or '.join(near[:2])}?" if near else "."


class CheckedGroup(TyperGroup):
    """The group of all commands. What is wrong with a command line is one line, with exit status 1."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args:
            return super().parse_args(ctx, args)  # shows the help
        with _plain_usage():
            return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            near = get_close_matches(name, self.list_commands(ctx), n=1)
            raise_plainly(f"there is no command {name}{meant_names(near)} mrt --help lists the commands.")
        return super().resolve_command(ctx, args)


class CheckedCommand(TyperCommand):
    """Refuse options that were given and have no effect. What the user can fix is one line, with exit status 1."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for item in self.params:
            if isinstance(item, TyperArgument):  # typer 0.25 loses its help with click 8.5
                item.help = self.callback.__annotations__[item.name].__metadata__[0].help

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _plain_usage():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        command, values = str(ctx.info_name), SimpleNamespace(**{**vars(MultiResponseOptions()), **ctx.params})
        given = [item for item in self.params if _is_given(ctx, str(item.name))]
        alone, beside = ALONE.get(command, ("", ()))
        needs = list(COMMANDS.get(command, ()))
        if any(item.name == alone for item in given):
            others = tuple(str(item.name) for item in given if item.name not in (alone, *beside))
            needs.insert(0, Need(others, lambda o: False, f"a run without {_flag(alone)}"))
        for need in needs:
            idle = next((item for item in given if item.name in need.names), None)
            if idle is not None and not need.used(values):
                value = ctx.params[idle.name]
                shown = idle.opts[0] if value is True else f"{idle.opts[0]} {value}"
                raise_plainly(f"{shown} changes nothing here: it needs {need.words}.")
        verbose = bool(ctx.parent and ctx.parent.params.get("verbose"))
        if not verbose:
            silence_libraries()
        if command in LOGGING:
            log_to_stderr(SHOWN.get(command, ()))
        _running["context"] = ctx
        with lines_in_logs(), plain_errors(traceback=verbose):
            return super().invoke(ctx)
