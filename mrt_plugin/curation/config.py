"""Rules by name, and from YAML: `[repetition, {refusals: {action: drop}}]`."""

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from mrt_plugin.curation.rule import Rule

RULES = {
    "format": "Format",
    "truncation": "Truncation",
    "token_length": "TokenLength",
    "repetition": "Repetition",
    "refusals": "Refusals",
    "template": "Template",
    "check": "Check",
    "duplicate_responses": "DuplicateResponses",
    "duplicate_prompts": "DuplicatePrompts",
    "leakage": "Leakage",
    "sample": "Sample",
}
"""The rules in the order that makes sense for most data. To add one, write `mrt_plugin/curation/<name>.py` with a
`Rule` of that name, and add its line here."""

DEFAULT = ("format", "truncation", "token_length", "repetition", "refusals", "duplicate_prompts")
"""What `default` stands for: the rules that need no knowledge of the task. Cleaning comes first, since the others look
at what is left; comparing prompts comes last, since it costs most."""

RuleSpec = str | dict[str, Any] | Rule
"""A rule as people write it: its name, `{name: options}`, or an object."""


def rule_class(name: str) -> type[Rule]:
    """The rule of that name.

    Raises:
        ValueError: listing the names there are.
    """
    if name not in RULES:
        guess = get_close_matches(name, RULES, n=1)
        hint = f"did you mean {guess[0]}?" if guess else f"the rules are {', '.join(RULES)}."
        raise ValueError(f"there is no curation rule {name!r}: {hint}")
    found: type[Rule] = getattr(import_module(f"mrt_plugin.curation.{name}"), RULES[name])
    return found


def parse_rules(specs: str | Sequence[RuleSpec] | None) -> list[Rule]:
    """The rules that a list names, with their options checked.

    Args:
        specs: a list as in a recipe's `mrt.curation:`; an item is a rule's name, or `{name: options}`, or a rule.
            `default`, alone or as an item, stands for the default rules; None for none.

    Raises:
        ValueError: naming the rule, the option, what was found and what is allowed.

    Example:

    >>> [rule.name for rule in parse_rules(["format", {"token_length": {"response_max": 512}}])]
    ['format', 'token_length']
    """
    if specs is None:
        return []
    if isinstance(specs, str):
        specs = [specs]
    if not isinstance(specs, Sequence):
        raise ValueError(f"curation must be a list of rules, not {specs!r}. Write one per line: `- repetition`.")
    rules: list[Rule] = []
    for place, spec in enumerate(specs):
        if spec == "default":
            rules += [rule_class(name)() for name in DEFAULT]
        else:
            rules.append(_parse(spec, place))
    return rules


def _parse(spec: Any, place: int) -> Rule:
    if isinstance(spec, Rule):
        return spec
    if isinstance(spec, str):
        spec = {spec: None}
    if not isinstance(spec, dict) or len(spec) != 1:
        raise ValueError(
            f"curation[{place}] must be the name of a rule, or one name with its options as in "
            f"`- refusals: {{action: drop}}`, not {spec!r}."
        )
    name, options = next(iter(spec.items()))
    kind = rule_class(str(name))
    if options is not None and not isinstance(options, dict):
        raise ValueError(f"curation[{place}] ({name}): the options must be `name: value` pairs, not {options!r}.")
    try:
        return kind(**(options or {}))
    except ValidationError as error:
        raise ValueError("\n".join(_readable(place, str(name), kind, item) for item in error.errors())) from None


def _readable(place: int, name: str, kind: type[Rule], error: Any) -> str:
    option = ".".join(str(part) for part in error["loc"])
    where = f"curation[{place}] ({name})"
    if error["type"] == "extra_forbidden":
        known = ", ".join(kind.model_fields) or "none"
        return f"{where} has no option {option!r}: its options are {known}."
    if error["type"] == "missing":
        return f"{where} needs the option {option!r}: {kind.model_fields[option].description}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {option}={error['input']!r}: {message}"


def markdown() -> str:
    """The reference of all rules, for `docs/curation.md`."""
    lines = []
    for name in RULES:
        kind = rule_class(name)
        lines += [f"### `{name}`", "", " ".join((kind.__doc__ or "").split()), ""]
        if kind.model_fields:
            lines += ["| option | default | what it does |", "| --- | --- | --- |"]
            for option, field in kind.model_fields.items():
                default = "needed" if field.is_required() else f"`{_shown(field)}`"
                lines.append(f"| `{option}` | {default} | {field.description} |")
            lines.append("")
    return "\n".join(lines)


def _shown(field: Any) -> Any:
    return field.get_default(call_default_factory=True)
