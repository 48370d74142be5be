"""The journal contract: one record per committed micro-batch, each holding the hash of the one before.

JournalError    bytes that are not a journal record
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator

from schemas.field_types import Contract, Identifier
from schemas.row_set import TEXT_MAX as ROW_SET_MAX

FIRST_PREVIOUS: Final = "0" * 64
INPUTS_MAX: Final = 4_096  # partitions of one shard
ACTIVATIONS_MAX: Final = 64  # of one batch
LOCATION_MAX: Final = 1_024  # characters of the place of an activated bundle
_INT64_END: Final = 2**63
_NAMES_A_HEAD: Final = b'"previous"'  # in the bytes of a record of any release

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Offset = Annotated[int, Field(ge=0, lt=_INT64_END)]
Count = Annotated[int, Field(ge=0, lt=_INT64_END)]
TopicId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{22}$")]

Refusal = Literal[
    "unsigned", "untrusted", "other_deployment", "number_used", "expired", "place", "unreachable", "unfit"
]


class JournalError(ValueError):
    """Bytes on the journal topic that are not a journal record."""

    def __init__(self, message: str, *, foreign: bool = False) -> None:
        """`foreign`: as `is_foreign` says of them."""
        super().__init__(message)
        self.foreign = foreign


def is_foreign(raw: bytes) -> bool:
    """Whether no worker of any release has written these bytes of the journal topic: they name no head before them. A
    reader passes over those, and over nothing else."""
    return _NAMES_A_HEAD not in raw


class _Range(Contract):
    start: Offset = Field(description="First offset read.", examples=[918_273])
    end: Offset = Field(description="The offset after the last one read.", examples=[922_369])

    @model_validator(mode="after")
    def _ordered(self) -> _Range:
        if self.start > self.end:
            raise ValueError(f"a range from {self.start} to {self.end} runs backwards")
        return self


class ControlRange(_Range):
    """What was read of the one partition of topic control, or of topic labels."""


class InputRange(_Range):
    """What was read of one payments partition."""

    partition: int = Field(ge=0, lt=2**31, description="Partition of the payments topic.", examples=[0])
    epoch: int | None = Field(
        default=None,
        ge=0,
        lt=2**31,
        description="Leader epoch of the last record read (KIP-320): a log that was truncated since is recognised.",
    )
    records_end: int | None = Field(
        default=None,
        ge=0,
        description=(
            "The offset after the last record, where transaction markers follow it: those may be of a later leader, so "
            "the epoch says nothing of them. Absent: `end`."
        ),
    )


class Sources(Contract):
    """Which topics the positions of a record belong to: ids that Kafka gives a topic once (KIP-516)."""

    payments: TopicId = Field(description="Id of the payments topic.", examples=["aGJcXuZ8TG2ZNvHdEVzpOQ"])
    control: TopicId = Field(description="Id of the control topic.", examples=["2sBrF0hUQ8uVfLd4cJ0nbw"])
    labels: TopicId | None = Field(
        default=None, description="Id of the topic of labels; absent from before there was one.", examples=[None]
    )


class Change(Contract):
    """What an operator accepted by command (`fraud-scorer recover`) where a log does not hold what it should.

    Such a record decides nothing; reading goes on where its `inputs` and `control` end. accept_loss: their ranges are
    passed over unread. adopt_partitions: `inputs` name partitions that were added to the topic. new_state: the windows
    begin empty.
    """

    kind: Literal["accept_loss", "adopt_partitions", "new_state"] = Field(description="What was accepted.")
    reason: str = Field(min_length=1, max_length=1_000, description="Why, in the operator's words.")
    signed: str | None = Field(
        default=None, max_length=20_000, description="The same as a document signed with the audit key, if one is set."
    )


class ActivationVerdict(Contract):
    """What became of one activation among the control records of a batch. Clock, keys and places are the worker's own,
    so the verdict is data: recovery, standby, replay and proof take it from here.
    """

    offset: Offset = Field(description="Offset of the activation on the control topic.", examples=[118])
    bundle: Identifier = Field(description="The bundle that it names.", examples=["cards-3f9c2a11d07b"])
    number: Count | None = Field(
        default=None, description="Its number, where a trusted key signed it for this deployment; used from here on."
    )
    refused: Refusal | None = Field(default=None, description="Why it was refused; absent when it was taken.")
    location: str | None = Field(
        default=None, max_length=LOCATION_MAX, description="Where the bundle was found; absent when it was refused."
    )


class SnapshotDigest(Contract):
    """A snapshot of an earlier state, as its worker has written it: only what the journal names is used."""

    sequence: int = Field(ge=0, lt=_INT64_END, description="Number of the batch that it goes on with.", examples=[40])
    sha256: Sha256 = Field(description="Digest of the snapshot's manifest, which names the digests of its arrays.")


def _without_absent(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    """`fields` without those of `names` that are null, and without the id of a topic that is null."""
    for name in names:
        if fields[name] is None:
            del fields[name]
    sources = fields.get("sources")
    if sources is not None and sources["labels"] is None:
        del sources["labels"]
    return fields


class BatchOrder(Contract):
    """What determines a batch beside the state before it: what it read, in which order, and what a clock or an operator
    decided. Journal and order log share it."""

    shard: int = Field(ge=0, lt=2**31, description="The shard.", examples=[0])
    sequence: int = Field(ge=0, lt=_INT64_END, description="Number of the batch, from 0, without gaps.", examples=[41])
    inputs: tuple[InputRange, ...] = Field(
        strict=False, max_length=INPUTS_MAX, description="Payments read, by ascending partition."
    )
    control: ControlRange = Field(description="Control records read; they apply before the batch's payments.")
    labels: ControlRange | None = Field(
        default=None,
        description="Labels read; they apply after the control records. Absent from before labels had a topic.",
    )
    bundle: Identifier = Field(description="Id of the bundle that decided.", examples=["cards-3f9c2a11d07b"])
    degraded: bool = Field(
        default=False,
        description="Some were decided without the model, their deadline being near: a clock's choice, kept as data.",
    )
    degraded_rows: str | None = Field(
        default=None,
        min_length=1,
        max_length=ROW_SET_MAX,
        description="Which ones, where it is not all: one bit for each record read, by partition and offset "
        "(schemas.row_set).",
    )
    sources: Sources | None = Field(
        default=None, description="Ids of the topics that were read; absent in records of releases before 0.2."
    )
    activations: tuple[ActivationVerdict, ...] = Field(
        default=(),
        strict=False,
        max_length=ACTIVATIONS_MAX,
        description="What became of the activations among the control records; the one taken decides from here on.",
    )
    created_ms_max: int | None = Field(
        default=None,
        ge=0,
        lt=_INT64_END,
        description="Some records carry a timestamp of their producer, from before the topic had LogAppendTime: such a "
        "one counts as at most this, epoch ms, when the worker accepted them. Absent when all are the broker's.",
    )
    snapshot: SnapshotDigest | None = Field(
        default=None, description="A snapshot that was written since the record before; absent without one."
    )
    pseudonym_key: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")] | None = Field(
        default=None,
        description="Id of the key that values of token fields were replaced with; absent where no field is one.",
    )

    labels_by: Literal["known_at"] | None = Field(
        default=None,
        description="Which of several labels of one payment its windows count: known_at, the one that became known "
        "last. Absent in records of releases before 0.2: the one that came last after the others were known.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> BatchOrder:
        partitions = [entry.partition for entry in self.inputs]
        if partitions != sorted(set(partitions)):
            raise ValueError("inputs must be in ascending order of partition, each once")
        if sum(verdict.refused is None for verdict in self.activations) > 1:
            raise ValueError("one activation is taken in a batch at most")
        if self.degraded_rows is not None and not self.degraded:
            raise ValueError("degraded_rows without degraded")
        return self

    @property
    def taken(self) -> ActivationVerdict | None:
        """The activation from which this batch's bundle comes; None where the bundle is that of the batch before."""
        return next((verdict for verdict in self.activations if verdict.refused is None), None)


