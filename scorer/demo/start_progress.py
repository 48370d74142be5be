"""What a start is doing: a line when a part begins or is ready, and one every few seconds for what takes long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

# A part that takes longer than this is named again, so that no start is silent for long.
EVERY_S = 5.0


class StartProgress:
    """The parts of one start; any thread may call. `report` gets each line, with the seconds since the start."""

    def __init__(self, report: Callable[[str], None], *, every_s: float = EVERY_S) -> None:
        self._report = report
        self._every_s = every_s
        self._began_at = time.monotonic()
        self._running: dict[str, tuple[float, Callable[[], str]]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="progress", daemon=True)
        self._thread.start()

    def line(self, text: str) -> None:
        """Report one line."""
        self._report(f"{time.monotonic() - self._began_at:5.1f} s  {text}")

    def begin(self, part: str, state: Callable[[], str] = lambda: "starting") -> None:
        """`part` begins; `state` is asked for how far it is."""
        with self._lock:
            self._running[part] = time.monotonic(), state
        self.line(f"{part} …")

    def end(self, part: str, result: str) -> None:
        """`part` is done."""
        with self._lock:
            began_at, _ = self._running.pop(part)
        self.line(f"{part}: {result} (took {time.monotonic() - began_at:.1f} s)")

    def close(self) -> None:
        """No more lines by itself."""
        self._ended.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _repeat(self) -> None:
        while not self._ended.wait(self._every_s):
            with self._lock:
                running = dict(self._running)
            if running:
                self.line("; ".join(f"{part}: {state()}" for part, (_, state) in running.items()))
