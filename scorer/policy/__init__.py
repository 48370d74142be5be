"""From margins and features to decisions: thresholds, rules, lists, reason codes.

It is pure and may touch feature sets and a batch's columns; it knows no model and no clock.
"""

from scorer.policy.cost_rule import (
    CostRule,
    expected_saving,
    money_saved,
    saving_min_for,
    saving_min_of_most,
    score_of_as_many,
)
from scorer.policy.policy_document import LATE_REASON, REFUSED_PREFIX, SCORE_REASON, FlagCost, Policy, PolicyError
from scorer.policy.policy_runner import APPROVE, FLAG, PolicyRunner, Verdicts

__all__ = [
    "APPROVE",
    "FLAG",
    "LATE_REASON",
    "REFUSED_PREFIX",
    "SCORE_REASON",
    "CostRule",
    "FlagCost",
    "Policy",
    "PolicyError",
    "PolicyRunner",
    "Verdicts",
    "expected_saving",
    "money_saved",
    "saving_min_for",
    "saving_min_of_most",
    "score_of_as_many",
]
