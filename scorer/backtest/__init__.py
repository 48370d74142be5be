"""Backtest: what a bundle and a policy would have done, measured on payments whose labels have matured."""

from __future__ import annotations

from scorer.backtest.decided import BacktestError, Decided
from scorer.backtest.measurement import Backtest, backtest
from scorer.backtest.page import write_page
from scorer.backtest.whatif import WhatIf, what_if

__all__ = ["Backtest", "BacktestError", "Decided", "WhatIf", "backtest", "what_if", "write_page"]
