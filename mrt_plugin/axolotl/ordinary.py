"""Datasets of Axolotl's own types next to grouped ones: every row becomes a group of one response.

The plugin replaces the entry's type with this one, and keeps the original in the entry's mark.
"""

import logging
from typing import Any

from axolotl.prompt_tokenizers import DatasetWrappingStrategy
from axolotl.utils.data.wrappers import get_dataset_wrapper
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.datasets import SFTDataset
from datasets import Dataset

from mrt_plugin.axolotl.checks import check_lengths
from mrt_plugin.axolotl.entries import ORDINARY, Mark
from mrt_plugin.axolotl.strategy import features_of, required_mark
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.groups import held_out
from mrt_plugin.groups.overlap import PROMPT_NAME, prompt_name
from mrt_plugin.layout.group_row import build_group_row

logger = logging.getLogger(__name__)


def load(tokenizer: Any, cfg: Any, ds_cfg: Any) -> "OrdinaryDataset":
    """Return the dataset. Axolotl calls this function."""
    return OrdinaryDataset(tokenizer, cfg, required_mark(ds_cfg, ORDINARY))


class OrdinaryDataset(DatasetWrappingStrategy):  # type: ignore[misc]
    """Lets Axolotl tokenize an entry by its own type, and makes each row a group of one."""

    def __init__(self, tokenizer: Any, cfg: Any, mark: Mark) -> None:
        self._tokenizer = tokenizer
        self._cfg = cfg
        self._mark = mark
        self._max_length, _ = check_lengths(cfg, cfg.mrt)

    def wrap_dataset(
        self, dataset: Dataset, process_count: int | None = None, keep_in_memory: bool | None = False, **kwargs: Any
    ) -> Dataset:
        """Return one group of one response per row. Drop and count rows that are too long or train nothing."""
        entry = DictDefault(SFTDataset(**(self._mark.wrapped or {})).model_dump(exclude_none=True))
        if (
            entry.type == "chat_template"
            and not (self._mark.wrapped or {}).get("chat_template")
            and self._cfg.chat_template
        ):
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
