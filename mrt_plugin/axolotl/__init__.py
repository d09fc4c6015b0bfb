"""The Axolotl plugin: `plugins: [mrt_plugin.axolotl.MultiResponsePlugin]`.

Every selector is a dataset type. Axolotl imports a type as a module, so each gets a module with the function `load`.
"""

import sys
from types import ModuleType

from mrt_plugin.axolotl.args import OUTSIDE
from mrt_plugin.axolotl.entries import ORDINARY
from mrt_plugin.axolotl.plugin import MultiResponsePlugin
from mrt_plugin.axolotl.strategy import loader
from mrt_plugin.selection import SELECTORS

__all__ = ["MultiResponsePlugin"]

for _name in (*SELECTORS, OUTSIDE, ORDINARY):
    _module = ModuleType(f"{__name__}.{_name}", f"`type: {__name__}.{_name}`: a dataset prepared by the plugin.")
    _module.load = loader(_name)  # type: ignore[attr-defined]
    sys.modules[_module.__name__] = _module
