"""What can go wrong in the audit sink, and which of it stops the process.

SinkError (FraudScorerError)       stops: nothing past the last committed batch is committed
├── PoisonChunk                    a record of the audit topic that cannot be decoded or does not fit its batch
├── AuditBroken (PromiseBroken)    digest, chain or counts of a batch do not hold; exit code 3
├── MissingRange                   records between the stored position and the topic's start are gone
├── SchemaMismatch                 the database was not migrated, or by another version
└── StoreRefused                   Postgres refuses the rows for a reason that waiting does not cure

StoreUnavailable                   does not stop: retried with growing pauses, not ready meanwhile
KafkaUnavailable                   likewise
"""

from __future__ import annotations

from scorer.errors import FraudScorerError, PromiseBroken


class SinkError(FraudScorerError):
    """The sink stops; what it has committed is whole."""


class PoisonChunk(SinkError):
    """A record of the audit topic cannot be used. Names topic, partition and offset."""

    def __init__(self, topic: str, partition: int, offset: int, why: str) -> None:
        super().__init__(
            f"audit record {topic}/{partition} at offset {offset} cannot be used: {why}. Nothing from it on is in "
            f"Postgres; inspect the record, then repair its producer or move the position past it with "
            f"scorer.sink.set_position"
        )
        self.topic, self.partition, self.offset = topic, partition, offset


class AuditBroken(SinkError, PromiseBroken):
    """A batch contradicts its own digest, its journal record or the chain."""

    exit_code = PromiseBroken.exit_code


class MissingRange(SinkError):
    """Audit records that Postgres does not have are no longer in the topic."""


class SchemaMismatch(SinkError):
    """The tables are not those that this version writes."""


class StoreRefused(SinkError):
    """Postgres refuses what the sink writes."""


class StoreUnavailable(Exception):
    """Postgres cannot take rows now; says why without a value of any row."""


class KafkaUnavailable(Exception):
    """Kafka cannot be asked now."""
