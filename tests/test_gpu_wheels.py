"""The collector of wheels for a GPU machine: what it takes, what it leaves out, and the smaller bitsandbytes."""

import runpy
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

SCRIPT = Path(__file__).parent / "gpu" / "collect_wheels.py"
collector = runpy.run_path(str(SCRIPT))


def make_wheel(folder: Path, name: str, version: str, *needs: str, files: dict[str, bytes] | None = None) -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {need}" for need in needs)]
    with ZipFile(path, "w") as wheel:
        for file, content in {f"{name}/__init__.py": b"", **(files or {})}.items():
            wheel.writestr(file, content)
        wheel.writestr(f"{info}/METADATA", "\n".join(lines))
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A folder of wheels: `first` needs `second` and, on Windows, `never`; `heavy` is an Axolotl in small."""
    folder = tmp_path / "index"
    folder.mkdir()
    make_wheel(folder, "first", "1.0", "second>=2", "there>=1", "never; sys_platform == 'win32'", "more; extra == 'x'")
    make_wheel(folder, "second", "2.5", "first")
    make_wheel(folder, "second", "3.0")
    make_wheel(folder, "heavy", "1.0", "torch==0.1", "missing")
    return folder


def collect(index: Path, wheels: str, target: dict[str, str | None]) -> list[str]:
    listed, folder = index.parent / "wheels.txt", index.parent / "found"
    listed.write_text(wheels, encoding="utf-8")
    folder.mkdir()
    own = {requirement.name.lower(): None for requirement in collector["own_requirements"]()}
    found = collector["collect"](folder, {**own, **target}, listed, [str(index)], network=False)
    return [wheel.name.rsplit("-", 3)[0] for wheel in found]


def test_what_the_target_lacks_is_collected_with_what_it_needs(index: Path) -> None:
    wheels = "# needs: first\n# needs alone: heavy\nsecond<3\n"
    assert collect(index, wheels, {"there": "1.4"}) == ["first-1.0", "second-2.5", "heavy-1.0"]


def test_another_version_on_the_target_is_an_error(index: Path) -> None:
    with pytest.raises(SystemExit, match="there>=1 is needed, and the target has there 0.9"):
        collect(index, "# needs: first\n", {"there": "0.9"})


def test_a_target_is_what_pip_freeze_prints(tmp_path: Path) -> None:
    path = tmp_path / "target.txt"
    path.write_text(
        "# comment\nTorch_Audio==2.11.0\nwith-path @ file:///somewhere\nbare  # note\n\n", encoding="utf-8"
    )
    assert collector["read_target"](path) == {"torch-audio": "2.11.0", "with-path": None, "bare": None}


def test_the_committed_target_is_within_the_requirements() -> None:
    target = collector["read_target"](SCRIPT.parent / "target.txt")
    missing = {r.name for r in collector["own_requirements"]() if collector["needed"](r, target)}
    assert missing == {"trl", "peft", "datasets", "datasketch", "pydantic", "pydantic-core", "httpx2"}
    for mark in ("needs", "needs alone"):
        assert all(isinstance(one, Requirement) for one in collector["marked"](SCRIPT.parent / "wheels.txt", mark))


def test_bitsandbytes_keeps_one_library_and_installs(tmp_path: Path) -> None:
    names = ("cpu", "cuda118", "cuda130", "rocm70")
    libraries = {f"bitsandbytes/libbitsandbytes_{name}.so": name.encode() * 1000 for name in names}
    wheel = make_wheel(tmp_path, "bitsandbytes", "0.50.2", files=libraries)
    collector["keep_one_library"](wheel, "130")
    # pip checks the hashes and sizes of RECORD against the files it unpacks.
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--target",
        str(tmp_path / "site"),
    ]
    subprocess.run([*command, str(wheel)], check=True)
    found = sorted(path.name for path in (tmp_path / "site" / "bitsandbytes").glob("*.so"))
    assert found == ["libbitsandbytes_cpu.so", "libbitsandbytes_cuda130.so"]
    with ZipFile(wheel) as archive:
        (record,) = (name for name in archive.namelist() if name.endswith("RECORD"))
        listed = [line.split(",")[0] for line in archive.read(record).decode().splitlines()]
    assert sorted(listed) == sorted(archive.namelist())
    with pytest.raises(SystemExit, match="no library for CUDA 118"):
        collector["keep_one_library"](wheel, "118")
