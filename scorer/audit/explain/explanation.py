"""`audit explain`: one decision in words, its features and reasons, and the proof that it had to come out so.

The proof is made by the very code that decides: the bundle's compiled model on the logged feature values, its policy on
the margin. What cannot be recomputed from a row, because the row does not hold it, is taken from it, with a note:
which lists held the payment's fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
from psycopg.rows import dict_row

from schemas.audit_record import digest
from schemas.currencies import CURRENCY_EXPONENT
from schemas.payment_batch import PaymentBatch, Placed
from schemas.payment_columns import places_of
from scorer.audit.explain.redecision import Window
from scorer.bundle import Bundle
from scorer.errors import FraudScorerError, UsageError
from scorer.pipeline import Outcomes
from scorer.policy import FLAG, LATE_REASON, expected_saving
from scorer.trail.audit_database import connect_text

_MODES = {
    "normal": "",
    "degraded": " Decided in degraded mode, without the model, because the deadline was near.",
    "duplicate": " The payment id had been decided before: the same decision was given again.",
    "late": " It came later than the windows allow: scored, without entering them.",
    "refused": "",
}


@dataclass(frozen=True)
class Check:
    """One thing computed again: `logged` and `again` in the form that people read."""

    what: str
    logged: str
    again: str
    equal: bool


@dataclass
class Explanation:
    """One decision on a payment."""

    row: dict[str, Any]
    features: list[tuple[str, float]]
    sentence: str
    reasons: list[tuple[str, str]]
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    labels: list[dict[str, Any]] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)

    @property
    def equal(self) -> bool | None:
        """Whether everything computed again is what was logged; None when nothing was."""
        return all(check.equal for check in self.checks) if self.checks else None

    @property
    def place(self) -> tuple[int, int, int]:
        """Shard, sequence, row number."""
        return self.row["shard"], self.row["sequence"], self.row["row_number"]


def find(url: str, payment_id: str) -> list[Explanation]:
    """The decisions on a payment, in the order in which they were made. Raises FraudScorerError when there are none."""
    with psycopg.connect(connect_text(url), row_factory=dict_row) as connection:
        rows = connection.execute(
            "SELECT d.*, b.origin_topic, b.feature_fingerprint, b.challengers, b.digest, b.head, b.salt, "
            "b.journal->>'decided' AS decided, s.feature_names, EXISTS (SELECT 1 FROM erasures e "
            "WHERE e.shard = d.shard AND e.sequence = d.sequence) AS batch_erased, "
            "d.payment_id LIKE 'erased-%%' AND EXISTS (SELECT 1 FROM erasures e WHERE e.shard = d.shard "
            "AND e.sequence = d.sequence) AS erased "
            "FROM decisions d JOIN batches b ON b.shard = d.shard AND b.sequence = d.sequence AND b.day = d.day "
            "JOIN feature_sets s ON s.fingerprint = b.feature_fingerprint "
            "WHERE d.payment_id = %s ORDER BY d.shard, d.sequence, d.row_number",
            (payment_id,),
        ).fetchall()
        if not rows:
            raise FraudScorerError(_why_none(connection, payment_id))
        labels = connection.execute(
            'SELECT fraud, known_at, source, analyst FROM labels WHERE payment_id = %s ORDER BY known_at, "offset"',
            (payment_id,),
        ).fetchall()
    return [
        Explanation(
            row,
            list(zip(row["feature_names"], row["features"], strict=True)),
            _sentence(row),
            [(code, code) for code in row["reasons"]],
            labels=labels,
        )
        for row in rows
    ]


def _why_none(connection: psycopg.Connection[Any], payment_id: str) -> str:
    """What a payment without a decision may be, by what the database knows."""
    missing = f"no decision on payment {payment_id} is in the audit trail"
    if payment_id.startswith("erased-"):
        return f"{missing}: it is a pseudonym of an erasure, and no row has it"
    why = "it was refused (see `fraud-scorer dead-letters list`), or the sink has not written it yet"
    if connection.execute("SELECT 1 FROM erasures LIMIT 1").fetchone():
        why += ", or its person was erased: then its id is a pseudonym now, which can not be found from the id"
    if connection.execute("SELECT 1 FROM tombstones LIMIT 1").fetchone():
        why += ", or retention removed its day"
    return f"{missing}: {why}"


def prove(explanation: Explanation, bundle: Bundle) -> None:
    """Adds the reasons' sentences and what the bundle computes from the logged feature values.

    Raises UsageError when another bundle decided.
    """
    row = explanation.row
    if bundle.id != row["bundle"]:
        raise UsageError(f"bundle {row['bundle']} decided, {bundle.id} was given: give the folder of that one")
    explanation.reasons = [(code, bundle.policy.sentence(code)) for code in row["reasons"]]
    if row["mode"] == "refused":
        explanation.notes.append("The record was no payment (see its dead letter): nothing was computed.")
        explanation.checks.append(_equal("decision", row["decision"], bundle.policy.refused.otherwise))
        return
    if row["mode"] == "duplicate":
        explanation.notes.append("A repeated decision is not computed; the first one is explained on its own.")
        return
    features = np.array([row["features"]], np.float32)
    degraded = row["mode"] == "degraded"
    if degraded:
        by = "the one before its first tree" if bundle.student is None else f"that of the student {bundle.student.id}"
        explanation.notes.append(f"Decided without the model: the margin is {by}.")
        margins, scores, _ = bundle.degraded(features)
        if bundle.student is not None and bundle.manifest.student_threshold_score is not None:
            explanation.notes.append(f"The student flags from a score of {bundle.student_threshold_score:.6g} on.")
    else:
        margins = bundle.model.margins(features)
        scores = bundle.scores(margins)
    checks = explanation.checks
    checks.append(_bits("margin", np.float32(row["margin"]), margins[0]))
    checks.append(_bits("score", np.float64(row["score"]), np.float64(scores[0])))
    checks.append(_bits("threshold", np.float64(row["threshold"]), np.float64(bundle.manifest.threshold_score)))
    if row["challengers"] and not degraded:
        logged, again = np.array(row["challenger_margins"], np.float32), bundle.shadow_margins(features)[0]
        equal = bool((_canonical(logged) == _canonical(again)).all())
        checks.append(Check("challengers' margins", str(logged.tolist()), str(again.tolist()), equal))
    rule = bundle.policy_runner().cost
    if rule is not None and (not degraded or bundle.student is not None):
        amounts = rule.amounts(cast("PaymentBatch", _Listed(row)))
        saving = float(expected_saving(rule.cost, scores, amounts)[0])
        explanation.notes.append(
            f"The policy weighs money, not the score against the threshold: flagging this payment saves an expected "
            f"{saving:,.2f} {rule.cost.currency}; above {rule.saving_min:,.2f} it flags."
        )
    explanation.notes += [
        f"Its segment {segment.name} flags from a score of {segment.score:.6g} on."
        for segment in bundle.policy.segments
        if segment.name in row["fired"]
    ]
    lists = {item.name for item in bundle.policy.lists}
    held = [name for name in row["fired"] if name in lists]
    if held:
        explanation.notes.append(f"Taken from the row: the payment stood on {', '.join(held)}.")
    decision, reasons, fired = _decide(bundle, features, margins, scores, held, row)
    checks.append(_equal("decision", row["decision"], decision))
    checks.append(_equal("reasons", ", ".join(row["reasons"]), ", ".join(reasons)))
    checks.append(_equal("rules, lists and segments", ", ".join(row["fired"]), ", ".join(fired)))


def compare_replay(explanation: Explanation, outcomes: Outcomes) -> None:
    """Adds what the replay of the payment's batch gave for it."""
    row, number = explanation.row, explanation.place[2]
    again = outcomes.columns.row(number)
    checks = explanation.checks
    if row["erased"]:
        # The topic may still hold the id: it is not shown, and its being another one is no difference.
        explanation.notes.append("Its person was erased: the payment's id is a pseudonym and is not compared.")
    else:
        checks.append(_equal("replay: payment", row["payment_id"], again.payment_id))
    logged, computed = np.array(row["features"], np.float32), np.array(again.features, np.float32)
    different = np.flatnonzero(_canonical(logged) != _canonical(computed))
    names = row["feature_names"]
    shown = ", ".join(names[i] for i in different[:5])
    checks.append(
        Check(
            "replay: features", f"{len(names)} values", f"{shown} differ" if shown else "the same", not len(different)
        )
    )
    checks.append(_bits("replay: margin", np.float32(row["margin"]), np.float32(again.margin)))
    checks.append(_equal("replay: decision", row["decision"], again.decision))
    checks.append(_equal("replay: mode", row["mode"], again.mode))
    checks.append(_equal("replay: reasons", ", ".join(row["reasons"]), ", ".join(again.reasons)))
    checks.append(_batch_digest(row, outcomes))


