"""Runs of Axolotl, and what they log and train."""

import os
import re
import sys
from pathlib import Path

from helpers.processes import AXOLOTL, run_python


def axolotl(*arguments, folder, text="", status=0, **environment):
    """Run a command to its end, check its exit status and return what it printed."""
    scripts = str(Path(sys.executable).parent)
    env = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", "COLUMNS": "200", **environment}
    done = run_python([f"{scripts}/axolotl", *arguments], cwd=folder, input=text, env=env, libraries=AXOLOTL)
    assert done.returncode == status, done.stderr[-4000:]
    return done.stdout + done.stderr


def logged(printed, name):
    """The values of a metric in the logs, in order."""
    return [float(value) for value in re.findall(rf"'{name}': '?([-+.\de]+)", printed)]


def pieces(batch):
    """The trained tokens of each response in a batch."""
    found = {}
    for row, (labels, segments, places) in enumerate(
        zip(*(batch[name].tolist() for name in ("labels", "segment_ids", "group_ids")), strict=True)
    ):
        for label, segment, place in zip(labels, segments, places, strict=True):
            if label != -100:
                found.setdefault((row, place, segment), []).append(label)
    return map(tuple, found.values())
