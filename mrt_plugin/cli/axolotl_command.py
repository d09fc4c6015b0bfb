"""`axolotl mrt ...`: the commands of `mrt` as a command of Axolotl 0.21 and later."""

from typer.main import get_command

from mrt_plugin.cli import app

command = get_command(app)
