"""Which command-line options need which other: an option that was given and changes nothing is refused."""

from types import SimpleNamespace
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand

from mrt_plugin.cli.show import raise_plainly
from mrt_plugin.options import NEEDS, MultiResponseOptions, Need, reads


def _with(*names: str) -> Any:
    """Used where one of the options `names` is set."""
    return {
        "used": lambda o: any(getattr(o, name) for name in names),
        "words": " or ".join(_flag(name) for name in names),
    }


def _without(*names: str) -> Any:
    """Used where none of the options `names` is set."""
    return {
        "used": lambda o: not any(getattr(o, name) for name in names),
        "words": "a run without " + " and ".join(_flag(name) for name in names),
    }


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


_LOCAL = ("adapter", "load_in_4bit", "batch_size", "prompt_format")
_REQUESTS = ("api", "api_key_env", "concurrency", "per_request", "retries", "timeout", "backoff")
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
"""For each command: options that change nothing without others."""

ALONE = {
    "select": ("from_manifest", ("data", "output", "held_out_output", "overwrite", "json")),
    "grid": ("results", ("json",)),
    "simulate": ("fit", ("json",)),
}
"""Options that make a command do something else, and the others that it then takes."""


class CheckedCommand(TyperCommand):
    """A command that refuses options which were given and change nothing. Defaults never count as given.

    What is wrong with an option's value is one line and exit status 1, as every other error of a command.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options and check their values."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as problem:
            raise_plainly(problem.format_message())

    def invoke(self, ctx: Any) -> Any:
        """Check, and run the command."""
        given = [name for name in ctx.params if ctx.get_parameter_source(name).name != "DEFAULT"]
        values = SimpleNamespace(**{**vars(MultiResponseOptions()), **ctx.params})
        alone, beside = ALONE.get(str(ctx.info_name), (None, ()))
        others = [name for name in given if alone in given and name not in (alone, *beside)]
        if others:
            self._refuse(ctx, others[0], f"a run without {_flag(str(alone))}")
        for need in COMMANDS.get(str(ctx.info_name), ()):
            idle = [name for name in given if name in need.names]
            if idle and not need.used(values):
                self._refuse(ctx, idle[0], need.words)
        return super().invoke(ctx)

    def _refuse(self, ctx: Any, name: str, words: str) -> NoReturn:
        parameter = next(parameter for parameter in self.params if parameter.name == name)
        shown = parameter.opts[0] if ctx.params[name] is True else f"{parameter.opts[0]} {ctx.params[name]}"
        raise_plainly(f"{shown} changes nothing here: it needs {words}.")
