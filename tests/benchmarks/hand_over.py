"""How long decisions pause when a shard changes hands. `python -m tests.benchmarks.hand_over` prints one JSON object.

One worker decides payments at a steady rate, another one follows the shard; then the owner is ended, by SIGTERM or
SIGKILL, and this is repeated with the follower as the owner and a new follower. A pause is the longest time between two
decisions that reach a reader of topic decisions-fast, and one of topic decisions (read_committed), around the
hand-over. `quiet` is the same without a hand-over: what machine and reader add. `group` is what two bare members of a
group with the worker's settings need, from the call that leaves to the other's assignment. A killed member is noticed
only after the group's session timeout, which is taken off in `after_session_ms`. The logs of both workers around the
first hand-over of each kind go to stderr, with times since the signal.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import TopicPartition

from scorer import kafka
from scorer.demo import CUSTOMERS, LIVE_SEED, demo_bundle, live_blocks
from scorer.local_services import local_services
from scorer.operate.record_sender import Sender
from scorer.operate.setup import create_topics
from scorer.runtime.settings import Settings, load
from scorer.simulate import World
from tests.benchmarks.workers import Worker
from tests.integration.running import wait_for

RATE = 500.0
BEFORE_S, AFTER_S, QUIET_S = 1.0, 4.0, 4.0
FOLLOWED = 'fraud_scorer_followed_sequence{shard="0"}'
SEQUENCE = 'fraud_scorer_journal_sequence{shard="0"}'
DECIDING = 'fraud_scorer_shard_deciding{shard="0"}'


class Arrivals:
    """When records of one topic reach a reader under read_committed, monotonic."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._consumer = kafka.reader(settings.kafka, group="hand-over")
        count = kafka.partition_count(kafka.admin(settings.kafka), topic)
        self._consumer.assign([TopicPartition(topic, p, 0) for p in range(count)])
        self.at: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            found = self._consumer.consume(1_000, 0.001)
            now = time.monotonic()
            self.at += [now for message in found if message.error() is None]

    def pause_ms(self, begin: float, end: float) -> float:
        """The longest time without a record between two monotonic times."""
        at = np.array([begin, *(t for t in list(self.at) if begin < t < end), end])
        return float(np.max(np.diff(at))) * 1000.0

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._consumer.close()


def group_ms(settings: Settings, repetitions: int) -> list[float]:
    """From one bare member's leaving to the assignment of the other."""
    topic = kafka.Topics.of(settings.kafka).journal
    found = []
    for n in range(repetitions):
        given: list[list[float]] = [[], []]

        def assigned(member: Any, partitions: list[TopicPartition], into: list[float]) -> None:
            member.incremental_assign(partitions)
            if partitions:
                member.pause(partitions)
                into.append(time.monotonic())

        members = [kafka.member(settings, f"{settings.kafka.topic_prefix}bare-{n}") for _ in range(2)]
        for member, into in zip(members, given, strict=True):
            member.subscribe([topic], on_assign=lambda m, p, into=into: assigned(m, p, into))
        settled_at = time.monotonic() + 4.0 + 0.137 * n  # hand-overs fall between heartbeats at another place each
        while time.monotonic() < settled_at:
            for member in members:
                member.poll(0.02)
                member.consumer_group_metadata()
        owner = 0 if given[0] else 1
        other = 1 - owner
        leaving = threading.Thread(target=members[owner].close)
        began = time.monotonic()
        leaving.start()
        while not given[other] and time.monotonic() < began + 20.0:
            members[other].poll(0.05)
            members[other].consumer_group_metadata()
        leaving.join()
        members[other].close()
        found.append((given[other][0] - began) * 1000.0)
    return found


def timeline(workers: dict[str, Worker], signalled_at: float) -> Iterator[str]:
    """Log records of both workers around the hand-over, with milliseconds since the signal."""
    found = []
    for name, worker in workers.items():
        for line in worker.log.read_text().splitlines():
            if line.startswith("{"):
                record = json.loads(line)
                at_ms = (datetime.fromisoformat(record.pop("at")).timestamp() - signalled_at) * 1000.0
                if -1000.0 * BEFORE_S < at_ms < 1000.0 * (BEFORE_S + AFTER_S) + 20_000.0:
                    record.pop("level", None)
                    found.append((at_ms, name, record))
    for at_ms, name, record in sorted(found, key=lambda each: each[0]):
        yield f"{at_ms:>9.1f} ms  {name:<8} {record.pop('event')} {json.dumps(record) if record else ''}"


def _follows(standby: Worker, owner: Worker) -> bool:
    """Whether it is as far as the owner, but for the batches of a moment."""
    return standby.metrics().get(FOLLOWED, 0.0) >= owner.metrics()[SEQUENCE] - 3


