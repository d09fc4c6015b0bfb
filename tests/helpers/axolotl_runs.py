"""Runs of Axolotl, and what they log and train."""

import os
import re
import sys
from pathlib import Path

from helpers.processes import AXOLOTL, run_python


def axolotl(*arguments, folder, text="", status=0, libraries=AXOLOTL, **environment):
    """Run a command to its end, check its exit status and return what it printed.

    A variable that a library reads when it is imported has no effect on `libraries`, which are imported before.
    """
    scripts = str(Path(sys.executable).parent)
    env = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", "COLUMNS": "200", **environment}
    done = run_python([f"{scripts}/axolotl", *arguments], cwd=folder, input=text, env=env, libraries=libraries)
    assert done.returncode == status, done.stderr[-4000:]
    return done.stdout + done.stderr


def logged(printed, name):
    """The values of a metric in the logs, in order."""
    return [float(value) for value in re.findall(rf"'{name}': '?([-+.\de]+)", printed)]


def pieces(batch):
    """The trained tokens of each response in a batch: those on the way to a token that no other token sees."""
    for ends, labels, counts in zip(
        *(batch[name].tolist() for name in ("ends", "shift_labels", "trained_counts")), strict=True
    ):
        for last, end in enumerate(ends):
            if end == last + 1:
                path = [place for place in range(last + 1) if last < ends[place] and labels[place] != -100]
                yield from [tuple(labels[place] for place in path)] * min((counts[place] for place in path), default=0)
