"""Progress: one mechanism, the same line in every command that can take longer than two seconds."""

from __future__ import annotations

import ast
import io
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scorer.cli import command_support
from scorer.cli.command_support import PlainConsole, counting

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ROOT / "scorer" / "cli"
# What computes, reads a whole file or topic, or decides again.
LONG = (
    "audit_commands.py", "backtest_commands.py", "bundle_commands.py", "dead_letter_commands.py", "explain_command.py",
    "features_commands.py", "import_command.py", "label_commands.py", "mapping_command.py", "prove_command.py",
    "recover_command.py", "replay_command.py", "set_aside_commands.py", "topic_commands.py", "train_command.py",
)  # fmt: skip


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    text = io.StringIO()
    console = PlainConsole(file=text)
    console._force_terminal = True
    monkeypatch.setattr(command_support, "err", console)
    return text


def test_a_line_shows_the_count_and_what_it_is_of(terminal: io.StringIO) -> None:
    """How many are done, of how many where that is known, the time taken and the time left."""
    with counting("payments", quiet=False) as progress:
        progress.looking(4_096, 9_000)
        progress.expect(12_000)
        progress(5_000)
    shown = terminal.getvalue()
    assert "payments" in shown
    assert "5,000 of 12,000" in shown
    assert "rows looked at" in shown
    assert "4,096 of 9,000" in shown
    assert "left" in shown


def test_what_has_no_count_shows_its_time(terminal: io.StringIO) -> None:
    """A step of unknown length shows no zero that never moves."""
    with counting("checking the bundle", quiet=False):
        pass
    assert "checking the bundle" in terminal.getvalue()
    assert " 0 " not in terminal.getvalue()


def test_programs_see_no_progress(terminal: io.StringIO) -> None:
    """With --json there is no line."""
    with counting("payments", quiet=True) as progress:
        progress.of(1, 2)
    assert terminal.getvalue() == ""


def test_a_log_gets_a_plain_line_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stderr is no terminal, what takes long says how far it is, and what is short says nothing."""
    text = io.StringIO()
    monkeypatch.setattr(command_support, "err", PlainConsole(file=text))
    with counting("payments", quiet=False) as progress:
        progress.of(1, 2)
    assert text.getvalue() == ""
    monkeypatch.setattr(command_support, "LINE_EVERY_S", 0.01)
    with counting("payments", quiet=False) as progress:
        progress.of(1_000, 2_000)
        deadline = time.monotonic() + 60
        while "\n" not in text.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert text.getvalue().splitlines()[0] == "payments 1,000 of 2,000, 0 s so far"


def test_every_long_command_shows_its_progress_in_the_same_way() -> None:
    """Each of them counts by this mechanism, and no other file draws a bar."""
    for name in LONG:
        assert "counting(" in (COMMANDS / name).read_text(), name
    for file in sorted((ROOT / "scorer").rglob("*.py")):
        imported = {node.module for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)}
        assert "rich.progress" not in imported or file.name == "command_support.py", file


def test_simulating_a_file_shows_how_far_it_is(tmp_path: Path) -> None:
    """`simulate --output` in a terminal: payments so far, and of how many."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "scorer", "simulate", "--count", "3000", "--output", str(tmp_path / "p.jsonl")]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=follower, stdout=subprocess.DEVNULL, env=environment) as child:
        os.close(follower)
        shown = b""
        try:
            while part := os.read(leader, 4096):
                shown += part
        except OSError:  # the other end is closed
            pass
        assert child.wait(60) == 0
    os.close(leader)
    assert b"payments" in shown
    assert b"3,000 of 3,000" in shown
