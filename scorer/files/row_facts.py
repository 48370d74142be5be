"""What the columns of a file's batches mean: why rows are refused, their places, types of attributes without a type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.contract_error import ContractError, DeadLetterReason
from scorer.files.field_sql import FRACTION_CELL, OTHER_CELL, TRUTH_CELL, WHOLE_CELL, Problem
from scorer.files.mapping import Mapping
from scorer.files.time_survey import FAR_FUTURE, Survey

REFUSED = "refused"
_UNREADABLE = ContractError(
    DeadLetterReason.INVALID_VALUE, None, "the line cannot be read as cells of a CSV; is a quote missing?"
)
_INSIDE = ContractError(DeadLetterReason.INVALID_VALUE, None, "a row that stands in a cell of this one")
_LOST = ContractError(
    DeadLetterReason.INVALID_VALUE,
    None,
    "a line that came out as no row, from a quote that does not end on; correct the quotes, or write into the mapping "
    'csv: {quote: ""} if the file quotes nothing',
)
# Above every number of a problem.
_FUTURE_CODE = np.iinfo(np.int16).max


@dataclass(frozen=True)
class RowFacts:
    """Of one file, with its mapping. It pickles, for the processes that share a file.

    attribute_types: of attributes whose cells have no type, what all of them are: BIGINT, DOUBLE, BOOLEAN, VARCHAR, or
    each something else (MIXED, JSON) · problems: by their numbers in REFUSED, from 1 · rows_left_out: places of what
    cannot be read as a row, refused like rows · rows_inside: of each row that became part of a cell the number of the
    row that this is in · rows_read: with those that `where` leaves out · lines_lost: lines that came out as no row ·
    files: how many are read as one
    """

    name: str
    mapping: Mapping
    survey: Survey
    attribute_types: dict[str, str]
    problems: tuple[Problem, ...]
    rows_left_out: Sequence[int]
    rows_inside: Sequence[int]
    rows_read: int
    lines_lost: int
    files: int

    def finished(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """A batch with attributes of their types, and with the rows of the far future refused."""
        for name, kind in self.attribute_types.items():
            place = batch.schema.get_field_index(name)
            batch = batch.set_column(place, name, typed(batch.column(place), kind))
        limit = self.survey.future_from_ms
        if limit is not None:
            time = batch.column("event_time")
            future = pc.fill_null(pc.greater_equal(time, limit), fill_value=False).to_numpy(zero_copy_only=False)
            place = batch.schema.get_field_index(REFUSED)
            codes = batch.column(place).to_numpy(zero_copy_only=False)
            marked = np.where((codes == 0) & future, np.int16(_FUTURE_CODE), codes)
            batch = batch.set_column(place, REFUSED, pa.array(marked, pa.int16()))
        return batch

    def refusal(self, code: int) -> ContractError:
        """Why rows with this number in `refused` are refused."""
        if code == _FUTURE_CODE:
            return FAR_FUTURE
        problem = self.problems[code - 1]
        return ContractError(problem.reason, problem.field or None, problem.message)

    def lost(self) -> list[tuple[int, ContractError]]:
        """Rows that are in no batch, by place and why."""
        inside = self.row_numbers(np.array(self.rows_inside, np.int64)).tolist()
        found = [(row, _UNREADABLE) for row in self.rows_left_out] + [(row, _INSIDE) for row in inside]
        # Where a line was lost is not known: most often behind the last one that cannot be read.
        place = self.rows_left_out[-1] if self.rows_left_out else self.rows_read
        return found + [(place, _LOST)] * self.lines_lost

    def row_numbers(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Places in the file of the rows with these numbers, which the reader counted without what it left out."""
        if not self.rows_left_out or self.files > 1:
            return rows
        left_out = np.array(self.rows_left_out)
        return rows + np.searchsorted(left_out - 1 - np.arange(len(left_out)), rows, side="left")


def type_of(counts: npt.NDArray[np.int64], *, json: bool) -> str:
    """What the cells of an attribute are together, by the number of each class (field_sql.class_of)."""
    whole, fractions, truth, other = (int(counts[c]) for c in (WHOLE_CELL, FRACTION_CELL, TRUTH_CELL, OTHER_CELL))
    if not truth and not other:
        return "DOUBLE" if fractions else "BIGINT"
    if not (whole or fractions or other):
        return "BOOLEAN"
    if json:
        return "JSON"
    return "MIXED" if whole + fractions + truth else "VARCHAR"


def typed(column: pa.Array, kind: str) -> pa.Array:
    """Texts of an attribute as what all of them are."""
    if kind == "BOOLEAN":
        return pc.equal(pc.ascii_lower(column), "true")
    if kind == "BIGINT":
        return pc.cast(column, pa.int64())
    if kind == "DOUBLE":
        try:
            return pc.cast(column, pa.float64())
        except pa.ArrowInvalid:  # closer to zero than Arrow reads
            return pa.array([None if cell is None else float(cell) for cell in column.to_pylist()], pa.float64())
    return column
