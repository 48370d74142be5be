"""Compiling the kernels before the worker takes part, with progress that logs and readiness show.

It runs on a thread of its own: a compiler cannot be interrupted, and a stop must not wait minutes for it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import structlog
from numba.core import event

from scorer.bundle import Bundle
from scorer.pipeline.warm_up import STEPS, warm_up
from scorer.runtime import fault_points
from scorer.runtime.threads import Event, Threads

log = structlog.get_logger()

_POLL_S = 0.05
# A start that finds its kernels in the cache is over before the first of these lines.
LOGGED_EVERY_S = 5.0


class _Kernels(event.Listener):  # type: ignore[misc]  # numba has no types
    """Counts the kernels that are compiled and not read from the cache."""

    def __init__(self) -> None:
        self.count = 0
        self.name = ""

    def on_start(self, event: Any) -> None:
        self.name = str(getattr(event.data.get("dispatcher"), "__name__", ""))

    def on_end(self, event: Any) -> None:  # noqa: ARG002 - the base class's signature
        self.count += 1


class Compilation:
    """One warm-up. `state` serves any thread."""

    def __init__(self, bundle: Bundle, threads: Threads) -> None:
        self._bundle, self._threads = bundle, threads
        self._began_at = threads.monotonic()
        self._step = "loading"
        self._kernels = _Kernels()
        self._failure: BaseException | None = None
        self.running = False

    @property
    def state(self) -> str:
        """Where it is, in one line."""
        if not self.running:
            return "compiling: not begun"
        return (
            f"compiling: {self._step} (step {self._number} of {len(STEPS)}), {self._kernels.count} kernels done, "
            f"for {self._seconds:.0f} s"
        )

    @property
    def _number(self) -> int:
        return STEPS.index(self._step) + 1 if self._step in STEPS else 0

    @property
    def _seconds(self) -> float:
        return self._threads.monotonic() - self._began_at

    def run(self, stop: Event) -> bool:
        """Compile; False when `stop` was set before the end: then the thread still runs, and only the end of the
        process ends it. Raises what the warm-up raised."""
        self._began_at = logged_at = self._threads.monotonic()
        self.running = True
        thread = self._threads.spawn(self._run, name="compilation")
        while thread.is_alive():
            thread.join(_POLL_S)
            if stop.is_set():
                log.info("worker.stopped_while_compiling", step=self._step, seconds=round(self._seconds, 1))
                return False
            if self._threads.monotonic() - logged_at > LOGGED_EVERY_S:
                logged_at = self._threads.monotonic()
                log.info(
                    "worker.warming_up", step=self._step, number=self._number, of=len(STEPS),
                    kernels=self._kernels.count, kernel=self._kernels.name, seconds=round(self._seconds, 1),
                    note="a first start compiles for minutes; later ones do not",
                )  # fmt: skip
        self.running = False
        if self._failure is not None:
            raise self._failure
        log.info("worker.compiled", kernels=self._kernels.count, seconds=round(self._seconds, 1))
        return True

    def _run(self) -> None:
        try:
            fault_points.point("warm_up")
            listening: AbstractContextManager[None] = event.install_listener("numba:compile", self._kernels)
            with listening:
                warm_up(self._bundle, self._begin)
        except BaseException as exc:  # noqa: BLE001 - raised by `run`
            self._failure = exc

    def _begin(self, step: str) -> None:
        self._step = step
