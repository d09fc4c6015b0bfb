"""Print the reference of all rules: `python -m mrt_plugin.curation`."""

from mrt_plugin.curation.config import RULES, markdown

print("\n\n".join(map(markdown, RULES)))
