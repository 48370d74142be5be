"""JSON lines in the contract's own form: no mapping, read as they are and in the order of the file.

The rules of files hold for them as for mapped ones: what lies far behind all other times is refused, and lines of which
too many would be late are not read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.contract_error import ContractError
from schemas.event_time import event_time_ms
from scorer.files.file_source import FileError, Workspace, lines, open_source
from scorer.files.mapping import MappingError
from scorer.files.payment_file import ReadOptions
from scorer.files.source_relation import rows_estimated
from scorer.files.time_survey import Survey, TimeSurvey

LINE_BYTES_MAX: Final = 16 << 20
_LOOK_LINES: Final = 16_384


@dataclass(frozen=True)
class ContractLines:
    """The lines of files read as one, after one look at their times. It pickles, for the processes that share a
    source; who opened it removes its folder."""

    name: str
    paths: tuple[Path, ...]
    survey: Survey

    def blocks(self, count: int) -> Iterator[list[tuple[int, bytes]]]:
        """Lines that are not blank, with their numbers from 1, at most `count` a block. Raises FileError."""
        numbered = lines(self.name, self.paths, LINE_BYTES_MAX)
        while block := list(itertools.islice(numbered, count)):
            yield block

    def far_future(self, times: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of these event times are refused, bool [n]."""
        limit = self.survey.future_from_ms
        return np.zeros(len(times), np.bool_) if limit is None else times >= limit


class Line(msgspec.Struct):
    """What a block wants to know of a payment in the contract's form."""

    payment_id: object = None
    event_time: object = None
    customer_id: object = None


class _Timed(msgspec.Struct):
    event_time: object = None


def open_lines(path: str | Path, options: ReadOptions) -> tuple[ContractLines, Workspace]:
    """The lines of a source, and the folder to remove after reading. Raises FileError and MappingError."""
    opened = open_source(path, temp_folder=options.temp_folder, as_bytes=True)
    try:
        if opened.kind != "json":
            raise MappingError(
                f"{opened.name}: a {opened.kind} file needs a mapping that says which column is which field"
            )
        kept = opened.workspace.folder / "times"
        survey = TimeSurvey(future_gap_ms=options.future_gap_ms, lateness_ms=options.lateness_ms)
        decoder, done, estimated = msgspec.json.Decoder(_Timed), 0, rows_estimated(opened)
        numbered = lines(opened.name, opened.paths, LINE_BYTES_MAX)
        with kept.open("wb") as out:
            while block := list(itertools.islice(numbered, _LOOK_LINES)):
                times = np.array([_time_ms(decoder, line) for _, line in block], np.int64)
                survey.add(_present(times))
                times.tofile(out)
                done += len(block)
                options.looking(done, max(estimated, done) if estimated else 0)
        found = survey.found(lambda: _read(kept))
        why = found.too_late(options.late_share_max)
        if why is not None:
            raise FileError(
                f"{opened.name}: {why}. Sort its lines by event_time, or write a mapping for it (`fraud-scorer "
                "mapping` drafts one), and rows are read in order of event time. If this is the order in "
                "which they arrived, FRAUD_SCORER_FILES__LATE_MAX says what share may be late"
            )
        kept.unlink()
        return ContractLines(opened.name, opened.paths, found), opened.workspace
    except BaseException:
        opened.workspace.close()
        raise


def _read(kept: Path) -> Iterator[pa.Array]:
    with kept.open("rb") as raw:
        while len(times := np.fromfile(raw, np.int64, _LOOK_LINES)):
            yield _present(times)


def _present(times: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array(times, pa.int64(), mask=times < 0)


def _time_ms(decoder: msgspec.json.Decoder[_Timed], line: bytes) -> int:
    try:
        return contract_time_ms(decoder.decode(line).event_time)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return -1  # the payment decoder says what is wrong with it


def contract_time_ms(value: Any) -> int:
    """An event time of the contract in epoch ms; -1 where it is none."""
    try:
        return event_time_ms(value)
    except ContractError:
        return -1
