"""What the start of the demo reports."""

from __future__ import annotations

import threading

from scorer.demo.start_progress import StartProgress


def test_what_takes_long_is_named_again_until_it_ends() -> None:
    """A part is reported when it begins, while it runs, with how far it is, and when it is ready."""
    lines: list[str] = []
    repeated = threading.Event()

    def report(line: str) -> None:
        lines.append(line.partition(" s  ")[2])
        if "kernels: 3 compiled; broker: starting" in line:
            repeated.set()

    with StartProgress(report, every_s=0.01) as progress:
        progress.begin("kernels", lambda: "3 compiled")
        progress.begin("broker")
        assert repeated.wait(30.0)
        progress.end("broker", "ready")
        progress.end("kernels", "done")
    assert lines[:2] == ["kernels …", "broker …"]
    assert [line.partition(" (took ")[0] for line in lines if "took" in line] == ["broker: ready", "kernels: done"]
