"""Write the model card of a run: what the run knows about itself, in the card that TRL or Axolotl has written.

The card is `README.md` in the output folder. This package owns two sections of it, between comments, and the
metadata. Every other word is the trainer's.
"""

import json
import platform
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from mrt_plugin.groups.write import write_text
from mrt_plugin.markdown import markdown_table
from mrt_plugin.trainer.run_facts import DataFacts, RunFacts, Step, joined
from mrt_plugin.versions import libraries

FILE = "README.md"

TAGS = ("mrt", "multi-response")

_BEGIN, _END = "<!-- mrt-plugin {name} of run {run} -->", "<!-- end of mrt-plugin {name} -->"
_RUN, _EVALUATION = "training", "evaluation"

PAPERS: dict[str, tuple[str, Callable[[RunFacts], bool]]] = {
    "2606.00544": ("Escaping the Mode Lottery", lambda facts: True),
    "2403.11124": (
        "Scaling Data Diversity for Fine-Tuning Language Models in Human Alignment",
        lambda facts: facts.objective in ("pro", "plackett_luce"),
    ),
    "2306.17492": (
        "Preference Ranking Optimization for Human Alignment",
        lambda facts: facts.objective == "pro",
    ),
    "2305.18290": (
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        lambda facts: facts.objective == "plackett_luce",
    ),
    "2508.05629": (
        "On the Generalization of SFT: A Reinforcement Learning Perspective with Reward Rectification",
        lambda facts: facts.objective == "dft",
    ),
    "2408.16673": (
        "Preserving Diversity in Supervised Fine-Tuning of Large Language Models",
        lambda facts: facts.objective == "gem",
    ),
}
"""For each arXiv number, the title, and whether a run uses the paper."""


class CardError(ValueError):
    """A model card that is missing or is not of a run of this package. The message says what to do."""


