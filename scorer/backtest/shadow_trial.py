"""A challenger's decisions on payments that were decided with its champion: from stored features, engine not run again.

The margins are computed from the features that the live engine computed and logged, so they are, bit for bit, those
that stand beside the decision in the audit trail.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.payment_batch import PaymentBatch
from scorer.backtest.comparison_findings import Seen
from scorer.backtest.decided_payments import DAY_MS, BacktestError, Decided
from scorer.backtest.policy_trial import Stored
from scorer.bundle import Bundle, Challenger
from scorer.policy import CostRule, expected_saving, saving_min_of_most, score_of_as_many

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shadow:
    """The payments as the challenger would have decided them: margin, score and decision are its own."""

    name: str
    decided: Decided
    threshold_score: float | None
    """The score from which it flags payments of no segment: as many as the champion's score; None by cost, or where the
    champion flags none of them."""
    segment_scores: dict[str, float] = field(default_factory=dict)
    """The same by segment of the policy, for those in which the champion's score flags a payment. In others it flags
    none."""
    saving_min: float | None = None
    """Of a policy by cost with `reviews_a_day`: the expected saving above which it flags, major units; else None."""


def challenger_of(bundle: Bundle, name: str | None) -> Challenger:
    """The challenger of that id; without a name the only one that is no student. Raises BacktestError."""
    others = [item for item in bundle.challengers if name is not None or item is not bundle.student]
    found = [item for item in others if name in (None, item.id)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(item.id for item in bundle.challengers) or "none"
    if name is not None:
        raise BacktestError(f"--challenger {name}: the challengers of {bundle.id} are: {known}")
    if not others:
        raise BacktestError(
            f"{bundle.id} has no challenger (it has: {known}): add one with `bundle challenge --with`, and replay with "
            "the bundle that it writes"
        )
    raise BacktestError(f"{bundle.id} has several challengers: name one with --challenger: {known}")


def seen_of(bundle: Bundle, challenger: Challenger) -> Seen:
    """Until when payments had a part in the training of either model: a comparison on those favours the one that
    learned from more of them."""
    training = bundle.manifest.training
    known = {item.id: item.seen_until_ms for item in bundle.manifest.challengers}
    until = {
        bundle.id: None if training is None else training.validation_until_ms,
        challenger.id: known[challenger.id],
    }
    return Seen(
        max((at for at in until.values() if at is not None), default=None),
        tuple(name for name, at in until.items() if at is None),
    )


def shadow_of(decided: Decided, bundle: Bundle, challenger: Challenger, counted: npt.NDArray[np.bool_]) -> Shadow:
    """The challenger's decisions under the bundle's policy.

    Where a list or a rule fired it decides for every model alike, as it did live, with the lists of that moment;
    payments that had no time for the model are the student's on both sides. By cost the challenger's scores go into
    the same rule, with `reviews_a_day` from a least saving of its own, that keeps to as much work. Else its threshold
    is the score from which it flags as many of the payments `counted`, bool [n], as the champion's score does, in each
    of the policy's segments and outside them: equal work for the team that reviews. Raises BacktestError for decisions
    of another bundle.
    """
    others = set(decided.table["bundle"].unique().to_pylist()) - {bundle.id}
    if others:
        raise BacktestError(
            f"the decisions are of bundle {min(map(str, others))}, not of {bundle.id}: replay with {bundle.id} first"
        )
    segments = [segment.name for segment in bundle.policy.segments]
    alike = decided.by_list_or_rule(segments) | decided.degraded
    margins = challenger.model.margins(decided.features())
    scores = challenger.calibration.apply(margins, challenger.model.link)
    runner, payments, found = bundle.policy_runner(), cast(PaymentBatch, Stored(decided)), dict[str | None, float]()
    rows, saving_min = counted & ~alike, None
    if (rule := runner.cost) is not None:
        amounts = rule.amounts(payments)
        if rule.cost.reviews_a_day is not None:
            saving_min = _saving_min(rule, decided.take(rows), scores[rows], amounts[rows])
            rule = replace(rule, saving_min=saving_min)
        by_score = rule.flags(scores, amounts)
    else:
        if not decided.flagged[rows].any():
            raise BacktestError(
                f"the score of {bundle.id} flags none of the {int(rows.sum())} payments: there is nothing to compare "
                "the challenger with; give a longer time"
            )
        part, by_score = runner.segment_of(payments), np.zeros(len(decided), np.bool_)
        for number, name in enumerate([*segments, None]):
            here = part == (number if name is not None else -1)
            there = here & rows
            if flagged := int(decided.flagged[there].sum()):
                # The margin ranks: a calibrated score may tie where margins differ.
                by_score |= here & (margins >= score_of_as_many(margins[there].astype(np.float64), flagged))
                found[name] = float(scores[there & by_score].min())
    table = decided.table
    for name, values in (
        ("margin", pa.array(np.where(decided.degraded, decided.margin, margins).astype(np.float32))),
        ("score", pa.array(np.where(decided.degraded, decided.score, scores))),
        ("decision", pa.array(np.where(np.where(alike, decided.flagged, by_score), "flag", "approve").tolist())),
    ):
        table = table.set_column(table.column_names.index(name), name, values)
    by_segment = {name: score for name, score in found.items() if name is not None}
    return Shadow(challenger.id, replace(decided, table=table), found.get(None), by_segment, saving_min)


def _saving_min(champion: CostRule, decided: Decided, scores: Floats, amounts: Floats) -> float:
    """The least saving from which the challenger, with scores float64 [n], flags at most as many payments as the
    champion's rule did: as much work. Where the capacity does not bind the champion, up to the capacity."""
    allowed, reviews = int(decided.flagged.sum()), champion.cost.reviews_a_day
    if champion.saving_min == 0.0 and reviews is not None and len(decided):
        days = (int(decided.time_ms.max()) + 1 - int(decided.time_ms.min())) / DAY_MS
        allowed = max(allowed, int(reviews * days))
    return saving_min_of_most(expected_saving(champion.cost, scores, amounts), allowed)
