"""What holds the code in shape: imports point one way, and every file passes the linter,
the formatter and the type checker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = {
    "imports": ["lint-imports", "--no-cache"],
    "lint": ["ruff", "check", "--no-cache", "."],
    "format": ["ruff", "format", "--no-cache", "--check", "."],
    "types": ["mypy"],
}


@pytest.mark.parametrize("what", TOOLS)
def test_the_tree_keeps_its_own_rules(what: str) -> None:
    """Layers, lint, format and types are as pyproject.toml says, in every commit."""
    command, *arguments = TOOLS[what]
    program = Path(sys.executable).parent / command
    done = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
