"""The policy applied: from margins, features and lists to decisions and reason codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt

from schemas.flags import some
from schemas.payment_batch import PaymentBatch
from schemas.text_set import NOT_THERE, TextSet
from scorer.policy.cost_rule import CostRule
from scorer.policy.policy_document import DEGRADED_REASON, SCORE_REASON, Policy

APPROVE, FLAG = 0, 1
Members = AbstractSet[str] | npt.NDArray[np.bool_]
"""Which payments are on a list: those with one of its values, or bool [n]."""


@dataclass(frozen=True)
class Verdicts:
    """The policy's result for n payments: decision uint8 [n] (0 approve, 1 flag), reason codes and names of the lists
    and rules that fired, by payment, before them that of a segment whose threshold made a difference; by_score bool
    [n]: flagged by the score alone.
    """

    decision: npt.NDArray[np.uint8]
    reasons: list[tuple[str, ...]]
    fired: list[tuple[str, ...]]
    by_score: npt.NDArray[np.bool_]

    def with_degraded(self, degraded: npt.NDArray[np.bool_], without: Verdicts) -> Verdicts:
        """These, but of the payments `degraded`, bool [n], those of `without`, as `decide_degraded` gives them:
        complete, for no feature raised a margin of the model."""
        reasons, fired = self.reasons.copy(), self.fired.copy()
        for row in np.flatnonzero(degraded).tolist():
            reasons[row], fired[row] = without.reasons[row], without.fired[row]
        decision = np.where(degraded, without.decision, self.decision)
        return Verdicts(decision, reasons, fired, self.by_score & ~degraded)


@dataclass(frozen=True)
class _Hit:
    """A list or rule and the payments to which it applies, bool [n]."""

    name: str
    then: str
    reason: str
    applies: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _SegmentMargin:
    """A segment bound to the bundle's scores: its payments, and the margin from which on they are flagged."""

    name: str
    field: str
    values: TextSet
    margin: np.float32


_NOTHING: tuple[str, ...] = ()


class PolicyRunner:
    """A policy bound to a feature set's columns, a margin threshold or the rule by cost, and the live lists."""

    def __init__(
        self,
        policy: Policy,
        feature_names: Sequence[str],
        threshold_margin: float,
        cost: CostRule | None = None,
        segment_margins: Sequence[float] = (),
    ) -> None:
        """`cost`: flags instead of the threshold where the policy flags by cost. `segment_margins`: from which margin
        on each of the policy's segments flags, in their order."""
        policy.check(feature_names)
        if (policy.flag.cost is None) != (cost is None):
            raise ValueError(f"policy {policy.name}: a policy by cost, and no other, runs with its CostRule")
        if len(segment_margins) != len(policy.segments):
            raise ValueError(f"policy {policy.name}: {len(policy.segments)} segments, {len(segment_margins)} margins")
        self.cost = cost
        self._segments = [
            _SegmentMargin(segment.name, segment.field, TextSet(segment.values), np.float32(margin))
            for segment, margin in zip(policy.segments, segment_margins, strict=True)
        ]
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
        scores: npt.NDArray[np.float64],
        lists: Mapping[str, Members],
    ) -> Verdicts:
        """Decide n payments. Margins are compared, not scores: float32 that are bit-equal on every machine. By cost the
        scores decide, with the amounts.

        Reasons of payments flagged by score are added later by `explain`, only for those payments.
        """
        if self.cost is not None:
            return self._decide(batch, features, self._by_cost(batch, scores), lists)
        common = np.asarray(margins >= self.threshold_margin)
        if not self._segments:
            return self._decide(batch, features, common, lists)
        segment = self.segment_of(batch)
        least = np.array([*(item.margin for item in self._segments), self.threshold_margin], np.float32)[segment]
        by_score = np.asarray(margins >= least)
        verdicts = self._decide(batch, features, by_score, lists)
        for row in np.flatnonzero(by_score != common).tolist():
            verdicts.fired[row] = (self._segments[segment[row]].name, *verdicts.fired[row])
        return verdicts

    def segment_of(self, batch: PaymentBatch) -> npt.NDArray[np.intp]:
        """int [n]: the number of the segment that each payment is in, in the policy's order; -1: in none."""
        segment = np.full(len(batch.amount_minor), -1, np.intp)
        for number in reversed(range(len(self._segments))):  # the first that applies is written last
            item = self._segments[number]
            applies = item.values.numbers(*batch.placed(item.field)) != NOT_THERE
            segment[applies] = number
        return segment

    def _by_cost(self, batch: PaymentBatch, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        assert self.cost is not None
        return self.cost.flags(scores, self.cost.amounts(batch))

    def decide_degraded(
        self,
        batch: PaymentBatch,
        features: npt.NDArray[np.float32],
        lists: Mapping[str, Members],
        scores: npt.NDArray[np.float64],
        by_student: npt.NDArray[np.bool_] | None = None,
    ) -> Verdicts:
        """Decide n payments without the model: lists and rules as always, no segments; for the rest what the student
        flags, bool [n] (by cost: its scores float64 [n] with the amounts), or without one the policy's
        `degraded.otherwise`.
        """
        reasons: tuple[str, ...]
        if by_student is None:
            by_score, reasons = np.full(len(features), self.policy.degraded.otherwise == "flag"), (DEGRADED_REASON,)
        else:
            by_score = by_student if self.cost is None else self._by_cost(batch, scores)
            reasons = (SCORE_REASON, DEGRADED_REASON)
        verdicts = self._decide(batch, features, by_score, lists)
        for i in np.flatnonzero(verdicts.by_score).tolist():
            verdicts.reasons[i] = (*verdicts.reasons[i], *reasons)[: self.policy.reason_count_max]
        return verdicts

    def _decide(
        self,
        batch: PaymentBatch,
        features: npt.NDArray[np.float32],
        by_score: npt.NDArray[np.bool_],
        lists: Mapping[str, Members],
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

    def _hits(self, batch: PaymentBatch, features: npt.NDArray[np.float32], lists: Mapping[str, Members]) -> list[_Hit]:
        """The lists and rules that apply to any of the payments, lists first, each kind in the policy's order."""
        hits: list[_Hit] = []
        for item in self.policy.lists:
            members = lists.get(item.name, frozenset())
            if isinstance(members, np.ndarray):
                hits.append(_Hit(item.name, item.then, item.reason, members))
            elif members:
                found = (value in members for value in batch.column(item.field))
                hits.append(_Hit(item.name, item.then, item.reason, np.fromiter(found, np.bool_, len(features))))
        for rule in self.policy.rules:
            conditions = [c.holds(features[:, self._column[c.feature]]) for c in rule.when]
            hits.append(_Hit(rule.name, rule.then, rule.reason, reduce(np.logical_and, conditions)))
        return [hit for hit in hits if some(hit.applies)]

    def explain(self, contributions: npt.NDArray[np.float64], before: tuple[str, ...]) -> tuple[str, ...]:
        """Reason codes of one payment flagged by its score: `before` (lists and rules), then the groups that raise the
        margin most.

        `contributions` float64 [F + 1] are margin units, the last one the bias. Ties keep the policy's order.
        """
        weights = [(round(float(contributions[columns].sum()), 9), code) for code, columns in self._groups]
        ranked = [code for weight, code in sorted(weights, key=lambda item: -item[0]) if weight > 0.0]
        codes = tuple(dict.fromkeys((*before, *ranked)))[: self.policy.reason_count_max]
        return codes or (SCORE_REASON,)
