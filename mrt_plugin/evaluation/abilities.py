"""Name the abilities that fine-tuning may harm, each with a task of the lm-evaluation-harness that checks it."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

PRESET = "abilities"
"""The name for all abilities together."""


@dataclass(frozen=True)
class Ability:
    """A task, the packages that it needs beside the harness with their extra, and whether it runs a model's code."""

    task: str
    packages: tuple[str, ...] = ()
    extra: str = ""
    runs_code: bool = False


ABILITIES = {
    "instructions": Ability("ifeval", ("langdetect", "immutabledict", "nltk"), "lm_eval[ifeval]"),
    "reasoning": Ability("gsm8k"),
    "knowledge": Ability("mmlu"),
    "code": Ability("humaneval", ("evaluate",), "evaluate", runs_code=True),
}
"""The preset, by ability. docs/evaluation-reference.md says what each downloads."""


def ability_of(task: str) -> str | None:
    return next((name for name, ability in ABILITIES.items() if ability.task == task), None)


def expand_abilities(names: Sequence[str], *, run_code: bool = False) -> list[str]:
    """Return tasks for names of tasks, of abilities, or of the preset. Each task is named once.

    Raises:
        ImportError: if a package that an ability needs is missing.
        ValueError: if an ability runs the model's code, and that is not allowed.

    >>> expand_abilities(["reasoning", "arc_easy"])
    ['gsm8k', 'arc_easy']
    """
    every = [one for name in names for one in (ABILITIES if name == PRESET else [name])]
    for name in every:
        ability = ABILITIES.get(name)
        if ability is None:
            continue
        if ability.runs_code and not run_code:
            others = ",".join(one for one, known in ABILITIES.items() if not known.runs_code)
            what = f"The ability {name} is measured by running code that the model writes ({ability.task})"
            raise ValueError(
                f"{what}: allow it in a sandbox (--lm-eval-run-code), or leave it out: --lm-eval {others}."
            )
        missing = [package for package in ability.packages if find_spec(package) is None]
        if missing:
            raise ImportError(f'The ability {name} needs {", ".join(missing)}: pip install "{ability.extra}".')
    return list(dict.fromkeys(ABILITIES[name].task if name in ABILITIES else name for name in every))
