"""How soon a shard with many live keys decides again after its owner was killed, by a warm standby and from a snapshot.

Part of `python -m tests.benchmarks.recovery`. Every payment of the history has a customer, card and device of its own,
so that each makes five live keys. Then payments come at a rate, the owner is killed with SIGKILL, and another worker,
which waits in the group, is assigned the shard. Measured from its own log's assignment to the first decision that a
read_committed reader has in its hands.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import TopicPartition

from scorer import kafka
from scorer.demo import CUSTOMERS, LIVE_SEED, live_blocks
from scorer.demo.demo_bundle import LIVE_START_MS
from scorer.operate.record_sender import Outgoing, Sender
from scorer.runtime.settings import Settings
from scorer.simulate import World
from tests.benchmarks.workers import Worker, made_settings, snapshots
from tests.integration.running import wait_for

RATE = 200.0
KEYS_PER_PAYMENT = 5
BLOCK = 5_000
WRITTEN = 'fraud_scorer_snapshots_total{shard="0"}'
KEYS = 'fraud_scorer_feature_keys{shard="0"}'


def strangers(count: int) -> Iterator[Outgoing]:
    """Payments in the hour before the simulated ones begin, none of which has a customer, card or device in common."""
    for start in range(0, count, BLOCK):
        numbers = range(start, min(start + BLOCK, count))
        times = [LIVE_START_MS - 3_600_000 + 10 * n for n in numbers]
        values = [
            json.dumps({
                "payment_id": f"stranger-{n}", "event_time": at, "amount_minor": 1_000 + n % 5_000, "currency": "EUR",
                "customer_id": f"s{n}", "card_token": f"tok_s{n}", "device_id": f"dev_s{n}",
                "merchant_id": f"m{n % 997}", "terminal_id": f"t{n % 4_999}", "channel": "ecom", "mcc": "5411",
            }).encode()
            for n, at in zip(numbers, times, strict=True)
        ]  # fmt: skip
        yield Outgoing([f"s{n}".encode() for n in numbers], values, np.array(times, np.int64), [])


def first_decision(bootstrap: str, bundle: Path, keys: int, folder: Path, *, warm: bool) -> dict[str, Any]:
    """Seconds from assignment to the first decision, with at least `keys` live keys."""
    name = "standby" if warm else "snapshot"
    settings = made_settings(bootstrap, f"first-{name}")
    count = keys // KEYS_PER_PAYMENT
    more = snapshots(folder / f"first-{name}", count) | {"FRAUD_SCORER_WORKER__STANDBY_SHARDS_MAX": str(int(warm))}
    with Worker(settings, bundle, folder / "owner.log", **more) as owner:
        Sender(settings).run(strangers(count), stop=threading.Event(), limit=count)
        wait_for(lambda: owner.total("fraud_scorer_decisions_total") >= count, 600, "the history")
        wait_for(lambda: owner.metrics().get(WRITTEN, 0) >= 1, 120, "a snapshot")
        result = {"keys": int(owner.metrics()[KEYS])}
        with Worker(settings, bundle, folder / "next.log", **more) as successor:
            if warm:
                wait_for(lambda: _behind(owner, successor) <= 1, 120, "the standby to follow")
            stop, sender = threading.Event(), Sender(settings)
            blocks = live_blocks(World(LIVE_SEED, customers=CUSTOMERS))
            sending = threading.Thread(target=lambda: sender.run(blocks, stop=stop, rate=RATE))
            sending.start()
            try:
                time.sleep(3.0)
                result |= _killed(settings, owner, successor)
            finally:
                stop.set()
                sending.join()
            if not warm:
                result["load_s"] = successor.events()["snapshot.restored"]["seconds"]
    return result


def _behind(owner: Worker, standby: Worker) -> float:
    decided = owner.metrics().get('fraud_scorer_journal_sequence{shard="0"}', 0.0)
    return decided - standby.metrics().get('fraud_scorer_followed_sequence{shard="0"}', -1e9)


def _killed(settings: Settings, owner: Worker, successor: Worker) -> dict[str, float]:
    topic, client = kafka.Topics.of(settings.kafka).decisions, kafka.admin(settings.kafka)
    partitions = [TopicPartition(topic, p) for p in range(kafka.partition_count(client, topic))]
    reader = kafka.reader(settings.kafka, group=f"{settings.kafka.topic_prefix}first-decision")
    ends = kafka.ends(client, partitions)
    reader.assign([TopicPartition(topic, p, end) for p, end in enumerate(ends)])
    seen: list[tuple[float, float]] = []  # when a decision was produced, and when it was read, epoch s
    killed_at = time.time()
    owner.process.send_signal(signal.SIGKILL)
    until = time.monotonic() + 60
    while not (assigned := successor.events().get("shard.assigned")) or not seen or seen[-1][0] < _at(assigned):
        message = reader.poll(0.02)
        if message is not None and message.error() is None:
            seen.append((message.timestamp()[1] / 1000.0, time.time()))
        assert time.monotonic() < until, "no worker has taken the shard over"
    reader.close()
    began = _at(assigned)
    first = min(read for produced, read in seen if produced >= began)
    return {"noticed_s": round(began - killed_at, 3), "assigned_to_first_decision_s": round(first - began, 3)}


def _at(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["at"]).timestamp()
