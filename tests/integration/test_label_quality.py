"""Precision and recall as the sink shows them, compared with a plain count over every decision and label."""

from __future__ import annotations

import random
import secrets
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest
import sqlalchemy as sa
from prometheus_client import CollectorRegistry

from schemas.audit_record import AuditColumns
from schemas.decision import DECISIONS, DUPLICATE, MODES, REFUSED
from scorer.local_services import Services
from scorer.runtime.settings import Settings
from scorer.sink.label_quality import LabelledPayments, LabelQuality, labelled_payments
from scorer.sink.sink_metrics import SinkMetrics
from scorer.trail import audit_database
from tests.integration.audit_batches import CONTEXT, rows
from tests.integration.audit_trail import DAY_MS, START_MS, Trail, in_order, migrated
from tests.integration.running import test_settings, wait_for

OTHER = CONTEXT.model_copy(update={"bundle": "cards-fedcba987654"})
DAYS = 6
Label = tuple[str, bool, int]  # payment, fraud, known at ms; in the order of their offsets


def some_labels(payments: list[str]) -> list[Label]:
    """Of a part of the payments and of others, some corrected, some known long ago or only after stream time."""
    chance = random.Random(3)
    made: list[Label] = []
    for payment in (*payments, *(f"unknown-{number}" for number in range(20))):
        for _ in range(chance.choice((0, 1, 1, 2, 3))):
            known_ms = START_MS + chance.randrange(-2 * DAY_MS, (DAYS + 1) * DAY_MS, 3_600_000)
            made.append((payment, chance.random() < 0.4, known_ms))
    chance.shuffle(made)
    return made


def counted(
    batches: list[tuple[int, str, AuditColumns]], labels: list[Label], days: int
) -> dict[str, LabelledPayments]:
    """The definition, row by row."""
    newest = max(day for day, _, _ in batches)
    since_ms, reached_ms = START_MS + (newest - days + 1) * DAY_MS, START_MS + newest * DAY_MS
    holds: dict[str, tuple[int, int, bool]] = {}
    for offset, (payment, fraud, known_ms) in enumerate(labels):
        if since_ms <= known_ms <= reached_ms:
            holds[payment] = max(holds.get(payment, (-1, -1, False)), (known_ms, offset, fraud))
    found: dict[str, Counter[str]] = {}
    for day, bundle, columns in batches:
        if day <= newest - days:
            continue
        for payment, decision, mode in zip(columns.payment_id, columns.decision, columns.mode, strict=True):
            if payment in holds and mode not in (DUPLICATE, REFUSED):
                side = "flagged" if DECISIONS[decision] == "flag" else "approved"
                kind = f"{side}_{'fraud' if holds[payment][2] else 'genuine'}"
                found.setdefault(bundle, Counter())[kind] += 1
    return {bundle: LabelledPayments(**kinds) for bundle, kinds in found.items()}


@pytest.fixture
def writer(database: str) -> Iterator[str]:
    """A login with the writer's rights alone."""
    migrated(database)
    name = f"test_{secrets.token_hex(4)}"
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'test' IN ROLE fraud_scorer_writer")
        yield f"postgresql://{name}:test@{database.partition('@')[2]}"
        admin.execute(f"DROP OWNED BY {name} CASCADE")
        admin.execute(f"DROP ROLE {name}")


