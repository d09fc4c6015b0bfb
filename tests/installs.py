"""Check that installing this package changes nothing in the stacks where people train: it may only add packages.

    python tests/installs.py python3.11 python3.12 python3.13

For each stack, pip resolves its requirements alone, then again with this package and with every version of the first
result pinned. Nothing is installed, but the package registry is needed. `docs/installing.md` has the last result.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Stack:
    name: str
    python: str
    requirements: tuple[str, ...]
    constraints: str | None = None
    """A file of the repository with the stack's own pins. Told of them, pip need not look for them."""


NEWEST = (
    "torch==2.15.0",
    "transformers==5.23.0",
    "trl==1.16.0",
    "peft==0.21.2",
    "accelerate==1.15.0",
    "datasets==5.2.0",
    "bitsandbytes==0.50.2",
)
OLDEST = (
    "torch==2.11.0",
    "transformers==5.16.1",
    "trl==1.9.0",
    "peft==0.20.0",
    "accelerate==1.13.0",
    "datasets==4.8.4",
    "bitsandbytes==0.50.0",
)
STACKS = [
    Stack("oldest TRL", "3.11", OLDEST),
    Stack("newest TRL", "3.12", NEWEST),
    Stack("newest TRL", "3.13", NEWEST),
    Stack("Axolotl 0.19.0", "3.11", ("axolotl==0.19.0",), "constraints.txt"),
    Stack("Axolotl 0.21.0", "3.12", ("axolotl==0.21.0",)),
]


def resolve(python: str, requirements: Sequence[str], pins: str) -> dict[str, str]:
    """Return the versions that pip would install into an empty environment. Raise ValueError if there are none."""
    with tempfile.TemporaryDirectory() as folder:
        report, constraints = Path(folder) / "report.json", Path(folder) / "constraints.txt"
        constraints.write_text(pins)
        options = ["--dry-run", "--ignore-installed", "--quiet", "--report", report, "--constraint", constraints]
        done = subprocess.run(
            [python, "-m", "pip", "install", *options, *requirements], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ValueError("\n".join(line for line in done.stderr.splitlines() if not line.startswith("WARNING")))
        packages = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return {package["name"]: package["version"] for package in packages}


def version_of(python: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main(pythons: Sequence[str]) -> int:
    """Check every stack for which there is an interpreter, and return 1 if a stack would be changed."""
    interpreters, failed = {version_of(python): python for python in pythons}, 0
    for stack in STACKS:
        title = f"{stack.name}, Python {stack.python}"
        if stack.python not in interpreters:
            print(f"{title}: not checked, give an interpreter of Python {stack.python}", flush=True)
            continue
        python = interpreters[stack.python]
        own = "" if stack.constraints is None else (ROOT / stack.constraints).read_text()
        alone = resolve(python, stack.requirements, own)
        try:
            pins = "".join(f"{name}=={version}\n" for name, version in alone.items())
            together = resolve(python, [*stack.requirements, str(ROOT)], pins)
        except ValueError as error:
            print(f"{title}: CHANGED, pip finds no way to keep its {len(alone)} packages:\n{error}", flush=True)
            failed = 1
            continue
        added = [f"{name} {version}" for name, version in together.items() if name not in alone]
        print(f"{title}: {len(alone)} packages stay, added: {', '.join(sorted(added))}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [sys.executable]))
