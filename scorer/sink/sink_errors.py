"""What can go wrong in the audit sink, and which of it stops the process.

SinkError (FraudScorerError)       stops: nothing past the last committed batch is committed
├── AuditBroken (PromiseBroken)    batches are missing on the topic, or rows cannot be what the sink wrote; exit code 3
├── MissingRange                   records between the stored position and the topic's start are gone
├── SchemaMismatch                 the database was not migrated, or by another version
└── StoreRefused                   Postgres refuses the rows for a reason that waiting does not cure
    └── RowsRefused                because of the rows themselves: the batch goes to quarantine, and the sink goes on

StoreUnavailable                   does not stop: retried with growing pauses, not ready meanwhile
└── StatementTooLong               likewise, with smaller transactions
KafkaUnavailable                   likewise
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from scorer import kafka
from scorer.errors import FraudScorerError, PromiseBroken


class SinkError(FraudScorerError):
    """The sink stops; what it has committed is whole."""


class AuditBroken(SinkError, PromiseBroken):
    """The chain of batches does not hold, and nothing in quarantine explains it."""

    exit_code = PromiseBroken.exit_code


class MissingRange(SinkError):
    """Audit records that Postgres does not have are no longer in the topic."""


class SchemaMismatch(SinkError):
    """The tables are not those that this version writes."""


class StoreRefused(SinkError):
    """Postgres refuses what the sink writes."""


class RowsRefused(StoreRefused):
    """Postgres refuses these very rows: a value, a key or a size. Others may go in.

    `key`: they contradict rows that are there already.
    """

    key = False


class StoreUnavailable(Exception):
    """Postgres cannot take rows now; the reason holds no value of any row."""


class StatementTooLong(StoreUnavailable):
    """A statement took longer than Postgres lets it."""


class KafkaUnavailable(Exception):
    """Kafka cannot be asked now."""


@contextmanager
def kafka_errors() -> Iterator[None]:
    """Errors of Kafka as the sink's: whatever is not fatal to the client is waited for.

    A broker that has just started does not know its topics; credentials and ACLs are repaired while processes run.
    Positions are Postgres' own, so trying again is always safe.
    """
    try:
        yield
    except kafka.Fatal as exc:
        raise SinkError(str(exc)) from exc
    except kafka.KafkaFailure as exc:
        raise KafkaUnavailable(str(exc)) from exc
