"""Evaluation: measure what a model has learned, on held-out groups and against known distributions."""

from typing import TYPE_CHECKING

from mrt_plugin.lazy import lazy_names

if TYPE_CHECKING:
    from mrt_plugin.evaluation.cases import load_checker, read_cases
    from mrt_plugin.evaluation.evaluate_report import evaluation_report
    from mrt_plugin.evaluation.subject import How

__all__ = ["How", "evaluation_report", "load_checker", "read_cases"]

__getattr__ = lazy_names(
    __name__,
    {
        "How": ".subject",
        "evaluation_report": ".evaluate_report",
        "load_checker": ".cases",
        "read_cases": ".cases",
    },
)
