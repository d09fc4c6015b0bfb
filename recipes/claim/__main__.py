"""The experiment behind docs/results.md, step by step: `python -m recipes.claim --help`."""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from recipes.claim.analysis import analyse
from recipes.claim.checks import analyse_checks
from recipes.claim.grouping import measure_grouping
from recipes.claim.overheads import measure
from recipes.claim.pricing import Price, fit_bench
from recipes.claim.records import key_of, read_records
from recipes.claim.report import put_into, results_text, write_report
from recipes.claim.run import LENGTHS, SEEDS, check_keys, main_keys, run_all, tuning_keys
from recipes.claim.train import Scale
from recipes.claim.tuning import Tuned

EPILOG = """\
steps, in this order; each goes on where it was stopped:
  tune      learning rate and pairs per step of every arm, on worlds of their own
  run       the main runs
  check     runs that were decided on after the main runs
  grouping  how the gradients of a prompt's responses are correlated
  price     what a prompt and a response cost: --bench takes the output of mrt bench --json
  report    the numbers, the pictures and the tables of the page

example:
  python -m recipes.claim tune --output results/claim
  python -m recipes.claim run --output results/claim
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one step."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.claim",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("step", choices=("tune", "run", "check", "grouping", "price", "report"))
    parser.add_argument("--output", type=Path, default=Path("results/claim"), help="folder of everything made")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="run: seeds 0 to this less one")
    parser.add_argument("--length", type=int, nargs="*", default=list(LENGTHS), help="run: prompt lengths P")
    parser.add_argument("--minutes", type=float, help="tune, run: begin no run after so many minutes")
    parser.add_argument("--bench", type=Path, help="price: a file of mrt bench --json")
    parser.add_argument("--docs", type=Path, help="report: also rewrite the results of this folder's results.md")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    stop_at = None if given.minutes is None else time.time() + 60 * given.minutes
    scale = Scale()
    tuned = given.output / "tuning.jsonl"
    if given.step == "tune":
        missing = run_all(tuning_keys(), tuned, scale, progress=_show, stop_at=stop_at)
        return _say(missing, "tune")
    if given.step == "run":
        chosen = Tuned(read_records(tuned)).chosen(scale.n)
        keys = main_keys(chosen, given.length, range(given.seeds))
        missing = run_all(keys, given.output / "runs.jsonl", scale, progress=_show, stop_at=stop_at)
        return _say(missing, "run")
    if given.step == "check":
        known = [
            key_of(record) for name in ("tuning", "runs") for record in read_records(given.output / f"{name}.jsonl")
        ]
        keys = check_keys(given.length, range(given.seeds))
        path = given.output / "checks.jsonl"
        return _say(run_all(keys, path, scale, besides=known, progress=_show, stop_at=stop_at), "check")
    if given.step == "grouping":
        _write(given.output / "grouping.json", measure_grouping(given.output, scale))
    if given.step == "price":
        if given.bench is None:
            parser.error("price needs --bench: the output of mrt bench --json")
        bench = json.loads(given.bench.read_text(encoding="utf-8"))
        fitted = fit_bench(bench)
        priced = {str(length): asdict(fitted.price(length, **measure(length))) for length in given.length}
        _write(given.output / "prices.json", {"machine": bench["machine"], "fit": asdict(fitted), "prices": priced})
    if given.step == "report":
        _report(given.output, given.docs, scale)
    return 0


def _report(folder: Path, docs: Path | None, scale: Scale) -> None:
    priced = json.loads((folder / "prices.json").read_text(encoding="utf-8"))
    prices = {int(length): Price(**values) for length, values in priced["prices"].items()}
    found = analyse(read_records(folder / "runs.jsonl"), read_records(folder / "tuning.jsonl"), prices, scale.n)
    found |= {"machine": priced["machine"], "fit": priced["fit"]}
    if (folder / "checks.jsonl").exists():
        tuning, records, checks = (read_records(folder / f"{name}.jsonl") for name in ("tuning", "runs", "checks"))
        found["checks"] = analyse_checks(tuning, records, checks, prices, scale.n)
    found["grouping"] = json.loads((folder / "grouping.json").read_text(encoding="utf-8"))
    write_report(found, folder)
    if docs is None:
        (folder / "results.md").write_text(results_text(found), encoding="utf-8")
    else:
        put_into(docs / "results.md", results_text(found))
    print(f"{(docs or folder) / 'results.md'} is written, and summary.json and the pictures in {folder}.")


def _write(path: Path, values: Any) -> None:
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)
    print(f"{path} is written.")


def _show(stage: str, done: int, total: int) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {done} of {total}: {stage}", file=sys.stderr, flush=True)


def _say(missing: int, step: str) -> int:
    print(f"{missing} runs are left: give the same command again." if missing else f"{step}: complete.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
