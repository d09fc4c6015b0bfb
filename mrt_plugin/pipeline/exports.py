"""Export selected groups for other trainers: flat rows for SFT, pairs for DPO."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrt_plugin.groups.write import whole_file


@dataclass(frozen=True)
class Exported:
    """An exported file. `skipped` groups give no pair: one response, or all scores equal."""

    kind: str
    path: Path
    rows: int
    skipped: int


def export(rows: Iterable[dict[str, Any]], kind: str, path: str | Path) -> Exported:
    """Write JSON lines: `sft` one per response; `dpo` one per group, with its best and its worst response."""
    path = Path(path)
    check_export(kind, path)
    written = skipped = 0
    with whole_file(path) as file:
        for row in rows:
            lines = list(_flat(row) if kind == "sft" else _pair(row))
            skipped += not lines
            written += len(lines)
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    return Exported(kind, path, written, skipped)


def check_export(kind: str, path: Path) -> None:
    if kind not in ("sft", "dpo"):
        raise ValueError(f"there is no export {kind!r}: choose one of sft, dpo.")
    if path.suffix != ".jsonl":
        raise ValueError(f"{path}: exports are JSON lines; write to a .jsonl file.")


def check_scores(columns: Mapping[str, Any]) -> None:
    if columns.get("scores") is None:
        raise ValueError("pairs for DPO need scores, and the groups have none: leave the export out, or score them.")


def _flat(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    weights = row.get("weights") or [None] * len(row["responses"])
    for response, weight in zip(row["responses"], weights, strict=True):
        line = dict(zip(("prompt", "completion"), _same_form(row["prompt"], response), strict=True))
        yield line if weight is None else {**line, "weight": weight}


def _pair(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the first of the responses with the highest score, and of those with the lowest, if they differ."""
    check_scores(row)
    scores, found = row["scores"], {"score_chosen": max(row["scores"]), "score_rejected": min(row["scores"])}
    if found["score_chosen"] > found["score_rejected"]:
        best, worst = (row["responses"][scores.index(score)] for score in found.values())
        prompt, chosen = _same_form(row["prompt"], best)
        yield {"prompt": prompt, "chosen": chosen, "rejected": _same_form(row["prompt"], worst)[1], **found}


def _same_form(prompt: Any, response: Any) -> tuple[Any, Any]:
    """Convert both to strings or both to messages, since other trainers do not accept one of each."""
    if isinstance(prompt, str) == isinstance(response, str):
        return prompt, response
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}], response
    return prompt, [{"role": "assistant", "content": response}]
