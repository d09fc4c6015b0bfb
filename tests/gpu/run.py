"""Run everything that needs a GPU in ten minutes, and write one summary: JSON in a file, tables on the terminal.

    python tests/gpu/run.py --output build/gpu/result.json

Every part is a process of its own with a time limit, so that one that hangs or runs out of memory stops no other.
The tables are Markdown, for docs/benchmarks.md. Without a GPU every part says so, and nothing fails.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SHAPES = ("1024,256,8", "2048,256,8", "512,512,4", "1024,128,256,4")
FRACTION, PUBLISHED = 0.85, 2.55
"""The goals: of the token ratio over TRL's fastest mode; and the speed-up that Unsloth publishes for 8 responses of
256 tokens, in a grouped reinforcement-learning step."""
TESTS = {"kernels": ("test_gpu_kernels.py", 150), "steps": ("test_gpu_steps.py", 80)}
"""Test files and their seconds."""
BENCH_SECONDS, LAST_SHAPE = 110, 60
"""Seconds in which shapes of a model may start, and those that the last one may then take."""
PYTEST = ("-m", "pytest", "-q", "-rfEs", "-p", "no:cacheprovider", "--tb=short", "-m", "gpu")


def run_bounded(command: list[str], seconds: float, **environment: str) -> tuple[int | None, str, float]:
    """Run a command in a process group. Return its exit status (None: out of time), its output and its seconds."""
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        status: int | None = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        status = None
    return status, output, round(time.monotonic() - began, 1)


def run_tests(name: str, folder: Path) -> dict[str, Any]:
    file, seconds = TESTS[name]
    records = folder / f"{name}.jsonl"
    command = [sys.executable, *PYTEST, str(HERE / file)]
    status, output, took = run_bounded(command, seconds, MRT_GPU_RECORDS=str(records))
    measured = [json.loads(line) for line in records.read_text().splitlines()] if records.exists() else []
    lines = output.strip().splitlines()
    told = [line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))]
    ended = lines[-1].strip("= ") if lines else ""
    if status is None:
        ended = f"stopped after {seconds} s: {ended}"
    result = {"part": name, "ok": status == 0, "seconds": took, "ended": ended, "told": told, "measured": measured}
    return result if status == 0 else {**result, "output": output[-6000:]}


def run_bench(name: str, folder: Path, options: list[str], shapes: Sequence[str] = SHAPES) -> dict[str, Any]:
    """Run `mrt bench` with LoRA and gradient checkpointing on the model that `options` describe."""
    command = [sys.executable, "-c", "from mrt_plugin.cli import app; app()", "bench", *options, "--lora"]
    command += ["--gradient-checkpointing", "--steps", "1", "--rounds", "2", "--json"]
    command += ["--time-limit", str(BENCH_SECONDS), *(part for shape in shapes for part in ("--shape", shape))]
    file = folder / f"{name}.json"
    shell = ["bash", "-c", '"$@" > "$0"', str(file), *command]
    status, output, took = run_bounded(shell, BENCH_SECONDS + LAST_SHAPE)
    part = {"part": f"bench {name}", "ok": status == 0, "seconds": took}
    if status != 0:
        ended = f"stopped after {BENCH_SECONDS + LAST_SHAPE} s" if status is None else f"exit status {status}"
        return {**part, "ended": ended, "output": output[-6000:]}
    result = json.loads(file.read_text())
    left_out = len(shapes) - len(result["shapes"])
    return {**part, "ended": f"{left_out} shapes left out for time" if left_out else "complete", "result": result}


def goals(part: dict[str, Any]) -> list[dict[str, Any]]:
    """Return for each shape of a benchmark what our fastest shared arm reached over TRL's fastest."""
    found = []
    for shape in part.get("result", {}).get("shapes", []):
        rated = [arm for arm in shape["arms"] if "speedup" in arm]
        shared = [arm for arm in rated if arm["name"].startswith("mrt shared")]
        theirs = [arm for arm in rated if arm["trl"]]
        row = {"part": part["part"], "shape": shape["shape"], "ratio": shape["token_ratio"]}
        if shared and theirs:
            ours = max(shared, key=lambda arm: arm["speedup"])
            row |= {"arm": ours["name"], "speedup": ours["speedup"], "fraction": ours["fraction"]}
            row |= {"trl": max(theirs, key=lambda arm: arm["pairs_per_second"])["name"]}
            row["reached"] = ours["fraction"] >= FRACTION
            if (shape["k"], shape["response"], shape.get("system", 0)) == (8, 256, 0):
                row["ahead of published"] = ours["speedup"] > PUBLISHED
        else:
            row["errors"] = [f"{arm['name']}: {arm['error']}" for arm in shape["arms"] if "error" in arm]
        found.append(row)
    return found


def show(summary: dict[str, Any]) -> str:
    lines = [f"GPU: {summary['gpu'] or 'none'}; torch {summary['torch']}, transformers {summary['transformers']}, "]
    lines[0] += f"trl {summary['trl']}; {summary['seconds']:.0f} s together."
    lines += ["", "| part | seconds | ok | result |", "| --- | --- | --- | --- |"]
    for part in summary["parts"]:
        lines.append(
            f"| {part['part']} | {part['seconds']:.0f} | {'yes' if part['ok'] else '**no**'} | {part['ended']} |"
        )
    rows = summary["goals"]
    if rows:
        lines += ["", "| model | P,R,K | token ratio | TRL's fastest | over it | of ratio | goal |"]
        lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        where = f"| {row['part'].removeprefix('bench ')} | {row['shape']} | {row['ratio']:.2f} "
        if "speedup" not in row:
            lines.append(f"{where}| - | - | - | {'; '.join(row['errors']) or 'nothing to compare'} |")
            continue
        goal = "reached" if row["reached"] else "missed"
        if "ahead of published" in row:
            goal += f", {'ahead of' if row['ahead of published'] else 'behind'} the published {PUBLISHED}"
        lines.append(f"{where}| {row['trl']} | {row['speedup']:.2f} | {row['fraction']:.2f} | {goal} |")
    for part in summary["parts"]:
        lines += ["", *part.get("told", [])] if part.get("told") and not part["ok"] else []
        lines += ["", f"{part['part']}:", part["output"]] if "output" in part else []
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=4, help="of the models of `mrt bench`")
    given = parser.parse_args()
    began = time.monotonic()

    import torch
    import transformers
    import trl

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}
    parts = []
    with TemporaryDirectory() as folder:
        for name in TESTS:
            parts.append(run_tests(name, Path(folder)))
            print(f"{name}: {parts[-1]['ended']} ({parts[-1]['seconds']} s)", flush=True)
        for size in ("llama-8b", "qwen-4b"):
            if gpu is None:
                parts.append({"part": f"bench {size}", "ok": True, "seconds": 0.0, "ended": "skipped: no CUDA device"})
                continue
            model = ["--size", size, "--layers", str(given.layers), "--load-in-4bit"]
            parts.append(run_bench(f"{size}, {given.layers} layers", Path(folder), model))
            print(f"bench {size}: {parts[-1]['ended']} ({parts[-1]['seconds']} s)", flush=True)
    rows = [row for part in parts for row in goals(part)]
    seconds = round(time.monotonic() - began, 1)
    summary = {"gpu": gpu, **versions, "seconds": seconds, "goals": rows, "parts": parts}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(summary, indent=1), encoding="utf-8")
    print(f"\n{show(summary)}\n\nWritten to {given.output}.")
    sys.exit(0 if all(part["ok"] for part in parts) else 1)


if __name__ == "__main__":
    main()
