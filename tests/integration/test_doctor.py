"""`fraud-scorer doctor` on real services: a healthy deployment gives no finding, each thing broken on purpose does."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from features.feature_description import describe
from features.feature_set import FeatureSet
from schemas.journal_record import FIRST_PREVIOUS, ControlRange, JournalRecord, Sources
from scorer import kafka
from scorer.demo.demo_processes import own_database
from scorer.kafka.rights import Role, needed
from scorer.local_services import Services
from scorer.operate.doctor import broker_check
from scorer.operate.doctor.diagnosis import Diagnosis, Expected, Finding, Level, Part
from scorer.operate.doctor.examination import examine
from scorer.operate.doctor.process_check import state_bytes
from scorer.operate.setup import setup
from scorer.runtime.settings import Settings
from tests.faults.payments import FEATURES, TOKENS, make_bundle
from tests.integration.running import environment, test_settings, wait_for
from tests.integration.secured import Secured, seen_missing

UNTOUCHED = "0" * 64


class Deployment:
    """Topics, tables and a bundle that are as they should be, and the ways to break them."""

    def __init__(self, services: Services, url: str, bundle: Path) -> None:
        self.settings = test_settings(
            services.kafka.bootstrap_servers, f"test-{secrets.token_hex(4)}-", postgres={"url": url}
        )
        setup(self.settings)
        self.topics = kafka.Topics.of(self.settings.kafka)
        self.client = kafka.admin(self.settings.kafka)
        self.expected = Expected(bundle=str(bundle))
        self.bundle = bundle
        self.journal(self.sources())

    def with_(self, **sections: Mapping[str, object]) -> Settings:
        """The settings with other values in some sections."""
        changed = {name: getattr(self.settings, name).model_copy(update=dict(of)) for name, of in sections.items()}
        return self.settings.model_copy(update=changed)

    def alter(self, topic: str, operation: AlterConfigOpType, values: Mapping[str, str]) -> None:
        """Set or remove a topic's own settings; the broker shows them when this ends."""
        if not values:
            return
        entries = [ConfigEntry(name, value, incremental_operation=operation) for name, value in values.items()]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        self.client.incremental_alter_configs([resource])[resource].result(30)

        def shown() -> bool:
            now = self.client.describe_configs([resource])[resource].result(30)
            if operation is AlterConfigOpType.SET:
                return all(now[name].value == value for name, value in values.items())
            return all(now[name].is_default for name in values)

        wait_for(shown, 60, f"{topic} to have {dict(values)}")

    @contextmanager
    def altered(self, topic: str, **values: str) -> Iterator[None]:
        """A topic with other settings, names written with _ for a dot."""
        given = {name.replace("_", "."): value for name, value in values.items()}
        resource = ConfigResource(ResourceType.TOPIC, topic)
        before = self.client.describe_configs([resource])[resource].result(15)
        own = {name: str(before[name].value) for name in given if not before[name].is_default}
        self.alter(topic, AlterConfigOpType.SET, given)
        try:
            yield
        finally:
            self.alter(topic, AlterConfigOpType.SET, own)
            self.alter(topic, AlterConfigOpType.DELETE, {name: "" for name in given if name not in own})

    @contextmanager
    def without(self, topic: str) -> Iterator[None]:
        """A topic that is gone."""
        self.client.delete_topics([topic])[topic].result(15)
        wait_for(lambda: topic not in self.client.list_topics(timeout=5).topics, 30, "the topic to be gone")
        try:
            yield
        finally:
            setup(self.settings)

    def sources(self) -> Sources:
        facts = kafka.topic_facts(self.client, self.topics.inputs)
        return Sources(**{name: facts[getattr(self.topics, name)].id for name in ("payments", "control", "labels")})

    def journal(self, sources: Sources, key: str | None = None) -> None:
        """One more record of the journal, of the topics that `sources` says."""
        record = JournalRecord(
            shard=0, sequence=0, inputs=(), control=ControlRange(start=0, end=0), stream_time_ms=-1, bundle="b-1",
            decisions=0, dead_letters=0, digest=UNTOUCHED, decided=UNTOUCHED, previous=FIRST_PREVIOUS, sources=sources,
            pseudonym_key=key,
        )  # fmt: skip
        producer = kafka.plain_producer(self.settings.kafka)
        producer.produce(self.topics.journal, record.to_bytes(), partition=0)
        assert producer.flush(30) == 0

    @contextmanager
    def journal_of(self, sources: Sources, key: str | None = None) -> Iterator[None]:
        self.journal(sources, key)
        try:
            yield
        finally:
            self.journal(self.sources())

    @contextmanager
    def sql(self, statement: str, back: str) -> Iterator[None]:
        url = self.settings.postgres.url.get_secret_value()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement)
            try:
                yield
            finally:
                connection.execute(back)


