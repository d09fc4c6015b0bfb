"""The Axolotl plugin: `plugins: [mrt_plugin.axolotl.MultiResponsePlugin]`.

Every registered selector is a dataset type, `type: mrt_plugin.axolotl.<selector>`. Axolotl imports a type as a module
and calls its `load`. So a module with that one function is created here for each selector, and a new selector needs no
file.
"""

import sys
from types import ModuleType

from mrt_plugin.axolotl.entries import ORDINARY
from mrt_plugin.axolotl.plugin import MultiResponsePlugin
from mrt_plugin.axolotl.strategy import loader
from mrt_plugin.selection import SELECTORS

__all__ = ["MultiResponsePlugin"]


def _dataset_type(name: str) -> ModuleType:
    module = ModuleType(f"{__name__}.{name}", f"`type: {__name__}.{name}`: a dataset prepared by the plugin.")
    module.load = loader(name)  # type: ignore[attr-defined]
    return module


for _name in (*SELECTORS, ORDINARY):
    sys.modules[f"{__name__}.{_name}"] = _dataset_type(_name)