def hand_overs(
    settings: Settings, bundle: Path, how: signal.Signals, *, warm: bool, repetitions: int, history: int, folder: Path
) -> dict[str, list[float]]:
    """The pauses in milliseconds on each topic, one for each hand-over, with `history` payments decided before."""
    create_topics(settings)
    topics = kafka.Topics.of(settings.kafka)
    readers = {name: Arrivals(settings, topic) for name, topic in (
        ("decisions_fast", topics.decisions_fast), ("decisions", topics.decisions)
    )}  # fmt: skip
    found: dict[str, list[float]] = {f"{kind}{name}": [] for kind in ("", "quiet_") for name in readers}
    standby = {"FRAUD_SCORER_WORKER__STANDBY_SHARDS_MAX": "1" if warm else "0"}
    stop, sender = threading.Event(), Sender(settings)
    session_s = settings.worker.session_timeout_ms / 1000.0 if how == signal.SIGKILL else 0.0
    with ExitStack() as stack:
        owner = stack.enter_context(Worker(settings, bundle, folder / f"{how.name}-{warm}-0.log", **standby))
        Sender(settings).run(live_blocks(World(LIVE_SEED, customers=CUSTOMERS)), stop=stop, limit=history)
        wait_for(lambda: len(readers["decisions"].at) >= history, 300, "the history")
        rest = live_blocks(World(LIVE_SEED + 1, customers=CUSTOMERS))
        sending = threading.Thread(target=lambda: sender.run(rest, stop=stop, rate=RATE))
        sending.start()
        try:
            for n in range(repetitions):
                log = folder / f"{how.name}-{warm}-{n + 1}.log"
                other = stack.enter_context(Worker(settings, bundle, log, **standby))
                if warm:
                    wait_for(lambda o=owner, f=other: _follows(f, o), 120, "the standby to follow")  # type: ignore[misc]
                began = time.monotonic()
                time.sleep(QUIET_S)
                for name, reader in readers.items():
                    found[f"quiet_{name}"].append(reader.pause_ms(began, began + QUIET_S))
                signalled, signalled_at = time.monotonic(), time.time()
                owner.process.send_signal(how)
                wait_for(lambda f=other: f.metrics().get(DECIDING) == 1.0, 60, "the other to decide")  # type: ignore[misc]
                time.sleep(AFTER_S)
                for name, reader in readers.items():
                    found[name].append(reader.pause_ms(signalled - BEFORE_S, signalled + session_s + AFTER_S))
                owner.process.wait(60)
                if n == 0:
                    print(f"{how.name}, {'warm' if warm else 'cold'}:", file=sys.stderr)
                    print("\n".join(timeline({"owner": owner, "other": other}, signalled_at)), file=sys.stderr)
                owner = other
        finally:
            stop.set()
            sending.join()
        wait_for(lambda: len(readers["decisions"].at) >= history + sender.sent.payments, 60, "all decisions")
    for reader in readers.values():
        reader.close()
    return found


def _summary(values: list[float]) -> dict[str, Any]:
    return {"median_ms": round(statistics.median(values), 1), "all_ms": [round(value, 1) for value in values]}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--history", type=int, default=20_000, help="payments decided before the first hand-over")
    parser.add_argument("--repetitions", type=int, default=5, help="hand-overs of each kind")
    parser.add_argument("--how", nargs="+", choices=("sigterm", "sigkill"), default=["sigterm", "sigkill"])
    parser.add_argument("--cold", action="store_true", help="without a standby's state as well")
    given = parser.parse_args()
    bundle = demo_bundle()
    result: dict[str, Any] = {"history": given.history, "rate_per_s": RATE}
    with (
        local_services(postgres=False, report=lambda line: print(line, file=sys.stderr)) as services,
        tempfile.TemporaryDirectory() as folder,
    ):
        for name in given.how:
            how = signal.Signals[name.upper()]
            for warm in (True, False) if given.cold else (True,):
                prefix = f"hand-{name}-{'warm' if warm else 'cold'}-{os.getpid()}-"
                settings = load(kafka={"bootstrap_servers": services.kafka.bootstrap_servers, "topic_prefix": prefix})
                pauses = hand_overs(
                    settings, bundle, how, warm=warm, repetitions=given.repetitions, history=given.history,
                    folder=Path(folder),
                )  # fmt: skip
                part: dict[str, Any] = {topic: _summary(values) for topic, values in pauses.items()}
                if how == signal.SIGKILL:
                    session_ms = settings.worker.session_timeout_ms
                    part["after_session_ms"] = round(part["decisions_fast"]["median_ms"] - session_ms, 1)
                result[f"{name}_{'warm' if warm else 'cold'}"] = part
                print(json.dumps({name: part}), file=sys.stderr)
        result["group"] = _summary(group_ms(settings, given.repetitions))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