@dataclass(frozen=True)
class CardRun:
    """What the card says of a run beside its `RunFacts`."""

    run: str
    """Names the run and its step, so that an evaluation of other weights is not kept."""
    base_model: str | None
    adapter: str | None
    """The kind of adapter; None if all weights were trained."""
    steps: int
    epochs: float
    processes: int
    command: str | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The arguments that differ from their defaults, for a run without a recipe."""
    license: str | None = None
    """Its name on the hub."""
    tool: str = "trl"
    """The package that trained: `trl` or `axolotl`."""


def complete_card(path: Path, facts: RunFacts, run: CardRun, evaluation: str | None = None) -> None:
    """Add to a card the metadata and the section of a run, and the evaluation section `evaluation` if there is one."""
    card = ModelCard.load(path)
    _complete_metadata(card.data, facts, run)
    text = _without_broken_links(card.text, run.base_model, path.resolve().parent.name)
    text = _with_section(text, _RUN, run.run, _run_section(facts, run), before="\n## Training procedure")
    if evaluation is not None:
        text = _with_section(text, _EVALUATION, run.run, evaluation, before=_BEGIN.format(name=_RUN, run=run.run))
    _write(path, card, text)


def kept_evaluation(path: Path, run: str) -> str | None:
    """Return the evaluation section of a card if it is of this run and step."""
    if not path.is_file():
        return None
    found = _find(ModelCard.load(path).text, _EVALUATION)
    return found.group("body").strip() if found is not None and found.group("run") == run else None


def add_to_card(folder: Path, *, evaluation: str | None = None, license: str | None = None) -> ModelCard:
    """Add an evaluation or a license to the card of a finished run, and return the card.

    Raises:
        CardError: if the folder has no card of a run of this package.
    """
    path = folder / FILE
    if not path.is_file():
        raise CardError(f"{folder} has no {FILE}: give the output folder of a run, which writes one when it saves.")
    card: ModelCard = ModelCard.load(path)
    found = _find(card.text, _RUN)
    if found is None:
        raise CardError(f"{path} is not the card of a run with mrt-plugin: give the output folder of one.")
    text, run = card.text, found.group("run")
    if license is not None:
        card.data["license"] = license
    if evaluation is not None:
        text = _with_section(text, _EVALUATION, run, evaluation, before=_BEGIN.format(name=_RUN, run=run))
    if license is not None or evaluation is not None:
        _write(path, card, text)
    return card


def has_evaluation(card: ModelCard) -> bool:
    return _find(card.text, _EVALUATION) is not None


def hub_id(name: str | None) -> str | None:
    """Return a name if it can be a repository on the hub, and is no file or folder here."""
    if name is None or Path(name).expanduser().exists() or Path(name).suffix in (".json", ".jsonl", ".parquet"):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _write(path: Path, card: ModelCard, text: str) -> None:
    card.text = text
    write_text(path, str(card))


def _complete_metadata(data: ModelCardData, facts: RunFacts, run: CardRun) -> None:
    """Set what the hub reads. A local path is no name on the hub, and the hub refuses cards with one."""
    data.base_model = hub_id(run.base_model)
    data.library_name = "peft" if run.adapter is not None else "transformers"
    data.pipeline_tag = "text-generation"
    data.tags = list(dict.fromkeys([*(data.tags or []), *TAGS]))
    named = data.datasets or []
    named = [named] if isinstance(named, str) else named
    ids = [hub_id(name) for name in [*named, *(one.name for one in facts.data)]]
    data.datasets = list(dict.fromkeys(name for name in ids if name is not None)) or None
    data.pop("licence", None)  # TRL writes the placeholder `licence: license`
    if run.license is not None:
        data.license = run.license


def _without_broken_links(text: str, base_model: str | None, name: str) -> str:
    """Name the models that TRL calls None: a base model in a folder, and a run without a name on the hub."""
    text = text.replace("[None](https://huggingface.co/None)", f"`{Path(base_model or 'a local model').name}`")
    return text.replace('model="None"', f'model="{name}"')


def _find(text: str, name: str) -> re.Match[str] | None:
    begin = re.escape(_BEGIN).replace(r"\{name\}", name).replace(r"\{run\}", r"(?P<run>[^\n]*?)")
    return re.search(f"{begin}\n(?P<body>.*?)\n{re.escape(_END.format(name=name))}\n?", text, re.DOTALL)


def _with_section(text: str, name: str, run: str, body: str, before: str) -> str:
    """Replace a section, or insert it before a text, or else at the end."""
    section = f"{_BEGIN.format(name=name, run=run)}\n{body.strip()}\n{_END.format(name=name)}\n"
    found = _find(text, name)
    if found is not None:
        return text[: found.start()] + section + text[found.end() :]
    place = text.find(before)
    if place < 0:
        return f"{text.rstrip()}\n\n{section}"
    return f"{text[:place].rstrip()}\n\n{section}\n{text[place:].lstrip()}"


def _run_section(facts: RunFacts, run: CardRun) -> str:
    lines = ["## Multi-response training", ""]
    lines.append(
        "This model was trained with [multi-response training](https://arxiv.org/abs/2606.00544): several responses "
        "per prompt, with the prompt computed once where that is exact."
        if facts.layout == "shared_prefix"
        else "This model was trained with [multi-response training](https://arxiv.org/abs/2606.00544): several "
        "responses per prompt."
    )
    lines += ["", *markdown_table((" ", " "), _rows(facts, run), numbers=False)]
    for number, data in enumerate(facts.data):
        named = f" of {data.name}" if len(facts.data) > 1 else ""
        if data.before is not None:
            lines += ["", f"### How {data.name or 'the data'} was selected", "", *_steps(data.before.steps)]
        if data.curation:
            lines += ["", f"### Curation in the run{named or (f' ({number})' if number else '')}", ""]
            lines += _steps(data.curation)
    lines += ["", "### Reproduce", "", *_reproduce(facts, run)]
    lines += ["", "### Papers", "", *_papers(facts)]
    return "\n".join(lines)


def _rows(facts: RunFacts, run: CardRun) -> Iterator[tuple[str, Any]]:
    yield "Base model", f"`{run.base_model}`" if hub_id(run.base_model) else Path(run.base_model or "not known").name
    yield "Trained", "all weights" if run.adapter is None else f"{run.adapter} adapter"
    if not facts.data:
        yield "Data", "not known to this run: its rows were prepared before"
    for data in facts.data:
        yield from _data_rows(data)
    if facts.held_out_groups is not None:
        yield "Held out", f"{facts.held_out_groups:,} prompts"
    votes = {"token": "every token", "prompt": "every prompt", "response": "every response"}
    if facts.objective in ("pro", "plackett_luce"):
        yield "Objective", f"`{facts.objective}`; every prompt has one vote"
    else:
        yield "Objective", f"`{facts.objective}`; {votes[facts.loss_aggregation]} has one vote"
    yield "Layout", f"`{facts.layout}`, backend `{facts.backend}`: {facts.layout_reason}"
    processes = "1 process" if run.processes == 1 else f"{run.processes} processes"
    yield "Length", f"{run.steps:,} optimizer steps, epoch {run.epochs:.4g}, {processes}"
    yield "Versions", _versions(run.tool)


def _data_rows(data: DataFacts) -> Iterator[tuple[str, Any]]:
    if data.name is not None:
        yield "Data", f"{data.name}" + (f", SHA-256 `{data.sha256}`" if data.sha256 else "")
    if data.kept is not None:
        before = data.before if data.selector == "all" else None
        selector, seed = (data.selector, data.seed) if before is None else (before.selector, before.seed)
        how = "" if selector is None else f", by `{selector}`, seed {seed}"
        yield "Responses kept, K of N", f"**{data.kept}** per prompt{how}"
    else:
        yield "Responses kept, K of N", "not known to this run"
    if data.options:
        yield "Selection options", ", ".join(f"`{name}={value}`" for name, value in data.options.items())
    if data.before is not None:
        pools = ", ".join(f"{name}" + (f", SHA-256 `{sha}`" if sha else "") for name, sha in data.before.pools.items())
        yield "Pool", pools
    if data.groups is not None:
        yield (
            "Groups read",
            f"{data.groups:,} prompts with {data.responses:,} responses; as JSON lines SHA-256 `{data.content}`",
        )
    if data.trained_groups is not None:
        yield "Trained on", f"{data.trained_groups:,} prompts with {data.pairs:,} responses"
        if data.dropped_pairs:
            yield "Dropped", f"{data.dropped_pairs:,} responses over the length limit, {data.dropped_groups:,} prompts"
    if data.before is None and not data.curation:
        here = (
            "not known to this run" if data.curation is None else "none in the run; before it, not known to this run"
        )
        yield "Curation", here


def _steps(steps: list[Step]) -> list[str]:
    columns = ("step", "prompts in", "responses in", "prompts out", "responses out")
    rows = [
        (step.rule, f"{step.groups_in:,}", f"{step.responses_in:,}", f"{step.groups_out:,}", f"{step.responses_out:,}")
        for step in steps
    ]
    return markdown_table(columns, rows)


def _versions(tool: str) -> str:
    wanted = ("torch", "transformers", tool, "peft", "accelerate", "datasets", "bitsandbytes")
    found = {library.name: library.found for library in libraries() if library.found is not None}
    named = [f"{name} {found[name]}" for name in wanted if name in found]
    return ", ".join([f"mrt-plugin {metadata.version('mrt-plugin')}", *named, f"Python {platform.python_version()}"])


def _reproduce(facts: RunFacts, run: CardRun) -> list[str]:
    before = {data.name: data.before for data in facts.data if data.before is not None}
    commands = [
        shlex.join(["mrt", "select", *made.pools, "--from-manifest", made.manifest, "--output", str(name)])
        for name, made in before.items()
    ]
    if run.command is not None:
        commands.append(run.command)
    lines = ["```bash", *commands, "```"] if commands else []
    if run.settings:
        settings = [f"    {name}={value!r}," for name, value in run.settings.items()]
        lines += ["", "The settings that differ from the defaults:", "", "```python", "MultiResponseSFTConfig("]
        lines += [*settings, ")", "```"]
    if joined(data.before for data in facts.data) is not None:
        lines += ["", "`mrt select` writes the same bytes, or says that the pool has changed."]
    return lines


def _papers(facts: RunFacts) -> list[str]:
    return [
        f"- {title}, [arXiv {number}](https://arxiv.org/abs/{number})"
        for number, (title, used) in PAPERS.items()
        if used(facts)
    ]


def simple(value: Any) -> bool:
    """Return whether a value is read back as it is printed: numbers, texts, and lists and dictionaries of them."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False
