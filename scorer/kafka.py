"""Kafka client settings, topic names and errors, in one place:
every trap of the client that is met by a setting is met here.

KafkaFailure            the broker or the client failed
├── Fenced              another owner has taken the shard: this process must stop deciding for it
└── Rebuild             the transaction's fate is unknown or it was aborted: drop producer and state,
    │                   rebuild from the journal
    ├── Away            the broker does not answer, or has just come back: the same later
    └── Denied          its authoriser refuses: the same once the right is there, within a bound
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from scorer.errors import FraudScorerError, UsageError
from scorer.runtime.settings import KafkaSettings, Settings

log = structlog.get_logger()

METADATA_TIMEOUT_S = 15.0
QUIET_S = 5.0

_Part = TypeVar("_Part")
_Client = TypeVar("_Client")


class KafkaFailure(FraudScorerError):
    """The broker or the client failed in a way that retrying here does not mend."""


class Fenced(KafkaFailure):
    """A newer owner of the shard exists. The only safe act is to stop."""


class Rebuild(KafkaFailure):
    """Nothing is known of the last transaction. librdkafka lacks KIP-890,
    so neither producer nor state may be used again."""


class Away(Rebuild):
    """The broker does not answer now. A shard rebuilds when it does; a command says so and ends."""


class Denied(Rebuild):
    """Kafka's authoriser refuses. Rights go by mistake and are given back: a shard waits for that, within a bound."""


# A broker that restarts gives these for seconds: its leaders are being elected, or the client's epochs are old.
TRANSIENT = {
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.BROKER_NOT_AVAILABLE,
}
TRANSIENT_RETRY_S = 0.2
DENIED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
}


@dataclass(frozen=True)
class Topics:
    """Names of the topics, with the prefix."""

    payments: str
    decisions: str
    audit: str
    journal: str
    control: str
    dead_letters: str

    @classmethod
    def of(cls, settings: KafkaSettings) -> Topics:
        prefix = settings.topic_prefix
        return cls(
            *(prefix + name for name in ("payments", "decisions", "audit", "journal", "control", "dead-letters"))
        )

    @property
    def all(self) -> tuple[str, ...]:
        """Every topic of the live engine."""
        return self.payments, self.decisions, self.audit, self.journal, self.control, self.dead_letters


def client_config(settings: KafkaSettings) -> dict[str, Any]:
    """What every client shares."""
    config: dict[str, Any] = {
        "bootstrap.servers": settings.bootstrap_servers,
        "client.id": settings.client_id,
        **settings.security,
        "error_cb": _on_error,
        "log_level": 2,  # errors come through error_cb, once and structured
        "socket.keepalive.enable": True,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 2_000,
    }
    if settings.client_rack is not None:
        config["client.rack"] = settings.client_rack
    if settings.sasl_password is not None:
        config["sasl.password"] = settings.sasl_password.get_secret_value()
    if settings.ssl_key_password is not None:
        config["ssl.key.password"] = settings.ssl_key_password.get_secret_value()
    if settings.oauth_client_secret is not None:
        config["sasl.oauthbearer.client.secret"] = settings.oauth_client_secret.get_secret_value()
    return config


# By error code: when it was logged last, and how many have come since that were not.
_said: dict[int, tuple[float, int]] = {}


def _unsaid(code: int, *, always: bool = False) -> int | None:
    """How many errors of this code went unsaid since the last one that was logged; None when this one does, too (never
    with `always`): every client has them, up to 70 times a second."""
    said_at, unsaid = _said.get(code, (float("-inf"), 0))
    if time.monotonic() - said_at < QUIET_S and not always:
        _said[code] = said_at, unsaid + 1
        return None
    _said[code] = time.monotonic(), 0
    return unsaid


def _on_error(error: KafkaError) -> None:
    # Transport errors heal by themselves; they must be seen, not acted upon. Fatal ones also come out of the next call.
    if error.code() in (KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED):
        if _unsaid(KafkaError._AUTHENTICATION) is not None:
            log.error(
                "kafka.login_refused", reason=error.str(), mend="renew the credentials; a new secret is read at start"
            )
        return
    unsaid = _unsaid(error.code(), always=error.fatal())
    if unsaid is not None:
        log.warning("kafka.client_error", code=error.name(), fatal=error.fatal(), unsaid=unsaid)


