"""Counts of a deployment from topics and Postgres, as the demo counts them; run inside a container (see `rehearse`).

Prints one JSON object. Exits 3 where a payment has no answer or two, or an answer has no audit row.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from urllib.request import urlopen

import psycopg
from confluent_kafka import TopicPartition

from scorer import kafka
from scorer.runtime.settings import load

QUIET_S = 3.0  # nothing is sent any more: a record that is there comes at once


def main() -> int:
    settings = load()
    topics = kafka.Topics.of(settings.kafka)
    client = kafka.admin(settings.kafka)
    consumer = kafka.reader(settings.kafka, group=f"{settings.kafka.topic_prefix}reconcile")  # read_committed
    consumer.assign(
        [
            TopicPartition(topic, partition, 0)
            for topic in (topics.payments, topics.decisions, topics.dead_letters)
            for partition in range(kafka.partition_count(client, topic))
        ]
    )
    records: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    quiet_at = time.monotonic() + QUIET_S
    while time.monotonic() < quiet_at:
        message = consumer.poll(0.2)
        if message is None or message.error() is not None:
            continue
        quiet_at = time.monotonic() + QUIET_S
        topic = kafka.present(message.topic(), "topic")
        records[topic] += 1
        if topic == topics.decisions:
            decision = json.loads(kafka.present(message.value(), "value"))
            answers[decision["payment_id"]] += 1
            modes[decision["mode"]] += 1
    consumer.close()
    with psycopg.connect(settings.postgres_url) as database:
        row = database.execute("SELECT count(*) FROM decisions").fetchone()
    counts = {
        "payments": records[topics.payments],
        "decisions": records[topics.decisions],
        "payments_decided_twice": sum(1 for count in answers.values() if count > 1),
        "dead_letters": records[topics.dead_letters],
        "modes": dict(sorted(modes.items())),
        "audit_rows": row[0] if row else 0,
    }
    answered = counts["decisions"] + counts["dead_letters"] - modes["refused"]
    holds = counts["payments"] == answered and counts["decisions"] == counts["audit_rows"]
    holds = holds and not counts["payments_decided_twice"]
    figures = {}
    for address in sys.argv[1:]:  # host:port of a worker or a sink: what it takes
        with urlopen(f"http://{address}/metrics", timeout=5) as answer:
            lines = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[:8] == "process_")
        figures[address] = {
            "resident_mib": round(float(lines["process_resident_memory_bytes"]) / 2**20),
            "cpu_s": round(float(lines["process_cpu_seconds_total"]), 1),
        }
    print(json.dumps(counts | {"reconciles": holds, "processes": figures}))  # noqa: T201 - the result
    return 0 if holds else 3


if __name__ == "__main__":
    sys.exit(main())
