"""Kafka with an authoriser: SASL, mTLS and OAUTHBEARER pass through; least privilege is enough, and less is named."""

from __future__ import annotations

import json
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import KafkaException
from pydantic import SecretStr

from scorer import kafka
from scorer.errors import UsageError
from scorer.kafka.rights import Acl, AclMissing, Role, check, missing, needed
from scorer.local_services import Services
from scorer.operate.dead_letters import Filter, redrive
from scorer.operate.setup import create_topics
from scorer.runtime.settings import PREFIX, Settings, load
from scorer.runtime.settings_listing import described
from scorer.sink import AuditSink
from scorer.trail import audit_database
from tests.faults.nursery import Nursery
from tests.faults.payments import make_bundle, payments
from tests.integration.running import TopicReader, environment, is_ready, wait_for
from tests.integration.secured import USERS, Secured, sasl, seen_missing
from tests.ports import free_ports


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    made = Secured(tmp_path_factory.mktemp("secured"))
    with made.broker:
        yield made


@pytest.fixture
def prefix(secured: Secured) -> Iterator[str]:
    """Topics of the test's own, made by the role that does so with its least privileges."""
    name = f"test-{secrets.token_hex(4)}-"
    settings = secured.settings("setup", name)
    secured.grant("User:setup", needed(settings, Role.SETUP))
    wait_for(partial(_made, settings), 60, "the grants")
    yield name
    for user in USERS:
        secured.revoke(f"User:{user}")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "faults")


def test_least_privilege_is_enough_for_every_role(
    secured: Secured, prefix: str, bundle: Path, services: Services, database: str, tmp_path: Path
) -> None:
    """With no more than its listed ACLs the payment system sends and reads decisions, the worker decides, the sink
    writes, a reader reads, and a redrive puts a dead letter back."""
    by_role = {role: secured.settings(role.value, prefix) for role in Role}
    for role, settings in by_role.items():
        secured.grant(f"User:{role.value}", needed(settings, role))
        wait_for(partial(_complete, settings, role), 60, f"the grants of {role.value}")
    # A consumer of one's own needs its own group's name.
    for user in ("payments", "reader"):
        secured.grant(f"User:{user}", [Acl("group", "test-reader", ("Read",))])
    topics = kafka.Topics.of(by_role[Role.WORKER].kafka)
    given = payments(1, 300)
    producer = kafka.plain_producer(by_role[Role.PAYMENTS].kafka)
    for key, value in given:
        producer.produce(topics.payments, value, key=key)
    assert producer.flush(30) == 0
    # Who sends payments or labels may change no list and choose no bundle, nor send the other of the two.
    for role, own in ((Role.PAYMENTS, topics.payments), (Role.LABELS, topics.labels), (Role.OPERATOR, topics.control)):
        for topic in {*topics.inputs} - {own}:
            assert _is_refused(by_role[role], topic), (role, topic)
    decisions = TopicReader(by_role[Role.PAYMENTS], topics.decisions)
    letters = TopicReader(by_role[Role.READER], topics.dead_letters)
    secret = tmp_path / "password"
    secret.write_text("worker-secret\n")
    log = tmp_path / "worker.log"
    log.touch()
    with Nursery(bundle) as nursery:
        port = 0
        child = nursery.start(
            environment(
                by_role[Role.WORKER],
                **{
                    f"{PREFIX}KAFKA__SECURITY": _json(sasl("worker")),
                    f"{PREFIX}KAFKA__SASL_PASSWORD_FILE": str(secret),  # the password is in no environment
                    f"{PREFIX}HTTP__WORKER_PORT": "0",
                },
            ),
            port,
            log,
        )
        try:
            wait_for(lambda: child.poll() is not None or _settled(decisions, letters) >= len(given), 60, "decisions")
            assert child.poll() is None, child.log_end()
        finally:
            child.signal(signal.SIGTERM)
        assert child.wait(30) == 0, child.log_end()
    assert "secret" not in log.read_text()
    assert _settled(decisions, letters) == len(given)
    assert redrive(by_role[Role.REDRIVE], Filter(), dry_run=False, limit=1).sent == 1
    decisions.close()
    letters.close()

    audit_database.migrate(database)
    stop = threading.Event()
    sink = AuditSink(secured.settings(Role.SINK.value, prefix, postgres={"url": database}))
    thread = threading.Thread(target=sink.run, args=(stop,))
    thread.start()
    try:
        wait_for(lambda: _rows(database) == len(decisions.messages), 30, "the audit rows")
    finally:
        stop.set()
        thread.join(30)


