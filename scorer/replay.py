"""History through the same pure function: files and topics to features, scores and decisions.
Writes files, never to Kafka.

A file is one shard with one partition whose offsets are its row numbers; the order of its rows is the journal order. A
topic is replayed along its journal, batch by batch as it was decided; where the bundle is the one that decided, every
digest is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from features.feature_set import FeatureSet
from schemas.control import parse_control
from schemas.decision import DECISIONS, MODES
from schemas.journal import ControlRange, InputRange
from schemas.label import Label
from scorer import history, kafka
from scorer.bundle import Bundle
from scorer.enrich import Batch, ControlRecord, Enricher, Records
from scorer.errors import FraudScorerError, UsageError
from scorer.files import label_records, read_payments
from scorer.inputs import Inputs
from scorer.mapping import Mapping
from scorer.pipeline import Outcomes, Pipeline
from scorer.recovery import Bundles, rerun
from scorer.settings import Settings

BATCH_ROWS = 16_384
Progress = Callable[[int], None]
Block = tuple[
    Sequence[bytes | None], Sequence[bytes | None], Sequence[bytes], npt.NDArray[np.int8], npt.NDArray[np.int64]
]


@dataclass
class Report:
    """What a replay did."""

    payments: int = 0
    decisions: int = 0
    dead_letters: int = 0
    duplicates: int = 0
    late: int = 0
    flagged: int = 0
    batches_checked: int = 0
    reasons_refused: dict[str, int] = field(default_factory=dict)

    def refuse(self, reason: str) -> None:
        self.dead_letters += 1
        self.reasons_refused[reason] = self.reasons_refused.get(reason, 0) + 1


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
    report: Report


@dataclass(frozen=True)
class LabelledBatch:
    """Payments of a source without a broker, with what is known of each record's label (as in TrainingTable,
    [n] by record)."""

    batch: Batch
    label: npt.NDArray[np.int8]
    label_known_at_ms: npt.NDArray[np.int64]


def file_batches(path: Path, mapping: Mapping | None, *, rows: int = BATCH_ROWS) -> Iterator[LabelledBatch]:
    """A file's payments as batches, labels as the control records that come with them (each known at its own time)."""
    blocks = read_payments(path, mapping, rows_per_block=rows)
    return chained(
        (block.keys, block.values, label_records(block), block.label, block.label_known_at_ms) for block in blocks
    )


def chained(blocks: Iterable[Block]) -> Iterator[LabelledBatch]:
    """Blocks of (keys, values, label records, label, label_known_at_ms) as one partition whose offsets count the
    records."""
    offset = control = 0
    for keys, values, labels, label, known_at_ms in blocks:
        n = len(values)
        records = Records(
            partition=np.zeros(n, np.int32),
            offset=np.arange(offset, offset + n, dtype=np.int64),
            # Without a broker there is no clock to hold event times against.
            timestamp_ms=np.full(n, 1 << 62, np.int64),
            keys=keys,
            values=values,
        )
        batch = Batch(
            records,
            (InputRange(partition=0, start=offset, end=offset + n),),
            [ControlRecord(control + i, None, value) for i, value in enumerate(labels)],
            ControlRange(start=control, end=control + len(labels)),
        )
        yield LabelledBatch(batch, label, known_at_ms)
        offset += n
        control += len(labels)