def _batch_digest(row: dict[str, Any], outcomes: Outcomes) -> Check:
    """The whole batch, persons included where its salt is at hand; after an erasure what was decided."""
    what = "replay: batch digest"
    if row["decided"] is None:
        return _equal(what, row["digest"], outcomes.journal.digest)
    if row["batch_erased"] or row["salt"] is None:
        return _equal(what, row["decided"], outcomes.journal.decided or "")
    return _equal(what, row["digest"], digest(outcomes.columns, outcomes.context, row["salt"]))


class _Listed:
    """Stands for a payment that is on the lists named in its row, in every field, with the row's amount."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.amount_minor = np.array([row["amount_minor"]], np.int64)
        self._row = row

    def column(self, _name: str) -> Sequence[str]:
        return ("listed",)

    def placed(self, name: str) -> Placed:
        """The row's own: the currency for the rule by cost, a segment's field for its threshold."""
        return places_of(pa.array([self._row[name]], pa.string()))


def _decide(
    bundle: Bundle,
    features: npt.NDArray[np.float32],
    margins: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float64],
    held: list[str],
    row: dict[str, Any],
) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """The policy's verdict on one payment: decision, reasons, rules and lists."""
    runner = bundle.policy_runner()
    # Of the payment the policy looks at the amount and at fields of segments and lists; that the lists named in the row
    # held is given.
    payment, lists = cast("PaymentBatch", _Listed(row)), {name: {"listed"} for name in held}
    if row["mode"] == "degraded":
        verdicts = runner.decide_degraded(payment, features, lists, scores, bundle.degraded(features)[2])
        reasons = verdicts.reasons[0]
    else:
        verdicts = runner.decide(payment, features, margins, scores, lists)
        reasons = verdicts.reasons[0]
        if verdicts.by_score[0]:
            reasons = runner.explain(bundle.model.contributions(features)[0], reasons)
    if row["mode"] == "late" or (row["mode"] == "degraded" and LATE_REASON in row["reasons"]):
        reasons = (*reasons, LATE_REASON)
    return "flag" if verdicts.decision[0] == FLAG else "approve", tuple(reasons), tuple(verdicts.fired[0])


