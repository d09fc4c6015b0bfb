"""README.md and the pages in docs/: their commands, their lengths, their places in the site.

How to mark a command. Every block with a command of ours (`mrt`, `axolotl`, `make`, `python -m`, `python FILE`) is a
fenced `shell` block, with a comment on a line of its own before the fence. Readers do not see the comment. It says
which tests run the commands, or what no test has:

    <!-- run by: tests/test_select_cli.py::test_name, tests/test_curation.py::TestClass::test_name -->
    <!-- run by: .ci/run -->
    <!-- needs: GPU -->
    <!-- needs: hub -->
    <!-- needs: time -->

Tests are named by path, class and function. Together their files must read the page (have its file name in them), or
have the subcommand and every long option of the commands in them. So a command that changes on the page alone fails.
A block may have several marks. With `needs`, options are not looked for, as no test may run the whole block. `time` is
for measurements that take too long for a test: a second mark names the tests of the same program in small.

Besides, each `mrt` command is parsed by the program itself: a subcommand, an option or a value that it does not have
fails, also in the running text (`mrt plan --budget`).
"""

import ast
import importlib.util
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from mrt_plugin.cli import app
from mrt_plugin.cli.reference import pages

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
NAV = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
LIMITS = {"Start": 1500, "Guides": 600, "Reference": 1500, "Explanations": 1500, "Results": None}
"""The most words of a page, by its section in mkdocs.yml."""
README_LIMIT = 700
NEEDS = {"GPU", "hub", "time"}
ROWS_OF_BENCH = ("shared", "expanded")
"""`mrt shared` and `mrt expanded` are names of rows in the tables of `mrt bench`."""
SHELLS = ("shell", "bash", "sh", "console")
PROGRAM = typer.main.get_command(app)
BEFORE_A_COMMAND = ("do", "then", "else", "!", "time")

BLOCK = re.compile(r"((?:^ *<!--.*?-->\n+)*)^( *)```([^\n]*)\n(.*?)^\2``` *$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- (run by|needs): (.*?) -->", re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)

# Pages that are not yet marked or short enough. A test refuses a page that need not be here.
UNMARKED = {"walkthrough.md"}
TOO_LONG: set[str] = set()


