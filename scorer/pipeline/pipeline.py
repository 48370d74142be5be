"""The pure core: a micro-batch of bytes in, outcomes out, the shard's state moved on.

    decode → order → duplicates → features → model → policy → outcomes

The live worker, crash recovery, replay and the training export all call `Pipeline.run`, so train/serve skew has nowhere
to live. It knows no Kafka, no clock, no log. What a clock decided comes in as data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.engine_image import Image
from schemas.audit_digest import Digests
from schemas.audit_record import NULLABLE, AuditColumns, AuditContext, decided, digests
from schemas.byte_column import ByteColumn
from schemas.card_fields import LIST, CardFields, CardRule
from schemas.contract_error import ContractError
from schemas.control_record import ListAdd, ListRemove
from schemas.dead_letter import answer_key
from schemas.decision import DEGRADED, DUPLICATE, LATE, NORMAL
from schemas.flags import every, some
from schemas.journal_record import FIRST_PREVIOUS, JournalRecord
from schemas.label_record import Label
from schemas.payment_batch import PaymentBatch, as_objects
from schemas.pseudonym import PseudonymKeys, id_of_key
from schemas.row_kinds import numbered
from scorer.bundle import Bundle
from scorer.errors import PromiseBroken, UsageError
from scorer.pipeline.card_keys import NO_KEYS, cards_of
from scorer.pipeline.dedupe import Outcome
from scorer.pipeline.enrichment import Enriched, Enricher, RowSelector
from scorer.pipeline.records import (
    Batch,
    ControlRecord,
    KnownLabel,
    Records,
    Rejected,
    control_verdicts,
    label_verdicts,
)
from scorer.pipeline.refused_answers import NO_REFUSALS, answered
from scorer.policy import APPROVE, LATE_REASON, PolicyRunner, Verdicts

LIST_VALUES_MAX = 1_000_000
_TEXTS = ("payment_id", "currency", *NULLABLE)  # of the audit columns
# Margins float32 [n], scores float64 [n], outcomes by their number in the dedupe table int32 [n].
_Scored = tuple[npt.NDArray[np.float32], npt.NDArray[np.float64], npt.NDArray[np.int32]]


@dataclass(frozen=True)
class Decided:
    """What was decided of a micro-batch. Rows are in journal order; `rows[i]` is the place of row i in `records`.

    payments: the n accepted ones · kinds int32 [rows]: rows of the same number have the same decision, mode, reasons
    and bundle; None: nothing is known of that · payment int64 [rows]: the place of each row among the payments, -1 for
    a refused record that is answered · answered: how many those are, None where none may be
    """

    records: Records
    control: Sequence[ControlRecord]
    rows: npt.NDArray[np.int64]
    payments: PaymentBatch
    payment: npt.NDArray[np.int64]
    columns: AuditColumns
    bundles: list[str]
    kinds: npt.NDArray[np.int32] | None
    rejected: list[Rejected]
    rejected_control: list[Rejected]
    labels: Sequence[ControlRecord]
    rejected_labels: list[Rejected]
    answered: int | None
    duplicates: int
    conflicts: int
    late: int
    context: AuditContext
    cards: CardFields
    salt: bytes | None = None  # of the journal record's digest, for the audit record alone

    @property
    def record_bytes(self) -> int:
        """Bytes of the keys and values of all records that this keeps, of every topic."""
        others = sum(len(r.key or b"") + len(r.value or b"") for r in (*self.control, *self.labels))
        return self.records.size_bytes + others

    def text(self, name: str) -> pa.StringArray:
        """A text field of each row; null for a refused record."""
        column = self.payments.text(name)
        if len(column) == len(self.rows):
            return column
        return column.take(pa.array(self.payment, mask=self.payment < 0))

    def keys(self) -> ByteColumn:
        """The key of each row's decision: the record's own, or a pseudonym; masked as in the dead letter where the
        record is refused, none where its key is what was refused."""
        keys, pseudonyms = ByteColumn.of(self.records.keys), self.payments.keys
        own = keys if self._in_place else keys.take(self.rows)
        if not pseudonyms and not self.refused:
            return own
        found, rows = own.to_list(), self.rows.tolist()
        for i, row in enumerate(rows):
            if row in pseudonyms:
                found[i] = pseudonyms[row]
        if self.refused:
            errors = {item.index: item.error for item in self.rejected}
            for i in np.flatnonzero(self.payment < 0).tolist():
                found[i] = answer_key(keys[rows[i]], self.records.values[rows[i]], errors[rows[i]], self.cards)
        return ByteColumn.of(found)

    @property
    def _in_place(self) -> bool:
        """Whether the rows are all the records, in their order."""
        return len(self.rows) == len(self.records) and every(self.rows == np.arange(len(self.rows)))

    @property
    def refused(self) -> int:
        """How many refused records are answered."""
        return self.answered or 0


@dataclass(frozen=True)
class Outcomes(Decided):
    """All that came of a micro-batch."""

    journal: JournalRecord = field(kw_only=True)


@dataclass
class _Lists:
    """The live lists of a shard, changed by control records;
    bounded, additions beyond the bound are refused and counted."""

    values: dict[str, set[str]] = field(default_factory=dict)
    refused: int = 0

    def add(self, name: str, value: str) -> None:
        values = self.values.setdefault(name, set())
        if len(values) >= LIST_VALUES_MAX and value not in values:
            self.refused += 1
        else:
            values.add(value)

    def remove(self, name: str, value: str) -> None:
        self.values.get(name, set()).discard(value)


class Pipeline:
    """One shard's state and the function that moves it. `run` is deterministic in (state, batch, bundle)."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        shard: int = 0,
        images: Mapping[str, Image] | None = None,
        folder: Path | None = None,
        selector: RowSelector | None = None,
        keys: PseudonymKeys = NO_KEYS,
    ) -> None:
        """`images`: of engine and dedupe table, to go on from (see scorer.pipeline.state_image). `folder`: for the
        event log. `selector`: decide only the payments that it chooses. `keys`: for the pseudonyms of token fields.

        Raises StateMismatch or SegmentError, UsageError where a key is needed and there is none, and TypeError for
        what is no bundle.
        """
        if not isinstance(bundle, Bundle):
            raise TypeError(f"bundle is of type {type(bundle).__name__}, wanted a Bundle: Bundle.load(folder)")
        self.shard = shard
        self._keys = keys
        self._folder = folder
        self.sequence = 0
        self.head = FIRST_PREVIOUS
        self.activation_number = 0  # the largest of a signed activation so far
        self._begin(bundle, images=images, selector=selector)

    def _begin(
        self, bundle: Bundle, *, images: Mapping[str, Image] | None = None, selector: RowSelector | None = None
    ) -> None:
        self._enricher = Enricher(bundle.feature_set, images=images, folder=self._folder, selector=selector)
        self.engine, self.dedupe = self._enricher.engine, self._enricher.dedupe
        self.lists = _Lists()
        self._use(bundle)

    def restart(self, bundle: Bundle, stream_time_ms: int) -> None:
        """Begin anew with empty windows, lists and dedupe table. Stream time (-1: none yet) and the chain go on: it
        never goes back, so that the days of the audit trail follow each other.
        """
        self.engine.close()
        self._begin(bundle)
        if stream_time_ms >= 0:
            self.engine.begin_at(stream_time_ms)

    def begin_at(self, record: JournalRecord) -> None:
        """Take `record` for the next batch's: the chain begins there."""
        self.sequence, self.head = record.sequence, record.previous
        self.activation_number = record.activation_number

    def close(self) -> None:
        """Give the event log's folder back. The pipeline is of no use afterwards."""
        self.engine.close()

    def activate(self, bundle: Bundle) -> None:
        """Score with `bundle` from the next batch on. Raises UsageError when its feature set is another one:
        the windows would not fit."""
        if bundle.feature_set.fingerprint != self.bundle.feature_set.fingerprint:
            raise UsageError(
                f"bundle {bundle.id} has feature set {bundle.feature_set.fingerprint[:12]}, this shard computes "
                f"{self.bundle.feature_set.fingerprint[:12]}; a new feature set needs a new shard or a rebuild"
            )
        self._use(bundle)

    def _use(self, bundle: Bundle) -> None:
        self.bundle = bundle
        cards = cards_of(bundle.feature_set, self._keys)
        # A list holds values of its field, and what that field is, they are.
        self._cards = cards.with_rules({f"{LIST}{item.name}": cards.rule(item.field) for item in bundle.policy.lists})
        self._policy = bundle.policy_runner()
        self._context = AuditContext(
            bundle=bundle.id,
            threshold=bundle.manifest.threshold_score,
            feature_fingerprint=bundle.feature_set.fingerprint,
            feature_names=tuple(bundle.feature_set.names),
            challengers=tuple(challenger.id for challenger in bundle.challengers),
            opaque=tuple(name for name in ("payment_id", *NULLABLE) if cards.rule(name) is CardRule.OPAQUE),
        )
        for item in bundle.policy.lists:
            for value in item.values:
                self.lists.add(item.name, value)

    def run(self, batch: Batch) -> Outcomes:
        """Decide a micro-batch. Every record of it ends as exactly one row of `columns` or one entry of `rejected`."""
        return self.seal(batch, self.decide(batch))

    def decide(self, batch: Batch) -> Decided:
        """The first part of `run`, all that the answers need; `seal` has to follow."""
        if not isinstance(batch, Batch):
            raise TypeError(f"batch is of type {type(batch).__name__}, wanted a Batch: Batch.of_payments(values)")
        key = self._pseudonym_key(batch)
        cards = self._cards if key == self._cards.pseudonym_key else self._cards.with_key(key)
        if not batch.answer_refused:  # a batch of a release before 0.2, where every field refused what looks like one
            cards = cards.before_0_2()
        rejected_control, rejected_labels = self._apply_control(batch, cards), self._apply_labels(batch, cards)
        records = batch.records
        enriched = self._enricher.enrich(records, cards, labels_by_arrival=batch.labels_by_arrival)
        payments, rows, fresh = enriched.payments, enriched.rows, enriched.fresh
        n = len(rows)
        features = enriched.features
        degraded = _degraded(batch, enriched)
        margins, scores, outcomes = self._decided(enriched.first, features, enriched.late, degraded)
        shadow = self._shadow_margins(features, degraded)
        self.dedupe.record(enriched.entry[fresh], margins, scores, outcomes)
        if len(fresh) < n:
            # A repeated payment has the decision of the first one; its features were not computed again.
            features, shadow = _spread(features, fresh, n), _spread(shadow, fresh, n)
            margins, scores, outcomes = self.dedupe.recall(enriched.entry)
        examples, kind = numbered(outcomes) if n else ([], np.empty(0, np.int64))
        of_kind = [self.dedupe.outcome(number) for number in outcomes[examples].tolist()]
        modes = np.array([o.mode for o in of_kind], dtype=np.uint8)[kind]
        modes[enriched.duplicate] = DUPLICATE
        columns = AuditColumns(
            **dict(zip(_TEXTS, payments.texts(_TEXTS), strict=True)),
            partition=records.partition[rows],
            offset=records.offset[rows],
            event_time_ms=payments.event_time_ms,
            amount_minor=payments.amount_minor,
            decision=np.array([o.decision for o in of_kind], dtype=np.uint8)[kind],
            mode=modes,
            margin=margins,
            score=scores,
            reasons=_by_kind([o.reasons for o in of_kind], kind),
            fired=_by_kind([o.fired for o in of_kind], kind),
            features=features,
            challenger_margins=shadow,
        )
        refusals = enriched.refusals if batch.answer_refused else NO_REFUSALS
        all_ = answered(
            columns,
            _by_kind([o.bundle for o in of_kind], kind),
            rows,
            refusals,
            dedupe=self.dedupe,
            records=records,
            stream_ms=enriched.stream_ms,
            decision=self._policy.refused,
            bundle=self.bundle.id,
        )
        repeated = int(np.count_nonzero(refusals.known >= 0))
        return Decided(
            records=records,
            control=batch.control,
            rows=all_.rows,
            payments=payments,
            payment=all_.payment,
            columns=all_.columns,
            bundles=all_.bundles,
            kinds=None if len(refusals) else (2 * kind + enriched.duplicate).astype(np.int32),
            rejected=enriched.rejected,
            rejected_control=rejected_control,
            labels=batch.labels,
            rejected_labels=rejected_labels,
            answered=len(refusals) if batch.answer_refused and batch.change is None else None,
            duplicates=int(np.count_nonzero(enriched.duplicate)) + repeated,
            conflicts=int(np.count_nonzero(enriched.conflict)) + repeated,
            late=int(np.count_nonzero(enriched.late)),
            context=self._context,
            cards=cards,
            salt=batch.salt,
        )

    def seal(self, batch: Batch, decided: Decided) -> Outcomes:
        """The second part of `run`, which no answer waits for: the journal record of the batch that was decided last,
        with the digest of its columns."""
        return Outcomes(**vars(decided), journal=self._journal(batch, decided))

    def _shadow_margins(
        self, features: npt.NDArray[np.float32], degraded: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.float32]:
        """What the challengers say, float32 [n, C]; NaN when a deadline is near: they are what is dropped first."""
        if not self.bundle.challengers:
            return np.empty((len(features), 0), dtype=np.float32)
        if not some(degraded):
            return self.bundle.shadow_margins(features)
        in_time = np.flatnonzero(~degraded)
        if not len(in_time):
            return np.full((len(features), len(self.bundle.challengers)), np.nan, dtype=np.float32)
        return _spread(self.bundle.shadow_margins(features[in_time]), in_time, len(features))

    def key_id(self, batch: Batch) -> str | None:
        """Id of the key that token fields of `batch` are replaced with; None where no field is one."""
        key = self._pseudonym_key(batch)
        return None if key is None else id_of_key(key)

    def _pseudonym_key(self, batch: Batch) -> bytes | None:
        """The key of this batch: the one that it was read with before, else the first. Raises UsageError."""
        if batch.change is not None or not self._cards.need_key:
            return None
        return cards_of(self.bundle.feature_set, self._keys, batch.pseudonym_key).pseudonym_key

    def _apply_control(self, batch: Batch, cards: CardFields) -> list[Rejected]:
        """Labels and lists change state; an activation is the shell's business,
        which names the bundle of each batch in the journal."""
        rejected = []
        for i, record in enumerate(control_verdicts(batch, cards)):
            if isinstance(record, ContractError):
                rejected.append(Rejected(i, record))
            elif isinstance(record, Label | KnownLabel):
                self.engine.add_label(record.payment_id, fraud=record.fraud, known_at_ms=record.known_at_ms)
            elif isinstance(record, ListAdd):
                self.lists.add(record.list, record.value)
            elif isinstance(record, ListRemove):
                self.lists.remove(record.list, record.value)
        return rejected

    def _apply_labels(self, batch: Batch, cards: CardFields) -> list[Rejected]:
        rejected = []
        for i, label in enumerate(label_verdicts(batch, cards)):
            if isinstance(label, ContractError):
                rejected.append(Rejected(i, label))
            else:
                self.engine.add_label(label.payment_id, fraud=label.fraud, known_at_ms=label.known_at_ms)
        return rejected

    def _decided(
        self,
        payments: PaymentBatch,
        features: npt.NDArray[np.float32],
        late: npt.NDArray[np.bool_],
        degraded: npt.NDArray[np.bool_],
    ) -> _Scored:
        """Each payment by the model, or without it where its own deadline is near."""
        if not some(degraded):
            return self._decide(payments, features, late)
        if every(degraded):
            return self._decide_degraded(payments, features, late)
        n = len(features)
        margins, scores, outcomes = np.empty(n, np.float32), np.empty(n, np.float64), np.empty(n, np.int32)
        for rows, decide in (
            (np.flatnonzero(~degraded), self._decide),
            (np.flatnonzero(degraded), self._decide_degraded),
        ):
            margins[rows], scores[rows], outcomes[rows] = decide(payments.take(rows), features[rows], late[rows])
        return margins, scores, outcomes

    def _decide(
        self, payments: PaymentBatch, features: npt.NDArray[np.float32], late: npt.NDArray[np.bool_]
    ) -> _Scored:
        margins = self.bundle.model.margins(features)
        if not every(np.isfinite(margins)):
            raise PromiseBroken(f"bundle {self.bundle.id} gave a margin that is not a number; it is unfit to serve")
        scores = self.bundle.scores(margins)
        verdicts = explained(self.bundle, self._policy, payments, features, margins, scores, self.lists.values)
        return margins, scores, self._outcomes(verdicts, late, NORMAL)

    def _decide_degraded(
        self, payments: PaymentBatch, features: npt.NDArray[np.float32], late: npt.NDArray[np.bool_]
    ) -> _Scored:
        """Without the model: by its student, if the bundle has one. What pushed a score up is not asked: that costs
        most.
        """
        margins, scores, flagged = self.bundle.degraded(features)
        if not np.isfinite(margins).all():
            raise PromiseBroken(f"bundle {self.bundle.id}: its student gave a margin that is not a number")
        verdicts = self._policy.decide_degraded(payments, features, self.lists.values, scores, flagged)
        return margins, scores, self._outcomes(verdicts, late, DEGRADED)

    def _outcomes(self, verdicts: Verdicts, late: npt.NDArray[np.bool_], usual_mode: int) -> npt.NDArray[np.int32]:
        """Outcomes by their number in the dedupe table, int32 [n]."""
        bundle, number = self.bundle.id, self.dedupe.number
        # Nearly all payments are approved without a word: one outcome serves them all.
        outcomes = np.full(len(late), number(Outcome(APPROVE, usual_mode, (), (), bundle)), dtype=np.int32)
        decision, special = verdicts.decision, late | (verdicts.decision != APPROVE)
        special |= np.fromiter(map(bool, verdicts.fired), np.bool_, len(late))
        for i in np.flatnonzero(special).tolist():
            reasons = (*verdicts.reasons[i], LATE_REASON) if late[i] else verdicts.reasons[i]
            mode = LATE if late[i] and usual_mode == NORMAL else usual_mode
            outcomes[i] = number(Outcome(int(decision[i]), mode, reasons, verdicts.fired[i], bundle))
        return outcomes

    def _journal(self, batch: Batch, decided: Decided) -> JournalRecord:
        columns, key = decided.columns, decided.cards.pseudonym_key
        stream_ms = self.engine.stream_time_ms
        self.activation_number = max(self.activation_number, *(v.number or 0 for v in batch.activations), 0)
        degraded, degraded_rows = batch.degraded_fields()
        of_rows = self._digests(batch, columns)
        record = JournalRecord(
            shard=self.shard,
            sequence=self.sequence,
            inputs=tuple(batch.inputs),
            control=batch.control_range,
            labels=batch.labels_range,
            stream_time_ms=-1 if stream_ms is None else stream_ms,
            bundle=self.bundle.id,
            degraded=degraded,
            degraded_rows=degraded_rows,
            decisions=len(columns.payment_id),
            dead_letters=len(decided.rejected) + len(decided.rejected_control) + len(decided.rejected_labels),
            refused=decided.answered,
            digest=of_rows.digest,
            decided=of_rows.decided,
            previous=self.head,
            sources=batch.sources,
            change=batch.change,
            pseudonym_key=None if key is None else id_of_key(key),
            activations=tuple(batch.activations),
            activation_number=self.activation_number,
            created_ms_max=batch.created_ms_max,
            labels_by=batch.labels_by,
            snapshot=batch.snapshot,
            order=batch.order,
        )
        self.sequence += 1
        self.head = record.head
        return record

    def _digests(self, batch: Batch, columns: AuditColumns) -> Digests:
        if batch.digest is None:
            return digests(columns, self._context, batch.salt)
        return Digests(batch.digest, decided(columns, self._context))


