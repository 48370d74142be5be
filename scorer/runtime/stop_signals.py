"""Signals that end a long-running process: the first one drains, the second one ends the process at once.

SIGTERM, SIGINT and SIGHUP count alike. A thread reads them from the pipe that the interpreter's own signal handler
writes to, so that they take effect also while the main thread waits inside a client's or a compiler's C code.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NoReturn, TypeVar

from scorer.runtime.threads import Event

_Result = TypeVar("_Result")

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_POLL_S = 0.1


def wanted() -> list[signal.Signals]:
    """SIGNALS, without a SIGHUP that is ignored already: so `nohup` asks for it."""
    return [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]


@contextmanager
def drain_on_signals() -> Iterator[threading.Event]:
    """An event that the first signal sets. The second one ends the process with 128 + its number, whatever it does.

    For the main thread.
    """
    stop = threading.Event()
    numbers = wanted()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    # The handlers do nothing: with one set, the interpreter writes each signal's number to the pipe.
    handlers = {number: signal.signal(number, lambda *_: None) for number in numbers}
    pipe_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_obey, args=(reading, stop, frozenset(numbers)), name="signals", daemon=True).start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(pipe_before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(writing)  # ends the thread


def _obey(reading: int, stop: threading.Event, numbers: frozenset[signal.Signals]) -> None:
    draining = False
    while received := os.read(reading, 1):
        number = received[0]
        if number not in numbers:
            continue
        if draining:
            os.write(2, b"fraud-scorer: ended at once by a second signal; what was not committed is not decided\n")
            os._exit(128 + number)
        draining = True
        stop.set()
    os.close(reading)


def leave(code: int) -> NoReturn:
    """End the process now, without waiting for threads or for the interpreter's own end."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def unless_stopped(stop: Event, work: Callable[[], _Result]) -> _Result:
    """The result of `work`, done on another thread. A stop meanwhile ends the process at once, with 0.

    For what a start-up does before it takes part in anything, so that nothing has to be drained: imports, questions to
    a broker that does not answer. None of that can be interrupted otherwise. Raises what `work` raises.
    """
    results: list[_Result] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as exc:  # noqa: BLE001 - raised by the thread that waits
            failures.append(exc)

    thread = threading.Thread(target=run, name="start-up", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
        if stop.is_set():
            os.write(2, b"fraud-scorer: stopped while starting; nothing was begun\n")
            leave(0)
    if failures:
        raise failures[0]
    return results[0]
