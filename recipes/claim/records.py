"""Finished runs as lines of a file: a run that is there is not run again, and a line is there whole or not at all."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recipes.claim.train import RunKey, Setting


def key_of(record: dict[str, Any]) -> RunKey:
    """Which run a line is of."""
    setting = Setting(float(record["learning_rate"]), int(record["pairs_per_step"]))
    return RunKey(int(record["length"]), str(record["arm"]), int(record["seed"]), setting)


def read_records(path: Path) -> list[dict[str, Any]]:
    """All lines of the file; none if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Replace the file by these lines, at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(
        "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records), encoding="utf-8"
    )
    unfinished.replace(path)