class JournalRecord(BatchOrder):
    """What one micro-batch read, and the digest of what came of it."""

    version: Literal[1] = Field(default=1, description="Version of this contract.")
    stream_time_ms: int = Field(
        ge=-1, lt=_INT64_END, description="Stream time after the batch, epoch ms; -1 before the first payment."
    )
    decisions: Count = Field(description="Number of decisions.", examples=[4_095])
    dead_letters: Count = Field(description="Number of dead letters.", examples=[1])
    digest: Sha256 = Field(
        description="Digest of the batch's audit rows under a salt that the audit trail alone has "
        "(schemas.audit_digest), so that no person can be found by it once the salt is destroyed."
    )
    decided: Sha256 | None = Field(
        default=None,
        description="Digest of the same rows without payment_id, customer_id and account_id, which needs no salt: what "
        "recovery and replay must come to again. Absent in records of releases before 0.2, whose digest has no salt.",
    )
    previous: Sha256 = Field(description="Head of the record before; 64 zeros in the first.")
    change: Change | None = Field(default=None, description="What an operator accepted; absent in all other records.")
    activation_number: Count = Field(
        default=0, description="Largest number of a signed activation so far; absent before the first."
    )
    refused: Count | None = Field(
        default=None,
        description="How many of the dead letters are answered as well, being records that name their payment; absent "
        "in records of releases before 0.2, which answered none.",
    )
    order: Offset | None = Field(
        default=None,
        description="Offset on topic order up to which that log is settled with this batch: that of the batch's own "
        "order record, or of a claim. Absent where the shard has no order log.",
    )

    def accepted(self) -> dict[str, Any]:
        """What the document in `change.signed` must say: all that the record moves, and where it stands."""
        names = {"shard", "sequence", "previous", "inputs", "control", "labels", "sources"}
        fields = _without_absent(self.model_dump(mode="json", include=names), "labels")
        return fields if self.change is None else fields | {"kind": self.change.kind, "reason": self.change.reason}

    @model_validator(mode="after")
    def _chained(self) -> JournalRecord:
        if self.sequence == 0 and self.previous != FIRST_PREVIOUS:
            raise ValueError("the first record of a journal has 64 zeros for its previous head")
        if self.change is not None and (self.decisions or self.dead_letters):
            raise ValueError("a record of a change decides nothing")
        if (self.refused or 0) > min(self.decisions, self.dead_letters):
            raise ValueError("more refused records are answered than there are")
        return self

    @cached_property
    def _canonical(self) -> bytes:
        # Later fields are left out where they are empty: records of earlier releases keep their bytes and heads.
        later = (
            "sources", "change", "labels", "degraded_rows", "created_ms_max", "snapshot", "refused", "pseudonym_key",
            "decided", "order", "labels_by",
        )  # fmt: skip
        fields = _without_absent(self.model_dump(mode="json"), *later)
        for name in ("activations", "activation_number"):
            if not fields[name]:
                del fields[name]
        fields |= {"inputs": [present_fields(entry) for entry in fields["inputs"]]}
        if self.activations:
            fields["activations"] = [present_fields(entry) for entry in fields["activations"]]
        return canonical_json(fields)

    @property
    def head(self) -> str:
        """Hex SHA-256 over the canonical JSON of all fields: what the next record names as `previous`."""
        return hashlib.sha256(self._canonical).hexdigest()

    def to_bytes(self) -> bytes:
        """The canonical JSON, UTF-8."""
        return self._canonical

    @classmethod
    def from_bytes(cls, raw: bytes) -> JournalRecord:
        """Back from the journal topic.

        Raises JournalError, also for bytes that are not the canonical ones: the head is over those.
        """
        try:
            record = cls.model_validate_json(raw)
        except ValidationError as exc:
            where = ", ".join(sorted({".".join(map(str, error["loc"])) or "the record" for error in exc.errors()}))
            raise JournalError(
                f"a value of {len(raw)} bytes is not a journal record of version 1: see {where[:200]}",
                foreign=is_foreign(raw),
            ) from None
        if record.to_bytes() != raw:
            raise JournalError(f"a value of {len(raw)} bytes is a journal record, but not in its canonical form")
        return record


def present_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` without those that are null."""
    return {name: value for name, value in fields.items() if value is not None}


def canonical_json(fields: dict[str, Any]) -> bytes:
    """Names sorted, no spaces, UTF-8: equal fields are equal bytes."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
