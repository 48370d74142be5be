"""Faults drawn from a seed, run during a stream of payments; the outcome is compared with an undisturbed run."""

from __future__ import annotations

import random
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import KafkaException

from scorer import kafka
from scorer.runtime.settings import PREFIX
from tests.faults.broker import OwnBroker
from tests.faults.nursery import Nursery
from tests.faults.payments import payments
from tests.faults.run import QUICK_TO_REPLACE, Application
from tests.faults.topic_changes import CHANGES

POINTS = ("after_consume", "in_order", "after_compute", "after_order", "after_publish", "in_transaction",
          "before_commit", "after_commit", "in_recovery")  # fmt: skip
STUCK = "in_offsets:{}:sleep=60"  # the client does not come back
SNAPSHOT_POINTS = ("snapshot_begin", "snapshot_copy", "snapshot_finish", "snapshot_block", "snapshot_manifest",
                   "snapshot_written")  # fmt: skip
ACTIONS = ("kill", "kill", "stop", "timeout", "term", "sleep=0.7")
TRANSACTIONAL = ("in_transaction", "before_commit", "after_commit")  # where a call to the broker can time out
WORKERS = ("a", "b")
# Rows 27, 28, 30, 37 and 38: a stranger takes the transactional id, another application starts on the same topics, a
# key that no output carries, an audit topic that takes no batch, a flood of garbage, signals, a silence.
OPERATIONS = ("foreign init", "other application", "oversized key", "audit limit", "garbage", "hang up",
              "term at start", "freeze at start", "silence")  # fmt: skip
ANY_THREAD = ("main_loop", "topic_watch", "health", "after_consume", "in_transaction")  # row 35
FOREIGN_INITS = 3
GARBAGE = 2_000
OVERSIZED_KEY_BYTES = 900_000  # what the payers' client takes
AUDIT_BYTES_MAX = 3_000  # of a topic that does not take one payment's record
PROTOCOLS = ("classic", "classic", "consumer")
FROZEN_AT_POINT_S = 3.0


@dataclass
class Schedule:
    """What goes wrong, and when in seconds from the first payment."""

    seed: int
    partitions: int
    shards: int
    payments: int
    rate: float
    snapshot_every: int = 0
    protocol: str = "classic"
    at_points: dict[str, str] = field(default_factory=dict)  # worker: fault
    events: list[tuple[float, str, str, float]] = field(default_factory=list)  # (when, what, worker, seconds)
    change: str = ""  # of the topics, once all that is above has ended equal: tests.faults.topic_changes.CHANGES

    @classmethod
    def drawn(cls, seed: int) -> Schedule:
        rng = random.Random(seed)
        partitions = rng.choice((1, 1, 4))
        made = cls(
            seed=seed,
            partitions=partitions,
            shards=rng.choice((1, 2)) if partitions > 1 else 1,
            payments=rng.randrange(600, 2_000),
            rate=rng.choice((500.0, 1_500.0)),
        )
        for worker in WORKERS:
            if rng.random() < 0.5:
                point, action = rng.choice(POINTS), rng.choice(ACTIONS)
                if action == "timeout" and point not in TRANSACTIONAL:
                    action = "kill"
                made.at_points[worker] = f"{point}:{rng.randrange(1, 30)}:{action}"
        for _ in range(rng.randrange(0, 4)):
            what = rng.choice(("kill", "term", "freeze", "freeze", "cut", "hang", "slow", "broker"))
            if what == "broker" and rng.random() < 0.6:
                what = "kill"
            when = round(rng.uniform(0.0, made.payments / made.rate), 2)
            made.events.append((when, what, rng.choice(WORKERS), round(rng.uniform(0.2, 4.0), 2)))
        made.events.sort()
        # Drawn last, so that the rest of a seed's schedule is what it always was.
        if rng.random() < 0.5:
            made.snapshot_every = rng.choice((60, 300))
            for worker in WORKERS:
                if rng.random() < 0.3:
                    made.at_points[worker] = f"{rng.choice(SNAPSHOT_POINTS)}:{rng.randrange(1, 6)}:kill"
        if rng.random() < 0.1:
            made.at_points[rng.choice(WORKERS)] = STUCK.format(rng.randrange(1, 20))
        made.protocol = rng.choice(PROTOCOLS)
        for _ in range(rng.choice((0, 0, 1, 2))):
            when = round(rng.uniform(0.0, made.payments / made.rate), 2)
            made.events.append((when, rng.choice(OPERATIONS), rng.choice(WORKERS), round(rng.uniform(0.2, 4.0), 2)))
        made.events.sort()
        if rng.random() < 0.1:
            made.at_points[rng.choice(WORKERS)] = f"{rng.choice(ANY_THREAD)}:{rng.randrange(1, 20)}:error"
        if rng.random() < 0.4:
            made.change = rng.choice(list(CHANGES))
        return made

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {self.payments} payments at {self.rate:.0f}/s, {self.partitions} partitions, "
                 f"{self.shards} shards, protocol {self.protocol}, snapshot every {self.snapshot_every}"]  # fmt: skip
        lines += [f"  worker {worker}: {fault}" for worker, fault in sorted(self.at_points.items())]
        lines += [f"  {when:5.2f} s  {what} {worker} ({seconds} s)" for when, what, worker, seconds in self.events]
        lines += [f"  then: {self.change}"] if self.change else []
        return "\n".join(lines)


