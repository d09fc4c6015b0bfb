"""What the package uses below the public surface of other libraries is in one table; what it imports is declared."""

import ast
import importlib
import inspect
import re
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mrt_plugin

ROOT = Path(mrt_plugin.__file__).parents[1]
PAGE = ROOT / "docs" / "private-surface.md"
LIBRARIES = ("torch", "transformers", "trl", "axolotl", "peft", "accelerate", "bitsandbytes", "datasets")
PUBLIC = ("transformers", "transformers.utils", "transformers.trainer_utils")
"""Modules of transformers whose names are documented."""
MADE_FOR_EVERY_CLASS = {"_abc_impl", "_backward_cls"}
"""What Python adds to abstract classes, and torch to functions with a gradient."""


@cache
def sources() -> dict[str, ast.Module]:
    """The syntax trees of the package by path below the repository."""
    paths = sorted((ROOT / "mrt_plugin").rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def table() -> list[list[str]]:
    """The entries of the page: what, library, where, why, test."""
    rows = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("|") and not line.startswith(("|library|", "|---|")):
            library, where, what, why, test = line.strip("|").split("|")
            rows.append([what, library, where, why, test])
    return rows


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined_here() -> set[str]:
    """Every name that the package itself defines."""
    found = set()
    for tree in sources().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
    return found


def room(path: str) -> str:
    """`attention` for `mrt_plugin/attention/plan.py`, `engine` for `mrt_plugin/engine.py`."""
    return path.split("/")[1].removesuffix(".py")


def read_from_the_code() -> set[tuple[str, str]]:
    """Private attributes and imports, as (name, room)."""
    found, own = set(), defined_here()
    for path, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                if node.attr not in own or ast.unparse(node.value) == "super()":
                    found.add((node.attr, room(path)))
            elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in LIBRARIES:
                parts = node.module.split(".")
                deep = parts[0] == "axolotl" or (parts[0] == "transformers" and node.module not in PUBLIC)
                for alias in node.names:
                    if deep or any(map(is_private, (*parts, alias.name))):
                        found.add((alias.name, room(path)))
    return found


def overridden() -> set[tuple[str, str]]:
    """Private methods and attributes of other libraries' classes that a class of the package replaces."""
    found = set()
    for path in sources():
        name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if name.endswith("__main__"):
            continue
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            # Extras are not on every stack.
            if str(error.name).split(".")[0] not in ("axolotl", "ray", "sentence_transformers"):
                raise
            continue
        for kind in vars(module).values():
            if isinstance(kind, type) and kind.__module__ == name:
                others = [base for base in kind.__mro__ if base.__module__.split(".")[0] in LIBRARIES]
                mine = {*vars(kind), *inspect.get_annotations(kind)} - MADE_FOR_EVERY_CLASS
                replaced = {own for own in filter(is_private, mine) if any(own in vars(other) for other in others)}
                found |= {(own, room(path)) for own in replaced}
    return found


@pytest.mark.parametrize("find", [read_from_the_code, overridden])
def test_every_private_name_is_in_the_table(find) -> None:
    listed = {
        (part, where)
        for row in table()
        for name in names(row[0])
        for part in name.split(".")
        for where in names(row[2])
    }
    assert not find() - listed, "docs/private-surface.md lacks these"


def test_the_table_has_no_stale_rows_and_its_tests_exist() -> None:
    assert len(table()) > 20
    for what, library, where, why, test in table():
        assert library in LIBRARIES, what
        assert len(why.split()) > 3, what
        for one in names(where):
            text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "mrt_plugin" / one).rglob("*.py"))
            for name in names(what):
                assert name.split(".")[-1] in text, f"{one} does not use {name}"
        assert names(test), what
        for reference in names(test):
            path, *parts = reference.split("::")
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            there = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
            assert set(parts) <= there, reference


def test_declared_dependencies_are_the_imported_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [
        *project["dependencies"],
        *(line for name in extras if name not in ("test", "dev") for line in extras[name]),
    ]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    distributions = metadata.packages_distributions()
    used = set()
    for tree in sources().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                used.add(node.module.split(".")[0])
    used -= {"mrt_plugin", *sys.stdlib_module_names}
    imported = {name: {canonicalize_name(found) for found in distributions.get(name, [name])} for name in sorted(used)}
    undeclared = [name for name, found in imported.items() if not found & declared]
    assert not undeclared, "imported, but not in pyproject.toml"
    unused = declared - {found for several in imported.values() for found in several}
    assert not unused, "declared, but not imported"