def _settled(decisions: TopicReader, letters: TopicReader) -> int:
    """Payments decided or refused so far; a refusal that names its payment is answered beside its dead letter."""
    decisions.fill()
    return sum(decided["mode"] != "refused" for decided in decisions.json()) + letters.fill()


def _is_refused(settings: Settings, topic: str) -> bool:
    """Whether a record for that topic is."""
    errors: list[object] = []
    producer = kafka.plain_producer(settings.kafka)
    try:
        producer.produce(topic, b"", on_delivery=lambda error, _: errors.append(error))
    except KafkaException as exc:
        errors.append(exc.args[0])
    producer.flush(15)
    return errors[0] is not None


@pytest.mark.parametrize("role", list(Role))
def test_less_gives_a_message_that_names_the_missing_acl(secured: Secured, prefix: str, role: Role) -> None:
    """Whichever grant of a role is missing, the message names just that one, and the command that grants it."""
    user = f"User:{role.value}"
    settings = secured.settings(role.value, prefix)
    wanted = [
        replace(acl, operations=(operation,))
        for acl in needed(settings, role)
        for operation in acl.operations
        if acl.resource != "transactional-id"
    ]
    for without in wanted:
        secured.revoke(user)
        secured.grant(user, [acl for acl in wanted if acl != without])
        wait_for(partial(_lacks, settings, role, without), 60, f"{without} to be missing")
        with pytest.raises(AclMissing) as caught:
            check(settings, role)
        assert f"on {without.resource} {without.name}" in str(caught.value)
        assert without.operations[0] in str(caught.value)
        assert f"kafka-acls.sh --add --allow-principal '{user}' --operation" in str(caught.value)


def test_a_worker_without_its_transactional_id_says_so(
    secured: Secured, prefix: str, bundle: Path, tmp_path: Path
) -> None:
    """The one thing that a broker cannot be asked about is named when it is refused, and the worker goes on by itself
    once it is granted."""
    settings = secured.settings("worker", prefix)
    grants = needed(settings, Role.WORKER)
    secured.grant("User:worker", [acl for acl in grants if acl.resource != "transactional-id"])
    log = tmp_path / "worker.log"
    log.touch()
    with Nursery(bundle) as nursery:
        (port,) = free_ports(1)
        child = nursery.start(
            environment(
                settings,
                **{
                    f"{PREFIX}KAFKA__SECURITY": _json(sasl("worker")),
                    f"{PREFIX}KAFKA__SASL_PASSWORD": "worker-secret",
                    f"{PREFIX}HTTP__WORKER_PORT": str(port),
                },
            ),
            port,
            log,
        )
        wait_for(lambda: f"Write on transactional-id {prefix}journal-shard-0" in log.read_text(), 30, "the message")
        assert not is_ready(port)
        secured.grant("User:worker", grants)
        wait_for(lambda: is_ready(port), 40, "the worker to go on")
        child.signal(signal.SIGTERM)
        assert child.wait(30) == 0, child.log_end()


def test_mutual_tls_passes_through(secured: Secured, prefix: str) -> None:
    """With a client certificate and an encrypted key whose password comes from a file, the certificate's name is the
    principal; without a certificate the broker does not answer."""
    certificate, key = secured.authority.issue("payment-system", password="key-secret")
    tls = {
        "security.protocol": "SSL",
        "ssl.ca.location": str(secured.authority.certificate),
        "ssl.certificate.location": str(certificate),
        "ssl.key.location": str(key),
    }
    settings = load(
        kafka={
            "bootstrap_servers": secured.broker.proxied_servers,
            "topic_prefix": prefix,
            "security": tls,
            "ssl_key_password": "key-secret",
        }
    )
    assert len(missing(settings, Role.PAYMENTS)) == 3
    secured.grant("User:CN=payment-system", needed(settings, Role.PAYMENTS))
    wait_for(partial(_complete, settings, Role.PAYMENTS), 60, "the grants")
    producer = kafka.plain_producer(settings.kafka)
    producer.produce(kafka.Topics.of(settings.kafka).payments, b"x")
    assert producer.flush(15) == 0
    without = {name: SecretStr(tls[name]) for name in ("security.protocol", "ssl.ca.location")}
    bare = settings.kafka.model_copy(update={"security": without, "ssl_key_password": None})
    with pytest.raises(KafkaException):
        kafka.admin(bare).list_topics(timeout=3)


