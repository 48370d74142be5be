"""The layout that ARCHITECTURE.md draws: every file in a room, every room explained, every file's name its own."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("schemas", "features", "scorer")
LOOSE = {"__init__.py", "__main__.py", "errors.py", "py.typed"}
UNNAMED = {"__init__", "__main__"}


def sources() -> list[Path]:
    """Every Python file of the three packages, relative to the repository."""
    return sorted(path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def rooms() -> list[Path]:
    """The folders of scorer/ and the two packages below it."""
    folders = {path.parent for path in sources() if len(path.parts) == 3 and path.parts[0] == "scorer"}
    return sorted({Path("schemas"), Path("features"), *folders})


def test_every_file_of_scorer_is_in_a_room() -> None:
    """A file is looked for in the room whose business it is; none lies beside the rooms."""
    assert {path.name for path in (ROOT / "scorer").iterdir() if path.is_file()} <= LOOSE


def test_every_room_explains_itself() -> None:
    """A room's docstring has at least two sentences: what it is for, and what it may touch."""
    unexplained = []
    for room in rooms():
        text = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8"))) or ""
        if len(re.findall(r"\.(?=\s|$)", text)) < 2 or re.search(r"\bmay\b", text, re.IGNORECASE) is None:
            unexplained.append(str(room))
    assert unexplained == []


def test_every_file_has_a_name_of_its_own() -> None:
    """A stem names one file: what a log line, an import or a reader calls `mapping` is one thing.

    A room's main file may carry the name of its room (pipeline/pipeline.py); the folder is no second file.
    """
    files: dict[str, list[str]] = defaultdict(list)
    for path in sources():
        if path.stem not in UNNAMED:
            files[path.stem].append(str(path))
    assert {stem: found for stem, found in files.items() if len(found) > 1} == {}


def test_the_map_has_every_room_in_the_order_of_the_contract() -> None:
    """ARCHITECTURE.md lists the rooms from the lowest to the highest, as pyproject.toml lets them import."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = [contract["layers"] for contract in contracts if contract.get("containers") == ["scorer"]]
    drawn = re.findall(r"^\| `scorer/(\w+)/`", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert drawn == [layer for layer in reversed(layers) if layer != "errors"]