def _made(kind: Callable[[dict[str, Any]], _Client], config: dict[str, Any]) -> _Client:
    """A client. Raises UsageError for a setting that librdkafka refuses, in its words, which name it."""
    try:
        return kind(config)
    except KafkaException as exc:
        raise UsageError(f"{describe(exc)}; FRAUD_SCORER_KAFKA__SECURITY holds librdkafka's settings") from exc


def reader(
    settings: KafkaSettings,
    *,
    group: str,
    fetch_wait_ms: int = 5,
    memory_kib: int = 32_768,
    committed: bool = True,
    **overrides: Any,
) -> Consumer:
    """A consumer for manual assignment: it joins no group and commits nothing.
    `group` is a name for the broker's logs and quotas."""
    return _made(
        Consumer,
        {
            **client_config(settings),
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "isolation.level": "read_committed" if committed else "read_uncommitted",
            # A position outside the log is an error with a name, never a silent jump over payments.
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": fetch_wait_ms,
            # 64 MiB a partition by default: too much to promise bounded memory.
            "queued.max.messages.kbytes": memory_kib,
            "fetch.message.max.bytes": 1_048_576,
            "check.crcs": True,
            **overrides,
        },
    )


def member(settings: Settings, group: str) -> Consumer:
    """The group member whose assignment of journal partitions is ownership of shards."""
    config = {
        **client_config(settings.kafka),
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        # Never below the session timeout: the client refuses that.
        "max.poll.interval.ms": max(settings.worker.max_poll_interval_ms, settings.worker.session_timeout_ms),
        "queued.max.messages.kbytes": 1024,
        "group.protocol": settings.worker.group_protocol,
    }
    if settings.worker.group_protocol == "classic":
        config |= {
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": settings.worker.session_timeout_ms,
            # A cooperative hand-over takes two rounds of heartbeats: 6 s with the default of 3 s, 1 s with this.
            "heartbeat.interval.ms": 500,
        }
    if settings.worker.instance_id:
        config["group.instance.id"] = settings.worker.instance_id
    return _made(Consumer, config)


def transactional_id(settings: Settings, owner: str) -> str:
    """The stable id of `owner`'s producer."""
    return f"{settings.kafka.topic_prefix}{settings.worker.application}-{owner}"


def transactional_producer(settings: Settings, owner: str) -> Producer:
    """The one producer of `owner` (a shard, say). Its id is stable, so that a new owner fences the former one and
    settles what it left open."""
    return _made(
        Producer,
        {
            **client_config(settings.kafka),
            "transactional.id": transactional_id(settings, owner),
            "transaction.timeout.ms": settings.worker.transaction_timeout_ms,
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": 2,
            "compression.type": "lz4",
            "queue.buffering.max.messages": 200_000,
            "queue.buffering.max.kbytes": 262_144,
            "batch.size": 524_288,
            # After EndTxn the next AddPartitionsToTxn often meets CONCURRENT_TRANSACTIONS, and librdkafka then waits
            # for its back-off: 100 ms by default, on every commit.
            "retry.backoff.ms": 1,
            "retry.backoff.max.ms": 10,
        },
    )


def plain_producer(settings: KafkaSettings, **overrides: Any) -> Producer:
    """An idempotent producer without transactions, for what the product sends into its own input topics."""
    return _made(
        Producer,
        {
            **client_config(settings),
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": 2,
            "compression.type": "lz4",
            "queue.buffering.max.kbytes": 131_072,
            **overrides,
        },
    )


def admin(settings: KafkaSettings) -> AdminClient:
    """A client for topics and offsets."""
    return _made(AdminClient, client_config(settings))


