"""README's Python examples run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = {
    f"line {README.count(chr(10), 0, found.start()) + 1}": found[1]
    for found in re.finditer(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
}


def expected(example: str) -> str:
    """What the example prints by its own account: its lines that begin with "# > "."""
    return "".join(f"{line}\n" for line in re.findall(r"^# > (.*)", example, re.MULTILINE))


@pytest.mark.parametrize("place", EXAMPLES)
def test_an_example_of_the_readme_runs_and_prints_what_it_says(place: str, tmp_path: Path) -> None:
    """Every Python example runs in an empty folder, and prints its lines that begin with '# > '."""
    example = EXAMPLES[place]
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"README.md, {place}:\n{done.stderr}"
    if expected(example):
        assert done.stdout == expected(example)


def test_the_readme_has_examples() -> None:
    """The library section is not empty: a moved heading or another fence would run nothing."""
    for package in ("features", "scorer"):
        assert any(f"from {package} import" in example for example in EXAMPLES.values()), package
    assert any(expected(example) for example in EXAMPLES.values())
