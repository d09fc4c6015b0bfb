"""Groups: read, regroup and check prompts with several responses each."""

from mrt_plugin.groups.keys import held_out, prompt_key
from mrt_plugin.groups.load import load_groups, read_groups
from mrt_plugin.groups.problems import DataError, GroupReport, Problem, Tally

__all__ = ["DataError", "GroupReport", "Problem", "Tally", "held_out", "load_groups", "prompt_key", "read_groups"]
