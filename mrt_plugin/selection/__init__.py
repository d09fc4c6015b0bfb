"""Selection: choose K of a prompt's N responses."""

from mrt_plugin.selection.registry import SELECTORS, get_selector
from mrt_plugin.selection.run import SelectionReport, run_selection, select, select_indices

__all__ = ["SELECTORS", "SelectionReport", "get_selector", "run_selection", "select", "select_indices"]
