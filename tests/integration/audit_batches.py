"""Audit batches for the sink's tests: made from a seed, chained by their journal records, produced in transactions."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from schemas.audit_record import AuditColumns, AuditContext, AuditHeader, digest, encode
from schemas.journal_record import ControlRange, InputRange, JournalRecord

NAMES = ("amount", "customer_count_1h", "customer_mean_7d", "terminal_risk_28d", "amount_to_mean")
CONTEXT = AuditContext(
    bundle="cards-0123456789ab",
    threshold=0.5,
    feature_fingerprint="ab" * 32,
    feature_names=NAMES,
    challengers=("cards-challenger",),
)


def rows(seed: int, count: int) -> AuditColumns:
    """`count` rows with everything that is awkward: nulls, NaN, infinities, -0.0, other alphabets, duplicates."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(count, len(NAMES))).astype(np.float32)
    features[random.random(features.shape) < 0.2] = np.nan
    features[random.random(features.shape) < 0.05] = np.float32("-inf")
    features[random.random(features.shape) < 0.05] = np.float32(-0.0)
    flagged = random.random(count) < 0.1
    return AuditColumns(
        payment_id=[f"p_{seed}_{i}" if i % 10 else f"пла́тёж_{seed}_{i}" for i in range(count)],
        partition=random.integers(0, 4, count).astype(np.int32),
        offset=random.integers(0, 2**60, count),
        event_time_ms=1_767_225_600_000 + random.integers(-(10**9), 10**9, count),
        amount_minor=random.integers(0, 10**12, count),
        currency=random.choice(["EUR", "JPY", "BHD"], count).astype(object),
        customer_id=[None if i % 7 == 0 else f"c_{i % 50}" for i in range(count)],
        account_id=[None if i % 5 == 0 else f"a_{i % 70}" for i in range(count)],
        merchant_id=[None if i % 11 == 0 else f'm "{i % 9}", {{}}\\' for i in range(count)],
        terminal_id=[f"t_{i % 30}" for i in range(count)],
        mcc=[None if i % 3 else "5411" for i in range(count)],
        channel=[("ecom", "pos", None)[i % 3] for i in range(count)],
        country=["FR"] * count,
        decision=flagged.astype(np.uint8),
        mode=random.integers(0, 4, count).astype(np.uint8),
        margin=random.normal(size=count).astype(np.float32),
        score=random.random(count),
        reasons=[["UNUSUAL_AMOUNT", "VELOCITY"] if flag else [] for flag in flagged],
        fired=[["card_testing"] if flag and i % 2 else [] for i, flag in enumerate(flagged)],
        features=features,
        challenger_margins=random.normal(size=(count, len(CONTEXT.challengers))).astype(np.float32),
    )


@dataclass
class Shard:
    """Writes the audit records of one shard to the partition of the same number, one Kafka transaction a batch."""

    bootstrap_servers: str
    topic: str
    number: int = 0
    sequence: int = -1
    head: str = "0" * 64
    written: dict[int, AuditColumns] = field(default_factory=dict)
    records: dict[int, JournalRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.producer = Producer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "transactional.id": f"{self.topic}-{self.number}",
                "retry.backoff.ms": 1,
                "retry.backoff.max.ms": 10,
            }
        )
        self.producer.init_transactions(30)

    def chunks(self, columns: AuditColumns, **journal_changes: object) -> tuple[list[bytes], JournalRecord]:
        """The next batch as audit chunks, and its journal record."""
        record = JournalRecord(
            **{
                "version": 1,
                "shard": self.number,
                "sequence": self.sequence + 1,
                "inputs": [InputRange(partition=0, start=0, end=len(columns))],
                "control": ControlRange(start=0, end=0),
                "stream_time_ms": 1_767_225_600_000,
                "bundle": CONTEXT.bundle,
                "decisions": len(columns),
                "dead_letters": 0,
                "digest": digest(columns, CONTEXT),
                "previous": self.head,
            }
            | journal_changes
        )
        header = AuditHeader(
            **CONTEXT.model_dump(),
            shard=self.number,
            sequence=record.sequence,
            journal=record.to_bytes().decode(),
        )
        return encode(columns, header), record

    def write(self, columns: AuditColumns, **journal_changes: object) -> JournalRecord:
        """The next batch, committed."""
        chunks, record = self.chunks(columns, **journal_changes)
        self.send(chunks)
        self.sequence, self.head = record.sequence, record.head
        self.written[record.sequence], self.records[record.sequence] = columns, record
        return record

    def send(self, values: list[bytes | None], *, commit: bool = True) -> None:
        """One transaction with these records, committed or aborted."""
        self.producer.begin_transaction()
        for value in values:
            self.producer.produce(self.topic, value=value, partition=self.number)
        self.producer.flush(30)
        if commit:
            self.producer.commit_transaction(30)
        else:
            self.producer.abort_transaction(30)


def make_topic(bootstrap_servers: str, topic: str, partitions: int = 1) -> None:
    """Creates the topic and waits until it is there."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    for future in admin.create_topics([NewTopic(topic, partitions, 1)]).values():
        future.result(30)
