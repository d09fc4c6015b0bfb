"""Define the `mrt` command. Each subcommand imports heavy modules only when it runs."""

import typer

from mrt_plugin.cli.drawing import evaluate, sample
from mrt_plugin.cli.grid import grid
from mrt_plugin.cli.machine import bench, demo, doctor, simulate
from mrt_plugin.cli.option import CheckedCommand
from mrt_plugin.cli.planning import audit, augment, plan
from mrt_plugin.cli.reward import reward_model
from mrt_plugin.cli.select import select

app = typer.Typer(
    name="mrt",
    help="Multi-response training: keep K of N responses per prompt, pay for the prompt once.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)
for command in (demo, sample, select, doctor, bench, plan, simulate, audit, augment, evaluate, grid, reward_model):
    app.command(cls=CheckedCommand)(command)
