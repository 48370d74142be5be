"""What each role needs of Kafka's authoriser, and what the broker says is missing: an error that names the ACL.

A role's list is data: `deploy/kafka/ACL.md` shows it, `fraud-scorer acls` prints it as commands, `missing` compares it
with what the broker allows this client. Kafka's own error says only that something was refused, and often not where.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AclOperation, AdminClient

from scorer.kafka.admin_answers import answer_of
from scorer.kafka.clients import admin, transactional_id
from scorer.kafka.failures import TRANSIENT, Away, KafkaFailure, describe
from scorer.kafka.topics import Topics, workers_group
from scorer.runtime.settings import Settings

TIMEOUT_S: Final = 15.0
_NO_COORDINATOR: Final = frozenset(
    {KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.COORDINATOR_LOAD_IN_PROGRESS}
)


class Role(StrEnum):
    """Who talks to Kafka."""

    WORKER = "worker"
    SINK = "sink"
    READER = "reader"  # the console, replay, dead-letters list
    REDRIVE = "redrive"  # dead-letters redrive
    PAYMENTS = "payments"  # a payment system: sends payments, reads decisions
    LABELS = "labels"  # sends labels: chargebacks, analysts' verdicts
    OPERATOR = "operator"  # sends activations and changes of lists
    SETUP = "setup"


@dataclass(frozen=True)
class Acl:
    """One grant. Read and Write imply Describe. `prefixed`: for every name that begins so."""

    resource: str  # topic, group, transactional-id or cluster
    name: str
    operations: tuple[str, ...]
    prefixed: bool = False

    def __str__(self) -> str:
        return f"{' and '.join(self.operations)} on {self.resource} {self.name}{'*' if self.prefixed else ''}"

    def command(self, principal: str) -> str:
        """The kafka-acls.sh call that grants it."""
        operations = "".join(f" --operation {operation}" for operation in self.operations)
        target = "--cluster" if self.resource == "cluster" else f"--{self.resource} '{self.name}'"
        pattern = " --resource-pattern-type prefixed" if self.prefixed else ""
        return f"kafka-acls.sh --add --allow-principal '{principal}'{operations} {target}{pattern}"


def needed(settings: Settings, role: Role) -> list[Acl]:
    """The least that `role` needs, by the names in `settings`."""
    topics = Topics.of(settings.kafka)
    prefix = settings.kafka.topic_prefix
    application = f"{prefix}{settings.worker.application}"
    # Only the worker's member joins a group, yet the client looks up the coordinator of every consumer's group.
    named = Acl("group", f"{prefix}fraud-scorer-", ("Describe",), prefixed=True)
    every = topics.all

    def read(*names: str) -> list[Acl]:
        return [Acl("topic", name, ("Read",)) for name in names]

    def write(*names: str) -> list[Acl]:
        return [Acl("topic", name, ("Write",)) for name in names]

    match role:
        case Role.WORKER:
            return [
                *(Acl("topic", name, ("Read", "DescribeConfigs")) for name in topics.inputs),
                *(
                    Acl("topic", name, ("Read", "Write", "DescribeConfigs"))
                    for name in (topics.journal, topics.order, topics.decisions_fast)
                ),
                *(
                    Acl("topic", name, ("Write", "DescribeConfigs"))
                    for name in (topics.decisions, topics.audit, topics.dead_letters)
                ),
                Acl("group", workers_group(topics), ("Read",)),
                # Its readers' names, and the group that releases before 0.2 joined.
                Acl("group", application, ("Describe",), prefixed=True),
                *([] if named.name.startswith(application) else [named]),
                Acl("transactional-id", transactional_id(settings, "shard-"), ("Write",), prefixed=True),
            ]
        case Role.SINK:
            return [
                *read(topics.audit, topics.control, topics.labels, topics.dead_letters, topics.journal),
                Acl("group", f"{topics.audit}-sink", ("Read",)),
                Acl("group", "fraud-scorer-sink", ("Describe",)),
            ]
        case Role.READER:
            return [*read(*every), named]
        case Role.REDRIVE:
            return [
                Acl("topic", topics.dead_letters, ("Read", "Write")),
                *write(*topics.inputs),
                named,
                Acl("transactional-id", transactional_id(settings, "redrive"), ("Write",)),
            ]
        case Role.PAYMENTS:
            return [*write(topics.payments), *read(topics.decisions, topics.decisions_fast)]
        case Role.LABELS:
            return write(topics.labels)
        case Role.OPERATOR:
            return write(topics.control)
        case Role.SETUP:
            return [Acl("topic", name, ("Create", "Describe", "DescribeConfigs")) for name in every]


class AclMissing(KafkaFailure):
    """The broker's authoriser does not allow what this role must do."""


