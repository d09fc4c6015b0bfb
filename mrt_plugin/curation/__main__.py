"""Prints the reference of all rules: `python -m mrt_plugin.curation`."""

from mrt_plugin.curation.config import markdown

print(markdown(), end="")
