"""Tests read this repository's files or make their data. Only benchmarks may read beside the repository."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAME = ("resolve", "absolute", "expanduser")


def _height(node: ast.expr, known: dict[str, int]) -> int | None:
    """How many folders a path expression stands below the repository (0: its root, -1: beside it); None: not known."""
    match node:
        case ast.Name(name):
            return known.get(name)
        case ast.Call(ast.Name("Path"), [first, *_]):
            return _height(first, known)
        case ast.Call(ast.Attribute(path, method)) if method in SAME:
            return _height(path, known)
        case ast.Attribute(path, "parent") if (height := _height(path, known)) is not None:
            return height - 1
        case ast.Subscript(ast.Attribute(path, "parents"), ast.Constant(int(steps))):
            height = _height(path, known)
            return None if height is None else height - 1 - steps
        case ast.BinOp(path, ast.Div(), ast.Constant(str(name))) if (height := _height(path, known)) is not None:
            return height + sum({"..": -1, ".": 0, "": 0}.get(part, 1) for part in name.split("/"))
    return None


def outside(source: str, depth: int) -> list[str]:
    """The path expressions of a file `depth` folders below the root that leave the repository, with their lines."""
    tree = ast.parse(source)
    known = {"__file__": depth, "ROOT": 0}
    for node in ast.walk(tree):  # from the top: a module's constants before what its functions say of them
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            height = _height(node.value, known)
            if height is not None:
                known[node.targets[0].id] = height
    found = []
    for node in ast.walk(tree):
        leaves = isinstance(node, ast.expr) and (_height(node, known) or 0) < 0
        if leaves or (isinstance(node, ast.Constant) and isinstance(node.value, str) and "../shared" in node.value):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_no_test_reads_beside_the_repository() -> None:
    """No file under tests/ but the benchmarks names a path outside the repository: a clean clone runs them all."""
    files = [
        path
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if "benchmarks" not in path.relative_to(ROOT).parts and path != Path(__file__).resolve()
    ]
    assert len(files) > 100
    found = {
        str(path.relative_to(ROOT)): lines
        for path in files
        if (lines := outside(path.read_text(encoding="utf-8"), len(path.relative_to(ROOT).parts)))
    }
    assert not found, f"make the data instead (tests/handbook_data.py): {found}"


@pytest.mark.parametrize(
    "source",
    [
        'DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "handbook.parquet"',
        "DATA = Path(__file__).parent.parent.parent.parent",
        'ROOT = Path(__file__).resolve().parents[2]\nDATA = ROOT.parent / "shared"',
        'from tests.unit.test_model import ROOT\n\ndef data():\n    return ROOT / ".." / "shared"',
        'HERE = Path(__file__).parent\n\ndef data():\n    return HERE / "../../../shared/x.parquet"',
        'data = open("../shared/data/handbook.parquet")',
    ],
)
def test_each_way_out_is_seen(source: str) -> None:
    """Each way to name the folder beside the repository is found, or the test above would promise nothing."""
    assert outside(source, 3)


@pytest.mark.parametrize(
    "source",
    [
        'ROOT = Path(__file__).resolve().parents[2]\nDEPLOY = ROOT / "deploy" / "demo"\nUP = DEPLOY.parent',
        'def test(tmp_path):\n    (tmp_path / "shared").mkdir()\n    link = tmp_path.parent / "current"',
    ],
)
def test_paths_inside_and_temporary_ones_are_allowed(source: str) -> None:
    """Paths within the repository and a test's own temporary folders are allowed."""
    assert outside(source, 3) == []
