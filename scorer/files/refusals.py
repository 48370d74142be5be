"""What was refused of a file: counted by field and reason, with examples by row, and written to a file when asked."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.contract_error import ContractError

EXAMPLES_MAX: Final = 3
_ROWS_PER_GROUP: Final = 65_536
SCHEMA: Final = pa.schema(
    [("row", pa.int64()), ("field", pa.string()), ("reason", pa.string()), ("message", pa.string())]
)


@dataclass
class Refusals:
    """The refused rows of one run. `path`: Parquet to write them to (row, field, reason, message). `left_out`: rows
    that the mapping's `where` leaves out, which are not refused; `unknown`: those of them for which it has no value."""

    path: Path | None = None
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)  # by field and reason
    examples: dict[tuple[str, str], tuple[list[int], str]] = field(default_factory=dict)  # rows and the first's message
    left_out: int = 0
    unknown: int = 0
    _waiting: list[tuple[int, str | None, str, str]] = field(default_factory=list)
    _writer: pq.ParquetWriter | None = None

    @property
    def total(self) -> int:
        """How many rows were refused."""
        return self.counts.total()

    def add(self, row: int, error: ContractError) -> None:
        """One refused row: its place in the file, and why."""
        key = (error.field or "", error.reason.value)
        self.counts[key] += 1
        rows, _ = self.examples.setdefault(key, ([], error.message))
        if len(rows) < EXAMPLES_MAX:
            rows.append(row)
        if self.path is not None:
            self._waiting.append((row, error.field, error.reason.value, error.message))
            if len(self._waiting) >= _ROWS_PER_GROUP:
                self._write()

    def leave_out(self, rows: int, unknown: int) -> None:
        """Count rows that `where` leaves out, and how many of them because it has no value (a cell is empty)."""
        self.left_out += rows
        self.unknown += unknown

    def described(self) -> list[dict[str, Any]]:
        """By field and reason, the most frequent first: how many, rows as examples, and the message of the first."""
        return [
            {"field": name, "reason": reason, "rows": count, "examples": self.examples[name, reason][0],
             "message": self.examples[name, reason][1]}
            for (name, reason), count in self.counts.most_common()
        ]  # fmt: skip

    def close(self) -> None:
        """Finish the file, which is written even when nothing was refused."""
        if self.path is not None:
            self._write()
            assert self._writer is not None
            self._writer.close()
            self._writer = None

    def _write(self) -> None:
        assert self.path is not None
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.path, SCHEMA, compression="zstd")
        columns = list(zip(*self._waiting, strict=True)) or [() for _ in SCHEMA]
        self._writer.write_table(pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], SCHEMA))
        self._waiting = []
