"""Collect the wheels that `make test-gpu` needs and that the GPU machine lacks, into one folder below 60 MB.

    python tests/gpu/collect_wheels.py FOLDER [--target tests/gpu/target.txt]

Starts from the requirements of this package and of `wheels.txt`, leaves out what the target has, and goes on with the
requirements of what was downloaded. Wheels are for Python 3.12 on Linux x86-64. bitsandbytes keeps one CUDA library.
"""

import argparse
import subprocess
import sys
import tomllib
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path, PurePosixPath
from zipfile import ZIP_DEFLATED, ZipFile

from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

HERE = Path(__file__).parent
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux2014_x86_64", "any")
MARKERS = {
    "python_version": PYTHON,
    "python_full_version": f"{PYTHON}.3",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "os_name": "posix",
    "extra": "",
}
LIMIT = 60_000_000
"""Bytes of all wheels together."""


def read_target(path: Path) -> dict[str, str | None]:
    """Return what the target has: the version by name, or None where the file gives no version."""
    found: dict[str, str | None] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.split("#")[0].strip()
        if text:
            name, _, version = text.partition("==")
            found[str(canonicalize_name(name.split("@")[0].strip()))] = version or None
    return found


def marked(wheels: Path, mark: str) -> list[Requirement]:
    """Return the requirements in the lines of `wheels.txt` that start with a mark."""
    start = f"# {mark}:"
    lines = wheels.read_text(encoding="utf-8").splitlines()
    return [Requirement(line.removeprefix(start)) for line in lines if line.startswith(start)]


def own_requirements() -> list[Requirement]:
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(text) for text in project["dependencies"]]


def needed(requirement: Requirement, there: dict[str, str | None]) -> bool:
    """Return whether the target lacks a requirement.

    Raises:
        SystemExit: if the target has another version than the requirement accepts.
    """
    if requirement.marker is not None and not requirement.marker.evaluate(MARKERS):
        return False
    name = str(canonicalize_name(requirement.name))
    if name not in there:
        return True
    version = there[name]
    if version is not None and not requirement.specifier.contains(version, prereleases=True):
        raise SystemExit(f"error: {requirement} is needed, and the target has {name} {version}. Pin another release.")
    return False


def requirements_of(wheel: Path) -> list[Requirement]:
    with ZipFile(wheel) as archive:
        own = (PurePosixPath(name) for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        (name,) = (str(path) for path in own if len(path.parts) == 2)  # setuptools contains other wheels
        return Metadata.from_email(archive.read(name), validate=False).requires_dist or []


def collect(
    folder: Path, target: dict[str, str | None], wheels: Path, find_links: list[str], network: bool = True
) -> Iterator[Path]:
    """Download what is needed, one wheel after the other, and yield each."""
    there, waiting = dict(target), [*own_requirements(), *marked(wheels, "needs")]
    while waiting:
        requirement = waiting.pop(0)
        if not needed(requirement, there):
            continue
        wheel = _download(requirement, folder, wheels, find_links, network)
        name, version, *_ = parse_wheel_filename(wheel.name)
        there[str(name)] = str(version)
        waiting += requirements_of(wheel)
        yield wheel
    for requirement in marked(wheels, "needs alone"):
        yield _download(requirement, folder, wheels, find_links, network)


def _download(requirement: Requirement, folder: Path, wheels: Path, find_links: list[str], network: bool) -> Path:
    before = set(folder.glob("*.whl"))
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    command += ["--python-version", PYTHON, *(part for name in PLATFORMS for part in ("--platform", name))]
    command += [
        *(part for link in find_links for part in ("--find-links", link)),
        *([] if network else ["--no-index"]),
    ]
    command += ["-c", str(wheels), f"{requirement.name}{requirement.specifier}"]
    subprocess.run(command, check=True)
    (new,) = set(folder.glob("*.whl")) - before
    return new


def keep_one_library(wheel: Path, cuda: str) -> None:
    """Rewrite a bitsandbytes wheel with only its CPU library and that of one CUDA version, such as `130`."""
    kept = {f"libbitsandbytes_cuda{cuda}.so", "libbitsandbytes_cpu.so"}
    smaller = wheel.with_suffix(".tmp")
    with ZipFile(wheel) as old, ZipFile(smaller, "w", ZIP_DEFLATED, compresslevel=9) as new:
        if f"bitsandbytes/libbitsandbytes_cuda{cuda}.so" not in old.namelist():
            raise SystemExit(f"error: {wheel.name} has no library for CUDA {cuda}.")
        record = next(name for name in old.namelist() if name.endswith(".dist-info/RECORD"))
        lines = []
        for entry in old.infolist():
            path = PurePosixPath(entry.filename)
            if entry.filename == record or (path.suffix == ".so" and path.name not in kept):
                continue
            content = old.read(entry)
            new.writestr(entry, content)
            digest = urlsafe_b64encode(sha256(content).digest()).rstrip(b"=").decode()
            lines.append(f"{entry.filename},sha256={digest},{len(content)}\n")
        new.writestr(record, "".join([*lines, f"{record},,\n"]))
    smaller.replace(wheel)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", type=Path, default=HERE / "target.txt", help="pip freeze of the target")
    parser.add_argument("--wheels", type=Path, default=HERE / "wheels.txt", help="requirements and constraints")
    parser.add_argument("--cuda", default="130", help="the CUDA version of the target's torch, without the dot")
    parser.add_argument("--find-links", action="append", default=[], help="a folder of wheels, as for pip")
    parser.add_argument("--no-index", action="store_true", help="take wheels from --find-links only")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for old in given.folder.glob("*.whl"):
        old.unlink()
    total = 0
    found = collect(given.folder, read_target(given.target), given.wheels, given.find_links, not given.no_index)
    for wheel in found:
        if wheel.name.startswith("bitsandbytes-"):
            keep_one_library(wheel, given.cuda)
        size = wheel.stat().st_size
        total += size
        print(f"{size / 1e6:6.2f} MB  {wheel.name}", flush=True)
    print(f"{total / 1e6:6.2f} MB  together, limit {LIMIT / 1e6:.0f} MB")
    if total > LIMIT:
        raise SystemExit(f"error: {total / 1e6:.1f} MB of wheels are more than {LIMIT / 1e6:.0f} MB.")


if __name__ == "__main__":
    main()
