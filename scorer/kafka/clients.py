"""Kafka's clients and their settings: every trap of the client that is met by a setting is met here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from scorer.errors import UsageError
from scorer.kafka.failures import Kind, describe, meaning
from scorer.kafka.topics import Topics
from scorer.runtime.secret_text import without_secrets
from scorer.runtime.settings import KafkaSettings, Settings

log = structlog.get_logger()

QUIET_S = 5.0
BATCH_BYTES_MAX = 524_288
HEARTBEAT_MS = 100
PRODUCER: Final[Mapping[str, Any]] = {
    "enable.idempotence": True,
    "acks": "all",
    # Else asking for a topic by its name makes it: one that was deleted would come back with the broker's defaults.
    "allow.auto.create.topics": False,
}
_OF = "@"  # client_id@application

_Client = TypeVar("_Client")


def client_config(settings: KafkaSettings) -> dict[str, Any]:
    """What every client shares."""
    config: dict[str, Any] = {
        "bootstrap.servers": settings.bootstrap_servers,
        "client.id": settings.client_id,
        **{name: value.get_secret_value() for name, value in settings.security.items()},
        "error_cb": log_error,
        "log_level": 2,  # errors come through error_cb, once and structured
        "socket.keepalive.enable": True,
        # Before the broker does it (after 10 minutes by default, load balancers after 4): an idle connection that the
        # broker has closed made the next send_offsets_to_transaction wait for one or two of the broker's idle times,
        # 5 to 10 s where that was 5 s; one that the client has closed is opened anew within milliseconds.
        "connections.max.idle.ms": round(1000 * settings.connection_idle_s),
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
_logged: dict[int, tuple[float, int]] = {}


def _suppressed(code: int, *, always: bool = False) -> int | None:
    """How many errors of this code were suppressed since the last one that was logged; None when this one is suppressed
    too (never with `always`): every client has them, up to 70 times a second."""
    logged_at, suppressed = _logged.get(code, (float("-inf"), 0))
    if time.monotonic() - logged_at < QUIET_S and not always:
        _logged[code] = logged_at, suppressed + 1
        return None
    _logged[code] = time.monotonic(), 0
    return suppressed


def log_error(error: KafkaError) -> None:
    """The error callback of every client. One of a code is logged each QUIET_S; fatal ones are always."""
    # Transport errors heal by themselves; they must be seen, not acted upon. Fatal ones also come out of the next call.
    if meaning(error) is Kind.LOGIN:
        if _suppressed(KafkaError._AUTHENTICATION) is not None:
            log.error(
                "kafka.login_refused", reason=error.str(), repair="renew the credentials; a new secret is read at start"
            )
        return
    suppressed = _suppressed(error.code(), always=error.fatal())
    if suppressed is not None:
        log.warning("kafka.client_error", code=error.name(), fatal=error.fatal(), suppressed=suppressed)


def _made(kind: Callable[[dict[str, Any]], _Client], config: dict[str, Any]) -> _Client:
    """A client. Raises UsageError for a setting that librdkafka refuses, in its words, which name it."""
    try:
        return kind(config)
    except KafkaException as exc:
        raise UsageError(
            f"{without_secrets(describe(exc))}; FRAUD_SCORER_KAFKA__SECURITY holds librdkafka's settings"
        ) from None


def reader(
    settings: KafkaSettings,
    *,
    group: str,
    fetch_wait_ms: int = 5,
    memory_kib: int = 32_768,
    committed: bool = True,
    on_error: Callable[[KafkaError], None] | None = None,
    **overrides: Any,
) -> Consumer:
    """A consumer for manual assignment: it joins no group and commits nothing.

    `group` is a name for the broker's logs and quotas. `on_error` gets the client's own errors beside the log, within
    the reader's calls.
    """

    def both(error: KafkaError) -> None:
        log_error(error)
        if on_error is not None:
            on_error(error)

    return _made(
        Consumer,
        {
            **client_config(settings),
            "error_cb": both,
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "isolation.level": "read_committed" if committed else "read_uncommitted",
            # A position outside the log is an error with a name, never a silent jump over payments.
            "auto.offset.reset": "error",
            "allow.auto.create.topics": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": fetch_wait_ms,
            # 64 MiB a partition by default: too much to promise bounded memory.
            "queued.max.messages.kbytes": memory_kib,
            "fetch.message.max.bytes": 1_048_576,
            "check.crcs": True,
            **overrides,
        },
    )


def partition_member(settings: KafkaSettings, group: str) -> Consumer:
    """A group member that is given partitions and fetches nothing: what it is given, it pauses (the sinks' group)."""
    return _made(
        Consumer,
        {
            **client_config(settings),
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "latest",
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": 6_000,  # a dead member's partitions move after six seconds, Kafka's own floor
            "heartbeat.interval.ms": 500,  # a cooperative hand-over takes two rounds
            "queued.max.messages.kbytes": 1024,
            "allow.auto.create.topics": False,
            "topic.metadata.refresh.interval.ms": 60_000,  # new partitions are noticed by then
        },
    )


def member(settings: Settings, group: str) -> Consumer:
    """The group member whose assignment of journal partitions is ownership of shards."""
    config = {
        **client_config(settings.kafka),
        "group.id": group,
        "client.id": member_client_id(settings),
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "allow.auto.create.topics": False,
        # Never below the session timeout: the client refuses that.
        "max.poll.interval.ms": max(settings.worker.max_poll_interval_ms, settings.worker.session_timeout_ms),
        "queued.max.messages.kbytes": 1024,
        "group.protocol": settings.worker.group_protocol,
    }
    if settings.worker.group_protocol == "classic":
        config |= {
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": settings.worker.session_timeout_ms,
            # A member hears with its next heartbeat that another has left: the largest part of a hand-over with 500 ms,
            # and a cooperative one takes two rounds where a shard moves between members that stay.
            "heartbeat.interval.ms": HEARTBEAT_MS,
        }
    if settings.worker.instance_id:
        config["group.instance.id"] = settings.worker.instance_id
    return _made(Consumer, config)


def member_client_id(settings: Settings) -> str:
    """The client.id of a group member: the group then shows which application each of its members is of."""
    return f"{settings.kafka.client_id}{_OF}{settings.worker.application}"


def application_of(client_id: str) -> str:
    """The application of a member, by its client.id; the whole of it where that names none."""
    return client_id.rpartition(_OF)[2]


def transactional_id(settings: Settings, owner: str) -> str:
    """The stable id of `owner`'s producer. It belongs to the journal and not to the application's name: whoever writes
    the same journal has the same id, so that of two one is fenced."""
    return f"{Topics.of(settings.kafka).journal}-{owner}"


def former_transactional_id(settings: Settings, owner: str) -> str:
    """What releases before 0.2 used."""
    return f"{settings.kafka.topic_prefix}{settings.worker.application}-{owner}"


def transactional_producer(
    settings: Settings, owner: str, *, batch_bytes_max: int = BATCH_BYTES_MAX, former: bool = False
) -> Producer:
    """The one producer of `owner` (a shard, say). Its id is stable, so that a new owner fences the former one and
    settles what it left open.

    `batch_bytes_max`: what the client gathers in one request for a partition, for the broker's limit of a record is in
    truth one of such a batch. `former`: under the id of releases before 0.2.
    """
    identity = former_transactional_id if former else transactional_id
    return _made(
        Producer,
        {
            **client_config(settings.kafka),
            "transactional.id": identity(settings, owner),
            "transaction.timeout.ms": settings.worker.transaction_timeout_ms,
            **PRODUCER,
            "linger.ms": 2,
            "compression.type": "lz4",
            "queue.buffering.max.messages": queued_messages(settings),
            "queue.buffering.max.kbytes": 262_144,
            "batch.size": min(BATCH_BYTES_MAX, batch_bytes_max),
            # After EndTxn the next AddPartitionsToTxn often meets CONCURRENT_TRANSACTIONS, and librdkafka then waits
            # for its back-off: 100 ms by default, on every commit.
            "retry.backoff.ms": 1,
            "retry.backoff.max.ms": 10,
        },
    )


def queued_messages(settings: Settings) -> int:
    """How many messages a producer of the worker holds: all batches that may be on their way, were each a full one."""
    return max(200_000, 8 * settings.worker.batch_payments_max)


def plain_producer(settings: KafkaSettings, **overrides: Any) -> Producer:
    """An idempotent producer without transactions, for what the product sends into its own input topics."""
    return _made(
        Producer,
        {
            **client_config(settings),
            **PRODUCER,
            "linger.ms": 2,
            "compression.type": "lz4",
            "queue.buffering.max.kbytes": 131_072,
            **overrides,
        },
    )


def admin(settings: KafkaSettings) -> AdminClient:
    """A client for topics and offsets."""
    return _made(AdminClient, client_config(settings))
