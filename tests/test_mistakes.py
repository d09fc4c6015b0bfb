"""Errors that the package raises on purpose are shown as one message, all others with their traceback."""

import os

import datasets
import pytest
from helpers.processes import run_python

from mrt_plugin.mistakes import message_of

START = "from mrt_plugin.mistakes import show_mistakes_plainly; show_mistakes_plainly(); show_mistakes_plainly()\n"
WRONG = "from mrt_plugin.places import check_file\ncheck_file('none.jsonl')"


def stderr(code: str, **environment: str) -> str:
    done = run_python(["-c", START + code], env={**os.environ, **environment})
    assert done.returncode == 1
    return done.stderr


def test_ours_is_one_line() -> None:
    assert stderr(WRONG) == "error: there is no such file: none.jsonl.\n"


def test_a_process_of_several_says_which_it_is() -> None:
    assert stderr(WRONG, RANK="3") == "[process 3] error: there is no such file: none.jsonl.\n"
    assert stderr(WRONG, RANK="0").startswith("error: ")


def test_the_traceback_comes_back() -> None:
    shown = stderr(WRONG, MRT_TRACEBACK="1")
    assert shown.startswith("Traceback")
    assert shown.endswith("ValueError: there is no such file: none.jsonl.\n")
    assert "Traceback" not in stderr(WRONG, MRT_TRACEBACK="0")


def test_one_that_another_library_wrapped() -> None:
    wrapped = f"try:\n    {'; '.join(WRONG.splitlines())}\nexcept ValueError as error:\n    "
    assert stderr(wrapped + "raise RuntimeError('outer') from error") == stderr(WRONG)
    assert stderr(wrapped + "raise RuntimeError('outer')") == stderr(WRONG)
    assert "ValueError: outer" in stderr(wrapped + "raise ValueError('outer') from None")
    assert "KeyError: 'a bug'" in stderr(wrapped + "raise KeyError('a bug')")


@pytest.mark.parametrize(
    "code",
    [
        "raise ValueError('of somebody else')",
        "1 / 0",
        # a call into C fails in a frame of the package: a mistake of the program
        "from mrt_plugin.init.choose import _up\n_up(float('nan'), 8)",
    ],
)
def test_others_keep_their_traceback(code: str) -> None:
    assert stderr(code).startswith("Traceback")


def test_one_raised_in_a_process_of_a_pool() -> None:
    code = """
import datasets
from mrt_plugin.places import check_file
datasets.disable_progress_bars()
rows = datasets.Dataset.from_dict({"name": ["a.jsonl", "b.jsonl"]})
rows.map(lambda row: check_file(row["name"]), num_proc=2)
"""
    shown = [line for line in stderr(code).splitlines() if "error" in line.lower() or "Traceback" in line]
    assert shown == ["error: there is no such file: a.jsonl."] or shown == ["error: there is no such file: b.jsonl."]


def test_a_full_disk_gets_a_remedy() -> None:
    said = message_of(OSError(28, "No space left on device"))
    assert "Free some space" in said
    assert str(datasets.config.HF_DATASETS_CACHE) in said
