"""FAULTS.md, row 13: a right that is taken away while payments flow, and credentials that expire."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import ScramCredentialInfo, ScramMechanism, UserScramCredentialDeletion
from confluent_kafka.admin import UserScramCredentialUpsertion as Upsertion

from scorer.kafka.rights import Acl, Role, needed
from scorer.runtime.settings import PREFIX
from tests.faults.nursery import Nursery
from tests.faults.payments import payments
from tests.faults.run import Application
from tests.faults.test_rows import decided, stream
from tests.integration.running import is_ready
from tests.integration.secured import Secured, sasl

USER = "User:worker"
# Every connection logs in again within so many ms: expired credentials are noticed then.
LOGIN_MS = 2_000
# What is taken away: rights on a resource. All of them:
# FAULT_RIGHTS=decisions,decisions-fast,order,payments,group,journal,transactional-id
RIGHTS = {
    "decisions": ("topic", "decisions"),
    "decisions-fast": ("topic", "decisions-fast"),
    "order": ("topic", "order"),
    "payments": ("topic", "payments"),
    "group": ("group", "journal-workers"),
    "journal": ("topic", "journal"),
    "transactional-id": ("transactional-id", "journal-shard-"),
    "readers": ("group", "fraud-scorer"),  # met by readers that are made meanwhile alone
}
TAKEN = os.environ.get("FAULT_RIGHTS", "decisions,decisions-fast,order,group").split(",")
Make = Callable[..., Application]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    made = Secured(
        tmp_path_factory.mktemp("secured"),
        {
            "listener.name.direct.connections.max.reauth.ms": str(LOGIN_MS),
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256",
            "listener.name.direct.scram-sha-256.sasl.jaas.config": scram,
        },
    )
    with made.broker:
        yield made


@pytest.fixture
def application(secured: Secured, nursery: Nursery, bundle: Path, tmp_path: Path) -> Iterator[Make]:
    """Makes applications whose workers log in as the worker, with what is granted to it and no more."""
    made: list[Application] = []

    def make(security: dict[str, str], **settings: object) -> Application:
        app = Application(
            secured.broker, nursery, tmp_path, bundle,
            login={"security": sasl("admin"), "sasl_password": "admin-secret"},
            workers_environment={
                f"{PREFIX}KAFKA__BOOTSTRAP_SERVERS": secured.broker.bootstrap_servers,
                f"{PREFIX}KAFKA__SECURITY": json.dumps(security),
                f"{PREFIX}KAFKA__SASL_PASSWORD": "worker-secret",
            },
            standby_shards_max=0,
            **settings,
        )  # fmt: skip
        made.append(app)
        secured.grant(USER, needed(app.settings, Role.WORKER))
        return app

    yield make
    try:
        for app in made:
            app.check_answers()
    finally:
        for app in made:
            app.close()
        secured.revoke(USER)


def without(app: Application, taken: str) -> list[Acl]:
    kind, name = RIGHTS[taken]
    name = app.settings.kafka.topic_prefix + name
    return [acl for acl in needed(app.settings, Role.WORKER) if (acl.resource, acl.name) != (kind, name)]


def test_row_13_rights_that_are_taken_away_are_waited_for(application: Make, secured: Secured) -> None:
    """Whichever right goes, the worker names what is missing, is not ready and does not end; given back, it goes on by
    itself. In the end the outcome is equal."""
    app = application(sasl("worker"))
    worker = app.start("a")
    app.ready("a")
    given = payments(51, 400)
    for taken in TAKEN:
        name = RIGHTS[taken][1]
        before = worker.log.stat().st_size
        secured.revoke(USER)
        secured.grant(USER, without(app, taken))
        stream(app, given[:40], rate=50)
        app.wait(lambda: name in _missing(worker.log.read_text(), before), 90, f"the missing {taken} to be named")  # noqa: B023
        app.wait(lambda: not is_ready(worker.port), 60, f"the worker without {taken} to report that it is not ready")
        secured.grant(USER, needed(app.settings, Role.WORKER))
        app.pay(given[40:80])
        del given[:80]
        decided(app, len(app.sent))
        assert worker.poll() is None, worker.log_end()
        app.wait(lambda: is_ready(worker.port), 60, "the worker to be ready again")
    app.finish(supervised=False)
    app.check()


def _missing(log: str, start: int) -> str:
    return "\n".join(line for line in log[start:].splitlines() if "missing" in line)


def test_row_13_a_right_on_the_readers_groups_is_waited_for(application: Make, secured: Secured) -> None:
    """Who takes a shard over without being allowed to describe its readers' groups names that right and waits for it;
    given, it goes on by itself."""
    app = application(sasl("worker"))
    owner = app.start("a")
    app.ready("a")
    stream(app, payments(55, 100))
    decided(app, 100)
    next_owner = app.start("b")
    app.wait(lambda: "shard.assigned" in owner.log.read_text(), 90, "the first worker to own the shard")
    app.ready("b")
    secured.revoke(USER)
    secured.grant(USER, without(app, "readers"))
    owner.signal(signal.SIGTERM)
    assert owner.wait(60) == 0, owner.log_end()
    name = app.settings.kafka.topic_prefix + RIGHTS["readers"][1]
    app.wait(lambda: f"Describe on group {name}" in next_owner.log.read_text(), 90, "the missing right to be named")
    assert next_owner.poll() is None, next_owner.log_end()
    secured.grant(USER, needed(app.settings, Role.WORKER))
    app.pay(payments(56, 40))
    decided(app, 140)
    assert next_owner.poll() is None, next_owner.log_end()
    app.finish(supervised=False)
    app.check()


def test_row_13_a_right_that_stays_away_ends_the_worker(application: Make, secured: Secured) -> None:
    """After its bound the worker ends with 1; its last word names what is missing and the command that grants it."""
    app = application(sasl("worker"), denied_s=3.0)
    worker = app.start("a")
    app.ready("a")
    stream(app, payments(52, 100))
    decided(app, 100)
    secured.revoke(USER)
    secured.grant(USER, without(app, "decisions"))
    app.pay(payments(53, 10))
    assert worker.wait(60) == 1, worker.log_end()
    last = worker.log_end().splitlines()[-1]
    assert f"missing Write and DescribeConfigs on topic {app.topics.decisions}" in last
    assert "kafka-acls.sh --add" in last
    assert "Waited 3 s" in last


def test_row_13_credentials_that_expire_and_are_renewed(application: Make, secured: Secured) -> None:
    """No longer let in, the worker logs it, waits and is not ready; with its credentials renewed it goes on by itself,
    and the outcome is equal."""
    credentials = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)

    def alter(change: object) -> None:
        for future in secured.admin.alter_user_scram_credentials([change]).values():
            future.result(15)

    alter(Upsertion("worker", credentials, b"worker-secret"))
    app = application(sasl("worker") | {"sasl.mechanism": "SCRAM-SHA-256"})
    worker = app.start("a")
    app.ready("a")
    given = payments(54, 500)
    stream(app, given[:200])
    decided(app, 150)
    alter(UserScramCredentialDeletion("worker", ScramMechanism.SCRAM_SHA_256))
    app.wait(lambda: "kafka.login_refused" in worker.log_end(), 90, "the refusal to be logged")
    app.pay(given[200:300])
    app.wait(lambda: not is_ready(worker.port), 60, "the worker to report that it is not ready")
    alter(Upsertion("worker", credentials, b"worker-secret"))
    stream(app, given[300:])
    decided(app, 500)
    assert worker.poll() is None, worker.log_end()
    app.finish(supervised=False)
    app.check()
