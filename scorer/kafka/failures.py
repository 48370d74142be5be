"""What a client's error means, classified once, wherever it surfaces.

KafkaFailure            the broker or the client failed
├── Fatal               the client is of no further use: only a new one goes on
├── OutOfRange          a position is outside the log: records are gone, or the topic was made anew
├── NoProgress          reading stands still: an open transaction, a truncated log, a broker that does not answer
├── Fenced              another owner has taken the shard: this process must stop deciding for it
└── Rebuild             the transaction's fate is unknown or it was aborted: drop producer and state,
    │                   rebuild from the journal
    ├── Away            the broker does not answer, or has just come back: the same later
    └── Denied          its authoriser refuses: the same once the right is there, within a bound
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from confluent_kafka import KafkaError, KafkaException

from scorer.errors import FraudScorerError

_Part = TypeVar("_Part")


class KafkaFailure(FraudScorerError):
    """The broker or the client failed in a way that retrying here does not repair."""


class Fatal(KafkaFailure):
    """The client is in a state that it does not leave."""


class OutOfRange(KafkaFailure):
    """A position is outside the log: records before its start are gone, or it ends before the position."""


class NoProgress(KafkaFailure):
    """Reading stands still: a transaction was left open, the log was truncated, or the broker does not answer."""


class Fenced(KafkaFailure):
    """A newer owner of the shard exists. The only safe act is to stop."""


class Rebuild(KafkaFailure):
    """Nothing is known of the last transaction. librdkafka lacks KIP-890,
    so neither producer nor state may be used again."""


class Away(Rebuild):
    """The broker does not answer now. A shard rebuilds when it does; a command reports it and ends."""


class Denied(Rebuild):
    """Kafka's authoriser refuses. Rights go by mistake and are given back: a shard waits for that, within a bound."""


# A broker that restarts gives these for seconds: its leaders are being elected, or the client's epochs are old.
TRANSIENT = {
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._MSG_TIMED_OUT,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.BROKER_NOT_AVAILABLE,
}
# A broker that has just started does not know its topics for a moment.
TRANSIENT_FOR_READERS = TRANSIENT | {KafkaError.UNKNOWN_TOPIC_OR_PART}
OFFSETS_GONE = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}
TRANSIENT_RETRY_S = 0.2
DENIED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
}


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


# What a group answers to a commit made under a generation that is over: of the classic protocol, and of KIP-848.
OLDER_GENERATION = frozenset({KafkaError.ILLEGAL_GENERATION, KafkaError.STALE_MEMBER_EPOCH})

_FENCED = {
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.FENCED_INSTANCE_ID,
}


def failure(exc: KafkaException, needs: str = "what `fraud-scorer acls worker --check` says") -> KafkaFailure:
    """What a failed transactional call means for the shard: a rebuild repairs everything but fencing.

    `needs`: the ACL that the call needs, named when the authoriser refused.
    """
    error = exc.args[0] if exc.args else None
    if isinstance(error, KafkaError) and error.code() in _FENCED:
        return Fenced(f"another worker owns this shard now ({error.name()})")
    if isinstance(error, KafkaError) and error.code() in DENIED:
        return Denied(f"Kafka's authoriser refused ({error.name()}): missing {needs}")
    return Rebuild(f"the transaction failed ({describe(exc)})")


def read_failure(error: KafkaError, place: str) -> KafkaFailure:
    """What an error that a consumer met at `place` (topic, or topic/partition) means: Fatal, Denied, OutOfRange, Away
    for what passes by itself, and KafkaFailure for the rest."""
    code = error.code()
    if error.fatal():
        return Fatal(f"the Kafka client cannot go on: {error.name()}")
    if code == KafkaError.GROUP_AUTHORIZATION_FAILED:
        return Denied(f"Kafka's authoriser refused ({error.name()}): missing Describe on the consumer's group")
    if code in DENIED:
        return Denied(f"Kafka's authoriser refused ({error.name()}): missing Read on topic {place.partition('/')[0]}")
    if code in OFFSETS_GONE:
        return OutOfRange(f"a position of {place} is outside the log ({error.str()})")
    if code in TRANSIENT_FOR_READERS or error.retriable():
        return Away(f"reading {place}: {error.name()}")
    return KafkaFailure(f"reading {place} failed ({error.name()}: {error.str()})")


@contextmanager
def surfaced() -> Iterator[None]:
    """Errors that a consumer's call raises, as ours: some surface there and not as a message."""
    try:
        yield
    except KafkaException as exc:
        error = exc.args[0] if exc.args else None
        if not isinstance(error, KafkaError):
            raise KafkaFailure(str(exc)) from exc
        raise read_failure(error, "Kafka") from exc