def check(settings: Settings, role: Role) -> None:
    """Raise AclMissing naming every missing grant. Says nothing where the broker has no authoriser, or cannot tell."""
    lacking = missing(settings, role)
    if lacking:
        raise AclMissing(refusal(settings, role, lacking))


def refusal(settings: Settings, role: Role, lacking: Iterable[Acl]) -> str:
    """One line for people: what is missing, and the command that grants it."""
    user = settings.kafka.security.get("sasl.username")
    principal = f"User:{user.get_secret_value()}" if user else "User:…"
    grants = list(lacking)
    return (
        f"Kafka's ACLs do not let {principal} be the {role.value}: missing {', '.join(map(str, grants))}. "
        f"Grant with: {'; '.join(acl.command(principal) for acl in grants)}"
    )


def lacking(settings: Settings, role: Role) -> str:
    """What to tell people now: as `refusal`, empty when nothing is missing or the broker does not say."""
    try:
        found = missing(settings, role)
    except (KafkaFailure, KafkaException):
        return ""
    return refusal(settings, role, found) if found else ""


def missing(settings: Settings, role: Role) -> list[Acl]:
    """What `role` needs and the broker does not allow. Transactional ids cannot be asked about."""
    client = admin(settings.kafka)
    lacking = []
    wanted = needed(settings, role)
    allowed = {**_topics(client, wanted), **_groups(client, wanted)}
    for acl in wanted:
        operations = allowed.get((acl.resource, acl.name))
        if operations is None:
            continue
        without = tuple(name for name in acl.operations if name not in operations)
        if without:
            lacking.append(Acl(acl.resource, acl.name, without, acl.prefixed))
    return lacking


def _topics(client: AdminClient, wanted: Iterable[Acl]) -> dict[tuple[str, str], set[str]]:
    names = [acl.name for acl in wanted if acl.resource == "topic"]
    if not names:
        return {}
    futures = client.describe_topics(
        TopicCollection(names), include_authorized_operations=True, request_timeout=TIMEOUT_S
    )
    return {("topic", name): found for name, found in _results(futures, KafkaError.TOPIC_AUTHORIZATION_FAILED)}


def _groups(client: AdminClient, wanted: Iterable[Acl]) -> dict[tuple[str, str], set[str]]:
    names = [acl.name for acl in wanted if acl.resource == "group"]
    if not names:
        return {}
    futures = client.describe_consumer_groups(names, include_authorized_operations=True, request_timeout=TIMEOUT_S)
    return {("group", name): found for name, found in _results(futures, KafkaError.GROUP_AUTHORIZATION_FAILED)}


def _results(futures: dict[str, Any], denied: int) -> Iterator[tuple[str, set[str]]]:
    for name, future in futures.items():
        try:
            operations = answer_of(future, TIMEOUT_S).authorized_operations
        except KafkaException as exc:
            if exc.args[0].code() in _NO_COORDINATOR:
                continue  # a broker that has just started, or a group that is not there yet: joining waits for it
            if exc.args[0].code() in TRANSIENT:
                raise Away(f"Kafka does not answer: {describe(exc)}") from exc
            if exc.args[0].code() == denied:
                yield name, set()  # not even Describe
            continue  # not there, or a broker that cannot say: others will
        if operations is not None:
            yield name, {_NAMES[operation] for operation in operations if operation in _NAMES}


_NAMES = {
    AclOperation.READ: "Read",
    AclOperation.WRITE: "Write",
    AclOperation.CREATE: "Create",
    AclOperation.DESCRIBE: "Describe",
    AclOperation.DESCRIBE_CONFIGS: "DescribeConfigs",
}