def test_it_is_what_a_plain_count_gives(database: str, writer: str, services: Services) -> None:
    """Two bundles over six days, payments repeated, labels corrected, known too early, too late, or of no payment: for
    each number of days the writer, who may read neither a decision nor a label, gets the counts of the definition; and
    the sink shows them."""
    trail = Trail(database)
    batches = []
    for day in range(DAYS):
        for shard, context in enumerate((CONTEXT, OTHER)):
            made = in_order(rows(10 * day + shard, 150))
            trail.write_columns(shard, [made], day=day, context=context)
            batches.append((day, context.bundle, made))
    assert {MODES[mode] for _, _, columns in batches for mode in columns.mode} >= {"normal", "duplicate"}
    labels = some_labels([payment for _, _, columns in batches for payment in columns.payment_id])
    with psycopg.connect(database) as owner:
        owner.cursor().executemany(
            'INSERT INTO labels (topic, "offset", payment_id, fraud, known_at, recorded_at) '
            "VALUES ('labels', %s, %s, %s, %s, now())",
            [
                (offset, payment, fraud, datetime.fromtimestamp(known_ms / 1000, UTC))
                for offset, (payment, fraud, known_ms) in enumerate(labels)
            ],
        )
    with audit_database.engine(writer).connect() as connection:
        for days in (1, 2, 5, 30):
            found = labelled_payments(connection, days)
            assert found == counted(batches, labels, days)
            assert days == 1 or {counts.flagged_fraud > 0 for counts in found.values()} == {True}
        with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
            connection.execute(sa.text("SELECT count(*) FROM labels"))

    registry = CollectorRegistry()
    settings = test_settings(
        services.kafka.bootstrap_servers, "x-", postgres={"url": writer}, audit={"quality_days": 5}
    )
    shown = running(settings, registry)
    for bundle, counts in counted(batches, labels, 5).items():
        of = {"bundle": bundle}
        assert shown("fraud_scorer_precision_ratio", **of) == counts.precision
        assert shown("fraud_scorer_recall_ratio", **of) == counts.recall
        name = "fraud_scorer_labelled_payments"
        assert shown(name, **of, decision="flag", fraud="true") == counts.flagged_fraud
        assert shown(name, **of, decision="flag", fraud="false") == counts.flagged_genuine
        assert shown(name, **of, decision="approve", fraud="true") == counts.approved_fraud
        assert shown(name, **of, decision="approve", fraud="false") == counts.approved_genuine


def test_days_out_of_range_are_refused(writer: str) -> None:
    """Whoever has the writer's role cannot have years counted, or nothing."""
    for days in (0, -1, 3651, None):
        with audit_database.engine(writer).connect() as connection, pytest.raises(sa.exc.DBAPIError, match="1 to 3650"):
            labelled_payments(connection, days)  # type: ignore[arg-type]


def running(settings: Settings, registry: CollectorRegistry):  # type: ignore[no-untyped-def]
    """What is shown once it has counted."""
    quality, stop = LabelQuality(settings, SinkMetrics(registry)), threading.Event()
    thread = threading.Thread(target=quality.run, args=(stop,), daemon=True)
    thread.start()
    counted_at = "fraud_scorer_labelled_timestamp_seconds"
    try:
        wait_for(lambda: (registry.get_sample_value(counted_at) or 0) > 0, 60, "the first count")
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    return lambda name, **labels: registry.get_sample_value(name, labels)


def test_an_empty_trail_and_what_has_left_are_shown_as_nothing(writer: str, services: Services) -> None:
    """No share of nothing: neither before the first payment, nor for a bundle that has no labelled payment any more."""
    with audit_database.engine(writer).connect() as connection:
        assert labelled_payments(connection, 30) == {}
    registry = CollectorRegistry()
    settings = test_settings(services.kafka.bootstrap_servers, "x-", postgres={"url": writer})
    quality = LabelQuality(settings, SinkMetrics(registry))
    quality.show({"a": LabelledPayments(flagged_fraud=1), "b": LabelledPayments(approved_genuine=1)})
    assert registry.get_sample_value("fraud_scorer_precision_ratio", {"bundle": "a"}) == 1
    assert registry.get_sample_value("fraud_scorer_recall_ratio", {"bundle": "b"}) is None
    quality.show({"b": LabelledPayments(flagged_genuine=1)})
    assert registry.get_sample_value("fraud_scorer_precision_ratio", {"bundle": "b"}) == 0
    for name in ("precision_ratio", "recall_ratio"):
        assert registry.get_sample_value(f"fraud_scorer_{name}", {"bundle": "a"}) is None
