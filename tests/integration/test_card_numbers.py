"""Card numbers in a declared token field, on real Kafka and Postgres: decided, and in nothing that we write."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import psycopg

from schemas.pseudonym import pseudonym
from scorer import kafka
from scorer.bundle import Bundle
from scorer.local_services import Services
from scorer.operate.setup import setup
from scorer.replay import replay_topic
from scorer.runtime.settings import PREFIX
from tests.faults.payments import START_MS, TOKENS, make_bundle
from tests.integration.running import TopicReader, process, test_settings, wait_for
from tests.integration.running import metrics as metrics_of

KEY, NEXT = bytes(range(32)).hex(), bytes(32).hex()
CARDS = ["4111111111111111", "4012 8888 8888 1881", "5500-0000-0000-0004", "378282246310005"]
PAYMENTS = 60


def _payment(i: int) -> tuple[bytes, bytes]:
    """Payment i, keyed by its card: the number in a token field and an attribute; long numbers in opaque ids."""
    card = CARDS[i % len(CARDS)]
    fields = {
        "payment_id": f"{10**15 + 7 * i}", "event_time": START_MS + 1_000 * i, "amount_minor": 100 + i,
        "currency": "EUR" if i % 10 else "EUX", "card_token": card, "merchant_id": f"{10**15 + i}",
        "terminal_id": "t", "attributes": {"pan": int(card.replace(" ", "").replace("-", ""))},
    }  # fmt: skip
    if i % 15 == 1:
        fields["customer_id"] = card  # refused: it is declared nothing of
    return card.encode(), json.dumps(fields).encode()


def test_a_card_number_is_decided_and_reaches_no_output(
    services: Services, topics_prefix: str, database: str, tmp_path: Path
) -> None:
    """Every payment is answered; in decisions, audit, journal, dead letters, logs, metrics and tables stand pseudonyms,
    whose windows count a card's payments; the key is rotated between two starts, and the journal is replayed over
    both."""
    settings = test_settings(
        services.kafka.bootstrap_servers, topics_prefix, postgres={"url": database},
        topics={"payments_partitions": 1}, cards={"keys": f"{NEXT} {KEY}"},
    )  # fmt: skip
    setup(settings)
    topics = kafka.Topics.of(settings.kafka)
    bundle = make_bundle(tmp_path / "bundle", features=TOKENS)
    producer = kafka.plain_producer(settings.kafka)
    readers = {name: TopicReader(settings, getattr(topics, name)) for name in ("decisions", "audit", "journal")}
    readers["dead_letters"] = TopicReader(settings, topics.dead_letters)
    log = tmp_path / "log"
    keys = tmp_path / "keys"
    environment = {f"{PREFIX}CARDS__KEYS_FILE": str(keys)}
    metrics = b""
    for begin, held in ((0, KEY), (PAYMENTS // 2, f"{NEXT}\n{KEY}")):
        keys.write_text(held + "\n")
        for i in range(begin, begin + PAYMENTS // 2):
            key, value = _payment(i)
            producer.produce(topics.payments, value, key=key)
        assert producer.flush(30) == 0
        with process("run", ["--bundle", str(bundle)], settings, log, **environment) as worker:
            wait_for(lambda end=begin + PAYMENTS // 2: readers["decisions"].fill() >= end, 60, "the answers")
            metrics += repr(metrics_of(worker.port)).encode()  # type: ignore[attr-defined]
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(60) == 0, log.read_text()[-2000:]
    with process("sink", [], settings, log), psycopg.connect(database, autocommit=True) as connection:
        count = lambda: connection.execute("SELECT count(*) FROM decisions").fetchone()  # noqa: E731
        wait_for(lambda: count() == (PAYMENTS,), 60, "the audit rows")
        wait_for(
            lambda: connection.execute("SELECT count(*) FROM dead_letters").fetchone() == (10,), 30, "the dead letters"
        )
        assert connection.execute("SELECT count(*) FROM set_aside").fetchone() == (0,)
        modes = connection.execute("SELECT mode, count(*) FROM decisions GROUP BY 1 ORDER BY 1").fetchall()
        assert connection.execute("SELECT sum(refused) FROM batches").fetchone() == (10,)
        tables = [name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
        rows = repr([connection.execute(f'SELECT t::text FROM "{name}" t').fetchall() for name in tables]).encode()
    assert modes == [("normal", 50), ("refused", 10)]
    for reader in readers.values():
        reader.fill()
    messages = [message for reader in readers.values() for message in reader.messages]
    parts = [part for m in messages for part in (m.key(), m.value(), repr(m.headers()).encode()) if part]
    seen = b"\n".join([*parts, log.read_bytes(), metrics, rows])
    for card in CARDS:
        assert card.encode() not in seen
        assert card.replace(" ", "").replace("-", "").encode() not in seen
    assert KEY.encode() not in seen
    answered = readers["decisions"].messages
    shown = [{pseudonym(bytes.fromhex(key), card).encode() for card in CARDS} for key in (KEY, NEXT)]
    # The ids of ours, one in ten of which passes the check of card numbers, are all there.
    assert {d["payment_id"] for d in readers["decisions"].json()} == {f"{10**15 + 7 * i}" for i in range(PAYMENTS)}
    normal = [json.loads(m.value())["mode"] == "normal" for m in answered]
    assert {m.key() for m, fine in zip(answered[:30], normal, strict=False) if fine} <= shown[0]
    assert {m.key() for m, fine in zip(answered[30:], normal[30:], strict=True) if fine} <= shown[1]
    report = replay_topic(Bundle.load(bundle), settings, None)
    assert (report.decisions, report.dead_letters, report.refused) == (PAYMENTS, 10, 10)
    for reader in readers.values():
        reader.close()
