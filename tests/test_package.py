"""The package as it is installed: quick to import, typed, whole."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import import_module, metadata
from pathlib import Path

import pytest
from helpers.cli import CliRunner

import mrt_plugin
from mrt_plugin.cli import app

ROOT = Path(mrt_plugin.__file__).parents[1]


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


class TestImport:
    @pytest.mark.processes
    def test_takes_less_than_a_third_of_a_second(self) -> None:
        code = "import time; t = time.perf_counter(); import mrt_plugin; print(time.perf_counter() - t)"
        assert min(float(run_python(code)) for _ in range(5)) < 0.3

    @pytest.mark.processes
    @pytest.mark.parametrize("room", ["options", "groups.load", "encoding", "scoring", "curation", "selection"])
    def test_rooms_above_layout_leave_torch_alone(self, room: str) -> None:
        heavy = run_python(
            f"import sys, mrt_plugin.{room}; print('torch' in sys.modules, 'transformers' in sys.modules)"
        )
        assert heavy.split() == ["False", "False"]

    @pytest.mark.processes
    def test_the_command_starts_without_heavy_libraries(self) -> None:
        loaded = run_python("import sys, mrt_plugin.cli; print(*sys.modules)").split()
        heavy = {"torch", "transformers", "datasets", "numpy", "pandas", "pyarrow", "sklearn", "scipy"}
        assert heavy.isdisjoint(loaded)

    def test_public_names_resolve(self) -> None:
        for name in mrt_plugin.__all__:
            found = getattr(mrt_plugin, name)
            assert found.__name__ == name
            assert found.__doc__
        assert set(mrt_plugin.__all__) <= set(dir(mrt_plugin))

    def test_an_unknown_name_is_an_attribute_error(self) -> None:
        with pytest.raises(AttributeError, match="no attribute 'MultiResponseTrainer'"):
            mrt_plugin.MultiResponseTrainer  # noqa: B018


FOLDERS = ("mrt_plugin", "tests", "docs", "recipes")


def files_of(folder: str) -> set[str]:
    """Return the files of a folder of the project, but for those that running it leaves behind."""
    found = (path for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution, without an environment of its own. Return its unpacked folder."""
    source = tmp_path_factory.mktemp("source")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, source)
    name = build("sdist", source)
    with tarfile.open(source / name) as packed:
        packed.extractall(source / "unpacked", filter="data")
    return source / "unpacked" / name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> zipfile.ZipFile:
    """Build the wheel from the source distribution, as `python -m build` does, in a copy."""
    source = shutil.copytree(sdist, sdist.with_name("for the wheel"))
    return zipfile.ZipFile(source / build("wheel", source))


def build(kind: str, source: Path) -> str:
    code = f"from setuptools.build_meta import build_{kind}; print(build_{kind}('.'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.processes
def test_the_source_distribution_has_everything_that_its_tests_need(sdist: Path) -> None:
    there = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    assert set().union(*map(files_of, FOLDERS)) <= there
    assert {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "constraints.txt"} <= there
    folders = {name.partition("/")[0] for name in there if "/" in name}
    assert folders == {*FOLDERS, "mrt_plugin.egg-info"}


class TestWheel:
    @pytest.mark.processes
    def test_holds_every_module_and_nothing_else(self, wheel: zipfile.ZipFile) -> None:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert packed == files_of("mrt_plugin")
        assert "mrt_plugin/py.typed" in packed

    @pytest.mark.processes
    def test_metadata(self, wheel: zipfile.ZipFile) -> None:
        (name,) = [name for name in wheel.namelist() if name.endswith("METADATA")]
        text = wheel.read(name).decode()
        assert "License-Expression: Apache-2.0" in text
        assert "Requires-Python: >=3.11" in text
        for extra in ("axolotl", "qlora", "embeddings", "plots", "test", "dev"):
            assert f"Provides-Extra: {extra}" in text
        assert any(entry.endswith("licenses/LICENSE") for entry in wheel.namelist())

    @pytest.mark.processes
    def test_entry_points_name_what_is_there(self, wheel: zipfile.ZipFile) -> None:
        (name,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
        groups = configparser.ConfigParser()
        groups.read_string(wheel.read(name).decode())
        assert groups.sections() == ["axolotl.cli_commands", "axolotl.plugins", "console_scripts"]
        for entry in (value for group in groups.values() for value in group.values()):
            path = Path(*entry.partition(":")[0].split("."))
            assert {path.with_suffix(".py").as_posix(), (path / "__init__.py").as_posix()} & {*wheel.namelist()}


def test_version_is_one() -> None:
    assert metadata.version("mrt-plugin") == mrt_plugin.__version__
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited is not None
    assert cited[1] == mrt_plugin.__version__
    assert CliRunner().invoke(app, ["--version"]).output == f"mrt-plugin {mrt_plugin.__version__}\n"


def test_the_command_is_installed() -> None:
    (entry,) = metadata.entry_points(group="console_scripts", name="mrt")
    assert import_module(entry.module).app is entry.load()


def command_names() -> list[str]:
    import typer

    return list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.processes
@pytest.mark.parametrize("name", command_names())
def test_every_command_has_help_with_an_example_and_json(name: str) -> None:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    shown = subprocess.run(
        [sys.executable, "-c", "from mrt_plugin.cli import app; app()", name, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    ).stdout
    assert f"mrt {name}" in shown
    assert "Example" in shown
    assert "--json" in shown


@pytest.mark.processes
def test_json_goes_to_stdout_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from mrt_plugin.cli import app; app()", "doctor", "--json"],
        capture_output=True,
        text=True,
    )
    result = json.loads(done.stdout)
    assert done.returncode == (1 if result["machine"]["problems"] else 0)
