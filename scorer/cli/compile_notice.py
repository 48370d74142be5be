"""A line on stderr while a command compiles kernels: a first start on a machine is not silent for a minute.

`run` and `sink` log it themselves (`worker.warming_up`), and the demo reports it among its parts.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

REPORTING_THEMSELVES = ("run", "sink", "demo")
_POLL_S = 0.1
# A start that reads its kernels from the cache compiles none; one kernel more than that is no news.
SILENT_S = 1.0
EVERY_S = 5.0


def watch(arguments: list[str]) -> None:
    """Report compiling from now on, for the command line `arguments`. Commands import numba when they run, so a thread
    waits for that: importing it here would cost every command half a second."""
    if not arguments or arguments[0] in REPORTING_THEMSELVES:
        return
    threading.Thread(target=_wait_for_numba, name="compile-notice", daemon=True).start()


def _wait_for_numba() -> None:
    # The event module is complete once the decorators, which need it, are.
    while getattr(sys.modules.get("numba"), "njit", None) is None:
        time.sleep(_POLL_S)
    register()


def register() -> None:
    """Report what this process compiles. numba must be imported."""
    from numba.core import event  # noqa: PLC0415

    class Notice(event.Listener):  # type: ignore[misc]  # numba has no types
        def __init__(self) -> None:
            self.count, self.began_at, self.reported_at = 0, 0.0, 0.0

        def on_start(self, event: Any) -> None:  # noqa: ARG002 - the base class's signature
            self.began_at = self.began_at or time.monotonic()
            self._report()

        def on_end(self, event: Any) -> None:  # noqa: ARG002
            self.count += 1
            self._report()

        def _report(self) -> None:
            now = time.monotonic()
            if now - self.began_at < SILENT_S or now - self.reported_at < EVERY_S:
                return
            self.reported_at = now
            print(
                f"compiling kernels for this machine, which a first start does for up to a minute of CPU: {self.count} "
                f"compiled, for {now - self.began_at:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    events: Any = event  # numba has no types
    events.register("numba:compile", Notice())
