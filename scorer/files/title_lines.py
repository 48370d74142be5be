"""Lines above the table of a CSV: a bank's name, a period, an empty line, as statements and reports have them."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Final, NamedTuple

from scorer.files.file_source import unpacked

LINES_LOOKED_AT: Final = 200
LINE_CHARACTERS_MAX: Final = 65_536
_DELIMITERS: Final = ",;\t|"
_ROWS_MIN: Final = 3  # a table's header and two of its rows
_SHARE_MIN: Final = 0.6  # of the lines that hold something, which a table's rows are
_DATA: Final = re.compile(r"[-+]?[0-9][0-9.,:/ TZ-]*")  # a cell that is no name of a column


class _Table(NamedTuple):
    """Lines read with one delimiter: rows of the table, cells of each, lines above its first row, the share of rows
    among the lines that hold something, and whether that first row is one of names."""

    rows: int
    width: int
    above: int
    share: float
    named: bool


def title_lines(path: Path) -> int:
    """How many lines stand above the table, as far as the first lines of a text show; 0 where it is not certain.

    The table is what most lines are: rows of so many cells. Lines stand above it only where with no delimiter the first
    line is a row of a table already, and where the first row holds names, not data.
    """
    with unpacked(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace", newline="") as text:
        lines = [text.readline(LINE_CHARACTERS_MAX) for _ in range(LINES_LOOKED_AT)]
    tables = [table for delimiter in _DELIMITERS if (table := _table(lines, delimiter)) is not None]
    if not tables or any(table.above == 0 and table.share >= _SHARE_MIN for table in tables):
        return 0
    best = max(tables, key=lambda table: table.rows * (table.width - 1))
    return best.above if best.named else 0


def _table(lines: list[str], delimiter: str) -> _Table | None:
    """What `lines` are with this delimiter; None: no table."""
    rows: list[list[str]] = []
    reader = csv.reader((line for line in lines if line), delimiter=delimiter)
    try:
        for cells in reader:
            rows.append(cells)
            if reader.line_num > len(rows):  # a cell of several lines: places of rows are no numbers of lines
                break
    except csv.Error:
        return None
    widths = [len(cells) for cells in rows if cells]
    width = max(set(widths), key=lambda each: (widths.count(each), each), default=0)
    if width < 2 or widths.count(width) < _ROWS_MIN:
        return None
    begins = (n for n, cells in enumerate(rows) if len(cells) == width and 2 * sum(map(bool, cells)) > width)
    above = next(begins, None)
    if above is None:
        return None
    first = [cell.strip() for cell in rows[above]]
    named = not any(map(_DATA.fullmatch, first))
    return _Table(widths.count(width), width, above, widths.count(width) / len(widths), named)