def test_oauthbearer_passes_through(secured: Secured, prefix: str) -> None:
    """A token's subject is the principal."""
    settings = load(
        kafka={
            "bootstrap_servers": secured.broker.bootstrap_servers,
            "topic_prefix": prefix,
            "security": {
                "security.protocol": "SASL_PLAINTEXT",
                "sasl.mechanism": "OAUTHBEARER",
                "enable.sasl.oauthbearer.unsecure.jwt": "true",
                "sasl.oauthbearer.config": "principal=reader",
            },
        }
    )
    assert missing(settings, Role.READER) != []
    secured.grant("User:reader", needed(settings, Role.READER))
    wait_for(partial(_complete, settings, Role.READER), 60, "the grants")


def test_secrets_are_not_shown_and_other_settings_do_not_pass() -> None:
    """`fraud-scorer settings` hides every secret, and what is no security setting cannot ride along."""
    settings = load(
        kafka={
            "security": {"sasl.oauthbearer.client.secret": "inline-s", "ssl.key.pem": "pem-s", "sasl.username": "u"},
            "sasl_password": "password-s",
            "ssl_key_password": "key-s",
            "oauth_client_secret": "oauth-s",
        }
    )
    shown = " ".join(value for _, value, _, _ in described(settings))
    assert not re.search(r"(inline|pem|password|key|oauth)-s\b", shown)
    config = kafka.client_config(settings.kafka)
    assert config["sasl.oauthbearer.client.secret"] == "oauth-s"
    assert (config["sasl.password"], config["ssl.key.password"]) == ("password-s", "key-s")
    with pytest.raises(UsageError, match=r"enable\.idempotence is no security setting"):
        load(kafka={"security": {"enable.idempotence": "false"}})


def test_the_documentation_lists_what_each_role_needs() -> None:
    """deploy/kafka/ACL.md and the code say the same."""
    text = Path("deploy/kafka/ACL.md").read_text()
    settings = load(kafka={"topic_prefix": ""})
    for role in Role:
        section = text.split(f"## {role.value}\n", 1)[1].split("\n## ", 1)[0]
        listed = re.findall(r"^- (.+)$", section, re.MULTILINE)
        assert listed == [str(acl) for acl in needed(settings, role)], role


def test_the_command_prints_what_an_operator_runs() -> None:
    """`fraud-scorer acls worker` gives kafka-acls.sh lines."""
    done = subprocess.run(
        [sys.executable, "-m", "scorer", "acls", "worker", "--principal", "User:w"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (
        "kafka-acls.sh --add --allow-principal 'User:w' --operation Read --operation DescribeConfigs --topic 'payments'"
        in done.stdout
    )


def _lacks(settings: Settings, role: Role, acl: Acl) -> bool:
    """Just this one, though without Describe the broker tells nothing else of its resource either."""
    found = seen_missing(settings, role)
    return found is not None and [f.name for f in found] == [acl.name] and acl.operations[0] in found[0].operations


def _complete(settings: Settings, role: Role) -> bool:
    return seen_missing(settings, role) == []


def _made(settings: Settings) -> bool:
    """A grant is seen by the broker a moment after it is made."""
    try:
        create_topics(settings)
    except kafka.KafkaFailure:
        return False
    return True


def _json(security: dict[str, str]) -> str:
    return json.dumps(security)


def _rows(url: str) -> int:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT count(*) FROM decisions").fetchone()
        return int(found[0]) if found else 0
