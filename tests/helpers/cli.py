"""Run commands as a shell does. Typer builds all commands for every call; here they are built once."""

import logging
from functools import cache
from typing import Any

import typer.testing

typer.testing._get_command = cache(typer.testing._get_command)  # type: ignore[attr-defined]


class CliRunner(typer.testing.CliRunner):
    """Runs each command with a log of its own: an earlier command's handler writes to a stream that is closed."""

    def invoke(self, *args: Any, **kwargs: Any) -> Any:
        logging.getLogger("mrt_plugin").handlers.clear()
        return super().invoke(*args, **kwargs)
