"""What a client's error means, classified once, wherever it surfaces: a call, a delivery report, a message, a future.

KafkaFailure            the broker or the client failed, and trying again does not help: a setting, a topic, a right
├── Fatal               the client is of no further use: only a new one goes on
├── OutOfRange          a position is outside the log: records are gone, or the topic was made anew
├── NoProgress          reading stands still: an open transaction, a truncated log, a broker that does not answer
├── Fenced              another owner has taken the shard: this process must stop deciding for it
└── Rebuild             the transaction's fate is unknown or it was aborted: drop producer and state,
    │                   rebuild from the journal
    ├── Away            the broker does not answer, or has just come back: the same later
    ├── Denied          its authoriser refuses: the same once the right is there, within a bound
    └── Unfit           a topic's own setting keeps a record out: the same once that is repaired

`meaning` gives the Kind of an error by a table of codes. The exception to raise comes from `failure` for what writes,
asks or commits, and from `read_failure` for what a consumer met.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from types import MappingProxyType
from typing import Final, TypeVar

from confluent_kafka import KafkaError, KafkaException, Message

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


class Unfit(Rebuild):
    """A topic does not take what must be written to it, by a setting of its own. A shard waits until it is repaired.

    `needed`: by topic, the record size in bytes that it must take, where that is known.
    """

    def __init__(self, reason: str, needed: Mapping[str, int] = MappingProxyType({})) -> None:
        super().__init__(reason)
        self.needed = needed


class Kind(Enum):
    """What to do about an error."""

    AWAY = "a broker that restarts gives these for seconds: leaders are elected, the client's epochs are old"
    LOGIN = "credentials or a certificate are refused; they may be renewed"
    DENIED = "the authoriser refuses"
    FENCED = "a newer owner exists"
    GENERATION = "a rebalance is on, or has just been: the same under the new generation"
    UNFIT = "a topic's setting keeps the record out"
    MISSING = "the topic or partition does not exist"
    OFFSET = "the position lies outside the log"
    SETTING = "a setting that the broker or the client refuses each time"
    UNKNOWN = "anything else: nothing is known of what it left behind"


_CODES: Final[Mapping[Kind, tuple[int, ...]]] = {
    Kind.AWAY: (
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._MSG_TIMED_OUT,
        KafkaError._WAIT_COORD,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.NOT_CONTROLLER,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
        KafkaError.CONCURRENT_TRANSACTIONS,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.THROTTLING_QUOTA_EXCEEDED,
    ),
    Kind.LOGIN: (
        KafkaError._AUTHENTICATION,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError._SSL,
        KafkaError.ILLEGAL_SASL_STATE,
    ),
    Kind.DENIED: (
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    ),
    Kind.FENCED: (
        KafkaError._FENCED,
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.FENCED_INSTANCE_ID,
    ),
    Kind.GENERATION: (
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.STALE_MEMBER_EPOCH,
    ),
    Kind.UNFIT: (
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError._ISR_INSUFF,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.POLICY_VIOLATION,
    ),
    Kind.MISSING: (
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    ),
    Kind.OFFSET: (
        KafkaError.OFFSET_OUT_OF_RANGE,
        KafkaError._AUTO_OFFSET_RESET,
        KafkaError._LOG_TRUNCATION,
    ),
    Kind.SETTING: (
        KafkaError.INVALID_TRANSACTION_TIMEOUT,
        KafkaError.INVALID_SESSION_TIMEOUT,
        KafkaError.INVALID_GROUP_ID,
        KafkaError.INCONSISTENT_GROUP_PROTOCOL,
        KafkaError.UNSUPPORTED_ASSIGNOR,
        KafkaError.UNSUPPORTED_VERSION,
        KafkaError.UNSUPPORTED_COMPRESSION_TYPE,
        KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
        KafkaError.SECURITY_DISABLED,
        KafkaError.INVALID_REQUIRED_ACKS,
        KafkaError.INVALID_CONFIG,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError._UNSUPPORTED_FEATURE,
    ),
}
_KIND: Final[Mapping[int, Kind]] = {code: kind for kind, codes in _CODES.items() for code in codes}

# Of a fetch: a broker's disk or remote storage that fails for a moment, a topic that was made anew (which is noticed by
# its id). The client asks again by itself, so a reader waits.
_FETCHED_AGAIN: Final = frozenset({KafkaError.UNKNOWN, KafkaError.INCONSISTENT_TOPIC_ID})

TRANSIENT: Final = frozenset(_CODES[Kind.AWAY])
TRANSIENT_RETRY_S = 0.2
DENIED: Final = frozenset(_CODES[Kind.DENIED])
# What a group answers to a commit made under a generation that is over: of the classic protocol, and of KIP-848.
OLDER_GENERATION: Final = frozenset({KafkaError.ILLEGAL_GENERATION, KafkaError.STALE_MEMBER_EPOCH})


def meaning(error: KafkaError) -> Kind:
    """The kind of an error; UNKNOWN for a code that is in no table."""
    return _KIND.get(error.code(), Kind.UNKNOWN)


def failure(
    cause: KafkaException | KafkaError,
    doing: str = "the transaction failed",
    needs: str = "what `fraud-scorer acls worker --check` says",
) -> KafkaFailure:
    """The exception for an error, with the way out. What is in no table is a Rebuild: that repairs what can be.

    `doing`: what failed, for people. `needs`: the ACL that it needs, named when the authoriser refused.
    """
    error = cause if isinstance(cause, KafkaError) else cause.args[0] if cause.args else None
    if not isinstance(error, KafkaError):
        return Rebuild(f"{doing} ({cause})")
    error = _refusal(error)
    reason = f"{doing} ({_line(error)})"
    match meaning(error):
        case Kind.FENCED:
            return Fenced(f"another worker owns this shard now ({error.name()})")
        case Kind.DENIED:
            return Denied(f"Kafka's authoriser refused ({error.name()}): missing {needs}")
        case Kind.AWAY:
            return Away(reason)
        case Kind.LOGIN:
            return Away(f"{reason}: renew the credentials")
        case Kind.UNFIT:
            return Unfit(f"{reason}: a setting of that topic keeps the record out")
        case Kind.SETTING:
            return KafkaFailure(f"{reason}: {_SETTINGS.get(error.code(), 'the broker refuses a setting')}")
        case _:
            return Rebuild(reason)


def _refusal(error: KafkaError) -> KafkaError:
    """What the broker answered, where that made a client with enable.gapless.guarantee give up: such a client has one
    code for every answer, and the answer in the text alone."""
    if error.code() != KafkaError._GAPLESS_GUARANTEE:
        return error
    answers = {code: str(KafkaError(code).str()) for code in (*_CODES[Kind.DENIED], *_CODES[Kind.UNFIT])}
    found = [code for code, text in answers.items() if text in error.str()]
    return KafkaError(max(found, key=lambda code: len(answers[code])), error.str()) if found else error


_LOG_TRUNCATION: Final = str(KafkaError(KafkaError._LOG_TRUNCATION).str())


def log_was_cut(error: KafkaError) -> bool:
    """Whether a consumer met a log that ends, under the leader epoch of the last record read, before that record."""
    # With auto.offset.reset=error the client gives that code, and the cause in the text alone.
    return error.code() == KafkaError._LOG_TRUNCATION or (
        error.code() == KafkaError._AUTO_OFFSET_RESET and _LOG_TRUNCATION in error.str()
    )


def read_failure(error: KafkaError, place: str) -> KafkaFailure:
    """What an error that a consumer met at `place` (topic, or topic/partition) means: Fatal, Denied, OutOfRange, Away
    for what passes by itself, and KafkaFailure for the rest."""
    if error.fatal():
        return Fatal(f"the Kafka client cannot go on: {error.name()}")
    match meaning(error):
        case Kind.DENIED:
            of_group = error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED
            needs = "Describe on the consumer's group" if of_group else f"Read on topic {place.partition('/')[0]}"
            return Denied(f"Kafka's authoriser refused ({error.name()}): missing {needs}")
        case Kind.OFFSET:
            return OutOfRange(f"a position of {place} is outside the log ({error.str()})")
        case Kind.AWAY | Kind.LOGIN | Kind.MISSING:  # a broker that has just started does not know its topics yet
            return Away(f"reading {place}: {error.name()}")
        case _ if error.retriable() or error.code() in _FETCHED_AGAIN:
            return Away(f"reading {place}: {error.name()}")
        case _:
            return KafkaFailure(f"reading {place} failed ({_line(error)})")


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


_SETTINGS: Final = {
    KafkaError.INVALID_TRANSACTION_TIMEOUT: (
        "set FRAUD_SCORER_WORKER__TRANSACTION_TIMEOUT_MS to at most the broker's transaction.max.timeout.ms"
    ),
    KafkaError.INVALID_SESSION_TIMEOUT: (
        "set FRAUD_SCORER_WORKER__SESSION_TIMEOUT_MS between the broker's group.min.session.timeout.ms and "
        "group.max.session.timeout.ms"
    ),
    KafkaError.UNSUPPORTED_ASSIGNOR: "set FRAUD_SCORER_WORKER__GROUP_PROTOCOL to what the brokers and the group use",
    KafkaError.INCONSISTENT_GROUP_PROTOCOL: (
        "workers on the same topics agree in FRAUD_SCORER_WORKER__GROUP_PROTOCOL, and nothing else uses their group"
    ),
}


def present(part: _Part | None, name: str) -> _Part:
    """A part of a message that was read, such as its offset. Raises KafkaFailure when it is missing."""
    # The client's types allow None because a Message can also be made by hand, in parts.
    if part is None:
        raise KafkaFailure(f"the client gave a message without its {name}")
    return part


def reported_offset(message: Message) -> int:
    """Where a record that was sent stands, by its delivery report; -1 for one that was sent again and whose first place
    the broker does not know any more."""
    offset = message.offset()
    return -1 if offset is None else offset


def describe(exc: KafkaException) -> str:
    """The client's error in one line, without payload."""
    error = exc.args[0] if exc.args else None
    return _line(error) if isinstance(error, KafkaError) else str(exc)


def _line(error: KafkaError) -> str:
    return f"{error.name()}: {error.str()}"
