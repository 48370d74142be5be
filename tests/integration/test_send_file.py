"""`send`: the payments of a file onto the topic."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import TopicPartition

from scorer import kafka
from scorer.local_services import Services
from scorer.operate.setup import create_topics
from tests.integration.running import test_settings
from tests.integration.test_audit_commands import Running

MAPPING = "payment_id: id\nevent_time: at\namount: paid\ncurrency: {constant: EUR}\ncustomer_id: who\n"
ROWS = 3_000


@pytest.fixture
def running(services: Services, topics_prefix: str, tmp_path: Path) -> Running:
    settings = test_settings(services.kafka.bootstrap_servers, topics_prefix, topics={"payments_partitions": 1})
    create_topics(settings)
    (tmp_path / "mapping.yaml").write_text(MAPPING)
    return Running(settings, tmp_path)


def rows(running: Running, wrong: int) -> Path:
    """A file of which the first `wrong` rows have an amount that is refused."""
    lines = [f"p{i},2026-01-01T00:{i // 60:02}:{i % 60:02}Z,{'x' if i < wrong else 9.5},c{i % 9}" for i in range(ROWS)]
    path = running.folder / "payments.csv"
    path.write_text("\n".join(["id,at,paid,who", *lines]))
    return path


def test_refused_rows_are_counted_against_the_rows_that_were_read(running: Running) -> None:
    """`--count 100` reads a block of rows for 100 payments: a share of refused rows below the bound passes, one above
    it fails, and what was sent is on the topic."""
    file = ["--input", str(rows(running, 20)), "--mapping", str(running.folder / "mapping.yaml")]
    result = running.command("send", *file, "--count", "100")
    assert (result["payments"], result["rows_refused"]) == (100, 20)
    assert [(one["field"], one["rows"]) for one in result["refusals"]] == [("amount", 20)]
    rows(running, 40)
    result = running.command("send", *file, "--count", "100", code=1)
    assert result["rows_refused"] == 40
    place = TopicPartition(kafka.Topics.of(running.settings.kafka).payments, 0)
    assert kafka.ends(kafka.admin(running.settings.kafka), [place]) == [200]
