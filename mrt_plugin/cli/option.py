"""Command-line options that are training options too: their help and bounds come from `mrt_plugin.options`."""

import dataclasses
from typing import Any

import typer

from mrt_plugin.options import MultiResponseOptions

_FIELDS = {item.name: item for item in dataclasses.fields(MultiResponseOptions)}


def of(name: str) -> Any:
    """The `typer.Option` of the training option of that name."""
    metadata = _FIELDS[name].metadata
    return typer.Option(help=metadata["help"], min=metadata["ge"])
