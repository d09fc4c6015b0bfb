"""A folder that appears complete or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(folder: Path, marker: str) -> Iterator[Path]:
    """Create a working folder. It replaces `folder` if the block succeeds, and is removed otherwise.

    Args:
        folder: the folder of the result. An earlier result, recognised by its file `marker`, is replaced.
        marker: a file that every complete result contains.

    Raises:
        FileExistsError: if `folder` exists and does not contain `marker`, so it is not an earlier result.

    Example:

    ```python
    with whole_folder(Path("result"), marker="results.json") as work:
        (work / "results.json").write_text("{}")
    ```
    """
    folder = folder.resolve()
    if folder.exists() and not (folder / marker).is_file():
        raise FileExistsError(f"{folder} exists and was not made by this command: choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old = work.with_name(work.name + "-old")
    try:
        yield work
        work.chmod(0o755)  # folders from mkdtemp are private
        if folder.exists():
            folder.rename(old)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
