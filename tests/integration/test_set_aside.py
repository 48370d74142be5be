"""Batches set aside and written again; gaps that an operator accepts."""

from __future__ import annotations

import hashlib
import io
import json
import os
from contextlib import redirect_stdout
from dataclasses import replace
from unittest.mock import patch

import psycopg
import pytest
from confluent_kafka import Producer

from scorer.audit.verify.verification import verify
from scorer.cli import app
from scorer.errors import FraudScorerError
from scorer.local_services import Services
from scorer.runtime.settings import Settings
from tests.integration.audit_batches import Shard, make_topic, rows
from tests.integration.audit_trail import in_order, migrated, sql
from tests.integration.running import environment, test_settings
from tests.integration.sinks import assert_equal_to, running, wait_for

# 9,000 characters that no compression shortens: more than an index entry holds.
ENDLESS = "".join(hashlib.sha512(str(i).encode()).hexdigest() for i in range(70))
REPAIR = "DROP INDEX decisions_payment"


@pytest.fixture
def place(services: Services, topics_prefix: str, database: str) -> tuple[Settings, Shard, str]:
    """The topics and the tables."""
    servers = services.kafka.bootstrap_servers
    for name in ("audit", "journal", "payments", "control", "labels", "dead-letters"):
        make_topic(servers, topics_prefix + name)
    settings = test_settings(servers, topics_prefix, postgres={"url": migrated(database)})
    return settings, Shard(servers, f"{topics_prefix}audit"), database


def command(settings: Settings, *arguments: str, code: int = 0) -> dict:
    output, found, reason = io.StringIO(), 0, ""
    with patch.dict(os.environ, environment(settings), clear=True), redirect_stdout(output):
        try:
            app([*arguments, "--json"], standalone_mode=False)
        except FraudScorerError as exc:
            found, reason = exc.exit_code, str(exc)
    assert found == code, reason
    return json.loads(output.getvalue().splitlines()[-1])


def write(settings: Settings, shard: Shard, names: list[str]) -> None:
    """A batch of these payments, on the journal topic too."""
    columns = in_order(rows(shard.sequence + 1, len(names)))
    record = shard.write(replace(columns, payment_id=names))
    producer = Producer({"bootstrap.servers": shard.bootstrap_servers})
    producer.produce(f"{settings.kafka.topic_prefix}journal", record.to_bytes(), partition=0)
    assert producer.flush(30) == 0


def sink(settings: Settings, shard: Shard, url: str) -> None:
    assert shard.topic == f"{settings.kafka.topic_prefix}audit"
    with running(shard.bootstrap_servers, shard.topic, url) as at_work:
        wait_for(lambda: at_work.error or at_work.sink.drained(), "the sink to drain")
    assert at_work.error is None


@pytest.mark.parametrize("last", [False, True], ids=["between others", "at the end"])
def test_a_batch_is_written_once_its_cause_is_repaired(place: tuple[Settings, Shard, str], last: bool) -> None:
    """Refused rows stay in quarantine, shown by list, until Postgres takes them; then the trail is whole, verifies, and
    the sink goes on."""
    settings, shard, url = place
    write(settings, shard, ["a1", "a2"])
    write(settings, shard, [ENDLESS, "b2", "b3"])
    if not last:
        write(settings, shard, ["a3"])
    sink(settings, shard, url)
    listed = command(settings, "audit", "set-aside", "list")["set_aside"]
    shown = [(row["shard"], row["sequence"], row["kind"], row["written"]) for row in listed]
    assert shown == [(0, 1, "refused", False)]
    assert verify(url, kafka_settings=settings).findings[0].kind == "set_aside"
    still = command(settings, "audit", "set-aside", "redrive", code=1)["left"]  # the cause is still there
    assert "refuses" in still[0]["why_not"]
    sql(url, REPAIR)
    assert command(settings, "audit", "set-aside", "redrive", "--dry-run")["would_be_written"][0]["rows"] == 3
    assert command(settings, "audit", "set-aside", "redrive")["written"][0]["rows"] == 3
    assert command(settings, "audit", "set-aside", "redrive") == {"written": [], "left": []}
    assert command(settings, "audit", "set-aside", "list")["count"] == 0
    assert_equal_to(url, shard)
    assert verify(url, kafka_settings=settings).findings == []
    write(settings, shard, ["a4"])
    sink(settings, shard, url)
    assert_equal_to(url, shard)
    assert verify(url, kafka_settings=settings).findings == []


def test_what_was_not_decided_is_not_written(place: tuple[Settings, Shard, str]) -> None:
    """A record set aside that the journal topic does not know stays where it is, with the reason."""
    settings, shard, url = place
    write(settings, shard, ["a1"])
    forged, _ = shard.chunks(replace(in_order(rows(7, 2)), payment_id=[ENDLESS, "b2"]))
    shard.send(forged)
    write(settings, shard, [ENDLESS])  # refused too, and the true one
    shard.send([b"no chunk"])
    sink(settings, shard, url)
    sql(url, REPAIR)
    result = command(settings, "audit", "set-aside", "redrive", code=1)
    assert result["written"] == []
    reasons = [row["why_not"] for row in result["left"]]
    assert "which batch it is of cannot be read" in reasons
    assert any("journal topic" in reason for reason in reasons)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM decisions").fetchone() == (1,)


def test_a_gap_is_accepted_by_command(place: tuple[Settings, Shard, str]) -> None:
    """The position moves to the offset given; the sink's own message names the command."""
    settings, shard, url = place
    write(settings, shard, ["a1"])
    assert command(settings, "audit", "accept-gap", "--partition", "0", "--to", "2")["goes_on_at"] == 2
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT next_offset FROM positions").fetchall() == [(2,)]
