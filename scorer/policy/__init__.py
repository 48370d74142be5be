"""From margins and features to decisions: thresholds, rules, lists, reason codes.

It is pure and may touch the model room's numbers and the payment's columns only.
"""

from scorer.policy.policy import (
    APPROVE,
    FLAG,
    LATE_REASON,
    SCORE_REASON,
    Policy,
    PolicyError,
    PolicyRunner,
    Verdicts,
)

__all__ = ["APPROVE", "FLAG", "LATE_REASON", "SCORE_REASON", "Policy", "PolicyError", "PolicyRunner", "Verdicts"]
