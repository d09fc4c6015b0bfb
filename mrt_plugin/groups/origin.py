"""Remember which file groups were read from, in the dataset's `info`, which `select`, `map` and `shuffle` carry on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from mrt_plugin.groups.write import sha256_of

_OURS = "read_by_mrt"
"""Key of the records made here: `load_dataset` makes its own."""


@dataclass(frozen=True)
class Origin:
    """The file, folder or hub id that groups were read from, and the SHA-256 of a file as it was read."""

    path: str
    sha256: str | None


def remember_origin(groups: Dataset, data: Any) -> None:
    """Note the source of groups just read from `data`. Groups read from a dataset keep that dataset's origin."""
    if isinstance(data, Dataset):
        if origin_of(data) is not None:
            groups.info.download_checksums = data.info.download_checksums
    elif isinstance(data, str | Path):
        file = Path(data).expanduser()
        digest = sha256_of(file) if file.is_file() else None
        # the field of `datasets` for the files that a dataset was made from
        groups.info.download_checksums = {str(data): {_OURS: True, "checksum": digest}}


def origin_of(groups: Dataset) -> Origin | None:
    """Return where groups were read from, or None if that is one dataset in memory, or several sources."""
    known = groups.info.download_checksums or {}
    records = [(path, record) for path, record in known.items() if isinstance(record, dict) and _OURS in record]
    return Origin(records[0][0], records[0][1]["checksum"]) if len(records) == 1 else None
