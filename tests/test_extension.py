"""A user's own code, loaded by the file that it is in."""

from pathlib import Path

import pytest
from datasets import Dataset

from mrt_plugin.curation.config import parse_rules
from mrt_plugin.curation.run import curate

CODE = """
from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from mrt_plugin.curation import Decision, GroupRule

@dataclass(frozen=True)
class Length:
    words: int

class Short(GroupRule):
    words: Optional[int] = 1

    def judge(self, group, tools):
        for place, text in enumerate(group.texts):
            if Length(len(text.split())).words < self.words:
                yield Decision("drop", "short", place)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "dataclasses.py"  # also a module that the file imports
    path.write_text(CODE)
    return path


@pytest.mark.parametrize("num_proc", [None, pytest.param(2, marks=pytest.mark.processes)])
def test_postponed_annotations(file: Path, num_proc: int | None) -> None:
    """Dataclasses and pydantic look these up in the module, which other processes cannot import by its name."""
    rows = [{"id": str(n), "prompt": "p", "responses": ["one", "two words", "three more words"]} for n in range(4)]
    curated = curate(Dataset.from_list(rows), [{f"{file}:Short": {"words": 2}}], num_proc=num_proc)
    assert curated.groups["responses"][0] == ["two words", "three more words"]
    with pytest.raises(ValueError, match="words='many'"):
        parse_rules([{f"{file}:Short": {"words": "many"}}])
