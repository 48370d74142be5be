"""Backtest: what a bundle and a policy would have done, measured on payments whose labels have matured.

It may read the decisions that a replay stored, bundles and policies, and write a page and Parquet files; no service.
"""

from __future__ import annotations

from scorer.backtest.decided_payments import BacktestError, Decided, of_both
from scorer.backtest.measurement import Backtest, backtest, check_currencies
from scorer.backtest.policy_trial import WhatIf, check_lists, flagged_by_score, what_if
from scorer.backtest.report_page import write_page
from scorer.backtest.segment_thresholds import judged, policy_segments, segment_thresholds

__all__ = [
    "Backtest",
    "BacktestError",
    "Decided",
    "WhatIf",
    "backtest",
    "check_currencies",
    "check_lists",
    "flagged_by_score",
    "judged",
    "of_both",
    "policy_segments",
    "segment_thresholds",
    "what_if",
    "write_page",
]
