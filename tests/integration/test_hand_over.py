"""A shard changes hands: drained, killed, or frozen and awakened. Each payment is decided once, and equal on replay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.order_record import OrderRecord, order_log_record
from scorer import kafka
from scorer.bundle import Bundle
from scorer.local_services import Services
from scorer.operate.record_sender import Outgoing, Sender
from scorer.operate.setup import setup
from scorer.replay import replay_topic
from scorer.runtime.settings import Settings
from tests.integration.handbook import CUSTOMER_FEATURES, CUSTOMER_POLICY, handbook, train_bundle
from tests.integration.running import TopicReader, environment, metrics, process, test_settings, wait_for

pytestmark = pytest.mark.usefixtures("one_decision_each")

PAYMENTS = 10_000
# Longer than the usual 10 s: a machine that is too busy to commit in time would have a shard rebuilt.
PATIENT = {"FRAUD_SCORER_WORKER__TRANSACTION_TIMEOUT_MS": "60000"}


@pytest.fixture
def settings(services: Services, topics_prefix: str, database: str) -> Settings:
    made = test_settings(
        services.kafka.bootstrap_servers, topics_prefix, postgres={"url": database}, worker={"batch_payments_max": 256}
    )
    setup(made)
    return made


@pytest.fixture
def shards_settings(services: Services, topics_prefix: str, database: str) -> Settings:
    made = test_settings(
        services.kafka.bootstrap_servers,
        topics_prefix,
        postgres={"url": database},
        worker={"batch_payments_max": 256, "shards": 2},
    )
    setup(made)
    return made


@pytest.fixture
def decisions(settings: Settings) -> Iterator[TopicReader]:
    reader = TopicReader(settings, kafka.Topics.of(settings.kafka).decisions)
    yield reader
    reader.close()


def blocks() -> list[Outgoing]:
    """All payments, in four blocks of three seconds each: what comes after an event is sent after it."""
    return handbook(PAYMENTS, rows=PAYMENTS // 4)


def stream(settings: Settings, given: list[Outgoing], *, after: threading.Thread | None = None) -> threading.Thread:
    """Send them at a rate, once the thread `after` has ended."""

    def send() -> None:
        if after is not None:
            after.join()
        Sender(settings).run(given, stop=threading.Event(), rate=800)

    sending = threading.Thread(target=send, daemon=True)
    sending.start()
    return sending


def check(settings: Settings, decisions: TopicReader, bundle: Path, sending: threading.Thread) -> None:
    """Each payment decided once, and the journal's digests equal on replay."""
    sending.join(120)
    wait_for(lambda: decisions.fill() >= PAYMENTS, 120, "all decisions")
    decisions.read_to_end()
    ids = [decided["payment_id"] for decided in decisions.json()]
    assert len(ids) == len(set(ids)) == PAYMENTS
    report = replay_topic(Bundle.load(bundle), settings, None)
    assert (report.payments, report.decisions, report.dead_letters) == (PAYMENTS, PAYMENTS, 0)


