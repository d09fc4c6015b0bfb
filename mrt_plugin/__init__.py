"""Multi-response training for TRL and Axolotl: keep K of N responses per prompt, pay for the prompt once.

The public names load on first use, so that ``import mrt_plugin`` stays cheap.

Example:

```python
from mrt_plugin import load_groups, select

groups = load_groups("pool.jsonl")
chosen = select(groups, "random_k", k=4, seed=7)
```
"""

from typing import TYPE_CHECKING

from mrt_plugin.lazy import lazy_names

if TYPE_CHECKING:
    from mrt_plugin.evaluation.evaluate import evaluate
    from mrt_plugin.groups import load_groups
    from mrt_plugin.layout.collator import GroupedResponseCollator
    from mrt_plugin.options import MultiResponseOptions
    from mrt_plugin.planning.plan import make_plan
    from mrt_plugin.selection import select
    from mrt_plugin.trainer import MultiResponseSFTConfig, MultiResponseSFTTrainer
    from mrt_plugin.trainer.mixin import MultiResponseTrainerMixin
    from mrt_plugin.trainer.prepare import prepare_groups

__version__ = "0.1.0"

__all__ = [
    "GroupedResponseCollator",
    "MultiResponseOptions",
    "MultiResponseSFTConfig",
    "MultiResponseSFTTrainer",
    "MultiResponseTrainerMixin",
    "evaluate",
    "load_groups",
    "make_plan",
    "prepare_groups",
    "select",
]

__getattr__ = lazy_names(
    __name__,
    {
        "GroupedResponseCollator": ".layout.collator",
        "MultiResponseOptions": ".options",
        "MultiResponseSFTConfig": ".trainer",
        "MultiResponseSFTTrainer": ".trainer",
        "MultiResponseTrainerMixin": ".trainer.mixin",
        "evaluate": ".evaluation.evaluate",
        "load_groups": ".groups",
        "make_plan": ".planning.plan",
        "prepare_groups": ".trainer.prepare",
        "select": ".selection",
    },
)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
