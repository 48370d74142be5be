"""The commands over a real trail: worker and sink on Kafka and Postgres, then `audit` and `labels` as people call them.

`unittest.mock.patch` sets environment variables here; nothing is mocked.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psycopg
import pytest
import xgboost as xgb
from psycopg.conninfo import make_conninfo

from scorer import kafka
from scorer.audit.signed.signatures import Signer
from scorer.bundle import write_bundle
from scorer.cli import app
from scorer.demo.demo_processes import own_database
from scorer.errors import FraudScorerError, UsageError
from scorer.local_services import Services
from scorer.operate.setup import setup
from scorer.runtime.settings import PREFIX, Settings
from tests.golden_rows import golden_rows
from tests.integration.audit_trail import forge
from tests.integration.running import environment, process, test_settings, wait_for

PAYMENTS = 600
START_MS = 1_767_225_600_000
FEATURES = """
name: audit
currency: EUR
allowed_lateness: 10m
entities: {customer: [customer_id]}
features:
  - {name: amount, payment: amount}
  - {name: customer_count_1d, entity: customer, aggregate: count, window: 1d}
  - {name: customer_mean_7d, entity: customer, aggregate: mean, of: amount, window: 7d, include_current: true}
  - {name: customer_frauds_7d, entity: customer, aggregate: fraud_count, window: 7d}
"""
POLICY = """
name: audit
flag: {score: 0.7}
rules:
  - {name: large, when: [{feature: amount, at_least: 900}], then: flag, reason: LARGE_AMOUNT}
lists:
  - {name: blocked, field: terminal_id, then: flag, reason: BLOCKED_TERMINAL}
reasons:
  - {code: UNUSUAL_AMOUNT, sentence: The amount is unusual for this customer., features: [amount, customer_mean_7d]}
  - {code: FREQUENT, sentence: The customer pays often., features: [customer_count_1d, customer_frauds_7d]}
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose model has learnt something, whatever."""
    random = np.random.default_rng(5)
    X = random.lognormal(3, 2, size=(2000, 4)).astype(np.float32)
    model = xgb.train(
        {"objective": "binary:logistic", "max_depth": 4, "seed": 1}, xgb.DMatrix(X, (X[:, 0] > X[:, 2]).astype(int)), 20
    )
    folder = tmp_path_factory.mktemp("bundle") / "audit"
    write_bundle(
        folder, name="audit", created_at="2026-01-01T00:00:00Z", model=bytes(model.save_raw("ubj")),
        feature_set_yaml=FEATURES, policy_yaml=POLICY, threshold_score=0.7,
        golden=golden_rows(bytes(model.save_raw("ubj"))),
    )  # fmt: skip
    return folder


def payment(number: int, **changes: object) -> bytes:
    random = np.random.default_rng(number)
    return json.dumps(
        {
            "payment_id": f"p_{number}",
            "event_time": START_MS + 60_000 * number,
            "amount_minor": int(random.integers(100, 100_000)),
            "currency": "EUR",
            "customer_id": f"c_{number % 7}",
            "account_id": f"a_{number % 9}",
            "terminal_id": f"t_{number % 5}",
            "channel": "ecom",
        }
        | changes
    ).encode()


class Running:
    """The trail of one module's tests."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.database = settings.postgres.url.get_secret_value()

    def send(self, topic: str, *values: bytes) -> None:
        producer = kafka.plain_producer(self.settings.kafka)
        for value in values:
            producer.produce(topic, value, partition=0)
        assert producer.flush(30) == 0

    def command(self, *arguments: str, code: int = 0, **more: str) -> dict[str, Any]:
        """`fraud-scorer …` with --json, in this process (a start costs seconds); its result."""
        output, found = io.StringIO(), 0
        given = environment(self.settings, FRAUD_SCORER_LOG_LEVEL="error", **more)
        with patch.dict(os.environ, given, clear=True), redirect_stdout(output):
            try:
                app([*arguments, "--json"], standalone_mode=False)
            except FraudScorerError as exc:
                found, reason = exc.exit_code, str(exc)
        assert found == code, reason
        lines = output.getvalue().splitlines()
        result: dict[str, Any] = json.loads(lines[-1]) if lines else {"error": reason}
        return result

    def count(self, table: str) -> int:
        with psycopg.connect(self.database) as connection:
            return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # type: ignore[index]


