"""Describe a language model that judges: its endpoint, its questions, and how its answers are read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from mrt_plugin.endpoint.jobs import EndpointOptions, SamplingSettings
from mrt_plugin.endpoint.masking import mask_typed
from mrt_plugin.groups.keys import digest
from mrt_plugin.groups.messages import message_text, response_text
from mrt_plugin.options import names_of

PREFIX = "judge:"
FORM = "judge:MODEL@http://HOST:PORT/v1, or judge:FILE.yaml with `url`, `model` and more"

Verdict = Literal["A", "B", "tie"]

_ADDRESS = re.compile(r"(?P<model>.+)@(?P<url>https?://.+)")
_THOUGHT = re.compile(r"^.*</think>", re.DOTALL | re.IGNORECASE)
_SCORE = r"\W*?(-?\d+(?:\.\d+)?)(?:\s*/\s*\d+)?\W*"
_VERDICT = r"\W*(a|b|tie)\W*"


def is_judge(scorer: Any) -> bool:
    """Return whether a scorer's name is that of a judge. `judge:name` is the function `name` of a module `judge`."""
    return isinstance(scorer, str) and scorer.startswith(PREFIX) and not scorer.removeprefix(PREFIX).isidentifier()


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A language model behind an OpenAI-compatible endpoint that scores responses, or compares two of them.

    Args:
        url: the endpoint's address up to `/v1`.
        model: the endpoint's name for the model.
        prompt: a text file with the question for one response. It has `{prompt}` and `{response}`, and may have
            `{lowest}` and `{highest}`. It asks for a last line `Score: N`.
        pair_prompt: a text file with the question for two responses. It has `{prompt}`, `{response_a}` and
            `{response_b}`. It asks for a last line `Verdict: A`, `Verdict: B` or `Verdict: tie`.
        lowest, highest: the scale. A score outside is unreadable.
        temperature, max_tokens, seed: of the answers.
        attempts: how often an unreadable answer is asked for again, with another seed, the first time included.
        max_unreadable: the largest share of unreadable answers that is accepted.
        max_calls: the most requests of one run, retries included. A run that needs more is refused before it starts.
        endpoint: how requests are made.
        name: what the judge is called in results.

    Raises:
        ValueError: for a value out of bounds, or a question without its placeholders.

    Example:

    ```python
    from mrt_plugin.scoring import Judge

    judge = Judge(url="http://localhost:8000/v1", model="large", max_calls=5000)
    ```
    """

    url: str = field(repr=False)
    model: str
    prompt: Path | None = None
    pair_prompt: Path | None = None
    lowest: float = 1
    highest: float = 10
    temperature: float = 0.0
    max_tokens: int | None = 1024
    seed: int = 0
    attempts: int = 2
    max_unreadable: float = 0.1
    max_calls: int | None = None
    endpoint: EndpointOptions = field(default_factory=EndpointOptions)
    name: str = ""

    def __post_init__(self) -> None:
        if not self.lowest < self.highest:
            raise ValueError(f"The judge's scale from {self.lowest:g} to {self.highest:g} is empty.")
        for name, least in (("attempts", 1), ("max_calls", 1), ("max_unreadable", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"The judge's {name}={value!r} must be at least {least}.")
        if not self.name:
            object.__setattr__(self, "name", f"{PREFIX}{self.model}@{mask_typed(self.url)}")
        _ = self.settings, self.score_question, self.pair_question  # checked here, not in the middle of a run

    @property
    def settings(self) -> SamplingSettings:
        return SamplingSettings(temperature=self.temperature, max_tokens=self.max_tokens, seed=self.seed)

    @property
    def score_question(self) -> str:
        return _question(self.prompt, "judge_score.txt", ("{prompt}", "{response}"))

    @property
    def pair_question(self) -> str:
        return _question(self.pair_prompt, "judge_pair.txt", ("{prompt}", "{response_a}", "{response_b}"))

    def ask_score(self, prompt: Any, response: Any) -> str:
        """Return the question for one response."""
        shown = {"prompt": conversation_text(prompt), "response": _shown(response)}
        return _fill(self.score_question, shown | {"lowest": f"{self.lowest:g}", "highest": f"{self.highest:g}"})

    def ask_pair(self, prompt: Any, first: Any, second: Any) -> str:
        """Return the question for two responses in this order."""
        shown = {"prompt": conversation_text(prompt), "response_a": _shown(first), "response_b": _shown(second)}
        return _fill(self.pair_question, shown)

    def read_score(self, answer: str) -> float | None:
        """Return the score on the last line that gives one; None for an answer without one, or outside the scale."""
        found = _last_line("score", _SCORE, answer)
        return float(found) if found is not None and self.lowest <= float(found) <= self.highest else None

    def read_verdict(self, answer: str) -> Verdict | None:
        found = _last_line("verdict", _VERDICT, answer)
        return None if found is None else "tie" if found.lower() == "tie" else "A" if found.lower() == "a" else "B"

    @property
    def files(self) -> list[Path]:
        """The files of the user's own questions."""
        return [path for path in (self.prompt, self.pair_prompt) if path is not None]


