"""From margins and features to decisions: thresholds, rules, lists, reason codes.

It is pure and may touch feature sets and a batch's columns; it knows no model and no clock.
"""

from scorer.policy.policy_document import LATE_REASON, REFUSED_PREFIX, SCORE_REASON, Policy, PolicyError
from scorer.policy.policy_runner import APPROVE, FLAG, PolicyRunner, Verdicts

__all__ = [
    "APPROVE",
    "FLAG",
    "LATE_REASON",
    "REFUSED_PREFIX",
    "SCORE_REASON",
    "Policy",
    "PolicyError",
    "PolicyRunner",
    "Verdicts",
]