def partition_count(client: AdminClient, topic: str) -> int:
    """Partitions of `topic`. Raises KafkaFailure when it does not exist or the broker does not answer."""
    try:
        found = client.list_topics(topic, timeout=METADATA_TIMEOUT_S).topics[topic]
    except KafkaException as exc:
        raise Away(f"Kafka does not answer: {describe(exc)}") from exc
    if found.error is not None and found.error.code() in TRANSIENT:
        raise Away(f"topic {topic} has no leader now ({found.error.name()})")
    if found.error is not None and found.error.code() in DENIED:
        raise Denied(f"Kafka's authoriser refused: missing Read or Write on topic {topic}")
    if found.error is not None or not found.partitions:
        raise KafkaFailure(f"topic {topic} does not exist; run `fraud-scorer setup` first")
    return len(found.partitions)


def offsets(client: AdminClient, partitions: list[TopicPartition], spec: OffsetSpec) -> list[int]:
    """Offsets of `partitions` by `spec`, aborted and open transactions included: the true ends of the logs."""
    # A consumer's watermark under read_committed is the last stable offset: before the end while a transaction is open.
    until = time.monotonic() + METADATA_TIMEOUT_S
    while True:
        futures = client.list_offsets(
            dict.fromkeys(partitions, spec),
            isolation_level=IsolationLevel.READ_UNCOMMITTED,
            request_timeout=METADATA_TIMEOUT_S,
        )
        try:
            found = {(tp.topic, tp.partition): future.result().offset for tp, future in futures.items()}
            return [found[tp.topic, tp.partition] for tp in partitions]
        except KafkaException as exc:
            if exc.args[0].code() in DENIED:
                names = ", ".join(sorted({partition.topic for partition in partitions}))
                raise Denied(f"Kafka's authoriser refused: missing Read or Write on one of the topics {names}") from exc
            if exc.args[0].code() not in TRANSIENT:
                raise KafkaFailure(f"offsets cannot be read: {describe(exc)}") from exc
            if time.monotonic() > until:
                raise Away(f"offsets cannot be read: {describe(exc)}") from exc
        time.sleep(TRANSIENT_RETRY_S)
        with suppress(KafkaException):
            client.list_topics(timeout=METADATA_TIMEOUT_S)  # learns the new leaders and their epochs


def ends(client: AdminClient, partitions: list[TopicPartition]) -> list[int]:
    """Offset after the last record of each partition."""
    return offsets(client, partitions, OffsetSpec.latest())


def starts(client: AdminClient, partitions: list[TopicPartition]) -> list[int]:
    """Offset of the first record still there."""
    return offsets(client, partitions, OffsetSpec.earliest())


def present(part: _Part | None, name: str) -> _Part:
    """A part of a message that was read, such as its offset. Raises KafkaFailure when it is missing."""
    # The client's types allow None because a Message can also be made by hand, in parts.
    if part is None:
        raise KafkaFailure(f"the client gave a message without its {name}")
    return part


def describe(exc: KafkaException) -> str:
    """The client's error in one line, without payload."""
    error = exc.args[0] if exc.args else None
    return f"{error.name()}: {error.str()}" if isinstance(error, KafkaError) else str(exc)


# What a group says to a commit made under a generation that is over: of the classic protocol, and of KIP-848.
OLDER_GENERATION = frozenset({KafkaError.ILLEGAL_GENERATION, KafkaError.STALE_MEMBER_EPOCH})

_FENCED = {
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.FENCED_INSTANCE_ID,
}


def failure(exc: KafkaException, needs: str = "what `fraud-scorer acls worker --check` says") -> KafkaFailure:
    """What a failed transactional call means for the shard: everything but fencing is mended by a rebuild.

    `needs`: the ACL that the call needs, named when the authoriser refused.
    """
    error = exc.args[0] if exc.args else None
    if isinstance(error, KafkaError) and error.code() in _FENCED:
        return Fenced(f"another worker owns this shard now ({error.name()})")
    if isinstance(error, KafkaError) and error.code() in DENIED:
        return Denied(f"Kafka's authoriser refused ({error.name()}): missing {needs}")
    return Rebuild(f"the transaction failed ({describe(exc)})")
