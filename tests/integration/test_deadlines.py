"""A deadline that the queue has eaten: lists, rules and the student decide without the model, a replay the same."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import xgboost as xgb

from scorer import kafka
from scorer.bundle import Bundle, write_bundle
from scorer.bundle.challengers import with_challengers
from scorer.local_services import Services
from scorer.operate.record_sender import Sender
from scorer.operate.setup import setup
from scorer.replay import replay_topic
from tests.golden_rows import golden_rows
from tests.integration.handbook import FEATURES, POLICY, handbook
from tests.integration.running import TopicReader, metrics, process, test_settings, wait_for


def with_student(bundle: Path, folder: Path) -> Path:
    """The bundle with a student that knows the amount alone."""
    rows = np.random.default_rng(3).uniform(0, 250, (2_000, len(Bundle.load(bundle).feature_set.names)))
    data = xgb.DMatrix(rows.astype(np.float32), (rows[:, 0] > 150).astype(np.float32), nthread=1)
    booster = xgb.train({"objective": "binary:logistic", "max_depth": 2, "nthread": 1}, data, 3)
    write_bundle(
        folder / "small", name="small", created_at="2026-01-01T00:00:00Z", model=bytes(booster.save_raw("ubj")),
        feature_set_yaml=FEATURES, policy_yaml=POLICY, threshold_score=0.5,
        golden=golden_rows(bytes(booster.save_raw("ubj"))),
    )  # fmt: skip
    with_challengers(bundle, [], folder / "both", created_at="2026-01-01T00:00:00Z", student=folder / "small")
    return folder / "both"


def degraded(port: int) -> float:
    """Decisions in mode degraded, as a worker counts them."""
    return sum(value for name, value in metrics(port).items() if 'mode="degraded"' in name and "_total" in name)


@pytest.mark.parametrize("student", [False, True], ids=["rules", "student"])
def test_payments_past_their_deadline_are_decided_degraded_and_replayed_the_same(
    services: Services, topics_prefix: str, database: str, bundle: Path, tmp_path: Path, student: bool
) -> None:
    """A backlog whose deadlines have passed is decided by rules and, if there is one, the student, marked in decision,
    metric and journal; one whose own header leaves time is decided by the model, though one beside it has none left;
    replay along the journal gives every digest again."""
    settings = test_settings(
        services.kafka.bootstrap_servers,
        topics_prefix,
        postgres={"url": database},
        worker={"deadline_ms": 500.0, "deadline_header": "deadline"},
    )
    setup(settings)
    bundle = with_student(bundle, tmp_path) if student else bundle
    topics = kafka.Topics.of(settings.kafka)
    Sender(settings).run(handbook(5_000), stop=threading.Event())
    time.sleep(1.0)  # no worker decides: the deadlines pass
    decisions = TopicReader(settings, topics.decisions)
    log = tmp_path / "worker.log"
    more = {"FRAUD_SCORER_WORKER__DEADLINE_MS": "500", "FRAUD_SCORER_WORKER__DEADLINE_HEADER": "deadline"}
    with process("run", ["--bundle", str(bundle)], settings, log, **more) as worker:
        wait_for(lambda: decisions.fill() >= 5_000, 60, "the backlog")
        producer = kafka.plain_producer(settings.kafka)
        payment = {
            "payment_id": "patient",
            "event_time": int(time.time() * 1000),
            "amount_minor": 100,
            "currency": "EUR",
            "customer_id": "c",
            "terminal_id": "t",
        }
        deadline = str(int(time.time() * 1000) + 3_600_000).encode()
        hurried = json.dumps(payment | {"payment_id": "hurried"}).encode()
        producer.produce(topics.payments, hurried, headers=[("deadline", b"0")])
        producer.produce(topics.payments, json.dumps(payment).encode(), headers=[("deadline", deadline)])
        assert producer.flush(30) == 0
        wait_for(lambda: decisions.fill() >= 5_002, 60, "the patient payment")
        # A commit is counted a moment after its decisions can be read.
        wait_for(lambda: degraded(worker.port) == 5_001, 60, "the counts")  # type: ignore[attr-defined]
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
    decided = {d["payment_id"]: d for d in decisions.json()}
    patient = decided.pop("patient")
    assert patient["mode"] == "normal"
    assert {d["mode"] for d in decided.values()} == {"degraded"}
    # The model was not asked: the student has as many margins as leaves, and without it there is one.
    assert len({d["margin"] for d in decided.values()}) in (range(2, 4**3) if student else [1])
    # The rule on large amounts still flags.
    reasons = {tuple(d["reasons"]) for d in decided.values() if d["decision"] == "flag"}
    by_student = {("MODEL_SCORE", "DEGRADED"), ("LARGE_AMOUNT", "MODEL_SCORE", "DEGRADED")}
    assert reasons & by_student if student else reasons == {("LARGE_AMOUNT",)}
    report = replay_topic(Bundle.load(bundle), settings, None)
    assert report.decisions == 5_002
    assert report.batches_checked > 0
    decisions.close()
