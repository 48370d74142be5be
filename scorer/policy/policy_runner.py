"""The policy applied: from margins, features and lists to decisions and reason codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.payment_decoder import PaymentBatch
from scorer.policy.policy_document import DEGRADED_REASON, SCORE_REASON, Policy

APPROVE, FLAG = 0, 1


@dataclass(frozen=True)
class Verdicts:
    """The policy's result for n payments: decision uint8 [n] (0 approve, 1 flag), reason codes and names of the lists
    and rules that fired, by payment; by_score bool [n]: flagged by the score alone.
    """

    decision: npt.NDArray[np.uint8]
    reasons: list[tuple[str, ...]]
    fired: list[tuple[str, ...]]
    by_score: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Hit:
    """A list or rule and the payments to which it applies, bool [n]."""

    name: str
    then: str
    reason: str
    applies: npt.NDArray[np.bool_]


_NOTHING: tuple[str, ...] = ()


class PolicyRunner:
    """A policy bound to a feature set's columns, a margin threshold and the live lists."""

    def __init__(self, policy: Policy, feature_names: Sequence[str], threshold_margin: float) -> None:
        policy.check(feature_names)
        self.policy = policy
        self.threshold_margin = np.float32(threshold_margin)
        self._column = {name: i for i, name in enumerate(feature_names)}
        self._groups = [(group.code, np.array([self._column[f] for f in group.features])) for group in policy.reasons]

    @property
    def refused(self) -> int:
        """The decision on a record that is no payment but names one: 0 approve, 1 flag."""
        return FLAG if self.policy.refused.otherwise == "flag" else APPROVE

    def decide(
        self,
        batch: PaymentBatch,
        features: npt.NDArray[np.float32],
        margins: npt.NDArray[np.float32],
        lists: Mapping[str, AbstractSet[str]],
    ) -> Verdicts:
        """Decide n payments. Margins are compared, not scores: float32 that are bit-equal on every machine.

        Reasons of payments flagged by score are added later by `explain`, only for those payments.
        """
        return self._decide(batch, features, margins >= self.threshold_margin, lists)

    def decide_degraded(
        self,
        batch: PaymentBatch,
        features: npt.NDArray[np.float32],
        lists: Mapping[str, AbstractSet[str]],
        by_student: npt.NDArray[np.bool_] | None = None,
    ) -> Verdicts:
        """Decide n payments without the model: lists and rules as always; for the rest what the student flags,
        bool [n], or without one the policy's `degraded.otherwise`.
        """
        reasons: tuple[str, ...]
        if by_student is None:
            by_score, reasons = np.full(len(features), self.policy.degraded.otherwise == "flag"), (DEGRADED_REASON,)
        else:
            by_score, reasons = by_student, (SCORE_REASON, DEGRADED_REASON)
        verdicts = self._decide(batch, features, by_score, lists)
        for i in np.flatnonzero(verdicts.by_score).tolist():
            verdicts.reasons[i] = (*verdicts.reasons[i], *reasons)[: self.policy.reason_count_max]
        return verdicts

    def _decide(
        self,
        batch: PaymentBatch,
        features: npt.NDArray[np.float32],
        by_score: npt.NDArray[np.bool_],
        lists: Mapping[str, AbstractSet[str]],
    ) -> Verdicts:
        n = len(by_score)
        decision = by_score.astype(np.uint8)
        hits = self._hits(batch, features, lists)
        reasons: list[tuple[str, ...]] = [_NOTHING] * n
        fired: list[tuple[str, ...]] = [_NOTHING] * n
        if not hits:
            return Verdicts(decision, reasons, fired, by_score)
        # Approvals first, flags after them: a flag wins.
        for then, value in (("approve", APPROVE), ("flag", FLAG)):
            for hit in hits:
                if hit.then == then:
                    decision[hit.applies] = value
        for i in np.flatnonzero(np.logical_or.reduce([hit.applies for hit in hits])):
            outcome = "flag" if decision[i] == FLAG else "approve"
            fired[i] = tuple(hit.name for hit in hits if hit.applies[i])
            codes = dict.fromkeys(hit.reason for hit in hits if hit.applies[i] and hit.then == outcome)
            reasons[i] = tuple(codes)[: self.policy.reason_count_max]
        return Verdicts(decision, reasons, fired, by_score & (decision == FLAG))

    def _hits(
        self, batch: PaymentBatch, features: npt.NDArray[np.float32], lists: Mapping[str, AbstractSet[str]]
    ) -> list[_Hit]:
        """The lists and rules that apply to any of the payments, lists first, each kind in the policy's order."""
        hits: list[_Hit] = []
        for item in self.policy.lists:
            values = lists.get(item.name)
            if values:
                members = (value in values for value in batch.column(item.field))
                hits.append(_Hit(item.name, item.then, item.reason, np.fromiter(members, np.bool_, len(features))))
        for rule in self.policy.rules:
            conditions = [c.holds(features[:, self._column[c.feature]]) for c in rule.when]
            hits.append(_Hit(rule.name, rule.then, rule.reason, np.logical_and.reduce(conditions)))
        return [hit for hit in hits if hit.applies.any()]

    def explain(self, contributions: npt.NDArray[np.float64], before: tuple[str, ...]) -> tuple[str, ...]:
        """Reason codes of one payment flagged by its score: `before` (lists and rules), then the groups that raise the
        margin most.

        `contributions` float64 [F + 1] are margin units, the last one the bias. Ties keep the policy's order.
        """
        weights = [(round(float(contributions[columns].sum()), 9), code) for code, columns in self._groups]
        ranked = [code for weight, code in sorted(weights, key=lambda item: -item[0]) if weight > 0.0]
        codes = tuple(dict.fromkeys((*before, *ranked)))[: self.policy.reason_count_max]
        return codes or (SCORE_REASON,)
