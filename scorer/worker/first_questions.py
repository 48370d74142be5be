"""Questions to the broker before a worker takes part: asked again until there is an answer, or it is asked to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import structlog

from scorer import kafka
from scorer.runtime.settings import Settings
from scorer.runtime.threads import Event, Threads

log = structlog.get_logger()

RETRY_S: Final = 1.0
LOGGED_S: Final = 15.0

_Answer = TypeVar("_Answer")


def answered(question: Callable[[], _Answer], stop: Event, threads: Threads, settings: Settings) -> _Answer | None:
    """The answer to a question; None once `stop` is set. One that is on its way is waited for: it has a time-out.

    A broker that is away, or has just started, answers later. Raises Denied when the authoriser has refused for longer
    than FRAUD_SCORER_WORKER__DENIED_S, and what asking again does not repair.
    """
    logged_at, denied_until = float("-inf"), float("inf")
    while not stop.is_set():
        try:
            return question()
        except kafka.Rebuild as exc:
            now = threads.monotonic()
            if not isinstance(exc, kafka.Denied):
                denied_until = float("inf")
            elif denied_until == float("inf"):
                denied_until = now + settings.worker.denied_s
            if now > denied_until:
                raise
            if now - logged_at > LOGGED_S:
                logged_at = now
                log.warning("worker.not_answered", reason=str(exc))
        stop.wait(RETRY_S)
    return None
