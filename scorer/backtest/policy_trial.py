"""What-if for policies: another threshold, rule or list over decided payments, from stored margins and features.

Engine and model are not run again: everything that a policy uses is stored with the decision. Lists are those of the
policy's file, without what control records added while workers ran.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.payment_decoder import PaymentBatch
from scorer.backtest.decided_payments import BacktestError, Decided
from scorer.bundle import Bundle
from scorer.policy import FLAG, Policy, PolicyRunner
from scorer.training.ranking import threshold_for_share


@dataclass(frozen=True)
class WhatIf:
    """n payments under another policy, and those m that it decides otherwise."""

    policy: str
    threshold_score: float
    decided: Decided
    """The payments with the policy's decisions."""
    reasons: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Reason codes of the payments flagged now, by row, where the decision changed."""


class _Stored:
    """The part of a payment batch that a policy reads: columns of text fields."""

    def __init__(self, decided: Decided) -> None:
        self._decided = decided

    def column(self, name: str) -> npt.NDArray[Any]:
        if name not in self._decided.table.column_names:
            raise BacktestError(f"the stored decisions have no column {name!r}, which a list of the policy is on")
        values = np.empty(len(self._decided), dtype=object)
        values[:] = self._decided.texts(name)
        return values


def threshold_of(policy: Policy, bundle: Bundle, scores: npt.NDArray[np.float64]) -> float:
    """The score from which the policy flags. The bundle's own share has the threshold that training gave it, so that a
    changed rule or list changes nothing else; another share is met on the payments given, float64 [n]."""
    if policy.flag == bundle.policy.flag:
        return bundle.manifest.threshold_score
    return (
        threshold_for_share(scores, float(policy.flag.share or 0)) if policy.flag.score is None else policy.flag.score
    )


def what_if(decided: Decided, bundle: Bundle, policy: Policy) -> WhatIf:
    """`decided` by `policy` instead. Raises BacktestError where the rows are another bundle's, PolicyError for features
    that the bundle does not have."""
    policy.check(bundle.feature_set.names)
    others = set(decided.table["bundle"].unique().to_pylist()) - {bundle.id}
    if others:
        raise BacktestError(
            f"the decisions are of bundle {min(map(str, others))}, not of {bundle.id}: replay with {bundle.id} first"
        )
    threshold = threshold_of(policy, bundle, decided.score)
    margin = bundle.manifest.calibration.margin_for(threshold, bundle.model.link)
    runner = PolicyRunner(policy, bundle.feature_set.names, float(margin))
    features = decided.features()
    lists = {item.name: set(item.values) for item in policy.lists}
    verdicts = runner.decide(cast(PaymentBatch, _Stored(decided)), features, decided.margin, lists)
    flagged = verdicts.decision == FLAG
    reasons: dict[int, tuple[str, ...]] = {}
    changed = np.flatnonzero(flagged & ~decided.flagged)
    if len(changed):
        contributions = bundle.model.contributions(np.ascontiguousarray(features[changed]))
        for row, pushed in zip(changed.tolist(), contributions, strict=True):
            before = verdicts.reasons[row]
            reasons[row] = runner.explain(pushed, before) if verdicts.by_score[row] else before
    column = pa.array(np.where(flagged, "flag", "approve").tolist(), pa.string())
    place = decided.table.schema.get_field_index("decision")
    fired = pa.array([list(names) for names in verdicts.fired], pa.list_(pa.string()))
    table = decided.table.set_column(place, "decision", column)
    table = table.set_column(table.schema.get_field_index("fired"), "fired", fired)
    after = replace(decided, table=table)
    return WhatIf(policy.name, float(threshold), after, reasons)
