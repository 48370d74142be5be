"""The demo as the README gives it, from a cache of its own: the first thing that a stranger runs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
from rich.cells import cell_len

from scorer.local_services import Services
from tests.integration.running import wait_for

_SEQUENCE = re.compile(r"\x1b\[[?\d;]*[A-Za-z]")
_COLOUR = re.compile(r"\x1b\[[\d;]*\b[34]\d\b[\d;]*m")
_COUNT = r"([\d,]+)"


def test_it_reconciles_every_count(services: Services, tmp_path: Path) -> None:
    """payments = decisions + dead letters = audit rows + dead letters, some flagged, exit 0; nothing is trained, and
    each part of the start is reported when it is ready; metrics have their address, and Prometheus, which ends with the
    demo, or a line that none is installed."""
    environment = {
        **os.environ,
        "FRAUD_SCORER_KAFKA__BOOTSTRAP_SERVERS": services.kafka.bootstrap_servers,
        "FRAUD_SCORER_POSTGRES__URL": services.postgres.url,
        "FRAUD_SCORER_CACHE": str(tmp_path),
    }
    command = [sys.executable, "-m", "scorer", "demo", "--rate", "400", "--seconds", "6", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for part in ("kernels", "Kafka and Postgres", "topics and tables", "worker and sink"):
        assert f"s  {part}: " in done.stderr, done.stderr
    assert re.search(r"s  metrics: http://127.0.0.1:\d+/metrics \(worker\)", done.stderr), done.stderr
    if shutil.which("prometheus") is None:
        assert "s  Prometheus: none on the PATH" in done.stderr, done.stderr
    else:
        found = re.search(r"s  Prometheus: http://127.0.0.1:(\d+),", done.stderr)
        assert found, done.stderr
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(found[1]))) != 0
    assert list(tmp_path.iterdir()) == []
    assert "\x1b" not in done.stdout + done.stderr
    assert re.search(r"s  payments: [\d,]+ sent, \S+; decisions: [\d,]+, \S+, [\d,]+ flagged; latency", done.stderr)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["payments"] > 100  # 2,400 where the machine is not busy
    assert result["payments"] == result["decisions"] + result["dead_letters"]
    assert result["decisions"] == result["audit_rows"]
    assert result["flagged"] > 0
    assert 0 < result["latency_p50_ms"] <= result["latency_p99_ms"]
    assert 0 < result["fast_latency_p50_ms"] <= result["fast_latency_p99_ms"]


class Terminal:
    """A pseudo-terminal of 24 rows and 80 columns, and what was written to it."""

    def __init__(self) -> None:
        self._master, self.end = pty.openpty()
        fcntl.ioctl(self.end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._written = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other end was closed
            while data := os.read(self._master, 65536):
                self._written += data

    @property
    def text(self) -> str:
        return self._written.decode(errors="replace").replace("\r\n", "\n")

    def screens(self) -> Iterator[list[str]]:
        """Each screen that was drawn whole: lines without colours, blank ends left out."""
        for part in self.text.split("\x1b[H")[1:]:
            lines = [_SEQUENCE.sub("", found).rstrip() for found in part.split("\x1b[?1049l")[0].split("\n")]
            if len(lines) >= 24 and lines[0].startswith("fraud-scorer demo"):
                yield lines

    def close(self) -> None:
        os.close(self.end)
        self._thread.join(10)
        os.close(self._master)


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"no {pattern} in\n{text}"
    return int(found[1].replace(",", ""))


def test_the_view_of_a_terminal_reconciles_with_the_summary(services: Services, tmp_path: Path) -> None:
    """On a terminal of 80 x 24, without colours where NO_COLOR asks for none: one screen, drawn in place, with both
    topics' latency, the flagged payments' amounts and no customer; Ctrl-C drains, the screen leaves, and the summary
    has the counts of the last screen."""
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "FORCE_COLOR")},
        "FRAUD_SCORER_KAFKA__BOOTSTRAP_SERVERS": services.kafka.bootstrap_servers,
        "FRAUD_SCORER_POSTGRES__URL": services.postgres.url,
        "TERM": "xterm-256color",
        "NO_COLOR": "1",
    }
    terminal = Terminal()
    command = [sys.executable, "-m", "scorer", "demo", "--rate", "400"]
    log = tmp_path / "progress.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command, env=environment, stdin=terminal.end, stdout=terminal.end, stderr=errors, start_new_session=True
        )
    try:

        def last() -> str:
            assert process.poll() is None, log.read_text()[-3000:]
            drawn = list(terminal.screens())
            return "\n".join(drawn[-1]) if drawn else ""

        def shows_everything() -> bool:
            text = last()
            return all(
                re.search(pattern, text, re.MULTILINE)
                for pattern in (
                    rf"^payments +{_COUNT} sent +{_COUNT}/s +400/s asked$",
                    r"^decisions-fast +[\d.,]+ m?s +[\d.,]+ m?s$",
                    r"^decisions +[\d.,]+ m?s +[\d.,]+ m?s$",
                    rf"^lag +{_COUNT} payments +{_COUNT} audit rows behind$",
                    r"^p_\S+ +[\d,.]+ [A-Z]{3} +[01]\.\d{3}  [A-Z_]+",
                )
            )

        wait_for(shows_everything, 240, "a whole screen")
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0, log.read_text()[-3000:]
    finally:
        process.kill()
        process.wait()
        terminal.close()
    assert terminal.text.count("\x1b[?1049h") == terminal.text.count("\x1b[?1049l") == 1
    assert not _COLOUR.search(terminal.text)
    screens = list(terminal.screens())
    for lines in screens:
        assert len(lines) == 24
        assert all(cell_len(text) <= 80 for text in lines)
        assert not re.search(r"\b(?:c_|tok_)\d|\d{13}", "\n".join(lines[:-5]))
    text, end = "\n".join(screens[-1]), terminal.text.split("\x1b[?1049l")[1]
    assert "Every payment decided once, every decision in the audit trail" in end
    assert number(rf"payments +{_COUNT} sent", text) == number(rf"payments +{_COUNT}\n", end) > 0
    assert number(rf"decisions +{_COUNT} read", text) == number(rf"decisions +{_COUNT}  ", end)
    assert number(rf"audit rows +{_COUNT}\n", end) == number(rf"decisions +{_COUNT}  ", end)
    assert number(rf"{_COUNT} flagged", text) == number(rf"{_COUNT} flagged", end)


def test_a_start_that_is_stopped_ends_what_it_began(services: Services, tmp_path: Path) -> None:
    """Ctrl-C before the first payment ends the demo without an error, and its database is gone."""
    environment = {
        **os.environ,
        "FRAUD_SCORER_KAFKA__BOOTSTRAP_SERVERS": services.kafka.bootstrap_servers,
        "FRAUD_SCORER_POSTGRES__URL": services.postgres.url,
    }
    log = tmp_path / "progress.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "scorer", "demo", "--json"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    try:
        wait_for(lambda: "topics and tables: made" in log.read_text(), 120, "the topics and tables")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, log.read_text()[-3000:]
    assert output == b""
    assert "stopped before the first payment" in log.read_text()
    with psycopg.connect(services.postgres.url) as database:
        found = database.execute("SELECT datname FROM pg_database WHERE datname LIKE 'fraud_scorer_demo_%'").fetchall()
    assert found == []
