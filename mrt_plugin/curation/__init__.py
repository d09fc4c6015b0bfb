"""Curation: rules that drop, change or flag, applied in order, with a count of every decision."""

from mrt_plugin.curation.config import DEFAULT, RULES, parse_rules
from mrt_plugin.curation.held_out import SplitReport, split_held_out
from mrt_plugin.curation.leakage import LeakageReport, measure_leakage
from mrt_plugin.curation.ledger import Entry, Ledger
from mrt_plugin.curation.mix import MixPart, mix, plan_mix
from mrt_plugin.curation.rule import Decision, GroupRule, GroupView, PoolDecisions, PoolRule, Tools
from mrt_plugin.curation.run import Curated, curate, reading_entry, write_events

__all__ = [
    "DEFAULT",
    "RULES",
    "Curated",
    "Decision",
    "Entry",
    "GroupRule",
    "GroupView",
    "LeakageReport",
    "Ledger",
    "MixPart",
    "PoolDecisions",
    "PoolRule",
    "SplitReport",
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
