"""The table of FAULTS.md's rows in tests/faults is true: each test is there, and reads both topics of decisions."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import tests.faults

TESTS = Path(tests.faults.__file__).parents[1]
READ_WITH_ORDER_FIRST = {*range(1, 14), *range(21, 31)}
# What reads the decisions at a test's end, or in it where the test makes its application itself.
READERS = ("one_decision_each", "check_answers", "application: Make", "app.check()")


def table() -> dict[int, list[str]]:
    """The tests of each row."""
    rows: dict[int, list[str]] = {}
    row = 0
    for line in (tests.faults.__doc__ or "").split("row   tests\n", 1)[1].splitlines():
        number, name = re.fullmatch(r"    (\d*) +(\S+)", line).groups()  # type: ignore[union-attr]
        row = int(number or row)
        rows.setdefault(row, []).append(name)
    return rows


def test_every_row_that_order_first_may_break_has_a_test() -> None:
    """Rows 1 to 13 and 21 to 30: a worker, its broker or its topics fail while decisions leave before their commit."""
    assert READ_WITH_ORDER_FIRST - {row for row, names in table().items() if names} == set()


def test_every_test_of_the_table_is_there_and_reads_both_topics() -> None:
    """A test that was renamed, or that lost its reader, leaves its row without proof."""
    for row, names in table().items():
        for name in names:
            file, _, function = name.partition("::")
            text = (TESTS / file).read_text()
            if function:
                found = [n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == function]
                assert found, f"row {row}: {name}"
                if "one_decision_each" not in text:
                    text = ast.unparse(found[0])
            assert any(reader in text for reader in READERS), f"row {row}: {name} reads no decisions"
