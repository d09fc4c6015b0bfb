"""Refuse command-line options that have no effect without another one."""

from types import SimpleNamespace
from typing import Any

import typer
from typer.core import TyperCommand

from mrt_plugin.cli.show import plain_errors, raise_plainly
from mrt_plugin.options import NEEDS, MultiResponseOptions, Need, names_of, reads
from mrt_plugin.sampling.options import EndpointOptions, LocalOptions


def _with(*names: str) -> Any:
    """Return the need for one of the options `names`."""
    words = " or ".join(map(_flag, names))
    return {"used": lambda o: any(getattr(o, name) for name in names), "words": words}


def _without(name: str) -> Any:
    """Return the need for a run without an option."""
    return {"used": lambda o: not getattr(o, name), "words": f"a run without {_flag(name)}"}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


_LOCAL = ("adapter", *names_of(LocalOptions))
_REQUESTS = tuple(name for name in names_of(EndpointOptions) if name not in ("requests_per_minute", "extra"))
_MODEL = ("adapter", "tokenizer", "prompt_format", "loss_aggregation", "max_length", "max_prompts", "load_in_4bit")
_COSTS = ("tokenizer", "cost_prompt", "cost_response", "layout", "budget")


def _draws(o: Any) -> bool:
    return o.m > 0 and bool(o.model or o.endpoint)


COMMANDS: dict[str, tuple[Need, ...]] = {
    "select": (
        *NEEDS,
        Need(("held_out_output",), **_with("held_out", "from_manifest")),
        Need(("held_out_threshold",), **_with("held_out")),
        Need(("total", "max_repeats"), **_with("proportion")),
        Need(("decisions",), **_with("curation", "proportion")),
        Need(("tokenizer",), **_with("curation", "stats")),
        Need(("num_proc",), lambda o: o.engine == "local", "--engine local"),
    ),
    "sample": (
        Need((*_REQUESTS, "requests_per_minute", "extra"), **_with("endpoint")),
        Need(_LOCAL, **_without("endpoint")),
        Need(("n",), **_without("extend")),
    ),
    "plan": (Need((*_MODEL, "budget", "layout", "cost_prompt", "cost_response"), **_with("model")),),
    "audit": (
        Need((*_MODEL, "gradient_prompts", "splits"), **_with("model")),
        Need(("alpha",), lambda o: o.selector and reads(o, "alpha"), "--selector diverse_best_k"),
        Need(
            ("similarity",), lambda o: o.selector and reads(o, "similarity"), "--selector diverse_k or diverse_best_k"
        ),
    ),
    "evaluate": (
        Need(_REQUESTS, **_with("endpoint")),
        Need((*_LOCAL, "tokenizer", "probe", "max_length", "lm_eval"), **_without("endpoint")),
        Need(("lm_eval_include", "lm_eval_limit"), **_with("lm_eval")),
        Need(
            ("temperature", "top_p", "max_tokens", "stop", "partial"),
            _draws,
            "samples that are drawn: --m above 0, and a --model or --endpoint",
        ),
        Need(
            ("at", "embedder", "scorer", "checker"),
            lambda o: bool(o.pool) or o.m > 0,
            "samples: --m above 0, or --pool",
        ),
    ),
    "grid": (
        Need(_COSTS, **_without("plan")),
        Need(("tokenizer",), **_without("cost_prompt")),
        Need(("prompts",), lambda o: o.arm is None or "equal prompts" in o.arm, "the arm equal prompts"),
        Need(("pairs",), lambda o: o.arm is None or "equal pairs" in o.arm, "the arm equal pairs"),
        Need(("budget",), lambda o: o.arm is None or "equal cost" in o.arm, "the arm equal cost"),
        Need(("repeats",), **_with("output")),
    ),
    "bench": (Need(("vocabulary",), **_without("model")),),
}
"""For each command: options that have no effect without others."""

ALONE = {
    "select": ("from_manifest", ("data", "output", "held_out_output", "overwrite", "json")),
    "grid": ("results", ("json",)),
    "simulate": ("fit", ("json",)),
}
"""For each command: an option that makes it do something else, and the options that it then accepts."""


class CheckedCommand(TyperCommand):
    """Refuse options that were given and have no effect. Defaults never count as given.

    Every error that the user can fix is one line, with exit status 1.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options and check their values."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as problem:
            raise_plainly(problem.format_message())

    def invoke(self, ctx: Any) -> Any:
        """Check, and run the command."""
        command, values = str(ctx.info_name), SimpleNamespace(**{**vars(MultiResponseOptions()), **ctx.params})
        given = [item for item in self.params if ctx.get_parameter_source(item.name).name != "DEFAULT"]
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
        with plain_errors():
            return super().invoke(ctx)
