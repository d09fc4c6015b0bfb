"""Groups: read, regroup and check prompts with several responses each.

Names are imported on first use: keys and problems need no datasets.
"""

from typing import TYPE_CHECKING

from mrt_plugin.lazy import lazy_names

if TYPE_CHECKING:
    from mrt_plugin.groups.keys import held_out, prompt_key
    from mrt_plugin.groups.load import load_groups, read_groups
    from mrt_plugin.groups.problems import DataError, GroupReport, Problem, Tally

__all__ = ["DataError", "GroupReport", "Problem", "Tally", "held_out", "load_groups", "prompt_key", "read_groups"]

__getattr__ = lazy_names(
    __name__,
    {
        "DataError": ".problems",
        "GroupReport": ".problems",
        "Problem": ".problems",
        "Tally": ".problems",
        "held_out": ".keys",
        "load_groups": ".load",
        "prompt_key": ".keys",
        "read_groups": ".load",
    },
)
