"""The security page: every threat has a control and a test that exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "deploy/SECURITY.md"
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


@cache
def functions_of(path: str) -> frozenset[str]:
    """The test functions of a file."""
    file = ROOT / path
    if not file.is_file():
        return frozenset()
    return frozenset(node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef))


def threats() -> list[list[str]]:
    """The cells of each row of the threat table."""
    table = PAGE.read_text().split("## Threats\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip().strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


@pytest.mark.parametrize("row", threats(), ids=lambda row: row[1][:40])
def test_every_threat_has_a_control_and_a_test(row: list[str]) -> None:
    """Who reads the page finds for each threat who, what, the control, and a test that can be run."""
    assert len(row) == 4
    assert all(row)
    named = TEST.findall(row[3])
    assert named, f"no test is named for: {row[1]}"
    assert [f"{path}::{name}" for path, name in named if name not in functions_of(path)] == []


def test_the_table_is_not_empty() -> None:
    """The check reads the table that is there."""
    assert len(threats()) > 20
    assert not functions_of("tests/unit/test_no_such_file.py")
