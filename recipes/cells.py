"""Make a table of what shares the prompt, by family, checkpointing, tuning and launch, from runs of tiny models.

    python -m recipes.cells --results FILE.jsonl             # run the cells that FILE.jsonl lacks, then write the page
    python -m recipes.cells --results FILE.jsonl --page-only

Run it from a checkout: the models are those of the tests. Each cell is two optimizer steps with no layout option set.
Where the prompt is shared, the loss of the first step is compared with that of an `expanded` run on the same data in
one process. ZeRO-3 needs DeepSpeed.
"""

import argparse
import importlib.metadata
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

LAUNCHES = {"one process": 1, "DDP": 2, "FSDP 2": 2, "ZeRO-3": 2}
"""Kinds of run and their processes."""
TUNINGS = ("full", "LoRA", "QLoRA")
TOLERANCE = 1e-4
"""Relative difference of the first step's loss. The gradients are compared in the tests."""
PATIENCE = 300
"""Seconds without a result after which the processes are ended, and their cell has failed."""
MAMBA = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
"""Families whose other linear layers PEFT does not adapt."""
PAGE = ROOT / "docs" / "cells.md"


@dataclass(frozen=True)
class Cell:
    family: str
    checkpointing: bool
    tuning: str
    launch: str

    @property
    def name(self) -> str:
        return f"{self.launch} | {self.tuning} | {'checkpointing' if self.checkpointing else 'plain'} | {self.family}"


# Not every parameter of these takes part in a step; transformers has DDP look for such only without checkpointing.
SOME_UNUSED = ("deepseek_v32", "gemma3n", "jamba", "zamba2")


def families() -> list[str]:
    """Return the families of the tests, those that differ most first."""
    from helpers.families import FAMILIES, OWN_STATES, STATEFUL, UNFORKABLE

    first = ["llama", "qwen3", "gemma3", "gpt_oss", "qwen3_moe", *STATEFUL, "jamba", "minimax"]
    return list(dict.fromkeys([*first, *FAMILIES, *UNFORKABLE, *OWN_STATES, "deepseek_v32"]))


def all_cells(launch: str) -> Iterator[Cell]:
    some = families()[: int(os.environ.get("CELLS_FAMILIES", "1000"))]  # to try a few only
    for tuning, checkpointing, family in product(TUNINGS, (False, True), some):
        yield Cell(family, checkpointing, tuning, launch)


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    return {row["cell"]: row for row in map(json.loads, path.read_text().splitlines())}


def under_way(results: Path, launch: str) -> Path:
    """Return the file that names the cell at work."""
    return results.parent / f"{results.stem}.{launch}.under_way"


def write_result(path: Path, cell: Cell, **found: Any) -> None:
    with path.open("a") as file:
        file.write(json.dumps({"cell": cell.name, **found}) + "\n")


# One worker process (or one of a pair): runs cells until the list ends.


