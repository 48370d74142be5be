"""What a proof finds: differences with their causes, counted, and written as they are found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from scorer.errors import UsageError

SHOWN_MAX = 20
_ROWS_PER_WRITE = 10_000


class Cause(StrEnum):
    """Why a decision made again is not the one in the trail."""

    OTHER_BUNDLE = "other_bundle"  # another bundle decided live: same features, another model or policy
    OTHER_FEATURE_SET = "other_feature_set"
    LATE_LABEL = "late_label"  # a label came after the decision, with a known_at before it
    LABEL_RULE = "label_rule"  # decided by a release before 0.2, by another rule for several labels of one payment
    OTHER_PAYMENT = "other_payment"  # the file has other values of the payment than the topic
    LIVE_CONDITION = "live_condition"  # decided without the model near a deadline, or late in order of arrival
    MISSING = "missing"  # not in the trail
    TAMPERED = "tampered"  # the trail's row is not the one that was written
    UNEXPLAINED = "unexplained"


# Causes that mean the trail, the code or the log was changed.
BROKEN = frozenset({Cause.TAMPERED, Cause.UNEXPLAINED, Cause.MISSING})
SENTENCES = {
    Cause.OTHER_BUNDLE: "another bundle decided live; the features are the same",
    Cause.OTHER_FEATURE_SET: "the bundle that decided live had another feature set",
    Cause.LATE_LABEL: "a label came after the decision, with a known_at before it",
    Cause.LABEL_RULE: "decided by a release before 0.2, by another rule for several labels of one payment",
    Cause.OTHER_PAYMENT: "the file has other values of the payment than the topic",
    Cause.LIVE_CONDITION: "decided near a deadline, or late in order of arrival",
    Cause.MISSING: "not in the trail",
    Cause.TAMPERED: "the trail's row is not the one that was written",
    Cause.UNEXPLAINED: "no cause found: code, log or history differ",
}


@dataclass(frozen=True)
class Difference:
    """One payment that is decided otherwise than live. `columns`: which of its columns differ."""

    cause: Cause
    payment_id: str
    event_time_ms: int
    columns: tuple[str, ...]
    detail: str
    shard: int | None = None
    sequence: int | None = None
    row_number: int | None = None
    live: dict[str, Any] = field(default_factory=dict)
    replayed: dict[str, Any] = field(default_factory=dict)


@dataclass
class Proof:
    """What was compared, and the result. `behind`: decisions that the sink has not written yet."""

    compared: int = 0
    equal: int = 0
    behind: int = 0
    erased: int = 0
    dropped: int = 0
    causes: dict[Cause, int] = field(default_factory=dict)
    first: list[Difference] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether no difference means that the trail, the code or the log was changed."""
        return not BROKEN & self.causes.keys()


_SCHEMA = pa.schema(
    [
        ("cause", pa.string()), ("payment_id", pa.string()), ("event_time", pa.timestamp("ms", tz="UTC")),
        ("columns", pa.list_(pa.string())), ("detail", pa.string()), ("shard", pa.int32()), ("sequence", pa.int64()),
        ("row_number", pa.int32()), ("live", pa.string()), ("replayed", pa.string()),
    ]
)  # fmt: skip


class Differences:
    """Counts differences into a Proof, keeps the first ones to show, and writes all into a file when one is given.

    The file is Parquet (`.parquet`) or JSON lines (`.jsonl`). Raises UsageError for another suffix.
    """

    def __init__(self, output: Path | None) -> None:
        self.proof = Proof()
        self._path, self._waiting = output, list[Difference]()
        if output is not None and output.suffix not in (".parquet", ".jsonl"):
            raise UsageError(f"--differences {output}: name a .parquet or .jsonl file")
        lines = output is not None and output.suffix == ".jsonl"
        self._lines = output.open("wb") if output is not None and lines else None
        self._table = pq.ParquetWriter(output, _SCHEMA) if output is not None and not lines else None

    def add(self, difference: Difference) -> None:
        """Count one difference."""
        proof = self.proof
        proof.causes[difference.cause] = proof.causes.get(difference.cause, 0) + 1
        if len(proof.first) < SHOWN_MAX:
            proof.first.append(difference)
        if self._path is not None:
            self._waiting.append(difference)
            if len(self._waiting) >= _ROWS_PER_WRITE:
                self._write()

    def close(self) -> Proof:
        """Write the waiting differences and return the result."""
        self._write()
        if self._lines is not None:
            self._lines.close()
        if self._table is not None:
            self._table.close()
        return self.proof

    def _write(self) -> None:
        encode = msgspec.json.encode
        if self._lines is not None:
            self._lines.writelines(encode(asdict(difference)) + b"\n" for difference in self._waiting)
        if self._table is not None and self._waiting:
            rows = [asdict(difference) for difference in self._waiting]
            for row in rows:
                row["event_time"] = row.pop("event_time_ms")
                row |= {name: encode(row[name]).decode() for name in ("live", "replayed")}
            self._table.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
        self._waiting.clear()
