"""Define the `mrt` command. Each subcommand imports heavy modules only when it runs."""

import typer

from mrt_plugin.cli.audit import audit
from mrt_plugin.cli.augment import augment
from mrt_plugin.cli.bench import bench
from mrt_plugin.cli.demo import demo
from mrt_plugin.cli.doctor import doctor
from mrt_plugin.cli.evaluate import evaluate
from mrt_plugin.cli.grid import grid
from mrt_plugin.cli.needs import CheckedCommand
from mrt_plugin.cli.plan import plan
from mrt_plugin.cli.sample import sample
from mrt_plugin.cli.select import select
from mrt_plugin.cli.simulate import simulate

app = typer.Typer(
    name="mrt",
    help="Multi-response training: keep K of N responses per prompt, pay for the prompt once.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)
for command in (demo, sample, select, doctor, bench, plan, simulate, audit, augment, evaluate, grid):
    app.command(cls=CheckedCommand)(command)