def training_table(
    feature_set: FeatureSet, batches: Iterable[LabelledBatch], *, progress: Progress = lambda _: None
) -> TrainingTable:
    """Run history through the live engine and keep every feature value with its label.
    Repeated payments are left out."""
    enricher, report = Enricher(feature_set), Report()
    parts: list[
        tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int8], npt.NDArray[np.int64]]
    ] = []
    for labelled in batches:
        for raw in labelled.batch.control:
            verdict = parse_control(raw.value)
            if isinstance(verdict, Label):
                enricher.engine.add_label(verdict.payment_id, fraud=verdict.fraud, known_at_ms=verdict.known_at_ms)
        enriched = enricher.enrich(labelled.batch.records)
        report.payments += len(labelled.batch.records)
        report.duplicates += int(enriched.duplicate.sum())
        report.late += int(enriched.late.sum())
        for item in enriched.rejected:
            report.refuse(item.error.reason.value)
        rows = enriched.rows[enriched.fresh]
        parts.append((
            enriched.first.column("payment_id").tolist(),
            enriched.first.event_time_ms,
            enriched.features,
            labelled.label[rows],
            labelled.label_known_at_ms[rows],
        ))  # fmt: skip
        progress(report.payments)
    if not parts:
        raise UsageError("there are no payments to learn from")
    return TrainingTable(
        payment_id=[payment_id for part in parts for payment_id in part[0]],
        event_time_ms=np.concatenate([part[1] for part in parts]),
        features=np.concatenate([part[2] for part in parts]),
        label=np.concatenate([part[3] for part in parts]),
        label_known_at_ms=np.concatenate([part[4] for part in parts]),
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


class _Writer:
    """Decisions with their features, as Parquet in row groups: memory stays flat however long the history is."""

    def __init__(self, output: Path, names: list[str]) -> None:
        self._names = names
        fields = [
            ("payment_id", pa.string()), ("event_time", pa.timestamp("ms", tz="UTC")),
            ("partition", pa.int32()), ("offset", pa.int64()),
            ("decision", pa.string()), ("mode", pa.string()), ("score", pa.float64()), ("margin", pa.float32()),
            ("reasons", pa.list_(pa.string())), ("fired", pa.list_(pa.string())), ("bundle", pa.string()),
        ]  # fmt: skip
        taken = {name for name, _ in fields}
        self._schema = pa.schema(
            [*fields, *((name if name not in taken else f"feature.{name}", pa.float32()) for name in names)]
        )
        self._file = pq.ParquetWriter(output, self._schema, compression="zstd")

    def write(self, outcomes: Outcomes) -> None:
        c = outcomes.columns
        columns = [
            pa.array(c.payment_id, pa.string()), pa.array(c.event_time_ms, pa.timestamp("ms", tz="UTC")),
            pa.array(c.partition), pa.array(c.offset),
            pa.array([DECISIONS[d] for d in c.decision.tolist()], pa.string()),
            pa.array([MODES[m] for m in c.mode.tolist()], pa.string()),
            pa.array(c.score), pa.array(c.margin),
            pa.array([list(r) for r in c.reasons], pa.list_(pa.string())),
            pa.array([list(r) for r in c.fired], pa.list_(pa.string())),
            pa.array(outcomes.bundles, pa.string()),
            *(pa.array(c.features[:, i], pa.float32()) for i in range(len(self._names))),
        ]  # fmt: skip
        self._file.write_table(pa.Table.from_arrays(columns, schema=self._schema))

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _account(report: Report, outcomes: Outcomes) -> None:
    report.payments += len(outcomes.records)
    report.decisions += len(outcomes.rows)
    report.duplicates += outcomes.duplicates
    report.late += outcomes.late
    report.flagged += int(outcomes.columns.decision.sum())
    for item in outcomes.rejected:
        report.refuse(item.error.reason.value)


def replay_file(
    bundle: Bundle, path: Path, mapping: Mapping | None, output: Path | None, *, progress: Progress = lambda _: None
) -> Report:
    """Decide every payment of a file as the live worker would,
    and write decisions and features to `output` (Parquet)."""
    pipeline, report = Pipeline(bundle), Report()
    with ExitStack() as stack:
        writer = stack.enter_context(_Writer(output, bundle.feature_set.names)) if output else None
        for labelled in file_batches(path, mapping):
            outcomes = pipeline.run(labelled.batch)
            _account(report, outcomes)
            if writer:
                writer.write(outcomes)
            progress(report.payments)
    return report


def replay_topic(
    bundle: Bundle, settings: Settings, output: Path | None, *, shard: int = 0, progress: Progress = lambda _: None
) -> Report:
    """Re-run a shard's journal over the payments topic.
    Where `bundle` is the one that decided, every digest must be equal.

    Raises PromiseBroken at the first batch that gives something else, MissingRange when records are gone.
    """
    client = kafka.admin(settings.kafka)
    topics = kafka.Topics.of(settings.kafka)
    no_progress_s = settings.worker.no_progress_s
    records = history.read_journal(settings.kafka, client, shard, no_progress_s=no_progress_s)
    if not records:
        raise FraudScorerError(
            f"the journal of shard {shard} is empty: nothing has been decided on {topics.payments} yet"
        )
    history.check_retained(records, client, topics)
    inputs = Inputs(
        kafka.reader(settings.kafka, group=f"{settings.kafka.topic_prefix}fraud-scorer-replay", fetch_wait_ms=100),
        payments=topics.payments,
        control=topics.control,
        positions=history.first_positions(records),
        control_position=records[0].control.start,
        buffered_max=settings.worker.buffered_payments_max,
    )
    pipeline, report, bundles = Pipeline(bundle, shard=shard), Report(), Bundles(bundle)
    same = records[0].bundle == bundle.id
    try:
        with ExitStack() as stack:
            writer = stack.enter_context(_Writer(output, bundle.feature_set.names)) if output else None
            for record, batch in history.batches(records, inputs, no_progress_s=no_progress_s):
                outcomes = rerun(pipeline, record, batch, bundles) if same else pipeline.run(batch)
                report.batches_checked += same
                _account(report, outcomes)
                if writer:
                    writer.write(outcomes)
                progress(report.payments)
    finally:
        inputs.close()
    return report
