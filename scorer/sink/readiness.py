"""Whether a sink can write now, and if not, why: set by the thread that runs it, asked by any."""

from __future__ import annotations

import time

# A round reads for less than a second; one that takes so long waits for Postgres, which may hang without an error.
_ROUND_S = 15.0
# So long without an answer from the broker, and nothing that is on the topic would be noticed.
_SILENT_S = 3.0


class Readiness:
    """Begins as not ready."""

    def __init__(self) -> None:
        self._waits: str | None = "starting"
        self._round_at_s = time.monotonic()

    def waits(self, reason: str) -> None:
        """Nothing can be written, for this reason."""
        self._waits = reason

    def works(self) -> None:
        """Postgres and Kafka answer; a round of reading and writing begins."""
        self._round_at_s = time.monotonic()
        self._waits = None

    def now(self, kafka_silent_s: float) -> tuple[bool, str]:
        """Ready or not, and why. `kafka_silent_s`: for how long the broker has not answered a question."""
        round_s = time.monotonic() - self._round_at_s
        if (waits := self._waits) is not None:
            return False, waits
        if round_s > _ROUND_S:
            return False, f"Postgres has not answered for {round_s:.0f} s"
        if kafka_silent_s > _SILENT_S:
            return False, f"Kafka has not answered for {kafka_silent_s:.0f} s"
        return True, "writing"
