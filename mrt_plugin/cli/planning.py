"""`mrt plan`, `mrt audit` and `mrt augment`: decide what to train on."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mrt_plugin
from mrt_plugin.cli.option import argument, command, flag, switch, training
from mrt_plugin.cli.progress import Report, loading, stages
from mrt_plugin.cli.show import finish, json_ready, say, table
from mrt_plugin.models.named_model import parse_models
from mrt_plugin.options import LossAggregation, PaidLayout, PromptFormat, Similarity

if TYPE_CHECKING:
    from mrt_plugin.planning.audit import Audit, SelectorCall
    from mrt_plugin.planning.budget import Costs
    from mrt_plugin.planning.plan import Plan


@dataclass(kw_only=True)
class MeasureOptions:
    model: str | None = flag(None, "The model to fine-tune, which measures loss and variance.", "model")
    adapter: str | None = flag(None, "Folder of an adapter to put on the model.", "adapter")
    tokenizer: str | None = flag(None, "Folder or name; the model's by default.", "tokenizer")
    loss_aggregation: LossAggregation = flag("token", "Of your training loss: token, prompt or response.")
    prompt_format: PromptFormat = flag("auto", "auto, chat or plain.")
    max_length: int | None = flag(None, "Tokens of a prompt with one response.", min=2)
    max_prompts: int = flag(500, "Prompts that the model is measured on.", min=2)
    load_in_4bit: bool = switch("As QLoRA loads it.")
    embedder: str = flag("lexical", "lexical, sentence-transformers, or a model's name or path.", "embedder")
    seed: int = flag(0, "Of the prompts drawn and of the bootstrap.", min=0)

    def _named(self) -> Any:
        return None if self.model is None else parse_models([self.model], adapter=self.adapter)[0]

    def folders(self) -> list[str | None]:
        named = self._named()
        return [self.tokenizer, self.embedder, *((named.path, named.adapter) if named else ())]

    def measuring(self, progress: Report) -> dict[str, Any]:
        """Open the model, and return what `make_plan` and `make_audit` take by the same names."""
        names = ("loss_aggregation", "max_length", "max_prompts", "embedder", "seed")
        found = {name: vars(self)[name] for name in names}
        if self.model is not None:
            progress(f"opening {self.model}")
            from mrt_plugin.models.load import open_model

            how = {name: vars(self)[name] for name in ("tokenizer", "prompt_format", "load_in_4bit")}
            found["model"], found["encoder"] = open_model(self._named(), **how)
        return found


@dataclass(kw_only=True)
class CostOptions:
    layout: PaidLayout = flag("shared_prefix", "The layout you will train in: shared_prefix or expanded.")
    cost_prompt: float | None = flag(None, "C_p as you measured it, in any unit; with C_r.", gt=0)
    cost_response: float | None = flag(None, "C_r, likewise.", gt=0)

    def costs(self) -> "Costs | None":
        from mrt_plugin.planning.budget import Costs

        if (self.cost_prompt is None) != (self.cost_response is None):
            raise ValueError("Give --cost-prompt and --cost-response together.")
        if self.cost_prompt is None or self.cost_response is None:
            return None
        return Costs(self.cost_prompt, self.cost_response, self.layout)


@dataclass(kw_only=True)
class PlanOptions(CostOptions, MeasureOptions):
    data: str = argument(..., "The pools: a JSONL, JSON or Parquet file, or a hub id.", "data")
    budget: str = flag("1x", "Cost of an epoch: tokens, or in ordinary epochs, such as 4x.", "budget")
    ngram: int = flag(2, "Tokens of an n-gram in the prompt diversity.", min=1)
    p: float = flag(0.5, "Exponent of the prompt diversity.", ge=0)
    report: Path | None = flag(None, "Write the plan as one HTML file, to open offline.", "report")
    json: bool = switch("Print the plan as JSON.")


@command(PlanOptions)
def plan(given: PlanOptions) -> None:
    """Compute how many responses per prompt to keep, for your data, your model and your budget.

    Measures where the variance of the loss comes from: the prompts you have, or the responses to each.

    Example: `mrt plan pool.jsonl --model path/or/name --budget 2x --report plan.html`
    """
    with loading():
        from mrt_plugin.groups.paths import check_paths
        from mrt_plugin.planning.plan_report import plan_report

    options: dict[str, Any] = {"costs": given.costs(), "order": given.ngram}
    options |= {name: vars(given)[name] for name in ("budget", "layout", "p", "data")}
    check_paths([("--report", given.report)], [("the data", given.data)], given.folders())
    with stages() as progress:
        progress(f"reading {given.data}")
        groups = mrt_plugin.load_groups(given.data)
        options |= given.measuring(progress)
        found = mrt_plugin.make_plan(groups, progress=progress, **options)
    finish(given, found, plan_json, _show_plan, plan_report)


def plan_json(found: "Plan") -> dict[str, Any]:
    """Return a plan as `mrt plan --json` prints it."""
    from mrt_plugin.planning.plan_report import advise, cannot_know, yaml_block

    result: dict[str, Any] = json_ready(found)
    effective = found.diversity.effective_k
    result["diversity"]["effective_k"] = [{"k": k, "k_eff": k_eff} for k, k_eff in effective.items()]
    if result["model"] is not None:
        del result["model"]["costs"]["layout"]  # it stands beside the costs
    return result | {"advice": advise(found), "cannot_know": cannot_know(found), "yaml": yaml_block(found)}


def _show_plan(found: "Plan") -> None:
    from mrt_plugin.planning import plan_report as tell

    say(*tell.advise(found), "")
    model = found.model
    if model is not None:
        table(tell.variance_columns(model), tell.variance_rows(model))
        say(tell.SYMBOLS, "")
        rows = [(f"{k} *" if int(k) == model.best.k else k, *rest) for k, *rest in tell.choice_rows(model)]
        table(tell.CHOICE_COLUMNS, rows, title=f"What {model.budget:,.0f} {model.cost_unit} an epoch buy (* best)")
        table(tell.OUTLOOK_COLUMNS, tell.outlook_rows(model), title="The best K by budget")
        if model.documents is not None:
            table(("documents", "estimate", f"{model.level:.0%} interval"), tell.document_rows(model))
            title = "What the same budget buys if a document is computed once (group_by_prefix)"
            table(tell.DOCUMENT_COLUMNS, tell.document_choices(model), title=title)
    table(("the data", ""), tell.data_rows(found))
    say("\nWhat this cannot know:", *(f"- {line}" for line in tell.cannot_know(found)))
    if model is not None:
        say("\nFor your recipe:\n", (tell.yaml_block(found) or "").rstrip())
    say("", str(tell.next_step(found)))


@dataclass(kw_only=True)
class AuditOptions(MeasureOptions):
    selection: str = argument(..., "The selected groups: JSONL, JSON or Parquet.", "data")
    pool: str = flag(..., "The groups they were selected from.", "data")
    selector: str | None = flag(None, "How the selection was made, if no manifest lies beside it.")
    alpha: float = training("alpha")
    similarity: Similarity = training("similarity")
    max_prompts: int = flag(200, "Prompts whose losses are measured.", min=2)
    gradient_prompts: int = flag(50, "Prompts whose gradients are; 0 for none.", min=0)
    splits: int = flag(20, "Halvings of each pool.", min=2)
    report: Path | None = flag(None, "Write the audit as one HTML file, to open offline.", "report")
    json: bool = switch("Print the audit as JSON.")


@command(AuditOptions)
def audit(given: AuditOptions) -> None:
    """Compare a selection with the pool it came from, and with random_k at the same K.

    Without a model, compare lengths and clusters. With one, compare loss and gradient too, and warn if the selection
    points away from its pool.

    Example: `mrt audit chosen.jsonl --pool pool.jsonl --model path/or/name --report audit.html`
    """
    with loading():
        from mrt_plugin.groups.manifest import manifest_path
        from mrt_plugin.groups.paths import check_paths
        from mrt_plugin.planning.audit import make_audit
        from mrt_plugin.planning.audit_report import audit_report, next_step

    selection, manifest = given.selection, manifest_path(given.selection)
    inputs: list[tuple[str, Any]] = [("the selection", selection), ("its manifest", manifest), ("--pool", given.pool)]
    check_paths([("--report", given.report)], inputs, given.folders())
    options: dict[str, Any] = {"rule": _selector_call(given, manifest), "name": selection, "pool_name": given.pool}
    options |= {"gradient_prompts": given.gradient_prompts, "splits": given.splits}
    with stages() as progress:
        progress("reading the groups")
        pool, chosen = mrt_plugin.load_groups(given.pool), mrt_plugin.load_groups(selection)
        options |= given.measuring(progress)
        found = make_audit(chosen, pool, progress=progress, **options)
    finish(given, found, audit_json, _show_audit, audit_report)
    if not given.json:
        say(str(next_step(found)))


def _selector_call(given: AuditOptions, manifest: Path) -> "SelectorCall | None":
    """Return how the selection was made, from the options or from its manifest."""
    from mrt_plugin.groups.manifest import read_manifest
    from mrt_plugin.planning.audit import SelectorCall
    from mrt_plugin.selection import get_selector

    if given.selector is not None:
        get_selector(given.selector)
        return SelectorCall(given.selector, {"alpha": given.alpha, "similarity": given.similarity})
    if not manifest.is_file():
        return None
    made = read_manifest(manifest)[0]["selection"]
    return SelectorCall(made["selector"], {name: made[name] for name in ("alpha", "similarity", "embedder")})


def audit_json(found: "Audit") -> dict[str, Any]:
    """Return an audit as `mrt audit --json` prints it."""
    from mrt_plugin.planning.audit_report import notes, warnings

    result: dict[str, Any] = json_ready(found)
    del result["with_model"]
    if found.splits is not None and found.splits.selection.cosine is None:
        del result["splits"]["cosine_difference_interval"]
    return result | {"warnings": warnings(found), "notes": notes(found)}


def _show_audit(found: "Audit") -> None:
    from mrt_plugin.planning import audit_report as tell

    first, *rest = tell.headline(found)
    say(first, "")
    table(tell.COLUMNS, tell.audit_rows(found))
    if found.splits is not None:
        table(("on halves of the pools", found.splits.selector, "random_k"), tell.split_rows(found.splits))
    say("", *rest, *tell.notes(found))
