"""Multi-response training for TRL and Axolotl: keep K of N responses per prompt, pay for the prompt once.

The public names load on first use, so that ``import mrt_plugin`` stays cheap.

Example:

```python
from mrt_plugin import load_groups, select

groups = load_groups("pool.jsonl")
chosen = select(groups, "random_k", k=4, seed=7)
```
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrt_plugin.groups import load_groups
    from mrt_plugin.layout.collator import GroupedResponseCollator
    from mrt_plugin.selection import select
    from mrt_plugin.trainer import MultiResponseSFTConfig, MultiResponseSFTTrainer

__version__ = "0.1.0"

_HOMES = {
    "GroupedResponseCollator": "mrt_plugin.layout.collator",
    "MultiResponseSFTConfig": "mrt_plugin.trainer",
    "MultiResponseSFTTrainer": "mrt_plugin.trainer",
    "load_groups": "mrt_plugin.groups",
    "select": "mrt_plugin.selection",
}

__all__ = [
    "GroupedResponseCollator",
    "MultiResponseSFTConfig",
    "MultiResponseSFTTrainer",
    "load_groups",
    "select",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mrt_plugin' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
