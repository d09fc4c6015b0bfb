"""Write groups to a file that `load_groups` reads back as they are."""

import json
import os
import tempfile
from pathlib import Path

from datasets import Dataset


def write_groups(groups: Dataset, path: str | Path) -> int:
    """Write groups as JSON lines or Parquet, by the path's ending; the file appears complete or not at all.

    Returns:
        The number of responses written.

    Raises:
        ValueError: if the ending is neither `.jsonl` nor `.parquet`.
        OSError: if the file cannot be written.

    Example:

    ```python
    write_groups(select(load_groups("pool.jsonl"), "random_k", k=4), "chosen.jsonl")
    ```
    """
    path = Path(path)
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{path}: write groups to a .jsonl or a .parquet file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    part = Path(name)
    responses = 0
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            for group in groups:
                responses += len(group["responses"])
                if path.suffix == ".jsonl":
                    file.write(json.dumps(group, ensure_ascii=False) + "\n")
        if path.suffix == ".parquet":
            groups.to_parquet(part)
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return responses
