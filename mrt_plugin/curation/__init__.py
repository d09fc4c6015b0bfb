"""Curation: rules that drop, change or flag, applied in order, with a count of every decision."""

from mrt_plugin.curation.config import RULES, parse_rules
from mrt_plugin.curation.held_out import measure_leakage, split_held_out
from mrt_plugin.curation.mix import mix, plan_mix
from mrt_plugin.curation.rule import Decision, GroupRule, GroupView, PoolDecisions, PoolRule, Tools
from mrt_plugin.curation.run import curate, reading_entry, write_events

__all__ = [
    "RULES",
    "Decision",
    "GroupRule",
    "GroupView",
    "PoolDecisions",
    "PoolRule",
    "Tools",
    "curate",
    "measure_leakage",
    "mix",
    "parse_rules",
    "plan_mix",
    "reading_entry",
    "split_held_out",
    "write_events",
]
