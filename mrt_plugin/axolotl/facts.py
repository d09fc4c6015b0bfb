"""Keep what is known of a dataset beside Axolotl's prepared data: a run that finds that data reads no pool."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from axolotl.common.const import DEFAULT_DATASET_PREPARED_PATH
from pydantic import TypeAdapter

from mrt_plugin.axolotl.entries import Mark
from mrt_plugin.groups.write import write_text
from mrt_plugin.options import MultiResponseOptions
from mrt_plugin.trainer.run_facts import DataFacts, LoggedArguments, public

_FACTS = TypeAdapter(DataFacts)


def write_facts(cfg: Any, mark: Mark, facts: DataFacts) -> None:
    write_text(_place(cfg, mark), _FACTS.dump_json(facts, indent=2).decode())


def read_facts(cfg: Any) -> list[DataFacts]:
    """Return what is known of each training dataset of a recipe; of one prepared elsewhere, its name alone."""
    found = []
    for entry in cfg.datasets:
        mark = Mark.of(entry)
        if mark is not None and _place(cfg, mark).is_file():
            found.append(_FACTS.validate_json(_place(cfg, mark).read_bytes()))
        else:
            found.append(DataFacts(name=public(str(entry["path"]))))
    return found


def _place(cfg: Any, mark: Mark) -> Path:
    name = hashlib.blake2b(json.dumps(asdict(mark), sort_keys=True).encode(), digest_size=16).hexdigest()
    return Path(cfg.dataset_prepared_path or DEFAULT_DATASET_PREPARED_PATH) / "mrt_facts" / f"{name}.json"


@dataclass
class MultiResponseTrainingArguments(LoggedArguments, MultiResponseOptions):
    """What the plugin adds to Axolotl's training arguments."""

    def to_dict(self) -> dict[str, Any]:
        arguments = super().to_dict()
        # In a recipe each dataset names its selector, and the option has only its default.
        return arguments | {"selector": arguments.get("mrt/selector")}
