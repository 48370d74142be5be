"""Decisions with their features, as Parquet."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.decision import DECISIONS, MODES
from scorer.pipeline import Outcomes


class Writer:
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

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
