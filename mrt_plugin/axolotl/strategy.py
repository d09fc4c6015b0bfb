"""Prepare the datasets of a recipe inside Axolotl: from the rows that Axolotl read to rows of tokens.

Datasets of Axolotl's own types stand next to grouped ones: each of their rows becomes a group of one response. The
plugin replaces the type of such an entry with `ordinary`, and keeps the original in the entry's mark.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from axolotl.prompt_tokenizers import DatasetWrappingStrategy
from axolotl.utils.data.wrappers import get_dataset_wrapper
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.datasets import SFTDataset
from datasets import Dataset, Features, List, Value

from mrt_plugin.axolotl.args import options_of, plain, redraws
from mrt_plugin.axolotl.checks import check_lengths
from mrt_plugin.axolotl.dataset_types import PREFIX
from mrt_plugin.axolotl.entries import ORDINARY, Mark
from mrt_plugin.curation import curate, parse_rules, split_held_out
from mrt_plugin.encoding import Pair, prepare_tokenizer
from mrt_plugin.groups import held_out, load_groups
from mrt_plugin.groups.overlap import PROMPT_NAME, prompt_name
from mrt_plugin.groups.write import whole_file
from mrt_plugin.layout.group_row import build_group_row
from mrt_plugin.trainer.prepare import prepare_groups
from mrt_plugin.trainer.redraw import DRAW, DRAW_FEATURE

logger = logging.getLogger(__name__)

_FEATURES = Features(
    {
        "input_ids": List(Value("int32")),
        "labels": List(Value("int64")),
        "loss_weights": List(Value("float32")),
        "prefix_length": Value("int64"),
        "segment_lengths": List(Value("int64")),
        "segment_units": List(Value("float64")),
        "attention_mask": List(Value("int8")),
        PROMPT_NAME: Value("string"),
    }
)
"""Columns of a prepared dataset. Axolotl removes `attention_mask` for some models, and fails if it is missing."""


def features_of(block: dict[str, Any]) -> Features:
    """Return the columns and types of all prepared datasets of a run. They are equal, as Axolotl concatenates them."""
    return Features({**_FEATURES, DRAW: DRAW_FEATURE}) if redraws(block) else _FEATURES


def loader(kind: str) -> Callable[..., "_MarkedDataset"]:
    """Return the `load` that Axolotl calls for `type: mrt_plugin.axolotl.<kind>`: a selector, or `ordinary`.

    It raises an ImportError if the recipe does not load the plugin, since Axolotl shows this class of error.
    """

    def load(tokenizer: Any, cfg: Any, ds_cfg: Any) -> _MarkedDataset:
        mark = Mark.of(ds_cfg)
        if mark is None:
            raise ImportError(
                f"type: {PREFIX}{kind} needs the plugin, and the recipe does not load it. Add\n"
                "plugins:\n  - mrt_plugin.axolotl.MultiResponsePlugin"
            )
        if kind == ORDINARY:
            return OrdinaryDataset(tokenizer, cfg, mark)
        return GroupedDataset(tokenizer, cfg, mark, kind, str(ds_cfg.get("path")))

    return load


class _MarkedDataset(DatasetWrappingStrategy):  # type: ignore[misc]
    """A dataset entry that the plugin has marked."""

    def __init__(self, tokenizer: Any, cfg: Any, mark: Mark) -> None:
        self._tokenizer = tokenizer
        self._cfg = cfg
        self._mark = mark
        self._max_length, self._row_length = check_lengths(cfg, cfg.mrt)


class GroupedDataset(_MarkedDataset):
    """Selects, encodes and lays out the groups of one dataset entry."""

    def __init__(self, tokenizer: Any, cfg: Any, mark: Mark, selector: str, path: str) -> None:
        super().__init__(tokenizer, cfg, mark)
        prepare_tokenizer(tokenizer)
        own = {**cfg.mrt, **mark.options}
        self._path = path
        self._rules = parse_rules(plain(own.get("curation")))
        self._options = options_of(own, selector=selector, row_length=self._row_length)

    def wrap_dataset(
        self, dataset: Dataset, process_count: int | None = None, keep_in_memory: bool | None = False, **kwargs: Any
    ) -> Dataset:
        """Return rows of tokens (`GroupRow`) of the entry's training or held-out prompts.

        Raises:
            DataError: if the rows are not groups.
            ValueError: if no prompt is left, or every pair is too long.
        """
        groups = self._part(load_groups(self._mark.file or dataset, source=self._options.source))
        if self._mark.part == "train":
            groups = self._curate(groups, process_count)
        limit = "mrt.max_length" if self._cfg.mrt.max_length else "sequence_len"
        prepared, report = prepare_groups(
            groups,
            self._tokenizer,
            self._options,
            max_length=self._max_length,
            seed=self._cfg.seed,
            expanded_form=self._options.layout == "expanded" and bool(self._cfg.sample_packing),
            split_rows=True,
            num_proc=process_count,
            chat_template_kwargs=self._cfg.chat_template_kwargs,
            description="train" if self._mark.part == "train" else "held-out",
            held_out=self._mark.part != "train",
            length_option=limit,
        )
        if report.dropped_pairs and self._cfg.excess_length_strategy == "raise":
            raise ValueError(
                f"Pairs longer than {self._max_length} tokens: {report.dropped_pairs}, and excess_length_strategy is "
                f"`raise`. Raise {limit}, or drop them with `drop`."
            )
        if report.rows > report.groups:
            logger.info(
                "Groups longer than %s tokens were split: %d groups are %d rows, and micro_batch_size counts rows.",
                self._options.row_length,
                report.groups,
                report.rows,
            )
        return with_features(prepared, features_of(self._cfg.mrt), process_count)

    def _part(self, groups: Dataset) -> Dataset:
        if not self._mark.share:
            return groups
        wanted = self._mark.part == "held_out"
        threshold = self._cfg.mrt.held_out_threshold or (0.8 if self._rules else None)
        if threshold is not None:
            train, aside, report = split_held_out(groups, self._mark.share, seed=self._cfg.seed, threshold=threshold)
            logger.info(report.summary())
            return aside if wanted else train
        chosen = [
            index
            for index, prompt in enumerate(groups["prompt"])
            if held_out(prompt, self._mark.share, self._cfg.seed) == wanted
        ]
        if not chosen:
            raise ValueError(
                f"val_set_size: {self._mark.share} leaves no prompt of {len(groups)} for the {self._mark.part} part: "
                + ("raise it." if wanted else "lower it.")
            )
        logger.info("%s: %d of %d prompts.", self._mark.part, len(chosen), len(groups))
        return groups.select(chosen)

    def _curate(self, groups: Dataset, process_count: int | None) -> Dataset:
        """Apply the curation rules, and write their ledger (what they did) to the run's folder."""
        if not self._rules:
            return groups
        curated = curate(groups, self._rules, tokenizer=self._tokenizer, seed=self._cfg.seed, num_proc=process_count)
        ledger = (
            Path(self._cfg.output_dir) / "mrt_curation" / f"{Path(self._path).stem}-{self._mark.fingerprint[:8]}.json"
        )
        with whole_file(ledger) as file:
            file.write(json.dumps({"dataset": self._path, **curated.ledger.as_dict()}, indent=2).encode())
        logger.info("Curation of %s: %s The ledger is %s.", self._path, curated.ledger.lines()[-1], ledger)
        return curated.groups


