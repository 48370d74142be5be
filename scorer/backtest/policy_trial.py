"""What-if for policies: another threshold, rule or list over decided payments, from stored margins and features.

Engine and model are not run again: everything that a policy uses is stored with the decision. A list that the bundle
has on the same field was on the payments where it fired, with what control records had changed by then; what the
policy's text adds to the bundle's values is added, what it leaves out is taken away. Another list has the values of its
text.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.payment_batch import PaymentBatch, Placed
from schemas.payment_columns import places_of
from scorer.backtest.decided_payments import DAY_MS, BacktestError, Decided
from scorer.bundle import Bundle
from scorer.policy import (
    FLAG,
    CostRule,
    Policy,
    PolicyRunner,
    Verdicts,
    expected_saving,
    saving_min_for,
    score_of_as_many,
)
from scorer.policy.policy_document import FlagBy, ListRule
from scorer.replay.replay_output import KEPT_FIELDS
from scorer.training.ranking import threshold_for_share


@dataclass(frozen=True)
class WhatIf:
    """n payments under another policy, and those m that it decides otherwise."""

    policy: str
    threshold_score: float
    """By cost: the bundle's, or by other costs than its own the score from which as many of the payments would be
    flagged."""
    decided: Decided
    """The payments with the policy's decisions."""
    reasons: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Reason codes of the payments flagged now, by row, where the decision changed."""
    notes: list[str] = field(default_factory=list)
    """On which days a share's threshold or a limit was found."""


class Stored:
    """The part of a payment batch that a policy reads, lists apart: text fields of segments, amounts, currencies."""

    def __init__(self, decided: Decided) -> None:
        self._decided = decided

    @property
    def amount_minor(self) -> npt.NDArray[np.int64]:
        return np.asarray(self._decided.numbers("amount_minor"), dtype=np.int64)

    def placed(self, name: str) -> Placed:
        return places_of(pc.cast(self._decided.table[name], pa.string()).combine_chunks())


_LISTED_FIELDS = ("payment_id", "currency", *KEPT_FIELDS)


def check_lists(policy: Policy, bundle: Bundle) -> None:
    """Raise BacktestError where a list's values would be compared with a field that stored decisions do not have."""
    for item in policy.lists:
        fired, added, taken = _list_against(item, bundle)
        if item.field not in _LISTED_FIELDS and (added or taken):
            raise BacktestError(
                f"policy {policy.name}: list {item.name} is on {item.field}, which stored decisions do not keep, and "
                f"its values are not {'those' if fired else 'of a list'} of the bundle's policy: leave the list as the "
                "bundle has it, or give `backtest --against` a bundle that was trained with this policy"
            )


def _list_against(item: ListRule, bundle: Bundle) -> tuple[bool, set[str], set[str]]:
    """Whether the bundle's policy has this list, of that name on that field, so that it fired on stored decisions; the
    values that `item` has beyond the bundle's, and those that it lacks."""
    for before in bundle.policy.lists:
        if (before.name, before.field) == (item.name, item.field):
            return True, set(item.values) - set(before.values), set(before.values) - set(item.values)
    return False, set(item.values), set()


def _members(policy: Policy, bundle: Bundle, decided: Decided) -> dict[str, npt.NDArray[np.bool_]]:
    """bool [n] by list of the policy: the payments on it."""
    found = {}
    for item in policy.lists:
        fired, added, taken = _list_against(item, bundle)
        there = decided.fired(item.name) if fired else np.zeros(len(decided), np.bool_)
        found[item.name] = (there | decided.with_values(item.field, added)) & ~decided.with_values(item.field, taken)
    return found


def _notes_on_lists(policy: Policy, bundle: Bundle, decided: Decided) -> list[str]:
    """What a list of the policy cannot know of the stored decisions."""
    notes, fields = [], {item.name: item.field for item in bundle.policy.lists}
    for item in policy.lists:
        fired, added, _ = _list_against(item, bundle)
        if added and decided.table[item.field].null_count == len(decided):
            notes.append(f"List {item.name} is on {item.field}, which none of the stored payments has.")
        if not fired and item.name in fields and (count := int(decided.fired(item.name).sum())):
            notes.append(
                f"List {item.name} is on {item.field}, that of the bundle on {fields[item.name]}: it has the values of "
                f"its text alone, and the {count:,} payments on which it fired count without it."
            )
    return notes


def threshold_of(policy: Policy, bundle: Bundle, seen: Decided) -> float:
    """The score from which the policy flags. The bundle's own share has the threshold that training gave it, so that a
    changed rule or list changes nothing else; another share is met on the payments `seen`."""
    if policy.flag == bundle.policy.flag:
        return bundle.manifest.threshold_score
    if policy.flag.score is not None:
        return policy.flag.score
    return threshold_for_share(seen.score, float(policy.flag.share or 0))


def cost_rule_of(policy: Policy, bundle: Bundle, seen: Decided) -> CostRule | None:
    """The rule of a policy by cost. The bundle's own costs have the least saving that training gave them; other ones
    meet the team's capacity on the payments `seen`. Raises PolicyError for another currency than the bundle's."""
    cost = policy.flag.cost
    if cost is None:
        return None
    if policy.flag == bundle.policy.flag:
        return bundle.policy_runner().cost
    rule = CostRule.of(cost, 0.0, bundle.feature_set)
    savings = expected_saving(cost, seen.score, rule.amounts(cast(PaymentBatch, Stored(seen))))
    days = (int(seen.time_ms.max()) + 1 - int(seen.time_ms.min())) / DAY_MS
    return replace(rule, saving_min=saving_min_for(cost, savings, days))


