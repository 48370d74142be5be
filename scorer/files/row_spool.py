"""Rows read once and kept on disk as Arrow batches, to be read again at little cost, by other processes too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from scorer.files.file_source import FileError
from scorer.files.row_facts import RowFacts
from scorer.files.time_survey import Survey

# Blocks of a replay have as many rows: a batch is one of them, not a part that has to be copied.
SPOOL_ROWS = 16_384


@dataclass(frozen=True)
class RowSpool:
    """Batches of `schema` in one file of Arrow's stream format."""

    path: Path
    schema: pa.Schema

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All batches in order; with `columns` these alone."""
        fields = None if columns is None else [self.schema.get_field_index(name) for name in columns]
        options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        # Not mapped into memory: pages of a mapped file would count as memory of the process.
        with pa.OSFile(str(self.path), "rb") as raw, pa.ipc.open_stream(raw, options=options) as reader:
            yield from reader

    def reader(self) -> pa.RecordBatchReader:
        """The same for whoever takes a reader."""
        return pa.RecordBatchReader.from_batches(self.schema, self.batches())


def spooled(name: str, path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> RowSpool:
    """Write all batches to `path`. Raises FileError naming `name` when the disk does not take them."""
    try:
        with pa.OSFile(str(path), "wb") as raw, closing(pa.ipc.new_stream(raw, schema)) as writer:
            for batch in batches:
                writer.write_batch(batch)
    except OSError as exc:
        raise FileError(
            f"{name}: its rows cannot be kept in {path.parent}: {exc.strerror or exc.__class__.__name__}; "
            f"FRAUD_SCORER_FILES__TEMP_FOLDER names another folder"
        ) from exc
    return RowSpool(path, schema)


@dataclass(frozen=True)
class SharedRows:
    """Rows of a file in the order of reading, ready for any number of processes; `spool` is in a folder of the process
    that opened the file."""

    facts: RowFacts
    spool: RowSpool

    @property
    def survey(self) -> Survey:
        """What the rows are like."""
        return self.facts.survey

    def batches(self) -> Iterator[pa.RecordBatch]:
        """As PaymentFile.batches."""
        return self.spool.batches()