class Warnings(logging.Handler):
    """Keeps the warnings of a run."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


def save_model(family: str, folder: Path) -> None:
    from helpers import tiny
    from helpers.families import DSA, OWN_STATES, build

    tokenizer = tiny.tokenizer()
    sizes = {"vocab_size": 1024, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    if family in ("gemma3n", "gemma4"):
        sizes["vocab_size_per_layer_input"] = 1024
    if family == "gemma3n":
        sizes["pad_token_id"] = None
    sizes |= OWN_STATES.get(family, {}) | (DSA if family == "deepseek_v32" else {})
    model = build(family, **sizes)
    if family == "gpt2":  # which the tests build with a vocabulary of their own
        model.resize_token_embeddings(1024)
    if "output_router_logits" in model.config.to_dict():
        model.config.output_router_logits = False  # as the refusal of its loss says
    model.save_pretrained(folder / family)
    tokenizer.save_pretrained(folder / family)


def make_trainer(cell: Cell, path: str, folder: Path, dataset: Any, **settings: Any) -> Any:
    import torch
    from helpers import tiny
    from helpers.distributed_step import ShardedTrainer
    from helpers.training import config
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, set_seed

    from mrt_plugin import MultiResponseSFTTrainer

    if cell.launch == "ZeRO-3":
        from accelerate import PartialState
        from accelerate.state import AcceleratorState
        from helpers.zero_step import ZERO_3

        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState(backend="gloo")
        settings |= {"deepspeed": ZERO_3, "use_cpu": False, "accelerator_config": {"use_configured_state": True}}
    elif LAUNCHES[cell.launch] > 1:
        settings["ddp_find_unused_parameters"] = cell.launch == "DDP" and (
            not cell.checkpointing or cell.family in SOME_UNUSED
        )
    set_seed(0)
    if cell.checkpointing:
        settings |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    args = config(
        folder,
        max_steps=2,
        optim="sgd",
        prefix_check=True,
        router_aux_loss_coef=0.0,  # TRL's default asks for a loss that is refused
        per_device_train_batch_size=4 // LAUNCHES[cell.launch],
        **settings,
    )
    quantization = None
    if cell.tuning == "QLoRA":
        # FSDP shards floating-point storage only
        storage = {"bnb_4bit_quant_storage": torch.float32} if cell.launch in ("FSDP 2", "ZeRO-3") else {}
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32, **storage
        )
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, quantization_config=quantization)
    targets = ["in_proj"] if cell.family in MAMBA else "all-linear"
    # The router of Llama 4 returns a pair, which PEFT's layers do not take.
    lora = LoraConfig(target_modules=targets, exclude_modules=["router"], r=4) if cell.tuning != "full" else None
    kind = MultiResponseSFTTrainer
    if cell.launch == "FSDP 2":
        inside = {type(module).__name__ for module in model.modules()}
        layers = [name for name in model._no_split_modules or () if name in inside]
        kind = type("AnyShardedTrainer", (ShardedTrainer,), {"layers": layers})
    return kind(model=model, args=args, train_dataset=dataset, processing_class=tiny.tokenizer(), peft_config=lora)


def run_cell(cell: Cell, path: str, folder: Path, dataset: Any, **settings: Any) -> dict[str, Any]:
    """Train two steps, and return what the run did."""
    from helpers.training import losses

    heard, logger = Warnings(), logging.getLogger("mrt_plugin")
    logger.addHandler(heard)
    where = "set-up"
    try:
        trainer = make_trainer(cell, path, folder, dataset, **settings)
        where = "training"
        trainer.train()
    except Exception as error:
        import traceback

        ours = any("/mrt_plugin/" in frame.filename for frame in traceback.extract_tb(error.__traceback__)[-1:])
        return {"state": "refused" if ours else "failed", "why": f"{type(error).__name__} in {where}: {error}"}
    finally:
        logger.removeHandler(heard)
    expands = [message for message in heard.found if "layout expanded" in message or "One pair per forward" in message]
    return {
        "state": "shared" if trainer.layout == "shared_prefix" else "expanded",
        "backend": trainer._backend.name,
        "why": expands[0] if expands else "",
        "losses": losses(trainer),
    }


def work(launch: str, results: Path, models: Path) -> None:
    """Run the cells of a launch that have no result yet, in this process of the group."""
    import torch
    from helpers import tiny
    from helpers.training import make_groups

    from mrt_plugin import prepare_groups
    from mrt_plugin.options import MultiResponseOptions

    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", 0))
    if launch == "ZeRO-3":
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    options = MultiResponseOptions(selector="all")
    dataset, _ = prepare_groups(make_groups(4, 3), tiny.tokenizer(), options, max_length=512, seed=0)
    done = read_results(results)
    for cell in all_cells(launch):
        if cell.name in done:
            continue
        if rank == 0:
            under_way(results, launch).write_text(cell.name)
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            found = run_cell(cell, str(models / cell.family), Path(folder), dataset)
        if torch.distributed.is_initialized():
            every: list[Any] = [None] * LAUNCHES[launch]
            torch.distributed.all_gather_object(every, found)
            if len({one["state"] for one in every}) > 1:
                found = {"state": "failed", "why": f"the processes disagree: {[one['state'] for one in every]}"}
        if rank == 0:
            write_result(results, cell, **found, seconds=round(time.process_time() - began, 2))


def references(results: Path, models: Path) -> None:
    """Train `expanded` in one process: what the loss of every family and tuning is compared with."""
    import torch
    from helpers import tiny
    from helpers.training import make_groups

    from mrt_plugin import prepare_groups
    from mrt_plugin.options import MultiResponseOptions

    torch.set_num_threads(1)
    options = MultiResponseOptions(selector="all")
    dataset, _ = prepare_groups(make_groups(4, 3), tiny.tokenizer(), options, max_length=512, seed=0)
    done = read_results(results)
    for tuning, family in product(("full", "QLoRA"), families()):  # the first loss of LoRA is that of `full`
        cell = Cell(family, False, tuning, "reference")
        if cell.name in done:
            continue
        alone = Cell(family, False, tuning, "one process")
        with tempfile.TemporaryDirectory() as folder:
            found = run_cell(alone, str(models / family), Path(folder), dataset, layout="expanded")
        write_result(results, cell, **found)


# The parent: starts the workers, and ends those that stopped.


def run_all(results: Path, launches: list[str]) -> None:
    models = results.parent / f"{results.stem}.models"
    for family in families():
        if not (models / family / "tokenizer.json").exists():
            save_model(family, models)
    for launch in (["reference"] if "one process" in launches else []) + launches:
        while missing(results, launch):
            before = len(read_results(results))
            run_group(results, models, launch)
            if len(read_results(results)) == before:
                raise RuntimeError(f"{launch}: no cell ended. See {results.parent}/{results.stem}.{launch}.0.log")


def missing(results: Path, launch: str) -> int:
    done = read_results(results)
    if launch == "reference":
        return sum(Cell(f, False, t, launch).name not in done for t, f in product(("full", "QLoRA"), families()))
    return sum(cell.name not in done for cell in all_cells(launch))


def run_group(results: Path, models: Path, launch: str) -> None:
    """Run a group of processes until it ends or stops making progress; its cell then has failed."""
    count = LAUNCHES.get(launch, 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cpu"}
    shared = {**os.environ, **quiet}
    if count > 1:
        shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
        shared |= {"MASTER_PORT": str(port)}
    processes = []
    for rank in range(count):
        env = {**shared, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {})}
        command = [sys.executable, "-m", "recipes.cells", "--results", str(results), "--models", str(models)]
        with (results.parent / f"{results.stem}.{launch}.{rank}.log").open("w") as log:
            processes.append(
                subprocess.Popen([*command, "--worker", launch], env=env, cwd=ROOT, stdout=log, stderr=log)
            )
    ended = f"no result in {PATIENCE} s"
    seen, since = results.stat().st_size if results.exists() else 0, time.monotonic()
    while time.monotonic() - since < PATIENCE:
        time.sleep(0.5)
        size = results.stat().st_size if results.exists() else 0
        if size != seen:
            seen, since = size, time.monotonic()
        codes = [process.poll() for process in processes]
        if all(code == 0 for code in codes):
            return
        if any(code not in (None, 0) for code in codes):
            ended = f"a process ended with status {next(code for code in codes if code)}"
            break
    for process in processes:
        process.kill()
        process.wait()
    place = under_way(results, launch)
    name = place.read_text() if place.exists() else None
    if name is not None and name not in read_results(results):
        with results.open("a") as file:
            file.write(json.dumps({"cell": name, "state": "failed", "why": ended}) + "\n")


# The page.


def describe(cell: Cell, done: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """Return the short text of a cell, and its reason."""
    found = done.get(cell.name)
    if found is None:
        return "not run", ""
    if found["state"] != "shared":
        name = found["state"] + (", one pair per forward" if found.get("backend") == "one_by_one" else "")
        return name, " ".join(found["why"].split())
    tuning = "QLoRA" if cell.tuning == "QLoRA" else "full"
    reference = done.get(Cell(cell.family, False, tuning, "reference").name, {})
    if "losses" not in reference:
        return f"shared ({found['backend']}), not compared", ""
    expected, loss = reference["losses"][0], found["losses"][0]
    if not abs(loss / expected - 1) <= TOLERANCE:
        return "WRONG", f"its first loss is {loss:.6f}, and {expected:.6f} expanded"
    return f"shared ({found['backend']})", ""


def write_page(results: Path) -> None:
    done = read_results(results)
    reasons: dict[str, int] = {}
    rows: dict[tuple[str, ...], list[str]] = {}
    columns = [(launch, tuning) for launch in LAUNCHES for tuning in TUNINGS]
    counts: dict[str, int] = {}
    for family, checkpointing in product(families(), (False, True)):
        texts = []
        for launch, tuning in columns:
            text, why = describe(Cell(family, checkpointing, tuning, launch), done)
            counts[text] = counts.get(text, 0) + 1
            if why:
                why = why.replace(family, "FAMILY") if "cannot continue" not in why else why
                why += "".join(f" - {remedy}" for message, remedy in REMEDIES.items() if message in why)
                number = reasons.setdefault(shorten(why), len(reasons) + 1)
                text += f" [{number}]"
            texts.append(text)
        rows.setdefault(tuple(texts), []).append(f"{family}{' +' if checkpointing else ''}")
    lines = HEAD.format(
        tolerance=TOLERANCE,
        unused=", ".join(SOME_UNUSED),
        date=datetime.now(UTC).date(),
        versions=", ".join(f"{name} {version(name)}" for name in PACKAGES),
        counts=", ".join(f"{count} {text}" for text, count in sorted(counts.items(), key=lambda item: -item[1])),
    ).splitlines()
    for number, (texts, names) in enumerate(sorted(rows.items(), key=lambda row: -len(row[1])), start=1):
        lines += ["", f"## Table {number}", "", ", ".join(names), ""]
        lines += [f"| | {' | '.join(TUNINGS)} |", "|---" * (len(TUNINGS) + 1) + "|"]
        for place, launch in enumerate(LAUNCHES):
            own = texts[place * len(TUNINGS) : (place + 1) * len(TUNINGS)]
            lines.append(f"| {launch} | {' | '.join(own)} |")
    if reasons:
        lines += ["", "## Reasons", "", *(f"{number}. {why}" for why, number in reasons.items())]
    PAGE.write_text("\n".join(lines) + "\n")
    print(f"{PAGE}: {counts}")


REMEDIES = {
    "tuple index out of range": "ZeRO-3 leaves empty tensors where PEFT, for experts, and RWKV, for its first "
    "weights, read a shape. Use FSDP 2.",
    "managed by another FSDP group": "Layers that share weights cannot be sharded apart. Use ZeRO-3.",
    "can't be cast to the desired output type unsigned char": "The model clamps 4-bit weights. Use LoRA.",
    "mat1 and mat2 shapes cannot be multiplied": "The model multiplies by 4-bit weights itself. Use LoRA.",
    "must match the size of tensor b": "The model writes to weights that ZeRO-3 has taken away. Use FSDP 2.",
    "vec (0)": "The model reads weights that ZeRO-3 has taken away. Use FSDP 2.",
    "first two dimensions of batch2": "The model's scan reads 4-bit weights itself. Use LoRA.",
}
"""What to use instead, by a part of another library's message: a cell of the same family that runs."""

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "deepspeed")


