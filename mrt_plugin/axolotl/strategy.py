"""Prepare the datasets of a recipe inside Axolotl: from the rows that Axolotl read to rows of tokens."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from axolotl.prompt_tokenizers import DatasetWrappingStrategy
from axolotl.utils.data.wrappers import get_dataset_wrapper
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.datasets import SFTDataset
from datasets import Dataset, Features, List, Value

from mrt_plugin.axolotl.args import options_of, plain
from mrt_plugin.axolotl.checks import check_lengths
from mrt_plugin.axolotl.dataset_types import PREFIX
from mrt_plugin.axolotl.entries import ORDINARY, Mark
from mrt_plugin.axolotl.facts import write_facts
from mrt_plugin.curation import curate, parse_rules, split_held_out
from mrt_plugin.curation.ledger import Ledger
from mrt_plugin.encoding import Pair, prepare_tokenizer
from mrt_plugin.groups import held_out, load_groups
from mrt_plugin.groups.overlap import PROMPT_NAME, prompt_name
from mrt_plugin.groups.write import whole_file, write_groups
from mrt_plugin.layout.group_row import SCORES, build_group_row
from mrt_plugin.mistakes import show_mistakes_plainly
from mrt_plugin.options import ranks
from mrt_plugin.trainer.prepare import prepare_groups
from mrt_plugin.trainer.redraw import DRAW, DRAW_FEATURE, ROW_FEATURE
from mrt_plugin.trainer.run_facts import DataFacts, Step, public

logger = logging.getLogger(__name__)

_FEATURES = {
    **ROW_FEATURE,
    "labels": List(Value("int64")),
    "loss_weights": List(Value("float32")),
    "attention_mask": List(Value("int8")),
    PROMPT_NAME: Value("string"),
}
"""Columns of a prepared dataset. Axolotl removes `attention_mask` for some models, and fails if it is missing."""


def held_out_file(cfg: Any, path: str, mark: Mark) -> Path:
    """Return the file of the groups that `val_set_size` holds out. A run that reads prepared rows writes none."""
    return Path(cfg.output_dir or "model-out") / "mrt_held_out" / f"{Path(path).stem}-{mark.fingerprint[:8]}.jsonl"


def loader(kind: str) -> Callable[..., "MarkedDataset"]:
    """Return the `load` that Axolotl calls for `type: mrt_plugin.axolotl.<kind>`: a selector, or `ordinary`."""

    def load(tokenizer: Any, cfg: Any, ds_cfg: Any) -> MarkedDataset:
        mark = Mark.of(ds_cfg)
        if mark is None:
            show_mistakes_plainly()
            raise ImportError(  # Axolotl shows this class of error
                f"type: {PREFIX}{kind} needs the plugin, and the recipe does not load it. Add\n"
                "plugins:\n  - mrt_plugin.axolotl.MultiResponsePlugin"
            )
        return MarkedDataset(tokenizer, cfg, mark, kind, str(ds_cfg.get("path")))

    return load


class MarkedDataset(DatasetWrappingStrategy):  # type: ignore[misc]
    """A dataset entry that the plugin has marked. `kind` is a selector, or `ordinary` for Axolotl's own types."""

    def __init__(self, tokenizer: Any, cfg: Any, mark: Mark, kind: str, path: str) -> None:
        self._tokenizer, self._cfg, self._mark, self._kind, self._path = tokenizer, cfg, mark, kind, path
        self._held_out = mark.part == "held_out"
        self._max_length, self._row_length = check_lengths(cfg, cfg.mrt)
        # All datasets of a run have the same columns, as Axolotl concatenates them.
        redraws = any(holder.get("redraw") == "epoch" for holder in (cfg.mrt, *(cfg.mrt.get("datasets") or [])))
        optional = {DRAW: DRAW_FEATURE} if redraws else {}
        optional |= {SCORES: List(Value("float64"))} if ranks(options_of(cfg.mrt)) else {}
        self._features = Features({**_FEATURES, **optional})

    def wrap_dataset(self, dataset: Dataset, process_count: int | None = None, **kwargs: Any) -> Dataset:
        if self._kind == ORDINARY:
            return self._ordinary(dataset, process_count)
        prepare_tokenizer(self._tokenizer)
        own = {**self._cfg.mrt, **self._mark.options}
        options = options_of(own, selector=self._kind, row_length=self._row_length)
        rules = parse_rules(plain(own.get("curation")))
        groups = self._part(load_groups(self._mark.file or dataset, source=options.source), curated=bool(rules))
        steps: list[Step] = []
        if rules and self._mark.part == "train":
            groups, ledger = self._curate(groups, rules, process_count)
            steps = [Step.of(entry.as_dict()) for entry in ledger.entries]
        limit = "mrt.max_length" if self._cfg.mrt.max_length else "sequence_len"
        prepared, report = prepare_groups(
            groups,
            self._tokenizer,
            options,
            max_length=self._max_length,
            seed=self._cfg.seed,
            expanded_form=options.layout == "expanded" and bool(self._cfg.sample_packing),
            split_rows=True,
            num_proc=process_count,
            chat_template_kwargs=self._cfg.chat_template_kwargs,
            description="train" if self._mark.part == "train" else "held-out",
            held_out=self._mark.part != "train",
            length_option=limit,
        )
        if report.dropped_pairs and self._cfg.excess_length_strategy == "raise":
            raise ValueError(
                f"Pairs longer than {self._max_length} tokens: {report.dropped_pairs}. Raise {limit}, or set "
                "excess_length_strategy: drop."
            )
        if report.data is not None:
            write_facts(self._cfg, self._mark, replace(report.data, name=self._name, curation=steps))
        if report.rows > report.groups:
            split = f"Groups longer than {options.row_length} tokens were split: {report.groups} groups are"
            logger.info(f"{split} {report.rows} rows, and micro_batch_size counts rows.")
        return prepared.map(
            _complete,
            fn_kwargs={"missing": [name for name in self._features if name not in prepared.column_names]},
            batched=True,
            batch_size=64,
            features=self._features,
            num_proc=process_count,
            desc="Adding the mask column",
        )

    def _part(self, groups: Dataset, *, curated: bool) -> Dataset:
        """Return the groups of this part. Write those that are held out to the run's folder, to evaluate on."""
        if not self._mark.share:
            return groups
        found = self._split(groups, curated=curated)
        if self._held_out:
            write_groups(found, held_out_file(self._cfg, self._path, self._mark))
        return found

    def _split(self, groups: Dataset, *, curated: bool) -> Dataset:
        share, seed = self._mark.share, self._cfg.seed
        threshold = self._cfg.mrt.held_out_threshold or (0.8 if curated else None)
        if threshold is not None:
            train, aside, report = split_held_out(groups, share, seed=seed, threshold=threshold)
            logger.info(report.summary())
            return aside if self._held_out else train
        prompts = enumerate(groups["prompt"])
        chosen = [index for index, prompt in prompts if held_out(prompt, share, seed) == self._held_out]
        if not chosen:
            raise ValueError(
                f"val_set_size: {share} leaves no prompt of {len(groups)} for the {self._mark.part} part: "
                f"{'raise' if self._held_out else 'lower'} it."
            )
        logger.info("%s: %d of %d prompts.", self._mark.part, len(chosen), len(groups))
        return groups.select(chosen)

    @property
    def _name(self) -> str:
        return str(public(self._path))

    def _curate(self, groups: Dataset, rules: Any, process_count: int | None) -> tuple[Dataset, Ledger]:
        """Apply the curation rules, and write their ledger (what they did) to the run's folder."""
        curated = curate(groups, rules, tokenizer=self._tokenizer, seed=self._cfg.seed, num_proc=process_count)
        name = f"{Path(self._path).stem}-{self._mark.fingerprint[:8]}.json"
        ledger = Path(self._cfg.output_dir) / "mrt_curation" / name
        with whole_file(ledger) as file:
            file.write(json.dumps({"dataset": self._path, **curated.ledger.as_dict()}, indent=2).encode())
        logger.info("Curation of %s: %s The ledger is %s.", self._path, curated.ledger.lines()[-1], ledger)
        return curated.groups, curated.ledger

    def _ordinary(self, dataset: Dataset, process_count: int | None) -> Dataset:
        """Let Axolotl tokenize the rows, and make each a group of one response. Drop and count unusable rows."""
        objective, wrapped = options_of(self._cfg.mrt), self._mark.wrapped or {}
        if ranks(objective) and self._mark.part == "train":
            raise ValueError(
                f"mrt.objective: {objective.objective} ranks the responses of a group, and {self._path} has one "
                "response in each row. Remove the dataset, or use objective: nll."
            )
        entry = DictDefault(SFTDataset(**wrapped).model_dump(exclude_none=True))
        if entry.type == "chat_template" and not wrapped.get("chat_template") and self._cfg.chat_template:
            # as Axolotl does (`normalize_cfg_datasets`)
            entry.chat_template = self._cfg.chat_template
            entry.chat_template_jinja = self._cfg.chat_template_jinja
        base, _, style = entry.type.partition(":") if isinstance(entry.type, str) else (None, "", None)
        tokenized, _ = get_dataset_wrapper(
            dataset_config=entry,
            tokenizer=self._tokenizer,
            cfg=self._cfg,
            dataset_base_type=base,
            dataset=dataset,
            dataset_prompt_style=style or None,
        )
        part = tokenized
        if self._mark.share:
            part = tokenized.filter(
                _in_part,
                fn_kwargs={"wanted": self._held_out, "share": self._mark.share, "seed": self._cfg.seed},
                num_proc=process_count,
                desc=f"Finding the {self._mark.part} rows",
            )
        options = {"aggregation": self._cfg.mrt.loss_aggregation, "max_length": self._max_length}
        prepared = part.map(
            _as_group,
            fn_kwargs={"tokenizer": self._tokenizer, "names": list(self._features), **options},
            batched=True,
            remove_columns=tokenized.column_names,
            features=self._features,
            num_proc=process_count,
            desc="Making groups of one",
        )
        dropped = f"{len(part) - len(prepared)} dropped, over {self._max_length} tokens or with nothing to train"
        if self._mark.part == "train":
            counts: dict[str, Any] = {
                "groups": len(part),
                "responses": len(part),
                "least": 1,
                "median": 1.0,
                "most": 1,
                "k": 1,
            }
            trained: dict[str, Any] = {"trained_groups": len(prepared), "pairs": len(prepared), "curation": []}
            write_facts(self._cfg, self._mark, DataFacts(self._name, **counts, **trained))
        logger.info(
            f"{entry.path} ({entry.type}), {self._mark.part} part: {len(prepared)} groups of one response; {dropped}."
        )
        return prepared