@pytest.fixture(scope="module")
def place(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("doctor")
    make_bundle(folder / "bundle")
    make_bundle(folder / "tokens", features=TOKENS)
    with own_database(services.postgres.url, f"test_{secrets.token_hex(4)}") as url:
        yield Deployment(services, url, folder / "bundle")


Broken = Iterator[tuple[Settings, Expected]]


@contextmanager
def payments_kept_for_an_hour(place: Deployment) -> Broken:
    with place.altered(place.topics.payments, retention_ms="3600000"):
        yield place.settings, place.expected


@contextmanager
def few_bytes_of_payments_kept(place: Deployment) -> Broken:
    with place.altered(place.topics.payments, retention_bytes="1000000"):
        yield place.settings, replace(place.expected, payments=1_000_000)


@contextmanager
def journal_not_kept(place: Deployment) -> Broken:
    with place.altered(place.topics.journal, retention_ms="86400000"):
        yield place.settings, place.expected


@contextmanager
def control_compacted(place: Deployment) -> Broken:
    with place.altered(place.topics.control, cleanup_policy="compact"):
        yield place.settings, place.expected


@contextmanager
def unclean_elections(place: Deployment) -> Broken:
    with place.altered(place.topics.decisions, unclean_leader_election_enable="true"):
        yield place.settings, place.expected


@contextmanager
def order_not_kept(place: Deployment) -> Broken:
    with place.altered(place.topics.order, retention_ms="86400000"):
        yield place.settings, place.expected


@contextmanager
def order_kept_too_short(place: Deployment) -> Broken:
    with place.altered(place.topics.order, retention_bytes="1048576"):
        yield place.settings, place.expected


@contextmanager
def fast_decisions_topic_missing(place: Deployment) -> Broken:
    with place.without(place.topics.decisions_fast):
        yield place.settings, place.expected


@contextmanager
def order_on_one_broker(place: Deployment) -> Broken:
    yield place.with_(worker={"fast_on_one_broker": "refuse"}), place.expected


@contextmanager
def killed_workers_missed_late(place: Deployment) -> Broken:
    yield place.with_(worker={"group_protocol": "consumer"}), place.expected


@contextmanager
def producers_clocks(place: Deployment) -> Broken:
    with place.altered(place.topics.labels, message_timestamp_type="CreateTime"):
        yield place.settings, place.expected


@contextmanager
def small_records(place: Deployment) -> Broken:
    with place.altered(place.topics.audit, max_message_bytes="1024"):
        yield place.settings, place.expected


@contextmanager
def topic_missing(place: Deployment) -> Broken:
    with place.without(place.topics.dead_letters):
        yield place.settings, place.expected


@contextmanager
def too_many_shards(place: Deployment) -> Broken:
    yield place.with_(worker={"shards": 2, "shard_key": ["customer_id"]}), place.expected


@contextmanager
def other_partition_count(place: Deployment) -> Broken:
    yield place.with_(topics={"payments_partitions": 12}), place.expected


@contextmanager
def fewer_in_sync(place: Deployment) -> Broken:
    yield place.with_(topics={"min_insync_replicas": 2}), place.expected


@contextmanager
def session_too_long(place: Deployment) -> Broken:
    yield place.with_(worker={"session_timeout_ms": 7_200_000}), place.expected


@contextmanager
def no_broker(place: Deployment) -> Broken:
    yield place.with_(kafka={"bootstrap_servers": "127.0.0.1:1"}), place.expected


@contextmanager
def journal_of_another_topic(place: Deployment) -> Broken:
    with place.journal_of(place.sources().model_copy(update={"payments": "A1b2C3d4E5f6G7h8I9j0KQ"})):
        yield place.settings, place.expected


@contextmanager
def pseudonym_key_lost(place: Deployment) -> Broken:
    with place.journal_of(place.sources(), key="0123456789abcdef"):
        yield place.settings, place.expected


@contextmanager
def no_postgres(place: Deployment) -> Broken:
    yield (
        place.with_(postgres={"url": SecretStr("postgresql://postgres:hidden-word@127.0.0.1:1/postgres")}),
        place.expected,
    )


@contextmanager
def not_migrated(place: Deployment) -> Broken:
    with place.sql(
        "UPDATE alembic_version SET version_num = '0005'", "UPDATE alembic_version SET version_num = '0007'"
    ):
        yield place.settings, place.expected


@contextmanager
def table_gone(place: Deployment) -> Broken:
    with place.sql("ALTER TABLE amendments RENAME TO kept", "ALTER TABLE kept RENAME TO amendments"):
        yield place.settings, place.expected


@contextmanager
def view_changed(place: Deployment) -> Broken:
    with place.sql("ALTER VIEW outcomes SET (security_invoker = true)", "ALTER VIEW outcomes RESET (security_invoker)"):
        yield place.settings, place.expected


@contextmanager
def writer_may_delete(place: Deployment) -> Broken:
    with place.sql(
        "GRANT DELETE ON decisions TO fraud_scorer_writer", "REVOKE DELETE ON decisions FROM fraud_scorer_writer"
    ):
        yield place.settings, place.expected


@contextmanager
def sink_without_rights(place: Deployment) -> Broken:
    name = f"test_{secrets.token_hex(4)}"
    address = make_conninfo(place.settings.postgres.url.get_secret_value(), user=name, password="test")
    with place.sql(
        f"CREATE ROLE {name} LOGIN PASSWORD 'test' IN ROLE fraud_scorer_reader",
        f"DROP OWNED BY {name}; DROP ROLE {name}",
    ):
        yield place.with_(postgres={"url": SecretStr(address)}), place.expected


@contextmanager
def position_of_another_topic(place: Deployment) -> Broken:
    with place.sql(
        f"INSERT INTO positions (topic, partition, next_offset, topic_id) VALUES "
        f"('{place.topics.audit}', 0, 17, 'A1b2C3d4E5f6G7h8I9j0KQ')",
        "DELETE FROM positions",
    ):
        yield place.settings, place.expected


@contextmanager
def records_set_aside(place: Deployment) -> Broken:
    with place.sql(
        'INSERT INTO set_aside (topic, partition, "offset", kind, reason, masked) '
        "VALUES ('audit', 0, 1, 'unreadable', 'not Arrow', false)",
        "DELETE FROM set_aside",
    ):
        yield place.settings, place.expected


@contextmanager
def card_numbers_refused(place: Deployment) -> Broken:
    with place.sql(
        'INSERT INTO dead_letters (topic, partition, "offset", origin_topic, origin_partition, origin_offset, reason, '
        "field, message, value_bytes, masked, recorded_at) SELECT 'dead-letters', 0, n, 'payments', 0, n, "
        "'card_number', 'card_token', 'a card number', 10, true, now() FROM generate_series(1, 12) n",
        "DELETE FROM dead_letters",
    ):
        yield place.settings, place.expected


@contextmanager
def bundle_changed(place: Deployment) -> Broken:
    copy = place.bundle.with_name("changed")
    shutil.copytree(place.bundle, copy)
    try:
        with (copy / "policy.yaml").open("a") as policy:
            policy.write("# one line more\n")
        yield place.settings, replace(place.expected, bundle=str(copy))
    finally:
        shutil.rmtree(copy)


@contextmanager
def bundle_unsigned(place: Deployment) -> Broken:
    key = "ed25519:" + "A" * 43 + "="
    yield place.with_(bundle={"trusted_keys": [key]}), place.expected


@contextmanager
def token_without_a_key(place: Deployment) -> Broken:
    yield place.settings, replace(place.expected, bundle=str(place.bundle.with_name("tokens")))


@contextmanager
def folder_not_writable(place: Deployment) -> Broken:
    yield place.with_(worker={"log_folder": place.bundle / "policy.yaml" / "log"}), place.expected


@contextmanager
def too_little_memory(place: Deployment) -> Broken:
    yield place.settings, replace(place.expected, payments=10**12)


@contextmanager
def too_many_keys(place: Deployment) -> Broken:
    with (place.bundle / "feature_set.yaml").open() as text:
        keys_max = FeatureSet.from_yaml(text.read()).keys_max
    yield place.settings, replace(place.expected, keys=keys_max + 1)


@contextmanager
def certificate_not_there(place: Deployment) -> Broken:
    there = place.bundle / "no.pem"
    yield place.with_(http={"certificate": there, "key": there}), place.expected


@contextmanager
def activations_not_taken(place: Deployment) -> Broken:
    yield place.with_(bundle={"locations": ["/srv/bundles"]}), place.expected


# What is broken, the part that is named, how bad it is, and a word that says what it is.
BROKEN: list[tuple[Callable[[Deployment], object], str, Level, str]] = [
    (payments_kept_for_an_hour, "topics", Level.ERROR, "longest window is 1 d"),
    (few_bytes_of_payments_kept, "topics", Level.ERROR, "retention.bytes=1000000"),
    (journal_not_kept, "topics", Level.ERROR, "needed from its beginning"),
    (order_not_kept, "topics", Level.ERROR, "order is kept for 1 d"),
    (order_kept_too_short, "topics", Level.ERROR, "retention.bytes=1048576 a partition, and a new owner may need"),
    (fast_decisions_topic_missing, "topics", Level.ERROR, "decisions-fast does not exist"),
    (order_on_one_broker, "topics", Level.ERROR, "a record counts as written when 1 of 1 replicas hold it"),
    (control_compacted, "topics", Level.ERROR, "is compacted"),
    (unclean_elections, "topics", Level.ERROR, "unclean.leader.election.enable"),
    (producers_clocks, "topics", Level.ERROR, "message.timestamp.type=CreateTime"),
    (small_records, "topics", Level.ERROR, "takes records of 1024 bytes"),
    (topic_missing, "topics", Level.ERROR, "dead-letters does not exist"),
    (too_many_shards, "topics", Level.ERROR, "FRAUD_SCORER_WORKER__SHARDS is 2"),
    (other_partition_count, "topics", Level.WARNING, "PAYMENTS_PARTITIONS is 12"),
    (fewer_in_sync, "topics", Level.WARNING, "min.insync.replicas=1"),
    (session_too_long, "brokers", Level.ERROR, "no worker gets into its group"),
    (killed_workers_missed_late, "brokers", Level.WARNING, "group.consumer.session.timeout.ms=45000"),
    (no_broker, "brokers", Level.ERROR, "127.0.0.1:1 does not answer"),
    (journal_of_another_topic, "journal", Level.ERROR, "A1b2C3d4E5f6G7h8I9j0KQ"),
    (pseudonym_key_lost, "keys", Level.ERROR, "0123456789abcdef"),
    (no_postgres, "postgres", Level.ERROR, "refused"),
    (not_migrated, "postgres", Level.ERROR, "at migration 0005"),
    (table_gone, "postgres", Level.ERROR, "table amendments"),
    (view_changed, "postgres", Level.ERROR, "view outcomes"),
    (writer_may_delete, "postgres", Level.ERROR, "may DELETE"),
    (sink_without_rights, "rights", Level.ERROR, "may not write to decisions"),
    (position_of_another_topic, "postgres", Level.ERROR, "was made anew"),
    (records_set_aside, "postgres", Level.WARNING, "1 audit records are set aside (unreadable)"),
    (card_numbers_refused, "cards", Level.WARNING, "12 records were refused"),
    (bundle_changed, "bundle", Level.ERROR, "policy.yaml"),
    (bundle_unsigned, "bundle", Level.ERROR, "sign"),
    (token_without_a_key, "keys", Level.ERROR, "FRAUD_SCORER_CARDS__KEYS_FILE"),
    (folder_not_writable, "disk", Level.ERROR, "cannot be written to"),
    (too_little_memory, "memory", Level.ERROR, "MiB are needed"),
    (too_many_keys, "memory", Level.ERROR, "keys_max"),
    (certificate_not_there, "settings", Level.ERROR, "FRAUD_SCORER_HTTP"),
    (activations_not_taken, "settings", Level.WARNING, "no activation will be taken"),
]


def sentences(found: Diagnosis) -> list[str]:
    return [f"{finding.level}: {finding.part}: {finding.found}" for finding in found.findings]


@pytest.mark.parametrize(("breaks", "part", "level", "word"), BROKEN, ids=[case[0].__name__ for case in BROKEN])
def test_what_is_broken_on_purpose_is_found(
    place: Deployment,
    breaks: Callable[[Deployment], object],
    part: str,
    level: Level,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One thing of a healthy deployment is broken: it is found, named by its part, with what to do, and nothing else is
    reported as broken; no secret is in the report."""
    monkeypatch.setattr(broker_check, "TRAFFIC_S", 0.1)
    with breaks(place) as (settings, expected):  # type: ignore[attr-defined]
        found = examine(settings, expected)
    named = [finding for finding in found.findings if word in finding.found]
    assert named, sentences(found)
    assert {(finding.part, finding.level) for finding in named} == {(part, level)}
    assert all(finding.repair for finding in found.findings)
    also = {"disk", "topics"} if breaks is too_little_memory else set()  # they would not hold so many payments either
    assert [f for f in found.findings if f.part not in {part} | also] == [], sentences(found)
    assert found.good is (level is Level.WARNING)
    assert "hidden-word" not in json.dumps(found.as_json())
    assert sentences(examine(place.settings, replace(place.expected, part=Part.WORKER))) == []  # all is put back


@contextmanager
def traffic(place: Deployment) -> Iterator[None]:
    """A payment every 50 ms."""
    stop, producer = threading.Event(), kafka.plain_producer(place.settings.kafka)

    def send() -> None:
        while not stop.wait(0.05):
            producer.produce(place.topics.payments, b"{}", partition=0)
            producer.poll(0)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        producer.flush(30)


def test_a_healthy_deployment_gives_no_finding(place: Deployment) -> None:
    """The command exits 0 with everything checked, rights and clock among it, and prints one JSON object."""
    arguments = [sys.executable, "-m", "scorer", "doctor", "--bundle", str(place.bundle), "--keys", "100000", "--json"]
    with traffic(place):
        done = subprocess.run(
            arguments, env=environment(place.settings), capture_output=True, text=True, timeout=300, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["good"], result["findings"], result["not_checked"]) == (True, [], {})
    assert {
        "settings", "process", "disk", "memory", "bundle", "keys", "cards", "brokers", "rights", "topics", "clock",
        "journal", "postgres",
    } == set(result["checked"])  # fmt: skip


def test_an_error_is_shown_with_what_to_do_and_exits_1(place: Deployment) -> None:
    """People read a table that names the part, and programs the exit code."""
    settings = place.with_(postgres={"url": SecretStr("postgresql://postgres@127.0.0.1:1/postgres")})
    arguments = [sys.executable, "-m", "scorer", "doctor", "--part", "sink"]
    done = subprocess.run(
        arguments, env=environment(settings), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    assert "postgres" in done.stdout
    assert "start Postgres" in done.stdout
    assert "1 error found" in done.stderr


def test_settings_that_cannot_be_read_are_the_one_finding() -> None:
    """A mistyped setting is reported in the same form, and nothing else is claimed to be checked."""
    done = subprocess.run(
        [sys.executable, "-m", "scorer", "doctor", "--json"],
        env={**environment(test_settings("127.0.0.1:1", "x-")), "FRAUD_SCORER_WORKER__SHARDS": "none"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    result = json.loads(done.stdout.splitlines()[-1])
    (finding,) = result["findings"]
    assert (finding["part"], "FRAUD_SCORER_WORKER__SHARDS" in finding["found"]) == ("settings", True)
    assert result["checked"] == ["settings"]


@pytest.mark.parametrize(("shift_s", "direction"), [(-30.0, "behind"), (30.0, "ahead of")])
def test_a_clock_that_is_wrong_is_found_by_the_records_that_come(
    place: Deployment, shift_s: float, direction: str
) -> None:
    """This machine's clock is 30 s beside the broker's: the direction is named, by the timestamps that the broker gives
    payments."""
    with traffic(place):
        found = examine(
            place.settings, replace(place.expected, part=Part.WORKER), epoch_s=lambda: time.time() + shift_s
        )
    (finding,) = found.findings
    assert (finding.part, finding.level) == ("clock", Level.ERROR)
    assert f"{direction} the broker's" in finding.found
    assert "clock" not in found.not_checked


def test_without_traffic_the_clock_is_reported_as_not_checked(place: Deployment) -> None:
    """What cannot be seen is not claimed to be right."""
    found = examine(place.settings, replace(place.expected, part=Part.WORKER))
    assert found.findings == []
    assert "clock" in found.not_checked
    assert "clock" not in found.checked


def test_missing_rights_are_found(tmp_path: Path, place: Deployment) -> None:
    """Where brokers have an authoriser, each right that the worker lacks is named; with no more than its own list
    neither the worker nor the sink has an error."""
    secured = Secured(tmp_path)
    with secured.broker:
        admin = secured.settings("admin", "doctor-")
        setup(admin, postgres=False)
        worker = secured.settings("worker", "doctor-")
        grants = needed(worker, Role.WORKER)
        secured.grant("User:worker", [acl for acl in grants if acl.resource != "group"])
        others = {acl.resource for acl in grants if acl.resource != "group"}

        def others_are_granted() -> bool:
            lacking = seen_missing(worker, Role.WORKER)
            return lacking is not None and others.isdisjoint(acl.resource for acl in lacking)

        wait_for(others_are_granted, 60, "the grants")
        found = examine(worker, Expected(part=Part.WORKER))
        (lacking,) = [finding for finding in found.findings if finding.part == "rights"]
        assert "Read on group doctor-journal-workers" in lacking.found
        secured.grant("User:worker", [acl for acl in grants if acl.resource == "group"])
        wait_for(lambda: seen_missing(worker, Role.WORKER) == [], 60, "the rest of the grants")
        assert sentences(examine(worker, Expected(part=Part.WORKER))) == []
        url = place.settings.postgres.url.get_secret_value()
        sink = secured.settings("sink", "doctor-", postgres={"url": url})
        secured.grant("User:sink", needed(sink, Role.SINK))
        wait_for(lambda: seen_missing(sink, Role.SINK) == [], 60, "the sink's grants")
        # The sink may not see the topics' settings: what they are is not guessed.
        two = sink.topics.model_copy(update={"min_insync_replicas": 2})
        unseen = examine(sink.model_copy(update={"topics": two}), Expected(part=Part.SINK))
        assert sentences(unseen) == []
        assert "settings of topic doctor-audit" in unseen.not_checked
        assert sentences(examine(sink, Expected(part=Part.SINK))) == []


def test_memory_is_estimated_as_features_explain_does() -> None:
    """Keys are shared out evenly among the entities, and each payment in the longest window has its row."""
    feature_set = FeatureSet.from_yaml(FEATURES)
    cost = describe(feature_set)
    keys, rows = state_bytes(feature_set, 100, 1_000)
    assert keys == 50 * sum(cost.bytes_per_key.values())  # two entities
    assert rows == 1_000 * cost.bytes_per_payment


def test_findings_are_comparable_and_reported_once() -> None:
    """The same thing found by two checks is one finding."""
    found = Diagnosis()
    found.error("topics", "a", "b")
    found.error("topics", "a", "b")
    assert found.findings == [Finding("topics", Level.ERROR, "a", "b")]
