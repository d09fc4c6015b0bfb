"""Define the `mrt` command. Each subcommand imports heavy modules only when it runs."""

from typing import Annotated

import typer

import mrt_plugin
from mrt_plugin.cli.augment import augment
from mrt_plugin.cli.card import card
from mrt_plugin.cli.drawing import evaluate, sample
from mrt_plugin.cli.grid import grid
from mrt_plugin.cli.init import init
from mrt_plugin.cli.machine import bench, demo, doctor, simulate
from mrt_plugin.cli.option import CheckedCommand, CheckedGroup
from mrt_plugin.cli.planning import audit, plan
from mrt_plugin.cli.reward import reward_model
from mrt_plugin.cli.select import select

app = typer.Typer(
    name="mrt",
    cls=CheckedGroup,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)
COMMANDS = (
    init,
    demo,
    sample,
    select,
    doctor,
    bench,
    plan,
    simulate,
    audit,
    augment,
    evaluate,
    card,
    grid,
    reward_model,
)
for command in COMMANDS:
    app.command(cls=CheckedCommand)(command)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"mrt-plugin {mrt_plugin.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", help="Show what other libraries say at their start, and the traceback of an error."),
    ] = False,
) -> None:
    """Multi-response training: keep K of N responses per prompt, pay for the prompt once."""