def flagged_by_score(
    decided: Decided, bundle: Bundle, policy: Policy, from_ms: int | None = None
) -> npt.NDArray[np.bool_]:
    """bool [n]: what a policy by cost would flag by the score alone, as many payments as by cost: of its own bundle on
    validation, of another policy where `what_if` finds its limit. Lists and rules decide as they do."""
    if policy.flag.cost is None:
        raise BacktestError(f"policy {policy.name} does not flag by cost")
    own, score = policy.flag == bundle.policy.flag, bundle.manifest.threshold_score
    if not own:
        seen, _ = _seen(decided, bundle, from_ms)
        score = _score_of_as_many(policy, bundle, seen)
    margin = bundle.manifest.calibration.margin_for(score, bundle.model.link)
    # The runner compares margins: which score it is does not matter here.
    plain = policy.model_copy(update={"flag": FlagBy(score=0.5, share=None)})
    runner = PolicyRunner(plain, bundle.feature_set.names, float(margin))
    verdicts = _verdicts(runner, bundle, decided, decided.features(), None if own else score)
    return np.asarray(verdicts.decision == FLAG)


def _seen(decided: Decided, bundle: Bundle, from_ms: int | None) -> tuple[Decided, str]:
    """The payments that a share's threshold or a limit is found on, and which days those are: after the ones that the
    bundle was trained with and before `from_ms`, where they span a day, as training finds it before the days it is used
    on; else the measured ones. Those decided without the model are none of them: their scores are not the model's."""
    at, training = decided.time_ms, bundle.manifest.training
    measured = at >= (from_ms or 0)
    if not measured.any():
        raise BacktestError("no payment lies in the window: check --from and --until")
    if training is not None:
        earlier = (at >= training.validation_until_ms) & ~measured & ~decided.degraded
        if earlier.any() and int(at[earlier].max()) - int(at[earlier].min()) >= DAY_MS:
            return decided.take(earlier), "between the training's days and those measured"
    found = measured & ~decided.degraded
    if not found.any():
        raise BacktestError(
            f"none of the {int(measured.sum())} payments was decided by the model: no threshold can be found on them; "
            "give flag.score, or decisions of a longer time"
        )
    return decided.take(found), "measured, so that it fits them better than days to come"


def _score_of_as_many(policy: Policy, bundle: Bundle, seen: Decided) -> float:
    rule = cost_rule_of(policy, bundle, seen)
    assert rule is not None
    flagged = rule.flags(seen.score, rule.amounts(cast(PaymentBatch, Stored(seen))))
    return score_of_as_many(seen.score, max(1, int(flagged.sum())))


def _verdicts(
    runner: PolicyRunner,
    bundle: Bundle,
    decided: Decided,
    features: npt.NDArray[np.float32],
    threshold_score: float | None,
) -> Verdicts:
    """Verdicts of n payments as they are live: those decided without the model by the student or as the policy says.
    `threshold_score`: of a policy with another `flag` than the bundle's, from which its student flags then."""
    payments = cast(PaymentBatch, Stored(decided))
    lists = _members(runner.policy, bundle, decided)
    verdicts = runner.decide(payments, features, decided.margin, decided.score, lists)
    degraded = decided.degraded
    if not degraded.any():
        return verdicts
    by_student, student = None, bundle.student
    if student is not None:
        least = bundle.student_threshold_margin
        if threshold_score is not None:
            least = float(student.calibration.margin_for(threshold_score, student.model.link))
        by_student = decided.margin >= np.float32(least)
    without = runner.decide_degraded(payments, features, lists, decided.score, by_student)
    return verdicts.with_degraded(degraded, without)


def what_if(decided: Decided, bundle: Bundle, policy: Policy, from_ms: int | None = None) -> WhatIf:
    """`decided` by `policy` instead, of which those from `from_ms` on are measured (None: all). Raises BacktestError
    where the rows are another bundle's or lack the field of a list, PolicyError for features that the bundle does not
    have."""
    policy.check(bundle.feature_set.names)
    check_lists(policy, bundle)
    others = set(decided.table["bundle"].unique().to_pylist()) - {bundle.id}
    if others:
        raise BacktestError(
            f"the decisions are of bundle {min(map(str, others))}, not of {bundle.id}: replay with {bundle.id} first"
        )
    own, seen, notes = policy.flag == bundle.policy.flag, decided, []
    if not own and policy.flag.score is None:
        seen, days = _seen(decided, bundle, from_ms)
        limit = "threshold of the share" if policy.flag.cost is None else "limit of the policy by cost"
        notes = [f"The {limit} was found on the days {days}."]
    notes += _notes_on_lists(policy, bundle, decided)
    rule = cost_rule_of(policy, bundle, seen)
    by_cost = rule is not None and not own
    threshold = _score_of_as_many(policy, bundle, seen) if by_cost else threshold_of(policy, bundle, seen)
    margin = bundle.manifest.calibration.margin_for(threshold, bundle.model.link)
    runner = PolicyRunner(policy, bundle.feature_set.names, float(margin), rule, bundle.segment_margins(policy))
    features = decided.features()
    verdicts = _verdicts(runner, bundle, decided, features, None if own else float(threshold))
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
    return WhatIf(policy.name, float(threshold), after, reasons, notes)
