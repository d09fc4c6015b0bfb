"""Run commands as a shell does. Typer builds all commands for every call; here they are built once."""

from functools import cache

import typer.testing
from typer.testing import CliRunner

__all__ = ["CliRunner"]

typer.testing._get_command = cache(typer.testing._get_command)  # type: ignore[attr-defined]
