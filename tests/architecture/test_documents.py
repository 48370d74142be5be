"""The documents name files, functions and settings that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("ARCHITECTURE.md", "README.md", "CONTRIBUTING.md")
PACKAGES = ("schemas", "features", "scorer", "tests", "migrations")
# A file or folder of the repository: features/engine.py, scorer/sink/; a name in it after a colon.
PATH = re.compile(r"(?P<path>(?:[\w.-]+/)+(?:[\w.-]+\.(?:py|md|yaml|xml))?|[A-Z]\w*\.md|\w+\.py)(?::(?P<name>[\w.]+))?")
# A module, or a name in it: scorer.pipeline.Pipeline.run
MODULE = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:\.\w+)+")


def mentioned(document: str) -> list[str]:
    """Everything in backticks, and the code of examples, that is shaped like a path or a module's name."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.findall(r"`([^`\n]+)`", text) + re.findall(r"python -m (\S+)", text)
    found += re.findall(r"\]\(([^)#]+)\)", text)  # links
    found = [word.strip("`,") for mention in found for word in mention.split()]
    return sorted({word for word in found if PATH.fullmatch(word) or MODULE.fullmatch(word)})


@cache
def bound(path: Path) -> dict[str, ast.AST]:
    """The names at the top of a module: defined there, assigned or imported."""
    return _names(ast.parse(path.read_text(encoding="utf-8")).body)


def _names(body: list[ast.stmt]) -> dict[str, ast.AST]:
    names: dict[str, ast.AST] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = node
    return names


def _has(path: Path, name: str) -> bool:
    """Whether the file binds `name`, which may be Class.method."""
    first, _, rest = name.partition(".")
    node = bound(path).get(first)
    if node is None or not rest:
        return node is not None
    if isinstance(node, ast.ClassDef):
        return rest in _names(node.body)
    # A class that a room's __init__ imports: its method stands where the class does.
    return isinstance(node, ast.ImportFrom) and node.module is not None and _module(f"{node.module}.{name}")


def _module(dotted: str) -> bool:
    """Whether a dotted name is a module, or a name in the longest module that it begins with."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        stem = ROOT.joinpath(*parts[:length])
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.is_file():
                return length == len(parts) or _has(path, ".".join(parts[length:]))
    return False


def exists(mention: str) -> bool:
    """Whether the repository has what a document mentions."""
    if MODULE.fullmatch(mention) and not mention.endswith((".py", ".md")):
        return _module(mention)
    match = PATH.fullmatch(mention)
    assert match is not None
    path = ROOT / match["path"]
    if not path.exists():
        return False
    return match["name"] is None or (path.suffix == ".py" and _has(path, match["name"]))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_and_function_that_a_document_names_exists(document: str) -> None:
    """Whoever follows a name out of a document finds it: paths, `file.py:function` and `package.module.name` alike."""
    mentions = mentioned(document)
    assert mentions, "the document names nothing; the pattern does not fit it any more"
    assert [mention for mention in mentions if not exists(mention)] == []


@pytest.mark.parametrize(
    ("mention", "expected"),
    [
        ("scorer/runtime/settings.py", True),
        ("scorer/runtime/settings.py:Settings.postgres_url", True),
        ("scorer/runtime/settings.py:Settings.no_such_thing", False),
        ("scorer/runtime/settings.py:no_such_thing", False),
        ("scorer/runtime/", True),
        ("scorer/no_such_room/", False),
        ("scorer.runtime.settings.load", True),
        ("scorer.pipeline.Pipeline.run", True),
        ("scorer.pipeline.Pipeline.no_such_thing", False),
        ("scorer.no_such_module", False),
    ],
)
def test_a_name_that_does_not_exist_is_noticed(mention: str, expected: bool) -> None:
    """The check itself tells what is there from what is not."""
    assert exists(mention) is expected