def _sentence(row: dict[str, Any]) -> str:
    if row["mode"] == "refused":
        return (
            f"{row['event_time']:%Y-%m-%d %H:%M:%S} UTC: the record was refused as no payment, and answered with "
            f"{row['decision']} by the policy of bundle {row['bundle']}. A right record of the same id is decided anew."
        )
    exponent = CURRENCY_EXPONENT.get(row["currency"], 0)
    amount = f"{row['amount_minor'] / 10**exponent:,.{exponent}f} {row['currency']}"
    who = f" of customer {row['customer_id']}" if row["customer_id"] else ""
    where = f" at merchant {row['merchant_id']}" if row["merchant_id"] else ""
    compared = "at or above" if row["score"] >= row["threshold"] else "below"
    why = f", because of {', '.join(row['fired'])}" if row["fired"] else ""
    return (
        f"{row['event_time']:%Y-%m-%d %H:%M:%S} UTC: {amount}{who}{where} was "
        f"{'flagged' if row['decision'] == 'flag' else 'approved'}{why}. The score {row['score']:.6g} is {compared} "
        f"the threshold {row['threshold']:.6g} of bundle {row['bundle']}.{_MODES[row['mode']]}"
    )


def _canonical(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    return np.where(np.isnan(values), np.uint32(0x7FC00000), values.view(np.uint32))


def _bits(what: str, logged: Any, again: Any) -> Check:
    return Check(what, repr(logged.item()), repr(again.item()), bool(logged.tobytes() == again.tobytes()))


def _equal(what: str, logged: str, again: str) -> Check:
    return Check(what, logged or "none", again or "none", logged == again)
