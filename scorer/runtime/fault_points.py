"""Named points where a test lets something go wrong: no more than a call that returns, unless a setting says otherwise.

    FRAUD_SCORER_FAULT=in_transaction:3:kill        at the third passing of that point SIGKILL this process
    FRAUD_SCORER_FAULT=after_consume:5:stop,before_commit:9:timeout       several, separated by commas

Points, in the order in which a batch passes them: after_consume, in_order (its order is on its way), after_compute,
after_order (that is durable, nothing was published), after_publish (its fast decisions are given to the client),
in_transaction, in_offsets (within the
call that the client may not return from), before_commit (all is produced, the commit not asked for), after_commit
(committed, the reply not yet used); and in_recovery, warm_up (on the thread that compiles), after_warm_up, main_loop
(before each poll of the group, on the process's main thread), topic_watch (before each question about the topics),
after_failure (a shard asks the group whether to go on after a failed transaction), and health (twice a second, on the
thread that serves /metrics and the probes).
A snapshot passes snapshot_begin, snapshot_copy (the bulk is copied), snapshot_finish (its images are whole, its batch
perhaps not committed), snapshot_block and snapshot_manifest (written, not yet renamed into place), snapshot_written
(older ones not yet deleted). The sink: sink_copy (within COPY), sink_before_commit, sink_after_commit; and, before each
round of its other threads, sink_control, sink_labels, sink_dead_letters, sink_membership. Actions: kill (SIGKILL), term
(SIGTERM), stop (SIGSTOP), timeout (the client's error when a transactional call timed out), error (an exception that no
code expects), sleep=SECONDS. It is read once, on import. Whoever can set a process's environment can end it anyway.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Final

from confluent_kafka import KafkaError, KafkaException

from scorer.errors import UsageError

SETTING: Final = "FRAUD_SCORER_FAULT"
POINTS: Final = frozenset({
    "after_consume", "in_order", "after_compute", "after_order", "after_publish", "in_transaction", "in_offsets",
    "before_commit", "after_commit", "in_recovery", "warm_up", "after_warm_up", "main_loop", "topic_watch",
    "after_failure", "health", "snapshot_begin", "snapshot_copy", "snapshot_finish", "snapshot_block",
    "snapshot_manifest", "snapshot_written", "sink_copy", "sink_before_commit", "sink_after_commit", "sink_control",
    "sink_labels", "sink_dead_letters", "sink_membership",
})  # fmt: skip
_SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}


class Faults:
    """What shall go wrong where. Counts passings; safe to call from several threads."""

    def __init__(self, text: str) -> None:
        """`text` is the setting. Raises UsageError naming the part that cannot be read."""
        self._wanted: dict[tuple[str, int], str] = {}
        self._passed: dict[str, int] = {}
        self._lock = threading.Lock()
        for part in text.split(","):
            point, _, rest = part.partition(":")
            nth, _, action = rest.partition(":")
            known = action in _SIGNALS or action in ("timeout", "error") or action.startswith("sleep=")
            if point not in POINTS or not nth.isdecimal() or not known:
                raise UsageError(
                    f"setting {SETTING}: {part!r} is not POINT:NTH:ACTION with a point of {', '.join(sorted(POINTS))} "
                    "and an action of kill, term, stop, timeout, error, sleep=SECONDS"
                )
            self._wanted[point, int(nth)] = action

    def point(self, name: str) -> None:
        """Passing `name`: do what is wanted at this passing, if anything."""
        with self._lock:
            count = self._passed[name] = self._passed.get(name, 0) + 1
        action = self._wanted.get((name, count))
        if action is None:
            return
        if action in _SIGNALS:
            os.kill(os.getpid(), _SIGNALS[action])
        elif action == "timeout":
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"fault at {name}"))
        elif action == "error":
            raise RuntimeError(f"fault at {name}")
        else:
            time.sleep(float(action.removeprefix("sleep=")))


def _nothing(name: str) -> None:  # noqa: ARG001 - the signature of Faults.point
    return


point: Callable[[str], None] = Faults(os.environ[SETTING]).point if os.environ.get(SETTING) else _nothing