def _complete(batch: dict[str, list[Any]], *, missing: list[str]) -> dict[str, list[Any]]:
    masks = [[1] * len(tokens) for tokens in batch["input_ids"]]
    return {**{name: [None] * len(masks) for name in missing}, "attention_mask": masks}


def _in_part(row: dict[str, Any], *, wanted: bool, share: float, seed: int) -> bool:
    prompt = _prompt_tokens(row["input_ids"], row["labels"])
    return held_out(" ".join(map(str, prompt)), share, seed) == wanted


def _prompt_tokens(tokens: list[int], labels: list[int]) -> list[int]:
    """Return the tokens before the first trained one; all tokens if it is the first, or none is trained."""
    first = next((place for place, label in enumerate(labels) if label != -100), 0)
    return tokens[:first] or tokens


def _as_group(
    batch: dict[str, list[Any]], *, tokenizer: Any, aggregation: Any, max_length: int, names: list[str]
) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for tokens, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        # The first token of a row has no context. In a packed row it would be predicted from another group.
        trained = [False, *(label != -100 for label in labels[1:])]
        if len(tokens) > max_length or not any(trained):
            continue
        row: dict[str, Any] = {
            **build_group_row([Pair(tokens, trained)], aggregation),
            "attention_mask": [1] * len(tokens),
            PROMPT_NAME: prompt_name(tokenizer.decode(_prompt_tokens(tokens, labels))),
        }
        for name in names:
            columns[name].append(row.get(name))  # a group of one draws nothing
    return columns
