"""A payment goes all the way, on real Kafka and real Postgres."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psycopg
import pyarrow.parquet as pq

from schemas.dead_letter import DeadLetter
from scorer import kafka
from scorer.bundle import Bundle
from scorer.local_services import Services
from scorer.operate.record_sender import Sender
from scorer.operate.setup import setup
from scorer.replay import replay_topic
from tests.integration.handbook import handbook
from tests.integration.running import TopicReader, metrics, process, test_settings, wait_for

PAYMENTS = 20_000


def test_twenty_thousand_payments_are_decided_once_though_the_worker_is_killed_and_equal_the_replay(
    services: Services, topics_prefix: str, database: str, bundle: Path, tmp_path: Path
) -> None:
    """Killed in the middle, a worker's successor goes on where the last commit stood: each payment is decided once, the
    sink holds each row once, and replaying the topic along its journal gives the same decisions, scores and reasons."""
    settings = test_settings(
        services.kafka.bootstrap_servers, topics_prefix, postgres={"url": database}, worker={"batch_payments_max": 512}
    )
    setup(settings)
    topics = kafka.Topics.of(settings.kafka)
    decisions = TopicReader(settings, topics.decisions)
    log = tmp_path / "worker.log"
    stop = threading.Event()
    sender = threading.Thread(target=lambda: Sender(settings).run(handbook(PAYMENTS), stop=stop, rate=4000))
    with process("sink", [], settings, tmp_path / "sink.log"):
        with process("run", ["--bundle", str(bundle)], settings, log) as first:
            sender.start()
            wait_for(lambda: decisions.fill() > PAYMENTS // 4, 120, "the first decisions")
            first.send_signal(signal.SIGKILL)
        with process("run", ["--bundle", str(bundle)], settings, log) as second:
            sender.join(120)
            wait_for(lambda: decisions.fill() >= PAYMENTS, 120, "all decisions")
            second.send_signal(signal.SIGTERM)
            assert second.wait(60) == 0, log.read_text()[-2000:]
        with psycopg.connect(database, autocommit=True) as connection:
            count = lambda: connection.execute("SELECT count(*), count(DISTINCT payment_id) FROM decisions").fetchone()  # noqa: E731
            wait_for(lambda: count()[0] >= PAYMENTS, 60, "the audit rows")
            assert count() == (PAYMENTS, PAYMENTS)
    time.sleep(0.5)
    decisions.fill()
    live = {decided["payment_id"]: decided for decided in decisions.json()}
    assert len(decisions.messages) == len(live) == PAYMENTS

    report = replay_topic(Bundle.load(bundle), settings, tmp_path / "replay.parquet")
    assert (report.payments, report.decisions, report.dead_letters) == (PAYMENTS, PAYMENTS, 0)
    assert report.batches_checked > 10
    replayed = pq.read_table(tmp_path / "replay.parquet").to_pylist()
    for row in replayed:
        decided = live[row["payment_id"]]
        assert (decided["decision"], decided["score"], decided["reasons"], decided["mode"]) == (
            row["decision"],
            row["score"],
            row["reasons"],
            row["mode"],
        )
        assert np.float32(decided["margin"]) == np.float32(row["margin"])
    assert sum(row["decision"] == "flag" for row in replayed) > 0
    decisions.close()


GOOD = {
    "payment_id": "good",
    "event_time": "2026-01-01T00:00:00Z",
    "amount_minor": 100,
    "currency": "EUR",
    "customer_id": "c",
    "terminal_id": "t",
}


def broken(**changes: object) -> bytes:
    return json.dumps({**GOOD, "payment_id": "bad", **changes}).encode()


CARD = "4111111111111111"
MALFORMED: list[tuple[str, bytes | None]] = [
    ("null_value", None),
    ("empty_value", b""),
    ("not_json", b"no json"),
    ("wrong_magic", b"\x05payment"),
    ("unknown_schema_id", b"\x00\x00\x00\x00\x07payment"),
    ("too_large", b'{"payment_id":"' + b"x" * 900_000 + b'"}'),
    ("too_deep", b'{"a":' * 2000 + b"1" + b"}" * 2000),
    ("not_utf8", b'{"payment_id":"\xff\xfe"}'),
    ("duplicate_key", b'{"payment_id":"a","payment_id":"b"}'),
    ("not_an_object", b"[1]"),
    ("not_finite", broken(latitude=float("nan"), longitude=1.0)),
    ("not_finite", broken(latitude=float("inf"), longitude=1.0)),
    ("amount_negative", broken(amount_minor=-1)),
    ("amount_overflow", broken(amount_minor=10**15)),
    ("amount_minor_units", broken(amount_minor=10.5)),
    ("unknown_currency", broken(currency="XXQ")),
    ("no_exchange_rate", broken(currency="USD")),
    ("event_time_invalid", broken(event_time="2026-01-01T00:00:00")),
    ("event_time_out_of_range", broken(event_time="1999-01-01T00:00:00Z")),
    ("event_time_in_future", broken(event_time="2095-01-01T00:00:00Z")),
    ("missing_field", b'{"payment_id":"bad","event_time":"2026-01-01T00:00:00Z","currency":"EUR"}'),
    ("unknown_field", broken(surprise=1)),
    ("wrong_type", broken(payment_id=7)),
    ("card_number", broken(customer_id=CARD)),
]


# Those that name their payment.
ANSWERED = {
    "not_finite", "amount_negative", "amount_overflow", "amount_minor_units", "unknown_currency", "no_exchange_rate",
    "event_time_invalid", "event_time_out_of_range", "event_time_in_future", "missing_field", "unknown_field",
    "card_number",
}  # fmt: skip


def test_every_malformed_record_becomes_a_dead_letter_and_the_next_one_is_decided(
    services: Services, topics_prefix: str, database: str, bundle: Path, tmp_path: Path
) -> None:
    """Each malformed record ends in the dead-letter topic with its origin and reason, answered in mode refused where it
    names its payment; no card number survives anywhere, and the payment right after it is decided."""
    settings = test_settings(
        services.kafka.bootstrap_servers, topics_prefix, postgres={"url": database}, topics={"payments_partitions": 1}
    )
    setup(settings)
    topics = kafka.Topics.of(settings.kafka)
    producer = kafka.plain_producer(settings.kafka)
    for number, (_, value) in enumerate(MALFORMED):
        producer.produce(topics.payments, value, key=b"k")
        producer.produce(topics.payments, json.dumps({**GOOD, "payment_id": f"good-{number}"}).encode(), key=b"k")
    assert producer.flush(30) == 0
    dead, decisions = TopicReader(settings, topics.dead_letters), TopicReader(settings, topics.decisions)
    log = tmp_path / "worker.log"
    answered = sum(reason in ANSWERED for reason, _ in MALFORMED)
    with process("run", ["--bundle", str(bundle)], settings, log) as worker:
        wait_for(
            lambda: (dead.fill() >= len(MALFORMED)) & (decisions.fill() >= len(MALFORMED) + answered),
            60,
            "dead letters and decisions",
        )

        def counted(name: str) -> float:
            shown = metrics(worker.port)  # type: ignore[attr-defined]
            return sum(value for full, value in shown.items() if full.startswith(f"fraud_scorer_{name}_total"))

        # Counted a moment after they can be read.
        unanswered = 2 * len(MALFORMED) - len(decisions.messages)
        wait_for(lambda: counted("dead_letters") == len(MALFORMED), 60, "all dead letters to be counted, once")
        wait_for(lambda: counted("unanswered") == unanswered, 60, "all without an answer to be counted, once")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
    described = [DeadLetter.from_headers(message.headers()) for message in dead.messages]
    by_offset = {letter.offset: letter for letter in described}
    assert [(by_offset[2 * i].reason.value, by_offset[2 * i].topic) for i in range(len(MALFORMED))] == [
        (reason, topics.payments) for reason, _ in MALFORMED
    ]
    decided = [d for d in decisions.json() if d["mode"] == "normal"]
    assert sorted(d["payment_id"] for d in decided) == sorted(f"good-{i}" for i in range(len(MALFORMED)))
    refused = [d for d in decisions.json() if d["mode"] == "refused"]
    assert Counter(d["reasons"][0] for d in refused) == Counter(
        f"REFUSED_{reason.upper()}" for reason, _ in MALFORMED if reason in ANSWERED
    )
    assert {d["decision"] for d in refused} == {"flag"}
    assert len(decided) + len(refused) == len(decisions.messages)
    seen = (
        b"".join(message.value() or b"" for message in (*dead.messages, *decisions.messages))
        + log.read_bytes()
        + str(described).encode()
    )
    assert CARD.encode() not in seen
    dead.close()
    decisions.close()
