"""The words of the code: plain technical English, as CONTRIBUTING.md asks for."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Figures of speech that a reader has to translate. CONTRIBUTING.md says what to write instead.
AVOIDED = re.compile(
    r"\b(?:told|said|nobody|mend|mends|mended|mending|bear|bears|held against|holds? (?:it|them|each) against"
    r"|as whoever|lets? go of|letting go of|fast doors?)\b",
    re.IGNORECASE,
)
SUFFIXES = (".py", ".md", ".yaml", ".toml")
# The changelog is history; the rules and this test have to name the words.
EXCLUDED = {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "tests/architecture/test_language.py"}
# Names that are not ours.
FOREIGN = ('getpwnam("nobody")',)


def test_no_text_uses_a_word_that_has_to_be_translated() -> None:
    """Code, comments, logs, errors, documents and tests say reason, logged, compared with, repair, path."""
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=True,
    ).stdout.splitlines()  # fmt: skip
    found = []
    for name in tracked:
        if not name.endswith(SUFFIXES) or name in EXCLUDED or not (ROOT / name).is_file():
            continue
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), start=1):
            text = line
            for foreign in FOREIGN:
                text = text.replace(foreign, "")
            found += [f"{name}:{number}: {match[0]}" for match in AVOIDED.finditer(text)]
    assert not found, f"{len(found)} places:\n" + "\n".join(found)


def test_every_log_event_names_its_part_and_what_happened() -> None:
    """A log event reads `part.what_happened`, in one form for all, so that people can search and filter by part."""
    event = re.compile(r"(?:log|get_logger\(\))\.(?:debug|info|warning|error|exception)\(\s*\"([^\"]+)\"")
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / "scorer").rglob("*.py"))
        for name in event.findall(path.read_text(encoding="utf-8"))
    ]
    assert len(found) > 20
    wrong = [name for name in found if not re.search(r": [a-z]+\.[a-z]+(_[a-z]+)*$", name)]
    assert not wrong, wrong