@dataclass(frozen=True)
class Block:
    """A fenced block with the marks before it."""

    language: str
    text: str
    marks: tuple[tuple[str, str], ...]

    def commands(self) -> list[list[str]]:
        """Return the words of each command of ours."""
        text = re.sub(r"^\$ ", "", self.text, flags=re.MULTILINE) if self.language == "console" else self.text
        lexer = shlex.shlex(text.replace("\\\n", " ").replace("\n", "\n; "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        found: list[list[str]] = [[]]
        for word in lexer:
            if set(word) <= {*";&|()"}:
                found.append([])
            else:
                found[-1].append(word)
        return [words for command in found if is_ours(words := _without_the_shell(command))]

    def named(self, kind: str) -> list[str]:
        """Return what the marks of a kind say, one by one."""
        return [one.strip() for mark, said in self.marks if mark == kind for one in said.split(",")]


def _without_the_shell(words: list[str]) -> list[str]:
    """Leave out the shell's words and assignments before a command, and its redirections."""
    start = 0
    while start < len(words) and (words[start] in BEFORE_A_COMMAND or re.match(r"\w+=", words[start])):
        start += 1
    end = next((place for place, word in enumerate(words) if word in ("<", ">", ">>")), len(words))
    return words[start:end]


def is_ours(words: list[str]) -> bool:
    if words and words[0] in ("python", "python3"):
        return len(words) > 1 and words[1:3] != ["-m", "venv"]
    return bool(words) and words[0] in ("mrt", "axolotl", "make")


@cache
def blocks(page: Path) -> list[Block]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [Block(language.split(" ")[0], text, tuple(MARK.findall(marks))) for marks, _, language, text in found]


def shell_blocks(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language in SHELLS and block.commands()]


def not_fenced(page: Path) -> list[str]:
    """Return the commands in indented blocks, and in fenced ones without a language: no mark can stand before them."""
    text = page.read_text(encoding="utf-8")
    plain = "".join(block.text for block in blocks(page) if not block.language)
    start = r"(?:mrt|axolotl|make|python3?) [\w-].*"
    return re.findall(rf"^ {{4,}}{start}", BLOCK.sub("", text), re.MULTILINE) + re.findall(rf"^{start}", plain, re.M)


def words_of(page: Path) -> int:
    """Count words as a reader does: signs alone are none, and comments are not shown."""
    return sum(bool(re.search(r"\w", word)) for word in COMMENT.sub("", page.read_text(encoding="utf-8")).split())


def section_of(page: Path) -> str:
    """Return the section of the site that a page is in."""
    found = [name for section in NAV for name, pages in section.items() if page.name in map(_file, pages)]
    assert len(found) == 1, f"{page.name} is in {len(found)} sections of mkdocs.yml"
    return found[0]


def _file(entry: str | dict[str, str]) -> str:
    return entry if isinstance(entry, str) else next(iter(entry.values()))


def functions(path: Path) -> set[str]:
    """Return the tests of a file, those of classes as `Class::name`."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        for item in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(item, ast.FunctionDef):
                found.add(item.name if item is node else f"{node.name}::{item.name}")  # type: ignore[attr-defined]
    return found


def parse(words: list[str]) -> None:
    """Parse a command of `mrt` without running it. Raises a click error for what the program does not have."""
    arguments = words[1:]
    context = typer.Context(PROGRAM)
    _, rest, _ = PROGRAM.make_parser(context).parse_args(list(arguments))
    if not rest:
        return
    command: Any = PROGRAM.commands.get(rest[0])  # type: ignore[attr-defined]
    assert command is not None, f"mrt has no command {rest[0]}"
    context = typer.Context(command, info_name=rest[0])
    values, extra, _ = command.make_parser(context).parse_args(list(rest[1:]))
    assert not extra, f"mrt {rest[0]} takes no {extra}"
    for parameter in command.params:
        value = values.get(parameter.name)
        if isinstance(value, str | list | tuple):
            parameter.type_cast_value(context, value)


PARAMETERS = [pytest.param(page, id=page.name) for page in PAGES]


@pytest.mark.parametrize("page", PARAMETERS)
def test_every_command_is_run_by_a_test_or_says_what_it_needs(page: Path) -> None:
    """The module's docstring says how to mark a command."""
    unmarked = [block.text for block in shell_blocks(page) if not block.marks] + not_fenced(page)
    if page.name in UNMARKED:
        assert unmarked, f"every command is marked: take {page.name} off the list UNMARKED"
    else:
        assert not unmarked, f"{page.name}: no mark before\n" + "\n".join(unmarked)


@pytest.mark.parametrize("page", PARAMETERS)
def test_the_tests_named_run_what_the_page_shows(page: Path) -> None:
    for block in shell_blocks(page):
        assert set(block.named("needs")) <= NEEDS, f"{page.name}: {block.marks}"
        assert "time" not in block.named("needs") or block.named("run by"), f"{page.name} names no test: {block.text}"
        said = ""
        for test in block.named("run by"):
            path, _, name = test.partition("::")
            assert (ROOT / path).is_file(), f"{page.name} names {test}: no such file"
            assert path == ".ci/run" or name in functions(ROOT / path), f"{page.name} names {test}: no such test"
            said += (ROOT / path).read_text(encoding="utf-8")
        if block.named("run by") and page.name not in said and not block.named("needs"):
            for words in block.commands():
                shown = [word.partition("=")[0] for word in words[1:] if re.match(r"--\w|[a-z][\w-]+$", word)][:1]
                shown += [word.partition("=")[0] for word in words if word.startswith("--")]
                missing = [word for word in shown if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", said)]
                assert not missing, f"{page.name}: {missing} of {words} is not in {block.named('run by')}"


@pytest.mark.parametrize("page", PARAMETERS)
def test_every_command_exists(page: Path) -> None:
    for block in shell_blocks(page):
        for words in block.commands():
            check_command(words, page)


def check_command(words: list[str], page: Path) -> None:
    if words[0] == "mrt":
        try:
            parse(words)
        except Exception as problem:
            raise AssertionError(f"{page.name}: {shlex.join(words)}: {problem}") from problem
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= {*targets}, f"{page.name}: {words}"
    elif words[1] == "-m":
        own = words[2].startswith(("mrt_plugin", "recipes"))
        assert not own or importlib.util.find_spec(words[2]), f"{page.name}: {words}"
    elif words[0].startswith("python") and words[1].startswith(("recipes/", "tests/")):
        assert (ROOT / words[1]).is_file(), f"{page.name}: {words}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("mrt selct pool.jsonl", "no command selct"),
        ("mrt select pool.jsonl --kk 3", "No such option"),
        ("mrt select pool.jsonl --k three", "not a valid int"),
        ("mrt select pool.jsonl --layout shard", "No such option"),
        ("mrt bench --axis k=1", "No such option"),
        ("mrt demo there", "takes no"),
        ("mrt plan pool.jsonl --layout shard", "is not one of"),
        ("make dmeo", "dmeo"),
        ("python -m mrt_plugin.option", "option"),
        ("python recipes/tiny.py", "tiny"),
    ],
)
def test_a_mistyped_command_is_found(line: str, message: str) -> None:
    (words,) = Block("shell", f"cd here && X=1 {line} > out # a remark\n", ()).commands()
    assert shlex.join(words) == line
    with pytest.raises(AssertionError, match=message):
        check_command(words, ROOT / "README.md")


@pytest.mark.parametrize("page", PARAMETERS)
def test_commands_in_the_text_exist(page: Path) -> None:
    """Fragments such as `mrt plan --budget` have options that the command has."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for shown in re.findall(r"`mrt ([^`]+)`", text):
        name, *rest = shown.replace("\n", " ").split()
        if re.fullmatch(r"[a-z][\w-]+", name) and name not in ROWS_OF_BENCH:
            command = PROGRAM.commands.get(name)  # type: ignore[attr-defined]
            assert command is not None, f"{page.name}: mrt has no command {name}"
            known = {"--help", *(opt for item in command.params for opt in item.opts)}
            given = {word.partition("=")[0].rstrip(".,;") for word in rest if word.startswith("--")}
            assert given <= known, f"{page.name}: mrt {name} has no {given - known}"


def test_the_variances_are_explained_where_they_stand() -> None:
    """V_x and V_{y|x} are no words of the field."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert "V_x" not in text or page.name == "glossary.md" or "glossary.md" in text, page.name


@pytest.mark.parametrize("page", PARAMETERS)
def test_no_page_is_too_long(page: Path) -> None:
    limit = README_LIMIT if page.name == "README.md" else LIMITS[section_of(page)]
    words = words_of(page)
    if page.name in TOO_LONG:
        assert limit is not None
        assert words > limit, f"short enough: take {page.name} off the list TOO_LONG"
    else:
        assert limit is None or words <= limit, f"{page.name} has {words} words, and may have {limit}"


@pytest.mark.parametrize(("name", "text"), pages().items(), ids=list(pages()))
def test_the_pages_of_the_commands_are_the_program(name: str, text: str) -> None:
    """Write them again with `python -m mrt_plugin.cli.reference docs`."""
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text


def test_links_of_the_readme_lead_somewhere() -> None:
    """Those between pages are checked by `make docs`."""
    for path, _, anchor in re.findall(
        r"\]\(([^)#\s]+)(#?)([\w-]*)\)", (ROOT / "README.md").read_text(encoding="utf-8")
    ):
        if not path.startswith("https://"):
            assert (ROOT / path).is_file(), path
            titles = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.M) if anchor else []
            assert anchor in ("", *(re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles))


def test_the_changelog_has_the_usual_form() -> None:
    """That of keepachangelog.com: what is unreleased first, then versions with their dates."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, *others = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert first == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", title) for title in others)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert {*re.findall(r"^### (.+)$", text, re.MULTILINE)} <= kinds
    lines = re.findall(r"^- .+$", text, re.MULTILINE)
    assert len(lines) == len({*lines})


def test_every_page_of_the_site_exists() -> None:
    named = [_file(entry) for section in NAV for pages in section.values() for entry in pages]
    assert sorted(named) == sorted(page.name for page in PAGES if page.name != "README.md")
    assert [name for section in NAV for name in section] == [*LIMITS]