class Runner:
    """Runs schedules on one broker and one nursery."""

    def __init__(self, broker: OwnBroker, nursery: Nursery, bundle: Path) -> None:
        self._broker, self._nursery, self._bundle = broker, nursery, bundle
        self._silence_s = 0.0  # so much later than planned is the rest sent
        self.exits: dict[str, int] = {}

    def run(self, schedule: Schedule) -> None:
        """Raises Torn when the outcome is another one than undisturbed."""
        with tempfile.TemporaryDirectory() as folder:
            app = Application(
                self._broker, self._nursery, Path(folder), self._bundle,
                partitions=schedule.partitions, shards=schedule.shards, snapshot_every=schedule.snapshot_every,
                group_protocol=schedule.protocol, **QUICK_TO_REPLACE,
            )  # fmt: skip
            try:
                for worker in WORKERS:
                    app.start(worker, schedule.at_points.get(worker))
                self._stream(app, schedule)
                app.finish()
                app.check()
                if schedule.change:
                    CHANGES[schedule.change](app, self._bundle, schedule.seed)
            finally:
                self._broker.proxy.heal()
                self._broker.start()
                app.close()
                for how, count in app.exits.items():
                    self.exits[how] = self.exits.get(how, 0) + count

    def _stream(self, app: Application, schedule: Schedule) -> None:
        stream, self._silence_s = payments(schedule.seed, schedule.payments), 0.0
        due: list[tuple[float, Callable[[], None]]] = []
        events = list(schedule.events)
        started = time.monotonic()
        streamed = 0
        while stream or events or due:
            now = time.monotonic() - started
            count = min(len(stream), int((now - self._silence_s) * schedule.rate) - streamed)
            if count > 0:
                app.pay(stream[:count])
                del stream[:count]
                streamed += count
            while events and events[0][0] <= now:
                _, what, worker, seconds = events.pop(0)
                undo = self._happens(app, what, worker) or self._operated(app, what, worker, seconds)
                if undo is not None:
                    due.append((now + seconds, undo))
            for entry in [entry for entry in due if entry[0] <= now]:
                due.remove(entry)
                try:
                    entry[1]()
                except KafkaException:  # the broker is away: asked again
                    due.append((now + 1.0, entry[1]))
            app.supervise()
            app.decided()
        # A worker that a point has frozen is awakened when another has long taken over.
        if any(fault.endswith("stop") for fault in schedule.at_points.values()):
            time.sleep(FROZEN_AT_POINT_S)
        for child in app.workers.values():
            child.signal(signal.SIGCONT)

    def _happens(self, app: Application, what: str, worker: str) -> Callable[[], None] | None:
        """Let it happen; gives what ends it."""
        proxy, child = self._broker.proxy, app.workers[worker]
        if what == "kill":
            app.kill(worker)
        elif what == "term":
            app.kill(worker, signal.SIGTERM)
        elif what == "freeze":
            child.signal(signal.SIGSTOP)
            return lambda: child.signal(signal.SIGCONT)
        elif what == "slow":
            proxy.delay_s = 0.03
            return proxy.heal
        elif what == "cut":
            proxy.cut()
            return proxy.heal
        elif what == "hang":
            proxy.hang()
            return proxy.heal
        elif what == "broker":
            self._broker.kill()
            return self._broker.start
        return None

    def _operated(self, app: Application, what: str, worker: str, seconds: float) -> Callable[[], None] | None:
        """Let one of OPERATIONS happen; gives what ends it."""
        if what == "foreign init":
            for _ in range(FOREIGN_INITS):
                stranger = kafka.transactional_producer(app.settings, "shard-0")
                with suppress(KafkaException):  # the broker is away, or a transaction is being settled
                    stranger.init_transactions(5)
        elif what == "other application":
            other = app.beside("other", **{f"{PREFIX}WORKER__APPLICATION": "another"})
            return lambda: other.signal(signal.SIGTERM)
        elif what == "oversized key":
            app.pay([(b"k" * OVERSIZED_KEY_BYTES, b"no payment that is decided")])
        elif what == "audit limit":
            return app.limited(app.topics.audit, AUDIT_BYTES_MAX)
        elif what == "garbage":
            app.pay([(b"c1", b"garbage")] * GARBAGE)
        elif what == "hang up":
            app.kill(worker, signal.SIGHUP)
        elif what in ("term at start", "freeze at start"):
            child = app.beside("starting")
            number = signal.SIGTERM if what == "term at start" else signal.SIGSTOP
            time.sleep(seconds / 10)
            child.signal(number)
            return lambda: child.signal(signal.SIGKILL)
        elif what == "silence":
            self._silence_s += seconds
        return None
