"""What other libraries say at their start reaches no terminal: real processes, without --verbose."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.slow]

OURS = re.compile(
    r"(INFO|WARNING): .+"  # the package's own messages
    r"|.+ \.\.\. \d.*|.+: done in \d.*|.+: [\d,]+ of [\d,]+ \(.+"  # progress
    r"|.+: +\d+%\|.*"  # a library's bar, as a line
)


def test_no_command_shows_what_libraries_say(tmp_path: Path, tiny_model_dir: str) -> None:
    pytest.importorskip("bitsandbytes")
    letters = "bcdfghjklmnpqrstvwxz"
    rows = []
    for number in range(24):  # prompts that are not near each other
        name = "".join(random.Random(number).choices(letters, k=24))
        rows.append({"prompt": f"{name}?", "responses": [f"{name[start:]} is it." for start in range(5)]})
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = f"--model {tiny_model_dir}"
    commands = [
        "doctor",
        "select pool.jsonl --selector diverse_k --k 2 --held-out 0.3 --output chosen.jsonl",
        f"init {model} --data pool.jsonl --gpu cpu --output recipe.yaml --yes",
        f"sample pool.jsonl {model} --n 1 --max-tokens 2 --load-in-4bit --output drawn.jsonl",
        f"plan pool.jsonl {model}",
        f"audit chosen.jsonl --pool pool.jsonl {model} --load-in-4bit --gradient-prompts 2 --splits 2",
        f"evaluate --data chosen.held_out.jsonl {model} --m 1 --max-tokens 2",
        "grid --recipe recipe.yaml --k 1,2 --output grid",
        f"augment --data pool.jsonl {model} --per-step 2 --max-tokens 4 --output new.jsonl",
    ]
    for line in commands:
        start = [sys.executable, "-c", "from mrt_plugin.cli import app; app()", *line.split()]
        done = subprocess.run(start, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}: {done.stderr[-2000:]}"
        assert [one for one in done.stderr.splitlines() if not OURS.fullmatch(one)] == [], line
        assert "Warning" not in done.stdout
