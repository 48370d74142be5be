"""A topic that is lost while it is read ends no process by the client library's callbacks, and means the same by both
ways of reading."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.lost_topic_process import EXPECTED

PROCESS_S = 900  # four clusters, and kernels that may have to be compiled


@pytest.mark.parametrize("way", ["borrowed", "plain"])
def test_a_topic_that_is_lost_under_its_reader_is_an_error_and_no_crash(way: str) -> None:
    """Deleted, made anew with fewer partitions, hidden by the authoriser, or unknown to a node for a moment: the
    process lives, both ways give the same errors and the same failure, and what comes back is read on."""
    program = [sys.executable, "-m", "tests.integration.lost_topic_process", way]
    root = Path(__file__).parents[2]
    done = subprocess.run(program, cwd=root, capture_output=True, text=True, timeout=PROCESS_S, check=False)
    shown = f"exit {done.returncode}\n{done.stdout}\n{done.stderr[-2000:]}"
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, shown
    assert {each["way"] for each in found} == {way}, shown
    for each in found:
        if each["loss"] == "fewer partitions":  # it may have been seen gone before
            each["codes"] = [code for code in each["codes"] if code != "UNKNOWN_TOPIC_OR_PART"]
    assert {each["loss"]: (each["codes"], each["failed"], each["came"]) for each in found} == EXPECTED, shown
