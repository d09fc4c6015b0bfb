"""Planning: choose how many responses to keep per prompt, and audit how a selection changes the loss estimate."""

from typing import TYPE_CHECKING

from mrt_plugin.lazy import lazy_names

if TYPE_CHECKING:
    from mrt_plugin.planning.plan_report import advise

__all__ = ["advise"]

__getattr__ = lazy_names(__name__, {"advise": ".plan_report"})