def version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def shorten(why: str) -> str:
    return why if len(why) < 400 else why[:400] + " ..."


HEAD = """# What shares the prompt

Made by `python -m recipes.cells`, on {date}, with {versions}. Do not edit it.

Every cell is a run of two optimizer steps on CPU: a tiny random model of the family (those of
`tests/helpers/families.py`), 4 groups of 3 responses, no layout option set. Runs of several processes use two gloo
processes. accelerate uses FSDP and DeepSpeed on accelerators only: its state is set by hand, and it then wraps the
model itself. **`+`** after a family means gradient checkpointing (not reentrant). The parentheses name the backend.
Where the prompt is shared, the loss of the first step equals that of an `expanded` run of one process to
{tolerance:g}.

Settings that other libraries need: `router_aux_loss_coef=0` for mixtures of experts (TRL's default is refused, with
that remedy); 4-bit weights stored as float32 under FSDP 2 and ZeRO-3, which shard floating-point numbers only; LoRA on
`in_proj` for Mamba, where PEFT refuses other layers, and not on Llama 4's router; `ddp_find_unused_parameters: true`
under DDP, with checkpointing too for {unused}.

- **shared**: the prompt is computed once, without any option. **Not compared**: its `expanded` run is missing.
- **expanded**: the prompt is copied for every response, for the reason given.
- **refused**: the run stops with the message given.
- **failed**: another library stops the run; its message is given, and what to use instead. `expanded` was
  tried for one cell of each kind of message, and stops with the same message.
- **not run**: the run was cut short before it; nothing is claimed. The same command continues it.

Cells: {counts}."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="JSON lines, one per cell; kept between runs")
    parser.add_argument("--launch", action="append", choices=LAUNCHES, help="run these only; by default all")
    parser.add_argument("--page-only", action="store_true", help="write docs/cells.md from the results")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker == "reference":
        references(args.results, args.models)
    elif args.worker:
        work(args.worker, args.results, args.models)
    else:
        if not args.page_only:
            run_all(args.results.resolve(), args.launch or list(LAUNCHES))
        write_page(args.results)


if __name__ == "__main__":
    main()