def with_features(prepared: Dataset, features: Features, num_proc: int | None) -> Dataset:
    """Return the prepared rows with the columns and types that all datasets of a run must share."""
    return prepared.map(
        _complete,
        fn_kwargs={"missing": [name for name in features if name not in (*prepared.column_names, "attention_mask")]},
        batched=True,
        batch_size=64,
        features=features,
        num_proc=num_proc,
        desc="Adding the mask column",
    )


def _complete(batch: dict[str, list[Any]], *, missing: list[str]) -> dict[str, list[Any]]:
    masks = [[1] * len(tokens) for tokens in batch["input_ids"]]
    return {"attention_mask": masks, **{name: [None] * len(masks) for name in missing}}


class OrdinaryDataset(_MarkedDataset):
    """Lets Axolotl tokenize an entry by its own type, and makes each row a group of one."""

    def wrap_dataset(
        self, dataset: Dataset, process_count: int | None = None, keep_in_memory: bool | None = False, **kwargs: Any
    ) -> Dataset:
        """Return one group of one response per row. Drop and count rows that are too long or train nothing."""
        wrapped = self._mark.wrapped or {}
        entry = DictDefault(SFTDataset(**wrapped).model_dump(exclude_none=True))
        if entry.type == "chat_template" and not wrapped.get("chat_template") and self._cfg.chat_template:
            # Axolotl does the same for entries of this type (`normalize_cfg_datasets`).
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
                fn_kwargs={"wanted": self._mark.part == "held_out", "share": self._mark.share, "seed": self._cfg.seed},
                num_proc=process_count,
                desc=f"Finding the {self._mark.part} rows",
            )
        prepared = part.map(
            _as_group,
            fn_kwargs={
                "tokenizer": self._tokenizer,
                "aggregation": self._cfg.mrt.loss_aggregation,
                "max_length": self._max_length,
                "names": list(features_of(self._cfg.mrt)),
            },
            batched=True,
            remove_columns=tokenized.column_names,
            features=features_of(self._cfg.mrt),
            num_proc=process_count,
            desc="Making groups of one",
        )
        logger.info(
            "%s (type %s), %s part: %d rows are groups of one response; %d dropped, longer than %d tokens or with "
            "nothing to train.",
            entry.path,
            entry.type,
            self._mark.part,
            len(prepared),
            len(part) - len(prepared),
            self._max_length,
        )
        return prepared


def _in_part(row: dict[str, Any], *, wanted: bool, share: float, seed: int) -> bool:
    """Return whether the row's prompt is on the wanted side."""
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