def followed(child: subprocess.Popen[bytes]) -> float:
    return metrics(child.port).get('fraud_scorer_followed_sequence{shard="0"}', 0.0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_standby_takes_over_warm(
    how: signal.Signals, settings: Settings, decisions: TopicReader, bundle: Path, tmp_path: Path
) -> None:
    """The standby has decided again all that was committed before it takes over; SIGTERM drains and exits 0."""
    first_log, second_log = tmp_path / "first.log", tmp_path / "second.log"
    with process("run", ["--bundle", str(bundle)], settings, first_log) as first:
        first_block, *others = blocks()
        sending = stream(settings, [first_block])
        wait_for(lambda: decisions.fill() > PAYMENTS // 8, 120, "the first decisions")
        with process("run", ["--bundle", str(bundle)], settings, second_log) as second:
            sending = stream(settings, others, after=sending)
            wait_for(lambda: followed(second) > 10, 60, "the standby to follow")
            first.send_signal(how)
            assert first.wait(60) == (0 if how == signal.SIGTERM else -how), first_log.read_text()[-2000:]
            check(settings, decisions, bundle, sending)
            second.send_signal(signal.SIGTERM)
            assert second.wait(60) == 0, second_log.read_text()[-2000:]


def test_a_frozen_worker_that_wakes_is_fenced(
    settings: Settings, decisions: TopicReader, bundle: Path, tmp_path: Path
) -> None:
    """SIGSTOP past the session timeout, a standby takes over, SIGCONT: the zombie commits nothing and exits with 1."""
    first_log, second_log = tmp_path / "first.log", tmp_path / "second.log"
    with process("run", ["--bundle", str(bundle)], settings, first_log) as first:
        first_block, *others = blocks()
        sending = stream(settings, [first_block])
        wait_for(lambda: decisions.fill() > PAYMENTS // 8, 120, "the first decisions")
        with process("run", ["--bundle", str(bundle)], settings, second_log) as second:
            sending = stream(settings, others, after=sending)
            wait_for(lambda: followed(second) > 10, 60, "the standby to follow")
            os.kill(first.pid, signal.SIGSTOP)
            owned = "fraud_scorer_owned_shards"
            port = second.port  # type: ignore[attr-defined]
            wait_for(lambda: metrics(port).get(owned) == 1.0, 60, "the standby to take over")
            before = decisions.fill()
            wait_for(lambda: decisions.fill() > before + 500, 60, "the standby to decide")
            os.kill(first.pid, signal.SIGCONT)
            assert first.wait(60) != 0, first_log.read_text()[-2000:]
            check(settings, decisions, bundle, sending)
            second.send_signal(signal.SIGTERM)
            assert second.wait(60) == 0, second_log.read_text()[-2000:]


def ordered(orders: TopicReader) -> int:
    """Number of the batch that follows the order log."""
    orders.fill()
    found = [order_log_record(message.value()) for message in orders.messages]
    return max((record.sequence + 1 for record in found if isinstance(record, OrderRecord)), default=0)


def test_a_standby_is_as_far_as_the_order_log_and_goes_on_from_there(
    settings: Settings, decisions: TopicReader, bundle: Path, tmp_path: Path
) -> None:
    """While the owner's commit stands still the standby decides what the owner orders; killed there, the owner leaves
    batches that no transaction holds, and the standby commits them as it has decided them."""
    first_log, second_log = tmp_path / "first.log", tmp_path / "second.log"
    topics = kafka.Topics.of(settings.kafka)
    orders, journal = TopicReader(settings, topics.order), TopicReader(settings, topics.journal)
    # Under load a transaction has three full batches: 10,000 payments are 13 of them.
    stalls = {"FRAUD_SCORER_FAULT": ",".join(f"before_commit:{n}:sleep=9" for n in (4, 8, 12))} | PATIENT
    with (
        process("run", ["--bundle", str(bundle)], settings, first_log, **stalls) as first,
        process("run", ["--bundle", str(bundle)], settings, second_log, **PATIENT) as second,
    ):
        sending = stream(settings, blocks())

        def is_ahead() -> bool:
            """Each number is a lower bound of what it was when the next one was read."""
            wanted, decided = ordered(orders), followed(second)
            return decided >= wanted and decided > journal.fill() + 5

        wait_for(is_ahead, 120, "the standby to be at the end of the order log, beyond the journal")
        first.kill()
        first.wait(60)
        check(settings, decisions, bundle, sending)
        second.send_signal(signal.SIGTERM)
        assert second.wait(60) == 0, second_log.read_text()[-2000:]
    orders.close()
    journal.close()
    assert "standby.restarted" not in second_log.read_text()
    assert "shard.rebuild" not in second_log.read_text()


def owned(child: subprocess.Popen[bytes]) -> float:
    return metrics(child.port).get("fraud_scorer_owned_shards", 0.0)  # type: ignore[attr-defined]


def test_two_shards_move_between_workers_under_the_broker_assigned_protocol(
    shards_settings: Settings, tmp_path: Path
) -> None:
    """KIP-848: one worker runs both shards; a second one joins in the middle of the stream and takes one over, then
    leaves, and the first goes on with both. Each payment is decided once, and both journals are equal on replay."""
    settings, bundle = shards_settings, train_bundle(tmp_path / "customers", CUSTOMER_FEATURES, CUSTOMER_POLICY)
    more = PATIENT | {
        "FRAUD_SCORER_WORKER__GROUP_PROTOCOL": "consumer",
        "FRAUD_SCORER_WORKER__SHARDS": "2",
        "FRAUD_SCORER_WORKER__SHARD_KEY": '["customer_id"]',
    }
    reader = TopicReader(settings, kafka.Topics.of(settings.kafka).decisions)
    first_log, second_log = tmp_path / "first.log", tmp_path / "second.log"
    with process("run", ["--bundle", str(bundle)], settings, first_log, **more) as first:
        first_block, second_block, *others = blocks()
        sending = stream(settings, [first_block])
        wait_for(lambda: owned(first) == 2 and reader.fill() > PAYMENTS // 8, 120, "both shards to decide")
        with process("run", ["--bundle", str(bundle)], settings, second_log, **more) as second:
            sending = stream(settings, [second_block], after=sending)
            wait_for(lambda: owned(first) == 1 and owned(second) == 1, 60, "one shard each")
            before = reader.fill()
            sending = stream(settings, others, after=sending)
            wait_for(lambda: reader.fill() > before + 500, 60, "both to decide")
            second.send_signal(signal.SIGTERM)
            assert second.wait(60) == 0, second_log.read_text()[-2000:]
        sending.join(120)
        wait_for(lambda: reader.fill() >= PAYMENTS, 120, "all decisions")
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 0, first_log.read_text()[-2000:]
    ids = [decided["payment_id"] for decided in reader.json()]
    assert len(ids) == len(set(ids)) == PAYMENTS
    assert "shard.rebuild" not in first_log.read_text() + second_log.read_text()
    replayed = [replay_topic(Bundle.load(bundle), settings, None, shard=shard).decisions for shard in (0, 1)]
    assert sum(replayed) == PAYMENTS
    assert min(replayed) > 0
    reader.close()


def test_a_second_worker_with_the_same_static_member_id_is_told_so(
    settings: Settings, bundle: Path, tmp_path: Path
) -> None:
    """Two workers with one static member id: one of them ends with an error that names the id."""
    more = {"FRAUD_SCORER_WORKER__INSTANCE_ID": "twin"}
    first_log, second_log = tmp_path / "first.log", tmp_path / "second.log"
    with (
        process("run", ["--bundle", str(bundle)], settings, first_log, **more) as first,
        process("run", ["--bundle", str(bundle)], settings, second_log, **more) as second,
    ):
        wait_for(lambda: first.poll() is not None or second.poll() is not None, 60, "one of the twins to end")
        ended, log = (first, first_log) if first.poll() is not None else (second, second_log)
        assert ended.returncode != 0
        assert "twin" in log.read_text()


def test_shards_that_would_split_an_entity_are_refused(shards_settings: Settings, bundle: Path, tmp_path: Path) -> None:
    """Two shards of a topic keyed by customer would each see a part of every terminal: the worker does not start, and
    says which feature and what to do."""
    more = {"FRAUD_SCORER_WORKER__SHARDS": "2", "FRAUD_SCORER_WORKER__SHARD_KEY": '["customer_id"]'}
    command = [sys.executable, "-m", "scorer", "run", "--bundle", str(bundle)]
    env = environment(shards_settings, **more)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "terminal_count_7d" in done.stderr
    assert "Run one shard" in done.stderr
