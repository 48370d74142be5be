"""What a bare transaction costs at the broker, step by step: the tail that no worker can be quicker than.
`python -m tests.benchmarks.transactions` prints one JSON object.

Each transaction holds what a small batch of a worker does (four decisions, an audit and a journal record, offsets) and
nothing is computed. The broker checks each partition of a transaction with its coordinator (KIP-890), which protects
from transactions that hang for ever; it is measured with and without, in turn, on one broker. The figures of
`verified` are what to expect; turning the check off is not advised, and says only where the time goes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from scorer import kafka
from scorer.local_services import local_services
from scorer.operate.setup import create_topics
from scorer.runtime.settings import Settings, load

VERIFICATION = "transaction.partition.verification.enable"
STEPS = ("produce", "offsets", "commit")
PERCENTILES = (50, 90, 99)
WARM = 200
Figures = dict[str, dict[str, float]]


def _set_verification(settings: Settings, on: bool) -> None:
    entry = ConfigEntry(VERIFICATION, str(on).lower(), incremental_operation=AlterConfigOpType.SET)
    client = kafka.admin(settings.kafka)
    brokers = client.list_topics(timeout=10).brokers
    all_ = [ConfigResource(ResourceType.BROKER, str(broker), incremental_configs=[entry]) for broker in brokers]
    for future in client.incremental_alter_configs(all_).values():
        future.result(10)


def _transaction(producer: Producer, member: Consumer, topics: kafka.Topics, number: int) -> tuple[float, ...]:
    """Seconds of each step."""
    times = [time.perf_counter()]
    producer.begin_transaction()
    for partition in range(4):
        producer.produce(topics.decisions, b"d" * 200, partition=partition)
    producer.produce(topics.audit, b"a" * 3000, partition=0)
    producer.produce(topics.journal, b"j" * 500, partition=0)
    times.append(time.perf_counter())
    ends = [TopicPartition(topics.payments, partition, number + 1) for partition in range(4)]
    producer.send_offsets_to_transaction(ends, member.consumer_group_metadata(), 30)
    times.append(time.perf_counter())
    producer.commit_transaction(30)
    times.append(time.perf_counter())
    return tuple(np.diff(times).tolist())


def _measured(
    run: Callable[[int], tuple[float, ...]], poll: Callable[[], object], count: int, every_s: float
) -> Figures:
    seconds = []
    for number in range(WARM + count):
        began = time.perf_counter()
        seconds.append(run(number))
        poll()
        time.sleep(max(0.0, every_s - (time.perf_counter() - began)))
    ms = 1000.0 * np.array(seconds[WARM:])
    by_step = dict(zip((*STEPS, "all"), (*ms.T, ms.sum(axis=1)), strict=True))
    return {
        step: {f"p{q}_ms": round(float(np.percentile(values, q)), 2) for q in PERCENTILES}
        for step, values in by_step.items()
    }


def measure(count: int, rounds: int, rate: float) -> dict[str, object]:
    """Percentiles of each step, with and without the broker's check, `rounds` times in turn."""
    found: dict[str, object] = {"transactions_per_s": rate, "verified": [], "unverified": []}
    with local_services(postgres=False, report=lambda _: None) as services:
        prefix = "bench-transactions-"
        settings = load(kafka={"bootstrap_servers": services.kafka.bootstrap_servers, "topic_prefix": prefix})
        create_topics(settings)
        topics = kafka.Topics.of(settings.kafka)
        member = kafka.member(settings, f"{prefix}group")
        member.subscribe([topics.journal])
        while not member.assignment():
            member.poll(0.1)
        producer = kafka.transactional_producer(settings, "bare")
        producer.init_transactions(30)
        for _ in range(rounds):
            for name in ("verified", "unverified"):
                _set_verification(settings, name == "verified")
                steps = _measured(
                    lambda number: _transaction(producer, member, topics, number),
                    lambda: member.poll(0),
                    count,
                    1.0 / rate,
                )
                found[name].append(steps)  # type: ignore[attr-defined]
        _set_verification(settings, True)
        member.close()
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="transactions counted each time")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rate", type=float, default=50.0, help="transactions a second")
    given = parser.parse_args()
    print(json.dumps(measure(given.count, given.rounds, given.rate)))


if __name__ == "__main__":
    main()
