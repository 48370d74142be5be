"""A shard changes hands: drained, killed, or frozen and awakened. Each payment is decided once, and equal on replay."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scorer import kafka
from scorer.bundle import Bundle
from scorer.replay import replay_topic
from scorer.send import Sender
from scorer.services import Services
from scorer.settings import Settings
from scorer.setup import setup
from tests.integration.handbook import handbook
from tests.integration.running import TopicReader, metrics, process, test_settings, wait_for

PAYMENTS = 10_000


@pytest.fixture
def settings(services: Services, topics_prefix: str, database: str) -> Settings:
    made = test_settings(
        services.kafka.bootstrap_servers, topics_prefix, postgres={"url": database}, worker={"batch_payments_max": 256}
    )
    setup(made)
    return made


@pytest.fixture
def decisions(settings: Settings) -> Iterator[TopicReader]:
    reader = TopicReader(settings, kafka.Topics.of(settings.kafka).decisions)
    yield reader
    reader.close()


def stream(settings: Settings) -> threading.Thread:
    """Payments at a rate that outlives the hand-over."""
    sending = threading.Thread(
        target=lambda: Sender(settings).run(handbook(PAYMENTS), stop=threading.Event(), rate=800), daemon=True
    )
    sending.start()
    return sending


def check(settings: Settings, decisions: TopicReader, bundle: Path, sending: threading.Thread) -> None:
    """Each payment decided once, and the journal's digests equal on replay."""
    sending.join(120)
    wait_for(lambda: decisions.fill() >= PAYMENTS, 120, "all decisions")
    time.sleep(0.5)
    decisions.fill()
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
        sending = stream(settings)
        wait_for(lambda: decisions.fill() > PAYMENTS // 8, 120, "the first decisions")
        with process("run", ["--bundle", str(bundle)], settings, second_log) as second:
            wait_for(lambda: followed(second) > 10, 60, "the standby to follow")
            first.send_signal(how)
            assert first.wait(60) == (0 if how == signal.SIGTERM else -how), first_log.read_text()[-2000:]
            check(settings, decisions, bundle, sending)
            second.send_signal(signal.SIGTERM)
            assert second.wait(60) == 0, second_log.read_text()[-2000:]


def test_a_frozen_worker_that_wakes_is_fenced(
    settings: Settings, decisions: TopicReader, bundle: Path, tmp_path: Path
) -> None:
    """SIGSTOP past the session timeout, a standby takes over, SIGCONT: the zombie commits nothing and exits non-zero."""
    first_log, second_log = tmp_path / "first.log", tmp_path / "second.log"
    with process("run", ["--bundle", str(bundle)], settings, first_log) as first:
        sending = stream(settings)
        wait_for(lambda: decisions.fill() > PAYMENTS // 8, 120, "the first decisions")
        with process("run", ["--bundle", str(bundle)], settings, second_log) as second:
            wait_for(lambda: followed(second) > 10, 60, "the standby to follow")
            os.kill(first.pid, signal.SIGSTOP)
            owned = "fraud_scorer_owned_shards"
            wait_for(lambda: metrics(second.port).get(owned) == 1.0, 60, "the standby to take over")  # type: ignore[attr-defined]
            before = decisions.fill()
            wait_for(lambda: decisions.fill() > before + 500, 60, "the standby to decide")
            os.kill(first.pid, signal.SIGCONT)
            assert first.wait(60) != 0, first_log.read_text()[-2000:]
            check(settings, decisions, bundle, sending)
            second.send_signal(signal.SIGTERM)
            assert second.wait(60) == 0, second_log.read_text()[-2000:]
