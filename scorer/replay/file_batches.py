"""A file as one shard with one partition: offsets count the rows as they are read, which is the journal order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from schemas.card_fields import UNDECLARED, CardFields
from schemas.journal_record import ControlRange, InputRange
from scorer.files.file_columns import DecodedBlock, FileLabels, Shared, decoded_blocks, shared_blocks
from scorer.files.mapping import Mapping
from scorer.files.payment_file import ReadOptions
from scorer.pipeline.records import NO_CLOCK_MS, Batch
from scorer.replay.label_file import with_labels
from scorer.replay.replay_report import Progress

BATCH_ROWS = 16_384
_DEFAULTS = ReadOptions()


@dataclass(frozen=True)
class LabelledBatch:
    """Payments of a source without a broker, with what is known of each record's label (as in TrainingTable,
    [n] by record) and the place of each record in its file, int64 [n]."""

    batch: Batch
    label: npt.NDArray[np.int8]
    label_known_at_ms: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]


def file_batches(
    path: str | Path,
    mapping: Mapping | None,
    *,
    rows: int = BATCH_ROWS,
    until_ms: int | None = None,
    cards: CardFields = UNDECLARED,
    labels: Path | None = None,
    options: ReadOptions = _DEFAULTS,
    expect: Progress = lambda _: None,
) -> Iterator[LabelledBatch]:
    """A file's payments as batches, labels as the control records that come with them (each known at its own time).

    `cards`: of the feature set that decides (scorer.pipeline.card_keys.cards_of).
    With `until_ms` (epoch ms) reading may stop after the last payment before that time: later rows cannot change what
    was computed before. `labels`: a file of label records, for payments whose own file has none. `expect` is called
    with the number of rows, where it is known.
    """
    blocks = decoded_blocks(path, mapping, rows, cards, options=options, until_ms=until_ms, expect=expect)
    return chained(blocks if labels is None else with_labels(blocks, labels, cards, options.labels_unmatched))


def shared_batches(rows: Shared, cards: CardFields = UNDECLARED) -> Iterator[LabelledBatch]:
    """As file_batches, of a source that several processes read (scorer.files.file_columns.shared_rows, which was given
    BATCH_ROWS)."""
    return chained(shared_blocks(rows, BATCH_ROWS, cards))


def chained(blocks: Iterable[DecodedBlock]) -> Iterator[LabelledBatch]:
    """Blocks as one partition whose offsets count the records."""
    offset = control = 0
    for block in blocks:
        n, labels = len(block.records), block.labels
        records = replace(
            block.records,
            partition=np.zeros(n, np.int32),
            offset=np.arange(offset, offset + n, dtype=np.int64),
            timestamp_ms=np.full(n, NO_CLOCK_MS, np.int64),
        )
        known = labels.numbered(control).known() if isinstance(labels, FileLabels) else []
        batch = Batch(
            records,
            (InputRange(partition=0, start=offset, end=offset + n),),
            labels,
            ControlRange(start=control, end=control + len(labels)),
            known_labels=known,
        )
        yield LabelledBatch(batch, block.label, block.label_known_at_ms, block.row)
        offset += n
        control += len(labels)
