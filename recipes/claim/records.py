"""Store finished runs as lines of a file. A stored run is not repeated, and lines are written atomically."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recipes.claim.train import RunKey, Setting


def key_of(record: dict[str, Any]) -> RunKey:
    """Return the key of a line's run."""
    setting = Setting(float(record["learning_rate"]), int(record["pairs_per_step"]))
    return RunKey(int(record["length"]), str(record["arm"]), int(record["seed"]), setting)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read all lines of the file; none if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Replace the file with these lines in one atomic step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(
        "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records), encoding="utf-8"
    )
    unfinished.replace(path)
