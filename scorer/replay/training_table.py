"""The training export: the features that the live engine would have computed, with each payment's label."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from features.currency_conversion import CurrencyConversion
from features.feature_set import FeatureSet
from schemas.contract_error import ContractError
from schemas.currencies import CURRENCY_EXPONENT
from schemas.label_record import Label
from schemas.pseudonym import PseudonymKeys
from scorer.errors import UsageError
from scorer.files.refusals import Refusals
from scorer.pipeline.card_keys import NO_KEYS, cards_of
from scorer.pipeline.enrichment import Enricher
from scorer.pipeline.records import KnownLabel, control_verdicts
from scorer.replay.file_batches import LabelledBatch
from scorer.replay.label_ledger import LabelLedger
from scorer.replay.replay_report import Progress, Report


@dataclass(frozen=True)
class TrainingTable:
    """The training export: features of every fresh payment of a file in journal order, with what is known of its label.

    features float32 [n, F] · label int8 [n] (1 fraud, 0 genuine, -1 unknown) ·
    event_time_ms, label_known_at_ms int64 [n]
    """

    payment_id: list[str]
    event_time_ms: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32]
    label: npt.NDArray[np.int8]
    label_known_at_ms: npt.NDArray[np.int64]
    amount: npt.NDArray[np.float64]
    """[n], major units of the feature set's currency."""
    report: Report

    def genuine_after(self, delay_ms: int) -> TrainingTable:
        """The table with payments of unknown label as genuine ones, known so long after their event time: where only
        frauds are reported. The features are the same: they count known frauds."""
        unknown = self.label < 0
        return replace(
            self,
            label=np.where(unknown, 0, self.label).astype(np.int8),
            label_known_at_ms=np.where(unknown, self.event_time_ms + delay_ms, self.label_known_at_ms),
        )


def training_table(
    feature_set: FeatureSet,
    batches: Iterable[LabelledBatch],
    *,
    source: object = None,
    as_of_ms: int | None = None,
    keys: PseudonymKeys = NO_KEYS,
    progress: Progress = lambda _: None,
    refusals: Refusals | None = None,
) -> TrainingTable:
    """Run history through the live engine and keep every feature value with its label.
    Repeated payments are left out; their labels count, for the features and here alike. `as_of_ms`: labels that became
    known later are left out. `source` names the input in the UsageError that an empty one gives."""
    enricher, ledger = Enricher(feature_set), LabelLedger(as_of_ms)
    report = Report(refusals=refusals or Refusals())
    cards = cards_of(feature_set, keys)
    parts: list[tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int64]]] = []
    conversion, major = CurrencyConversion(feature_set), 10.0 ** CURRENCY_EXPONENT[feature_set.currency]
    for labelled in batches:
        labels: list[Label | KnownLabel] = []
        for verdict in control_verdicts(labelled.batch, cards):
            if isinstance(verdict, ContractError):
                report.labels_invalid += 1
            elif isinstance(verdict, Label | KnownLabel):
                enricher.engine.add_label(verdict.payment_id, fraud=verdict.fraud, known_at_ms=verdict.known_at_ms)
                labels.append(verdict)
        enriched = enricher.enrich(labelled.batch.records, cards)
        report.payments += len(labelled.batch.records)
        report.look_for_cards(cards, enriched.payments, enriched.rejected)
        report.duplicates += int(enriched.duplicate.sum())
        report.late += int(enriched.late.sum())
        for item in enriched.rejected:
            report.refuse(item.error, int(labelled.row[item.index]))
        payment_ids = enriched.first.column("payment_id").tolist()
        ledger.add(payment_ids, labels)
        parts.append(
            (payment_ids, enriched.first.event_time_ms, enriched.features, conversion.convert(enriched.first)[0])
        )
        progress(report.payments)
    report.refusals.close()
    if not parts:
        raise UsageError(f"{source or 'the input'}: no payments to learn from")
    report.count_labels(enricher.engine.counts())
    label, known_at_ms = ledger.columns()
    return TrainingTable(
        payment_id=[payment_id for part in parts for payment_id in part[0]],
        event_time_ms=np.concatenate([part[1] for part in parts]),
        features=np.concatenate([part[2] for part in parts]),
        label=label,
        label_known_at_ms=known_at_ms,
        amount=np.concatenate([part[3] for part in parts]) / major,
        report=report,
    )


def write_training_table(table: TrainingTable, names: list[str], output: Path) -> None:
    """As Parquet: payment_id, event_time, label (null when unknown), label_known_at (null), then the features."""
    known = table.label >= 0
    columns = {
        "payment_id": pa.array(table.payment_id, pa.string()),
        "event_time": pa.array(table.event_time_ms, pa.timestamp("ms", tz="UTC")),
        "label": pa.array(table.label, pa.int8(), mask=~known),
        "label_known_at": pa.array(
            table.label_known_at_ms, pa.timestamp("ms", tz="UTC"), mask=table.label_known_at_ms < 0
        ),
    }
    for column, name in enumerate(names):
        columns[name if name not in columns else f"feature.{name}"] = pa.array(table.features[:, column], pa.float32())
    pq.write_table(pa.table(columns), output, compression="zstd")