@pytest.fixture(scope="module")
def running(services: Services, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Worker and sink at work, some payments decided, one of them bad and one twice."""
    folder = tmp_path_factory.mktemp("audit")
    name = f"audit_{os.getpid()}"
    with own_database(services.postgres.url, name) as url:
        settings = test_settings(
            services.kafka.bootstrap_servers, f"{name}-", postgres={"url": url},
            worker={"batch_payments_max": 64}, topics={"payments_partitions": 1},
        )  # fmt: skip
        setup(settings)
        trail = Running(settings, folder)
        topics = kafka.Topics.of(settings.kafka)
        trail.send(topics.control, b'{"type":"list_add","list":"blocked","value":"t_x"}', b"nonsense")
        trail.send(topics.audit, b"no chunk")
        with (
            process("sink", [], settings, folder / "sink.log"),
            process("run", ["--bundle", str(bundle)], settings, folder / "worker.log"),
        ):
            trail.send(topics.payments, *(payment(n) for n in range(PAYMENTS)))
            wait_for(lambda: trail.count("decisions") == PAYMENTS, 60, "the first decisions")
            trail.send(topics.payments, payment(3), payment(PAYMENTS, terminal_id="t_x"), b"no payment")
            wait_for(lambda: trail.count("decisions") == PAYMENTS + 2, 60, "the other decisions")
            yield trail


def test_the_other_topics_reach_their_tables(running: Running) -> None:
    """Changes of lists and dead letters stand in Postgres with their origin, each once."""
    wait_for(lambda: running.count("dead_letters") == 2 and running.count("control_changes") == 1, 30, "the records")
    topics = kafka.Topics.of(running.settings.kafka)
    with psycopg.connect(running.database) as connection:
        letters = connection.execute("SELECT origin_topic, reason FROM dead_letters ORDER BY 1").fetchall()
        assert letters == [(topics.control, "not_json"), (topics.payments, "not_json")]
        assert connection.execute("SELECT record->>'value' FROM control_changes").fetchall() == [("t_x",)]
        bundles = connection.execute("SELECT threshold, first_sequence FROM bundles").fetchall()
        assert bundles == [(0.7, 0)]


def test_verify_anchor_and_the_journal(running: Running) -> None:
    """The trail equals the journal topic and the anchors; since the last anchor there is nothing new."""
    anchors = str(running.folder / "anchors.jsonl")
    signer = Signer.generate()
    key = {f"{PREFIX}AUDIT__SIGNING_KEY": signer.to_pem().decode(), f"{PREFIX}AUDIT__ANCHORS": anchors}
    anchored = running.command("audit", "anchor", **key)
    assert anchored["signed"]
    result = running.command("audit", "verify", **key)
    assert result["verified"]
    assert result["decisions"] == PAYMENTS + 2
    assert result["heads_equal_to_journal"] == result["batches"] == anchored["anchored"][0]["sequence"] + 1
    assert result["heads_anchored"] == 1
    assert result["signatures"] == "checked"
    assert running.command("audit", "verify")["signatures"] == "not checked: no key is set"
    assert running.command("audit", "verify", "--since-anchor", **key)["batches"] == 0


def test_verify_names_the_column_by_the_topic(running: Running) -> None:
    """While Kafka still holds the chunks, the very row and column that was edited is named."""
    with psycopg.connect(running.database, autocommit=True) as connection:
        connection.execute("UPDATE decisions SET amount_minor = amount_minor + 1 WHERE payment_id = 'p_77'")
        place = connection.execute(
            "SELECT shard, sequence, row_number FROM decisions WHERE payment_id = 'p_77'"
        ).fetchone()
        result = running.command("audit", "verify", code=3)
        connection.execute("UPDATE decisions SET amount_minor = amount_minor - 1 WHERE payment_id = 'p_77'")
    assert place is not None
    bad = result["first_bad"]
    assert (bad["shard"], bad["sequence"], bad["kind"]) == (*place[:2], "row_edited")
    assert bad["detail"].startswith(f"row {place[2]} column amount_minor changed")


def test_explain_proves_every_decision(running: Running, bundle: Path) -> None:
    """Margin, score, decision and reasons come out again of the logged features, and of the topic along the journal."""
    result = running.command("audit", "explain", "p_3", "--bundle", str(bundle), "--replay")
    first, second = result["decisions"]
    assert (first["mode"], second["mode"]) == ("normal", "duplicate")
    assert first["equal"] is True
    assert {"margin", "decision", "replay: features", "replay: batch digest"} <= {p["what"] for p in first["proof"]}
    windows = {window["feature"]: window for window in first["windows"]}
    assert set(windows) == {"customer_count_1d", "customer_mean_7d", "customer_frauds_7d"}
    # The window after the payment holds it, and at least what its own feature counted before it.
    assert windows["customer_count_1d"]["payments"] > first["features"]["customer_count_1d"] - 1
    assert set(first["features"]) == {"amount", "customer_count_1d", "customer_mean_7d", "customer_frauds_7d"}
    with psycopg.connect(running.database) as connection:
        flagged = connection.execute("SELECT payment_id FROM flagged ORDER BY score DESC LIMIT 1").fetchone()
        by_rule = connection.execute("SELECT payment_id FROM flagged WHERE 'large' = ANY (fired) LIMIT 1").fetchone()
    assert flagged is not None
    assert by_rule is not None
    for payment_id in (flagged[0], by_rule[0], f"p_{PAYMENTS}"):
        (decided,) = running.command("audit", "explain", payment_id, "--bundle", str(bundle))["decisions"]
        assert (decided["decision"], decided["equal"]) == ("flag", True)
        assert all(reason["sentence"] != reason["code"] for reason in decided["reasons"])
    assert decided["fired"] == ["blocked"]
    assert decided["notes"] == ["Taken from the row: the payment stood on blocked."]


def test_explain_finds_an_edit(running: Running, bundle: Path) -> None:
    """A feature value or a decision that was edited no longer fits its proof: exit 3."""
    for change in ("features[1] = 1e6", "decision = CASE decision WHEN 'flag' THEN 'approve' ELSE 'flag' END"):
        with psycopg.connect(running.database, autocommit=True) as connection:
            kept = connection.execute("SELECT features, decision FROM decisions WHERE payment_id = 'p_5'").fetchone()
            connection.execute(f"UPDATE decisions SET {change} WHERE payment_id = 'p_5'")
            result = running.command("audit", "explain", "p_5", "--bundle", str(bundle), code=3)
            connection.execute("UPDATE decisions SET features = %s, decision = %s WHERE payment_id = 'p_5'", kept)
        assert result["decisions"][0]["equal"] is False


def test_labels_keep_their_history_and_reach_the_features(running: Running) -> None:
    """A chargeback, then an analyst's other verdict: both are kept with who and when, and the last one is what
    later payments of the customer see."""
    topics = kafka.Topics.of(running.settings.kafka)

    def frauds(number: int, minute: int) -> float:
        value = payment(number, event_time=START_MS + 60_000 * minute, customer_id="c_2", amount_minor=100)
        running.send(topics.payments, value)
        with psycopg.connect(running.database, autocommit=True) as connection:
            statement = f"SELECT value FROM decision_features WHERE payment_id = 'p_{number}' AND name LIKE '%frauds%'"
            wait_for(lambda: connection.execute(statement).fetchone() is not None, 30, "the decision")
            return float(connection.execute(statement).fetchone()[0])  # type: ignore[index]

    assert frauds(2001, 601) == 0
    file = running.folder / "chargebacks.csv"
    file.write_text("payment_id,verdict,known_at\np_2,fraud,2026-01-01T10:02:00Z\np_9,fraud,2026-01-01T10:02:00Z\n")
    assert running.command("labels", "add", "--input", str(file), "--source", "chargeback") == {"labels": 2, "fraud": 2}
    wait_for(lambda: running.count("labels") == 2, 30, "the chargebacks")
    assert frauds(2002, 603) == 2
    running.command(
        "labels",
        "add",
        "p_9",
        "--genuine",
        "--known-at",
        "2026-01-01T10:04:00Z",
        "--source",
        "analyst",
        "--analyst",
        "ann",
    )
    wait_for(lambda: running.count("labels") == 3, 30, "the verdict")
    assert frauds(2003, 605) == 1
    history = running.command("labels", "history", "p_9")["labels"]
    assert [(label["fraud"], label["source"], label["analyst"]) for label in history] == [
        (True, "chargeback", None),
        (False, "analyst", "ann"),
    ]
    with psycopg.connect(running.database) as connection:
        assert connection.execute("SELECT fraud FROM labels_current WHERE payment_id = 'p_9'").fetchone() == (False,)
        assert connection.execute("SELECT count(*) FROM outcomes WHERE fraud").fetchone() == (1,)


def test_a_bad_line_sends_no_label(running: Running) -> None:
    """A file with a line that is no label is refused whole, naming line and field."""
    before = running.count("labels")
    file = running.folder / "labels.csv"
    for line, named in (("p_1,maybe", "fraud"), ("p_1,fraud,x", "cells")):
        file.write_text(f"payment_id,fraud\np_1,fraud\n{line}\n")
        error = running.command("labels", "add", "--input", str(file), code=2)["error"]
        assert "line 3" in error
        assert named in error
        assert "4111" not in error
    assert running.count("labels") == before


BESIDE = {
    "verdict turned": ("labels", "UPDATE {} SET fraud = NOT fraud WHERE {first}", "record_edited"),
    "label's payment": ("labels", "UPDATE {} SET payment_id = 'p_1' WHERE {first}", "record_edited"),
    "who": ("labels", "UPDATE {} SET analyst = 'bob' WHERE analyst = 'ann'", "record_edited"),
    "when": ("labels", "UPDATE {} SET known_at = 'infinity' WHERE {first}", "record_edited"),
    "label deleted": ("labels", "DELETE FROM {} WHERE {first}", "record_deleted"),
    "last label deleted": ("labels", "DELETE FROM {} WHERE {last}", "record_deleted"),
    "labels emptied": ("labels", "TRUNCATE {}", "record_deleted"),
    "label inserted": (
        "labels", "INSERT INTO {} SELECT topic, -1, 'p_4', true, known_at, event_time, source, analyst, recorded_at "
        "FROM {} WHERE {first}", "record_inserted",
    ),
    "label past the end": ("labels", 'UPDATE {} SET "offset" = 1000000 WHERE {last}', "position_edited"),
    "label before the beginning": ("labels", 'UPDATE {} SET "offset" = -1 WHERE {first}', "record_deleted"),
    "label of another topic": ("labels", "UPDATE {} SET topic = 'x' WHERE {first}", "record_inserted"),
    "list changed": (
        "control_changes", """UPDATE {} SET record = jsonb_set(record, '{{value}}', '"t_y"')""", "record_edited"
    ),
    "list change deleted": ("control_changes", "DELETE FROM {}", "record_deleted"),
    "activation inserted": (
        "activations", "INSERT INTO {} SELECT topic, 1, 'other', record, recorded_at FROM control_changes",
        "record_inserted",
    ),
    "reason": ("dead_letters", "UPDATE {} SET reason = 'too_large' WHERE {first}", "record_edited"),
    "dead letter's origin": ("dead_letters", "UPDATE {} SET origin_offset = 77 WHERE {first}", "record_edited"),
    "dead letter deleted": ("dead_letters", "DELETE FROM {} WHERE {first}", "record_deleted"),
    "dead letter inserted": (
        "dead_letters", "INSERT INTO {} SELECT (jsonb_populate_record(d, '{{\"partition\": 99}}')).* FROM {} d",
        "record_inserted",
    ),
    "position on control gone": ("positions", "DELETE FROM {} WHERE topic LIKE '%control'", "position_edited"),
    "position on labels back": (
        "positions", "UPDATE {} SET next_offset = 1 WHERE topic LIKE '%labels'", "position_edited"
    ),
    "position past the end": (
        "positions", "UPDATE {} SET next_offset = 1000000 WHERE topic LIKE '%dead-letters'", "position_edited"
    ),
    "position on audit past the end": (
        "positions", "UPDATE {} SET next_offset = next_offset + 100 WHERE topic LIKE '%audit'", "position_edited"
    ),
    "position on audit without a head": (
        "positions", "UPDATE {} SET head = NULL WHERE topic LIKE '%audit'", "position_edited"
    ),
    "set aside deleted": ("set_aside", "DELETE FROM {}", "record_deleted"),
    "set aside past the end": ("set_aside", 'UPDATE {} SET "offset" = 1000000', "record_inserted"),
    "set aside before the beginning": ("set_aside", 'UPDATE {} SET "offset" = -1', "record_inserted"),
    "set aside of another topic": ("set_aside", "UPDATE {} SET topic = 'x'", "record_inserted"),
    "why it was set aside": ("set_aside", "UPDATE {} SET kind = 'card_number'", "record_edited"),
    "set aside with a batch": ("set_aside", "UPDATE {} SET shard = 0, sequence = 3", "record_edited"),
    "set aside as masked": ("set_aside", "UPDATE {} SET value = 'x', masked = true", "record_edited"),
    # Where the last transaction's marker is: a batch can have another one of its transaction behind it.
    "set aside and not there": (
        "set_aside", "INSERT INTO {} (topic, partition, \"offset\", kind, reason, masked) SELECT audit_topic, 0, "
        "max(audit_offset) + 1, 'unreadable', '', false FROM batches GROUP BY audit_topic", "record_inserted",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", BESIDE)
def test_tables_outside_the_chain_are_compared_with_their_topics(running: Running, change: str) -> None:
    """Labels, changes of lists, activations, dead letters and their positions, changed by the database's owner."""
    table, statement, kind = BESIDE[change]
    place = {way: f'"offset" = (SELECT {way}("offset") FROM {table})' for way in ("min", "max")}
    with psycopg.connect(running.database, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE whole AS SELECT * FROM {table}")
        try:
            done = connection.execute(statement.format(table, table, first=place["min"], last=place["max"]))
            assert done.rowcount
            bad = running.command("audit", "verify", code=3)
        finally:
            connection.execute(f"TRUNCATE {table}")
            connection.execute(f"INSERT INTO {table} SELECT * FROM whole")
            connection.execute("DROP TABLE whole")
    found = next(finding for finding in bad["findings"] if finding["kind"] == kind)
    assert table in found["place"] or "position" in found["place"]
    assert "shard" not in found


@pytest.mark.parametrize(
    ("change", "shard", "kind"),
    [
        ("UPDATE batches SET shard = 1 WHERE sequence = 3", 1, "batch_inserted"),
        (
            "INSERT INTO batches SELECT (jsonb_populate_record(b, '{\"shard\": 9}')).* FROM batches b "
            "WHERE sequence = 3", 9, "batch_inserted",
        ),
        ("INSERT INTO tombstones VALUES (7, '2026-01-01', 0, 3, '{}')", 7, "tombstone_forged"),
    ],
    ids=["moved", "inserted", "tombstone"],
)  # fmt: skip
def test_a_made_up_shard_is_found(running: Running, change: str, shard: int, kind: str) -> None:
    """A shard that the journal topic has no partition for is named, and the rest is still verified."""
    key = {f"{PREFIX}AUDIT__PUBLIC_KEY": Signer.generate().verifier.to_pem().decode()}
    with psycopg.connect(running.database, autocommit=True) as connection:
        connection.execute(change)
        try:
            findings = running.command("audit", "verify", code=3, **key)["findings"]
        finally:
            connection.execute("UPDATE batches SET shard = 0 WHERE shard = 1 AND sequence = 3")
            connection.execute("DELETE FROM batches WHERE shard = 9")
            connection.execute("DELETE FROM tombstones")
    result = [finding["detail"] for finding in findings if (finding.get("shard"), finding["kind"]) == (shard, kind)]
    assert any("no partition" in detail for detail in result)
    assert running.command("audit", "verify", **key)["verified"]


def test_records_that_were_taken_with_their_position_are_behind(running: Running) -> None:
    """Who empties every table of a topic and sets the position back, or takes it away, leaves what looks like a sink
    that has yet to come there: the records count as behind."""
    tables = ("labels", "activations", "control_changes", "dead_letters", "positions")
    assert running.command("audit", "verify")["behind"] == 0
    with psycopg.connect(running.database, autocommit=True) as connection:
        for table in tables:
            connection.execute(f"CREATE TABLE whole_{table} AS SELECT * FROM {table}")
        rows = sum(running.count(table) for table in tables[:-1])
        try:
            connection.execute(f"TRUNCATE {', '.join(tables[:-1])}")
            for change in ("UPDATE positions SET next_offset = 0", "DELETE FROM positions"):
                connection.execute(f"{change} WHERE topic ~ '(control|labels|dead-letters)$'")
                assert running.command("audit", "verify")["behind"] == rows >= 6
        finally:
            connection.execute(f"TRUNCATE {', '.join(tables)}")
            for table in tables:
                connection.execute(f"INSERT INTO {table} SELECT * FROM whole_{table}")
                connection.execute(f"DROP TABLE whole_{table}")
    assert running.command("audit", "verify")["verified"]


@pytest.mark.parametrize("scope", [("--shard", "5"), ("--from", "200", "--until", "100"), ("--from", "99999")])
def test_a_scope_with_nothing_in_it_is_refused(running: Running, scope: tuple[str, ...]) -> None:
    """Exit 2, and the option that leaves nothing is named."""
    assert scope[0] in running.command("audit", "verify", *scope, code=2)["error"]


def test_anchors_that_are_missing_are_refused(running: Running) -> None:
    """`--anchors` with a mistyped name is no proof: exit 2."""
    missing = str(running.folder / "missing.jsonl")
    assert "no such file" in running.command("audit", "verify", "--anchors", missing, code=2)["error"]


def test_an_anchor_that_may_not_be_noted_is_one_line(running: Running) -> None:
    """A login that only reads: one line names what is missing, and the file is left alone."""
    name, file = f"test_{os.getpid()}", running.folder / "refused.jsonl"
    with psycopg.connect(running.database, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'test'")
        admin.execute(f"GRANT fraud_scorer_reader TO {name}")
        try:
            url = {f"{PREFIX}POSTGRES__URL": make_conninfo(running.database, user=name, password="test")}
            error = running.command("audit", "anchor", "--anchors", str(file), code=1, **url)["error"]
        finally:
            admin.execute(f"DROP OWNED BY {name}")
            admin.execute(f"DROP ROLE {name}")
    assert error == "Postgres: permission denied for table anchors"
    assert not file.exists()


def test_put_back_everything_equals_its_topic(running: Running) -> None:
    """Labels, changes of lists and dead letters are counted that equal their topics' records."""
    assert running.command("audit", "verify")["records_equal_to_topics"] >= 6


def test_a_batch_moved_between_its_neighbours_is_found(running: Running) -> None:
    """An audit_offset that still lies between those before and after it is not the topic's."""
    with psycopg.connect(running.database, autocommit=True) as connection:
        row = connection.execute(
            "SELECT sequence FROM (SELECT sequence, audit_offset, lag(audit_offset) OVER (ORDER BY sequence) AS before "
            "FROM batches) b WHERE audit_offset - before > 1 ORDER BY 1 DESC LIMIT 1"
        ).fetchone()
        assert row is not None  # a transaction's marker takes an offset
        for step in (-1, +1):
            connection.execute("UPDATE batches SET audit_offset = audit_offset + %s WHERE sequence = %s", (step, *row))
            bad = running.command("audit", "verify", code=3)["first_bad"]
            again = running.command("audit", "verify", "--from", str(row[0]), code=3)["first_bad"]
            connection.execute("UPDATE batches SET audit_offset = audit_offset - %s WHERE sequence = %s", (step, *row))
            assert (bad["sequence"], bad["kind"]) == (row[0], "batch_edited")
            assert again == bad


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ("TRUNCATE decisions, batches, positions", "trail_missing"),
        ("TRUNCATE decisions, batches; UPDATE positions SET shard = NULL, sequence = NULL", "trail_missing"),
        (
            "DELETE FROM decisions WHERE sequence > 3; DELETE FROM batches WHERE sequence > 3; "
            "UPDATE batches SET audit_offset = 1000000 WHERE sequence = 3; UPDATE positions SET sequence = 3",
            "tail_cut",
        ),
    ],
    ids=["all emptied", "position kept", "tail"],
)
def test_a_trail_that_was_emptied_differs_from_the_journal_topic(running: Running, change: str, kind: str) -> None:
    """Nothing in Postgres shows a shard whose tables are empty, or of a tail cut with its position; the journal
    topic does."""
    tables = ("decisions", "batches", "positions")
    with psycopg.connect(running.database, autocommit=True) as connection:
        for table in tables:
            connection.execute(f"CREATE TABLE whole_{table} AS SELECT * FROM {table}")
        try:
            for statement in change.split("; "):
                connection.execute(statement)
            bad = running.command("audit", "verify", code=3)
        finally:
            connection.execute(f"TRUNCATE {', '.join(tables)}")
            for table in tables:
                connection.execute(f"INSERT INTO {table} SELECT * FROM whole_{table}")
                connection.execute(f"DROP TABLE whole_{table}")
    assert kind in {finding["kind"] for finding in bad["findings"]}
    assert running.command("audit", "verify")["verified"]


def test_a_perfect_forgery_differs_from_the_journal_topic(running: Running) -> None:
    """With digest, heads and every later link made again, Postgres agrees with itself; the journal topic does not."""
    with psycopg.connect(running.database) as connection:
        place = connection.execute("SELECT shard, sequence FROM flagged ORDER BY sequence LIMIT 1").fetchone()
    assert place is not None
    tables = ("decisions", "batches", "positions")
    with psycopg.connect(running.database) as connection:
        for table in tables:
            connection.execute(f"CREATE TABLE kept_{table} AS SELECT * FROM {table}")
    forge(running.database, *place, onwards=True)
    assert running.command("audit", "verify", "--no-journal")["verified"]
    bad = running.command("audit", "verify", code=3)["first_bad"]
    assert (bad["shard"], bad["sequence"], bad["kind"]) == (*place, "forged")
    assert "column decision" in bad["detail"]
    with psycopg.connect(running.database) as connection:
        connection.execute(f"TRUNCATE {', '.join(tables)}")
        for table in tables:
            connection.execute(f"INSERT INTO {table} SELECT * FROM kept_{table}")
    assert running.command("audit", "verify")["verified"]


def test_days_are_kept_and_people_forgotten(running: Running, bundle: Path) -> None:
    """keygen, retain and erase by command: without a key nothing leaves; with it the trail still equals the journal."""
    keys = running.folder / "keys"
    with pytest.raises(AssertionError, match="SIGNING_KEY_FILE"):
        running.command("audit", "retain", "--keep", "365d")
    with patch.dict(os.environ), redirect_stdout(io.StringIO()):
        app(["audit", "keygen", "--output", str(keys)], standalone_mode=False)
        with pytest.raises(UsageError, match="kept"):
            app(["audit", "keygen", "--output", str(keys)], standalone_mode=False)
    assert (keys / "audit-signing-key.pem").stat().st_mode & 0o777 == 0o600
    sign = {f"{PREFIX}AUDIT__SIGNING_KEY_FILE": str(keys / "audit-signing-key.pem")}
    kept = running.command("audit", "retain", "--keep", "1d", "--as-of", "2027-01-01", **sign)
    # The day that holds the newest batch stays; batches before the first payment, if there were any, are of no day.
    assert set(kept["days"]) <= {"1970-01-01"}
    erased = running.command("audit", "erase", "--customer", "c_6", **sign)
    assert erased["rows"] > 50
    assert "no person was erased" in running.command("audit", "erase", "--customer", "c_6", code=2, **sign)["error"]
    labelled = running.command("audit", "erase", "--customer", "c_2", **sign)
    assert labelled["labels"] == 3
    assert "Name those" in running.command("audit", "erase", "--account", "t_x", code=2, **sign)["error"]
    misspelt = running.command("audit", "erase", "--account", "t_x", "--list", "bloked", code=2, **sign)
    assert "no change of such a list, but of blocked" in misspelt["error"]
    listed = running.command("audit", "erase", "--account", "t_x", "--list", "blocked", **sign)
    assert listed["elsewhere"] == 1  # a value of a list
    assert "erased" in running.command("audit", "explain", "p_2", code=1)["error"]
    public = {f"{PREFIX}AUDIT__PUBLIC_KEY_FILE": str(keys / "audit-public-key.pem")}
    result = running.command("audit", "verify", **public)
    assert result["verified"]
    assert result["erased_batches"] >= erased["batches"]
    assert result["records_equal_to_topics"] >= 6
    for table, rows in (("labels", 3), ("dead-letters", 2)):
        gone = running.command("audit", "retain", f"--keep-{table}", "1d", "--as-of", "2040-01-01", **sign)
        assert gone[table.replace("-", "_")] == rows
    result = running.command("audit", "verify", **public)
    assert (result["verified"], running.count("labels"), running.count("dead_letters")) == (True, 0, 0)
    with psycopg.connect(running.database, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept_amendments AS SELECT * FROM amendments")
        connection.execute("DELETE FROM amendments")
        kinds = {f["kind"] for f in running.command("audit", "verify", code=3, **public)["findings"]}
        connection.execute("INSERT INTO amendments SELECT * FROM kept_amendments")
    assert kinds >= {"record_deleted", "record_edited"}  # unsigned, so it was not meant
    assert result["heads_equal_to_journal"] == result["batches"]
    assert "PUBLIC_KEY" in running.command("audit", "verify", code=2)["error"]
    with psycopg.connect(running.database) as connection:
        found = connection.execute(
            "SELECT payment_id FROM decisions WHERE payment_id LIKE 'erased-%' AND mode = 'normal' LIMIT 1"
        ).fetchone()
    assert found is not None
    result = running.command("audit", "explain", found[0], "--bundle", str(bundle), "--replay")
    (again,) = result["decisions"]
    assert again["equal"] is True
    assert "erased" in again["notes"][-1]
    assert '"c_6"' not in json.dumps(result)
    assert '"p_' not in json.dumps(result)