def _by_kind(values: Sequence[Any], kind: npt.NDArray[np.int64]) -> list[Any]:
    """The value of each row, by the number of its kind."""
    found: list[Any] = as_objects(values)[kind].tolist()
    return found


def _degraded(batch: Batch, enriched: Enriched) -> npt.NDArray[np.bool_]:
    """Which of the fresh payments are decided without the model, bool [m]."""
    if batch.degraded is None:
        return np.zeros(len(enriched.fresh), dtype=np.bool_)
    return batch.degraded[enriched.rows[enriched.fresh]]


def explained(
    bundle: Bundle,
    policy: PolicyRunner,
    payments: PaymentBatch,
    features: npt.NDArray[np.float32],
    margins: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float64],
    lists: Mapping[str, set[str]],
) -> Verdicts:
    """What the policy says of payments with these features float32 [n, F], margins float32 [n] and scores float64 [n],
    reasons included."""
    verdicts = policy.decide(payments, features, margins, scores, lists)
    rows = np.flatnonzero(verdicts.by_score)
    if len(rows):
        contributions = bundle.model.contributions(features[rows])
        for i, row in zip(rows.tolist(), contributions, strict=True):
            verdicts.reasons[i] = policy.explain(row, verdicts.reasons[i])
    return verdicts


def _spread(values: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.float32]:
    """`values` at the rows they belong to, NaN at the others, float32 [n, k]."""
    result = np.full((n, values.shape[1]), np.nan, dtype=np.float32)
    result[rows] = values
    return result
