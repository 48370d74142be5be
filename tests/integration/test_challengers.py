"""A challenger in shadow, decided live by a worker, compared from the audit trail on labels that came later."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psycopg
import pyarrow.parquet as pq
import pytest

from scorer import kafka
from scorer.backtest.shadow_trial import challenger_of, shadow_of
from scorer.bundle import Bundle
from scorer.bundle.challengers import with_challengers
from scorer.cli.backtest_commands import read_decided
from scorer.demo.demo_processes import own_database
from scorer.local_services import Services
from scorer.operate.setup import setup
from tests.integration.running import process, test_settings, wait_for
from tests.integration.test_audit_commands import START_MS, Running
from tests.integration.test_prove import write

PAYMENTS, DAYS = 900, 15
DAY_MS = 86_400_000


def payment(number: int) -> bytes:
    value = {
        "payment_id": f"p_{number}",
        "event_time": START_MS + number * DAYS * DAY_MS // PAYMENTS,
        "amount_minor": int(np.random.default_rng(number).lognormal(3, 2) * 100) % 80_000 + 100,
        "currency": "EUR",
        "customer_id": f"c_{number % 90}",
        "terminal_id": f"t_{number % 5}",
        "channel": "ecom",
    }
    return json.dumps(value).encode()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    champion, rival = write(folder, "champion", seed=5), write(folder, "rival", seed=31)
    with_challengers(champion, [rival], folder / "both", created_at="2026-01-01T00:00:00Z")
    return folder / "both"


@pytest.fixture(scope="module")
def running(services: Services, both: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Payments decided live; a terminal blocked half way; labels, a day after each payment, of flagged ones alone."""
    name = f"challengers_{os.getpid()}"
    folder = tmp_path_factory.mktemp("challengers")
    with own_database(services.postgres.url, name) as url:
        settings = test_settings(
            services.kafka.bootstrap_servers, f"{name}-", postgres={"url": url},
            worker={"batch_payments_max": 64}, topics={"payments_partitions": 1},
        )  # fmt: skip
        setup(settings)
        trail, topics = Running(settings, folder), kafka.Topics.of(settings.kafka)
        with (
            process("sink", [], settings, folder / "sink.log"),
            process("run", ["--bundle", str(both)], settings, folder / "worker.log"),
        ):
            trail.send(topics.payments, *(payment(n) for n in range(PAYMENTS // 2)))
            wait_for(lambda: trail.count("decisions") == PAYMENTS // 2, 60, "the first decisions")
            trail.send(topics.control, b'{"type":"list_add","list":"blocked","value":"t_1"}')
            wait_for(lambda: trail.count("control_changes") == 1, 60, "the list")
            trail.send(topics.payments, *(payment(n) for n in range(PAYMENTS // 2, PAYMENTS)))
            wait_for(lambda: trail.count("decisions") == PAYMENTS, 60, "the other decisions")
            with psycopg.connect(trail.database) as connection:
                flagged = connection.execute(
                    "SELECT payment_id, (extract(epoch FROM event_time) * 1000)::bigint FROM decisions "
                    "WHERE decision = 'flag' ORDER BY payment_id"
                ).fetchall()
            labels = [
                {"type": "label", "payment_id": one, "fraud": number % 3 == 0, "known_at": at + DAY_MS}
                for number, (one, at) in enumerate(flagged)
            ]
            trail.send(topics.labels, *(json.dumps(label).encode() for label in labels))
            wait_for(lambda: trail.count("labels") == len(labels), 60, "the labels")
        yield trail


def test_a_challenger_is_compared_from_the_trail(running: Running, both: Path) -> None:
    """The margins that the comparison computes from the logged features are those that the worker logged, bit for bit;
    a list that changed while workers ran decides for both; labels of flagged payments alone are named as such."""
    stored = running.folder / "decided.parquet"
    running.command("replay", "--bundle", str(both), "--input", "audit", "--output", str(stored))
    bundle = Bundle.load(both)
    decided = read_decided(bundle, stored)
    shadow = shadow_of(decided, bundle, challenger_of(bundle, None), np.ones(len(decided), bool))
    with psycopg.connect(running.database) as connection:
        logged = dict(connection.execute("SELECT payment_id, challenger_margins[1] FROM decisions").fetchall())
    ids = decided.texts("payment_id")
    assert len(ids) == PAYMENTS
    wanted = np.array([logged[one] for one in ids], np.float32)
    assert (shadow.decided.margin.view(np.uint32) == wanted.view(np.uint32)).all()
    fired = np.array([bool(names) for names in pq.read_table(stored)["fired"].to_pylist()])
    assert fired.sum() > 50
    assert (shadow.decided.flagged[fired] == decided.flagged[fired]).all()
    assert shadow.decided.flagged.sum() == decided.flagged.sum()

    result = running.command("compare", "--bundle", str(both), "--decided", str(stored), "--rounds", "100")
    assert result["delay_ms"] == DAY_MS
    found = {one["name"]: one for one in result["findings"]}
    assert found["selection bias"]["warning"]
    assert "100.0% of the payments that the champion flags have a label, 0.0%" in found["selection bias"]["text"]
    assert found["feedback loop"]["warning"]
    both_flag, challenger, champion, _ = result["cells"]
    assert challenger["payments"] > 0 == challenger["labelled"]
    assert champion["labelled"] == champion["payments"] > 0
    assert both_flag["labelled"] == both_flag["payments"]
    assert result["figures"]["frauds_caught"]["value"] is None
    assert result["naive"]["frauds_caught"]["value"] == -champion["frauds"]
