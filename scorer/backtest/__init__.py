"""Backtest: what a bundle and a policy would have done, measured on payments whose labels have matured.

It reads a replay's stored decisions and writes a page and Parquet files; it touches bundles and policies, no service.
"""

from __future__ import annotations

from scorer.backtest.decided_payments import BacktestError, Decided
from scorer.backtest.measurement import Backtest, backtest
from scorer.backtest.policy_trial import WhatIf, what_if
from scorer.backtest.report_page import write_page

__all__ = ["Backtest", "BacktestError", "Decided", "WhatIf", "backtest", "what_if", "write_page"]
