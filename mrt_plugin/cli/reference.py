"""Print the pages of the commands: `python -m mrt_plugin.cli.reference docs` writes them there.

They are made from the program itself: each command's docstring, and the help, values and default of its options.
"""

import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

from typer.main import get_command

from mrt_plugin.cli import app
from mrt_plugin.options import MultiResponseOptions

PAGES = {
    "commands.md": ("Commands", ("init", "demo", "doctor", "bench", "card", "simulate")),
    "commands-data.md": ("Commands that make and choose data", ("sample", "augment", "reward-model", "select")),
    "commands-results.md": ("Commands that plan and compare runs", ("plan", "audit", "grid", "evaluate")),
}
"""The file, title and commands of each page."""
MADE = "Made by `python -m mrt_plugin.cli.reference docs`."
KINDS = {"str": "text", "int": "number", "integer": "number", "integer range": "number", "float range": "float"}
SHARED = "Options of several commands"
TRAINING = {(f"--{item.name.replace('_', '-')}", item.metadata["help"]) for item in fields(MultiResponseOptions)}
"""The options that docs/options.md describes, with their help."""


def pages() -> dict[str, str]:
    """Return the pages by file name."""
    commands: dict[str, Any] = dict(get_command(app).commands)  # type: ignore[attr-defined]
    found = {}
    for name, (title, ones) in PAGES.items():
        found[name] = _page(name, title, {one: commands.pop(one) for one in ones})
    assert not commands, f"on no page: {', '.join(commands)}"
    return found


def _page(name: str, title: str, commands: dict[str, Any]) -> str:
    names = ", ".join(f"`mrt {one}`" for one in commands)
    lines = [f"# {title}", "", f"What {names} do, with examples and every option. {MADE}", ""]
    lines += [_contents(), ""] if name == "commands.md" else []
    times = Counter(_key(option) for command in commands.values() for option in command.params)
    shared: dict[tuple[str, str], tuple[Any, list[str]]] = {}
    for one, command in commands.items():
        lines += [f"## mrt {one}", "", str(command.help).strip().replace("\f", ""), ""]
        training, others = [], []
        for option in command.params:
            key = _key(option)
            if key in TRAINING:
                training.append(f"`{key[0]}`")
            elif times[key] > 1:
                others.append(f"`{key[0]}`")
                shared.setdefault(key, (option, []))[1].append(one)
            else:
                lines.append(_line(option))
        lines += [f"- The [options](options.md) of training with these names: {', '.join(training)}."] * bool(training)
        lines += [f"- [As in other commands](#options-of-several-commands): {', '.join(others)}."] * bool(others)
        lines.append("")
    if shared:
        lines += [f"## {SHARED}", "", *(_line(option, ones) for option, ones in shared.values()), ""]
    return "\n".join(lines)


def _contents() -> str:
    """Return a list of all commands with their first sentence, each with a link."""
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    rows = ["| command | what it does |", "| --- | --- |"]
    for file, (_, ones) in PAGES.items():
        for one in ones:
            first = str(commands[one].help).strip().partition("\n\n")[0].replace("\n", " ")
            rows.append(f"| [`mrt {one}`]({'' if file == 'commands.md' else file}#mrt-{one}) | {first} |")
    also = "`mrt --version` prints the version, `mrt --verbose COMMAND` shows what other libraries say at their start."
    return "\n".join([*rows, "", f"{also} Every command has `--help`."])


def _key(option: Any) -> tuple[str, str]:
    return str(option.opts[0]), str(option.help)


def _line(option: Any, commands: list[str] | None = None) -> str:
    """Return an option as an item of a list: names, values, default and help."""
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    choices = getattr(option.type, "choices", None)
    kind = "" if getattr(option, "is_flag", False) else KINDS.get(option.type.name, option.type.name)
    if choices is not None:
        kind = "/".join(f"`{choice}`" for choice in choices)
    kind += " ..." * bool(kind and (option.multiple if option.param_type_name == "option" else option.nargs == -1))
    shown = option.default not in (None, False, "") and not callable(option.default)
    said = [", ".join(commands or []), kind, f"default `{option.default}`" * shown, "required" * option.required]
    brackets = f" ({'; '.join(filter(None, said))})" if any(said) else ""
    return f"- **{names}**{brackets}: {option.help}"


def main(folder: str) -> None:
    """Write the pages into a folder."""
    for name, text in pages().items():
        Path(folder, name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
