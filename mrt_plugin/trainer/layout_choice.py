"""Which layout a run uses, and why."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from mrt_plugin.attention import ExpandedBackend, NotShareable, prove, resolve_backend
from mrt_plugin.layout.group_row import GroupRow
from mrt_plugin.options import MultiResponseOptions

logger = logging.getLogger(__name__)

WORTH_SHARING = 1.05
"""`layout: auto` shares where it saves at least this ratio of tokens."""

SAMPLED_ROWS = 2000
"""Rows looked at to estimate the token ratio and to find the group that the proof uses."""


@dataclass(frozen=True)
class LayoutChoice:
    """The layout of a run and the attention backend that computes it."""

    layout: str
    backend: Any
    can_pack: bool
    reason: str
