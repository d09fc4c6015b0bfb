"""The commands and the Python code of the pages in docs/, run as they stand there, in order.

Of a page, the blocks that are marked with this file are run (tests/test_pages.py says how a block is marked). Models,
data and servers are small and local, under the names that the pages use. Where a command would take hours, `Page`
has smaller numbers for it.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers import axolotl_recipe, processes, tiny
from helpers.endpoint_server import serve
from helpers.judge_server import serve_judge
from helpers.processes import AXOLOTL, LIBRARIES, server

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"((?:^<!--.*?-->\n+)+)^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COLOURS = [
    "Red.",
    "It is green, like grass.",
    "Blue. The sea is blue, and so is the sky.",
    "White.",
    "Black as night.",
]


def save_models(folder: Path) -> None:
    """Save the models and adapters that the pages name."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification

    for name in ("path", "path/to/model", "path/to/base", "path/or/name", "base"):
        tiny.model_dir(folder / name)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), LoraConfig(r=2))
    for name in ("outputs/run", "run", "out"):
        adapted.save_pretrained(folder / name)
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(folder / "base", num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(folder / "path/to/reward-model")
    tiny.tokenizer(folder / "path/to/reward-model")


def write_data(folder: Path) -> None:
    """Write the pools, prompts and rules that the pages name."""
    from datasets import Dataset

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        axolotl_recipe.write_rows(folder / name, rows)

    scored = {"responses": COLOURS, "scores": [0.1, 0.9, 0.7, 0.2, 0.5]}
    kinds = ["Write a Python function for", "How many days has", "Name the colour of", "Hello, how are you and your"]
    for name, count in {"pool": 24, "general": 12, "chat": 12, "code": 12, "held_out": 3}.items():
        prompts = [f"{kinds[place % 4]} {word} of {name} {place}?" for place, word in enumerate(WORDS[:count])]
        write(f"{name}.jsonl", [{"prompt": prompt, **scored} for prompt in prompts])
    for name in ("data/alpaca_pool", "data/gsm8k_solutions"):
        write(f"{name}.jsonl", axolotl_recipe.groups(20, 5))
    write("prompts.jsonl", [{"prompt": f"Name a {word}."} for word in ("colour", "number")])
    write("generated.jsonl", [{"prompt": f"Why is the {word} so?"} for word in ("sea", "moon", "grass")])
    turns = "\n\nHuman: Name a colour.\n\nAssistant: "
    write("hh-rlhf.jsonl", [{"chosen": f"{turns}Red.", "rejected": f"{turns}No."}])
    write("mine.jsonl", [{"meta": {"question": "A?"}, "candidates": [{"text": t, "reward": 1} for t in COLOURS]}])
    write("rated.jsonl", [{"q": "A?", "a": text, "rating": 4} for text in COLOURS])
    write("numbered.jsonl", [{"q": "A?", "a_1": "B", "a_2": "C", "a_1_ok": True, "a_2_ok": False}])
    answers = [{"answer": text, "rank": place + 1} for place, text in enumerate(COLOURS)]
    nectar = Dataset.from_list([{"prompt": "\n\nHuman: Name a colour.\n\nAssistant:", "answers": answers}])
    nectar.to_parquet(folder / "nectar.parquet")
    (folder / "rules.yaml").write_text("- format\n- duplicate_responses: {threshold: 0.9}\n")
    (folder / "my_rules.py").write_text(
        "def score(prompt, responses):\n    return [len(text) for text in responses]\n"
    )
    (folder / "runs.jsonl").write_text("".join(f'{{"k": {k}, "loss": {1 + 2 / k}}}\n' for k in (1, 2, 4, 4)))
    settings = axolotl_recipe.recipe(folder, str(folder / "base"), mrt={"k": 2}, val_set_size=0.3)
    axolotl_recipe.write(folder, settings)


WORDS = (
    "apple banana cherry dragon eagle falcon guitar hammer island jacket kettle lemon mirror needle orange pencil "
    "quiver river saddle table umbrella violin window xylophone"
).split()


@contextlib.contextmanager
def nothing() -> Iterator[None]:
    yield None


@dataclass(frozen=True)
class Page:
    """How the commands of a page are run here."""

    smaller: tuple[tuple[str, str], ...] = ()
    """Regular expressions and what they become: sizes and devices alone."""
    before: str = ""
    """Python that the page's Python needs before it."""
    serving: Callable[[], Any] = nothing
    """The server at http://localhost:8000."""
    expected: tuple[str, ...] = ()
    """Files that the commands must have made. None of them is there before."""
    libraries: tuple[str, ...] = LIBRARIES


TINY_BENCH = (
    (r"--shape \S+|--mixed|mrt bench (?=--rounds|--json| *#)", r"\g<0> SMALL"),
    (r"--shape \d+x\S+ SMALL", "--shape 2x8,4,2"),
    (r"--shape \d+,\d+,\d+,\d+ SMALL", "--shape 20,8,4,1"),
    (r"--shape \d+,\d+,\d+ SMALL", "--shape 8,4,2"),
    ("SMALL", "--shape 8,4,2"),
    (r"(mrt bench [^#\n>]*)", r"\1 --cpu --threads 1 --steps 1 --rounds 1 "),
    (r"--groups 16", "--groups 2"),
)
"""Shapes of few tokens, and a round of one step. The last value of an option counts."""
PAGES: dict[str, Page] = {
    "alpaca-trl.md": Page((("--epochs 2", "--max-steps 2"),), expected=("outputs/alpaca-trl/adapter_config.json",)),
    "audit.md": Page(expected=("audit.html",)),
    "augmentation.md": Page(
        ((r"--per-step 100", "--per-step 8 --threshold 0.9"),),
        serving=serve,
        expected=("new_pool.jsonl", "chosen.jsonl"),
    ),
    "bench.md": Page(TINY_BENCH, expected=("bench.png", "bench.json")),
    "benchmarks.md": Page(
        (
            *TINY_BENCH,
            (r"benchmarks.memory", r"\g<0> --shape 32,8,8,2 --groups 2"),
            (r"(benchmarks.selection)\n", r"\1 --pools 16 --candidates 8 -k 2\n"),
            ("--stream 1000000", "--stream 300"),
        )
    ),
    "curation.md": Page(expected=("decisions.jsonl",)),
    "evaluation.md": Page(expected=("evaluation.html",)),
    "grid.md": Page(
        (
            (r"--k 1,2,4,8 --repeats 3", '--k 1,2 --arm "equal prompts"'),
            (r"--output grid --k 2,4", "--output axes --k 2,4"),
            (r"(axolotl train \S+)", r"\1 --launcher python"),
        ),
        libraries=AXOLOTL,
    ),
    "grid-annotations.md": Page(
        (
            (r"--annotations 1200,2400,4800 --repeats 3", "--annotations 12,24 --k 2 --duration epochs"),
            (r"(axolotl train \S+)", r"\1 --launcher python"),
        ),
        libraries=AXOLOTL,
    ),
    "gsm8k-axolotl.md": Page(expected=("outputs/gsm8k-qlora-cpu/adapter_config.json",), libraries=AXOLOTL),
    "judging.md": Page((("MODEL@", "judge@"),), serving=lambda: serve_judge(judge), expected=("chosen.jsonl",)),
    "mixing.md": Page(expected=("mixed.jsonl",)),
    "objectives.md": Page(expected=("pairs.jsonl", "rare.jsonl")),
    "objectives-reference.md": Page(
        (("--shape 512,64,4 --threads 1 --cpu --rounds 3", "--shape 8,4,2 --threads 1 --cpu --rounds 1 --steps 1"),)
    ),
    "planning.md": Page(
        before=(
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            "model, tokenizer = (of.from_pretrained('base') for of in (AutoModelForCausalLM, AutoTokenizer))\n"
        ),
        expected=("plan.html",),
    ),
    "results.md": Page(
        (
            ("python -m recipes.claim (grouping|price).*", "true"),
            (r"mrt bench --json", r"\g<0> --shape 8,4,2 --cpu --threads 1 --steps 1 --rounds 1"),
        ),
        expected=("docs/results.md", "bench.json"),
    ),
    "reward-models.md": Page(expected=("reward/config.json", "chosen.jsonl")),
    "sampling.md": Page(serving=serve, expected=("pool.jsonl", "local_pool.jsonl", "rankings.jsonl", "chosen.jsonl")),
    "scale.md": Page((("--groups 10000", "--groups 20"), (r" --embedder \S+", ""))),
    "scoring.md": Page((("sentence-transformers", "lexical"),), expected=("chosen.jsonl",)),
    "select.md": Page(expected=("again.jsonl",)),
    "selection.md": Page(),
    "simulation.md": Page(
        ((r"(--output simulation) .*", r"\1 --only bridge"),), expected=("simulation/results.json",)
    ),
    "when-not-to.md": Page(
        (
            (
                r"(trl dpo .*)",
                r"\1 --max_steps 2 --per_device_train_batch_size 2 --use_cpu --bf16 false --report_to none",
            ),
        ),
        expected=("preferences/pairs.jsonl", "dpo/adapter_config.json", "mixed.jsonl"),
    ),
    "your-data.md": Page(expected=("chosen.jsonl",)),
}
SHELL = """
python() {{ "{python}" "{processes}" run "{address}" "$@"; }}
mrt() {{ python -c "from mrt_plugin.cli import app; app()" "$@"; }}
axolotl() {{ python -m axolotl.cli.main "$@"; }}
trl() {{ shift; python -m trl.scripts.dpo "$@"; }}
vllm() {{ :; }}
"""


def judge(prompt: str, responses: list[str]) -> str:
    """Prefer the longer response."""
    if len(responses) == 1:
        return f"Score: {min(10, 1 + len(responses[0]) // 6)}"
    first, second = map(len, responses)
    return "Verdict: " + ("tie" if first == second else "A" if first > second else "B")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_models(folder)
    return folder


def cases() -> list[Any]:
    slow = ("bench", "grid", "gsm8k", "alpaca", "when-not", "evaluation", "judging", "reward", "audit", "simulation")
    marks = {name: [pytest.mark.processes] for name in PAGES}
    for name, page in PAGES.items():
        marks[name] += [pytest.mark.axolotl] if page.libraries == AXOLOTL else []
        marks[name] += [pytest.mark.slow] if name.startswith(slow) else []
    return [pytest.param(name, marks=marks[name], id=name) for name in PAGES]


@pytest.mark.parametrize("name", cases())
def test_the_commands_of_the_page_run(name: str, models: Path, tmp_path: Path) -> None:
    page = PAGES[name]
    if page.libraries == AXOLOTL:
        pytest.importorskip("axolotl")
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    write_data(tmp_path)
    for file in page.expected:
        (tmp_path / file).unlink(missing_ok=True)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": paths, "MRT_CACHE": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    shell = SHELL.format(python=sys.executable, processes=processes.__file__, address=server(page.libraries))
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    blocks = [(language, code) for marks, language, code in BLOCK.findall(text) if "test_guides.py" in marks]
    assert blocks
    with page.serving() as running:
        for language, code in blocks:
            for theirs, ours in page.smaller:
                code = re.sub(theirs, ours, code)
            if running is not None:
                code = code.replace("localhost:8000", f"127.0.0.1:{running.server_address[1]}")
            if language == "python":
                code = f"python -c {shlex.quote(page.before + code)}"
            done = subprocess.run(
                ["bash", "-euc", shell + code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == 0, f"{code}\n{done.stdout[-3000:]}{done.stderr[-5000:]}"
    missing = [file for file in page.expected if not (tmp_path / file).is_file()]
    assert not missing
