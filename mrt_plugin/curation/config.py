"""Find curation rules by name, and read their options: `[repetition, {refusals: {action: drop}}]`."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from mrt_plugin.curation.rule import CurationRule, load_rule
from mrt_plugin.extension import is_extension, load_extension

_HERE = "mrt_plugin.curation"
RULES = {
    "format": f"{_HERE}.texts:Format",
    "truncation": f"{_HERE}.texts:Truncation",
    "token_length": f"{_HERE}.run_rules:TokenLength",
    "repetition": f"{_HERE}.texts:Repetition",
    "refusals": f"{_HERE}.texts:Refusals",
    "template": f"{_HERE}.run_rules:Template",
    "check": f"{_HERE}.run_rules:Check",
    "duplicate_responses": f"{_HERE}.duplicates:DuplicateResponses",
    "duplicate_prompts": f"{_HERE}.duplicates:DuplicatePrompts",
    "leakage": f"{_HERE}.duplicates:Leakage",
    "sample": f"{_HERE}.mix:Sample",
    "mix_categories": f"{_HERE}.categories:MixCategories",
}
"""The rules, in an order that suits most data. To add one, write its class in a file here, and add its line."""

DEFAULT = ("format", "truncation", "token_length", "repetition", "refusals", "duplicate_prompts")
"""The rules of `default`, which need no knowledge of the task: first cleaning, last the slowest."""

RuleSpec = str | dict[str, Any] | CurationRule
"""A rule as users write it: its name, `{name: options}`, or an object."""


def rule_class(name: str) -> type[CurationRule]:
    """Return the rule of the package with that name, or raise ValueError with the known names."""
    if name not in RULES:
        guess = get_close_matches(name, RULES, n=1)
        hint = f"did you mean {guess[0]}?" if guess else f"the rules are {', '.join(RULES)}."
        raise ValueError(f"there is no curation rule {name!r}: {hint}")
    found: type[CurationRule] = load_extension(RULES[name])
    return found


def parse_rules(specs: str | Sequence[RuleSpec] | None) -> list[CurationRule]:
    """Return the checked rules of a list as in `mrt.curation:`. `default` stands for the default rules."""
    if specs is None:
        return []
    if isinstance(specs, str):
        specs = [specs]
    if not isinstance(specs, Sequence):
        raise ValueError(f"curation must be a list of rules, not {specs!r}. Write one per line: `- repetition`.")
    places = [(place, spec) for place, item in enumerate(specs) for spec in (DEFAULT if item == "default" else [item])]
    return [spec if isinstance(spec, CurationRule) else _parse(spec, place) for place, spec in places]


def _parse(spec: Any, place: int) -> CurationRule:
    spec = {spec: None} if isinstance(spec, str) else spec
    if not isinstance(spec, dict) or len(spec) != 1:
        form = "the name of a rule, or one name with its options as in `- refusals: {action: drop}`"
        raise ValueError(f"curation[{place}] must be {form}, not {spec!r}.")
    name, options = next(iter(spec.items()))
    where = f"curation[{place}] ({name})"
    if options is not None and not isinstance(options, dict):
        raise ValueError(f"{where}: the options must be `name: value` pairs, not {options!r}.")
    try:
        return load_rule(name, options or {}) if is_extension(str(name)) else rule_class(str(name))(**(options or {}))
    except ValidationError as invalid:
        known = load_extension(RULES.get(name, name)).model_fields
        lines = []
        for error in invalid.errors():
            option = ".".join(map(str, error["loc"]))
            what = f"{where}: {option}={error['input']!r}: {error['msg'].removeprefix('Value error, ')}"
            if error["type"] == "extra_forbidden":
                what = f"{where} has no option {option!r}: its options are {', '.join(known) or 'none'}."
            elif error["type"] == "missing":
                what = f"{where} needs the option {option!r}: {known[option].description or ''}"
            lines.append(what)
        raise ValueError("\n".join(lines)) from None


def markdown(name: str) -> str:
    """Return the entry of a rule in `docs/curation-reference.md`."""
    kind = rule_class(name)
    lines = [f"### `{name}`", "", " ".join((kind.__doc__ or "").split()), ""]
    for option, item in kind.model_fields.items():
        default = "needed" if item.is_required() else f"`{item.get_default(call_default_factory=True)}`"
        lines.append(f"- `{option}` ({default}): {item.description}")
    return "\n".join(lines).strip()
