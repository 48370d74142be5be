"""The sinks of one process, each on a thread of its own: when one ends, for whatever reason, all do.

An error that ended one of them is raised in the thread that called `run`, so that the process ends with it: a SinkError
with its reason and exit code, anything else with its traceback. A thread can not end silently.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

import structlog

from scorer.sink.sink_errors import SinkError

_POLL_S = 0.2
# After an error the others may take this long to close what they have open; a call that hangs then ends with the
# process. Committed positions make that safe.
_CLOSE_S = 30.0
# Draining writes what was read: one transaction a topic. A Postgres that hangs must not keep the process for ever.
_DRAIN_S = 40.0

Run = Callable[[threading.Event], None]


class SinkThreads:
    """Runs each of `runs` (name → what works until its event is set)."""

    def __init__(self, runs: Mapping[str, Run], beside: Mapping[str, Run] = MappingProxyType({})) -> None:
        """`beside`: what writes nothing, so that the end does not wait for it."""
        self._runs, self._beside = dict(runs), dict(beside)
        self._error: BaseException | None = None
        self._ended = threading.Event()

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set. Raises the first error that ended one of them."""
        threads = [
            # Daemons: one that hangs must not keep a process alive that has an error to report.
            threading.Thread(target=self._one, args=(name, run, stop), name=f"sink-{name}", daemon=True)
            for name, run in (self._runs | self._beside).items()
        ]
        for thread in threads:
            thread.start()
        del threads[len(self._runs) :]
        while not stop.is_set() and not self._ended.is_set():
            stop.wait(_POLL_S)
        stop.set()
        until = time.monotonic() + _DRAIN_S
        bounded = False
        while any(thread.is_alive() for thread in threads) and time.monotonic() < until:
            if self._error is not None and not bounded:
                bounded, until = True, min(until, time.monotonic() + _CLOSE_S)
            time.sleep(_POLL_S)
        if self._error is not None:
            raise self._error
        if late := [thread.name for thread in threads if thread.is_alive()]:
            raise SinkError(f"not drained within {_DRAIN_S:.0f} s: {', '.join(late)}. What is committed is whole")

    def _one(self, name: str, run: Run, stop: threading.Event) -> None:
        try:
            run(stop)
            if not stop.is_set():
                raise RuntimeError(f"the sink of {name} returned before it was stopped")
        except BaseException as exc:  # noqa: BLE001 - raised by `run` in the caller's thread
            structlog.get_logger().error("sink.thread_failed", sink=name, error=type(exc).__name__)
            self._error = self._error or exc
        finally:
            self._ended.set()