def parse_judge(spec: str, **changes: Any) -> Judge:
    """Return the judge of a name: `judge:MODEL@URL` or `judge:FILE.yaml`, also without `judge:`.

    The file has the arguments of `Judge`, and the `EndpointOptions` (`api_key_env`, `concurrency`, ...). Paths in it
    are relative to the file. `changes` are arguments that are not None and replace those.

    Raises:
        ValueError: for another form, a missing file, or an unknown key.

    Example:

    >>> parse_judge("judge:large@http://localhost:8000/v1").model
    'large'
    """
    text = spec.removeprefix(PREFIX)
    given: dict[str, Any] = {}
    if address := _ADDRESS.fullmatch(text):
        given = address.groupdict()
    elif text.endswith((".yaml", ".yml")):
        given = _read_file(Path(text).expanduser())
    else:
        raise ValueError(f"{mask_typed(spec)!r} names no judge: write {FORM}.")
    asking = {name: given.pop(name) for name in _ENDPOINT if name in given}
    given |= {name: value for name, value in changes.items() if value is not None}
    try:
        named: dict[str, Any] = {} if address else {"name": PREFIX + text}
        return Judge(**named, **given, endpoint=EndpointOptions(**asking))
    except TypeError as problem:
        raise ValueError(f"{mask_typed(spec)}: {problem}") from None


_ENDPOINT = [name for name in names_of(EndpointOptions) if name != "max_requests"]  # that is `max_calls`


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"there is no file {path}, which should describe the judge.")
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as problem:
        raise ValueError(f"{path} is not YAML: {problem}") from None
    known = [*(item.name for item in fields(Judge) if item.name not in ("endpoint", "name")), *_ENDPOINT]
    if not isinstance(given, dict):
        raise ValueError(f"{path}: write `url`, `model` and other settings of the judge, one per line.")
    for name in given:
        if name not in known:
            guess = get_close_matches(str(name), known, n=1)
            hint = f"did you mean {guess[0]}?" if guess else f"the keys are {', '.join(sorted(set(known)))}."
            raise ValueError(f"{path}: {name!r} is no setting of a judge: {hint}")
    for name in ("url", "model"):
        if not given.get(name):
            raise ValueError(f"{path}: the judge's `{name}` is missing.")
    for name in ("prompt", "pair_prompt"):
        if given.get(name):
            given[name] = path.parent / str(given[name])
    return given


def judge_files(scorer: Any) -> list[Path]:
    """Return the files of a judge, or of its name: the file that describes it, and its questions. Else none."""
    if isinstance(scorer, Judge):
        return scorer.files
    if not is_judge(scorer):
        return []
    text = str(scorer).removeprefix(PREFIX)
    own = [Path(text).expanduser()] if text.endswith((".yaml", ".yml")) else []
    return [*own, *parse_judge(scorer).files]


def journal_file(judge: Judge, folder: Path) -> Path:
    """Return the file that keeps a judge's answers: one per model and settings."""
    endpoint, settings = judge.endpoint, judge.settings.as_dict()
    told = repr([endpoint.api, judge.model, sorted(endpoint.extra.items()), sorted(settings.items())])
    return folder / f"judge-{digest(told.encode()).hex()}.journal"


def conversation_text(prompt: Any) -> str:
    """Return a prompt as a judge reads it: the text of one user turn, else every turn after the name of its role."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return message_text(prompt[0])
    return "\n\n".join(f"[{message['role']}]\n{message_text(message)}" for message in prompt)


def _shown(response: Any) -> str:
    return response_text(response) or "(an empty response)"


def _question(path: Path | None, default: str, needed: tuple[str, ...]) -> str:
    if path is None:
        return files("mrt_plugin.scoring").joinpath(default).read_text(encoding="utf-8")
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}, which should hold the judge's question.")
    text = Path(path).read_text(encoding="utf-8")
    missing = [name for name in needed if name not in text]
    if missing:
        raise ValueError(f"{path}: the judge's question lacks {' and '.join(missing)}, where the texts belong.")
    return text


def _fill(question: str, values: Mapping[str, str]) -> str:
    """Replace the placeholders in one pass. Braces inside the inserted texts stay as they are."""
    return re.sub("|".join(rf"\{{{name}\}}" for name in values), lambda found: values[found[0][1:-1]], question)


def _last_line(name: str, value: str, answer: str) -> str | None:
    """Return the value on the last line of the form `name: value`, or the whole answer if it is only a value.

    A thinking model's thoughts are not read.
    """
    text = _THOUGHT.sub("", answer).strip()
    found = re.findall(rf"^\W*{name}\b{value}$", text, re.IGNORECASE | re.MULTILINE)
    alone = re.fullmatch(value, text, re.IGNORECASE)
    return str(found[-1]) if found else alone[1] if alone is not None else None
