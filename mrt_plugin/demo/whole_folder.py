"""A folder that appears complete or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(folder: Path, marker: str) -> Iterator[Path]:
    """A working folder that takes the place of `folder` when the block ends well, and vanishes when it does not.

    Args:
        folder: where the result goes. An earlier result there is replaced, known by its file `marker`.
        marker: a file that every complete result holds.

    Raises:
        FileExistsError: if `folder` exists and does not hold `marker`: it is something else.

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
        work.chmod(0o755)  # mkdtemp's folders are private
        if folder.exists():
            folder.rename(old)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
