"""The order contract: what a shard's owner appends to topic order before a decision leaves.

A shard's partition has one writer at a time. An owner begins with a claim; the claim's offset is the epoch of all that
it appends. A record of a batch counts when the newest claim before it stands at its epoch, and at no other time.

OrderError      bytes that are neither a claim nor a batch
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from schemas.field_types import Contract
from schemas.journal_record import BatchOrder, Count, Offset, canonical_json, present_fields


class OrderError(ValueError):
    """Bytes on the order topic that are no record of it. Nothing can be skipped there, so its reader stops."""

    def __init__(self, message: str, *, later_version: bool = False) -> None:
        """`later_version`: whether the record says that it is of a later version of this contract."""
        super().__init__(message)
        self.later_version = later_version


class ClaimRecord(Contract):
    """An owner takes the log: what owners before it append from here on does not count."""

    version: Literal[1] = Field(default=1, description="Version of this contract.")
    kind: Literal["claim"] = Field(default="claim", description="An owner takes the log.")
    shard: int = Field(ge=0, lt=2**31, description="The shard.", examples=[0])
    sequence: Count = Field(description="Number of the batch that follows the journal, as the owner has read it.")
    owner: str = Field(max_length=200, description="The worker, for people: its instance id or its client id.")

    def to_bytes(self) -> bytes:
        """Canonical JSON, UTF-8."""
        return canonical_json(self.model_dump(mode="json"))


class OrderRecord(BatchOrder):
    """A batch whose order is durable: with the state before it, all that its decisions depend on."""

    version: Literal[1] = Field(default=1, description="Version of this contract.")
    kind: Literal["batch"] = Field(default="batch", description="A batch.")
    epoch: Offset = Field(description="Offset of the claim under which it was appended.", examples=[17])
    records: Count = Field(description="Number of payments records in its ranges.", examples=[4_096])

    def to_bytes(self) -> bytes:
        """Canonical JSON, UTF-8, without what is absent."""
        fields = present_fields(self.model_dump(mode="json"))
        for name in ("inputs", "activations"):
            fields[name] = [present_fields(entry) for entry in fields[name]]
        for name in ("sources", "snapshot"):
            if name in fields:
                fields[name] = present_fields(fields[name])
        return canonical_json(fields)


_RECORD: TypeAdapter[ClaimRecord | OrderRecord] = TypeAdapter(ClaimRecord | OrderRecord)


def order_log_record(raw: bytes | None) -> ClaimRecord | OrderRecord:
    """Back from the order topic. Raises OrderError."""
    try:
        return _RECORD.validate_json(raw or b"")
    except ValidationError as exc:
        where: set[str] = {".".join(map(str, error["loc"])) or "the record" for error in _errors(exc)}
        raise OrderError(
            f"a value of {len(raw or b'')} bytes is no record of the order log: see {', '.join(sorted(where))[:200]}",
            later_version=_is_later(raw or b""),
        ) from None


class _Versioned(BaseModel):
    """What tells the records of a later version."""

    model_config = ConfigDict(strict=True)

    version: int = Field(gt=1)
    kind: str


def _is_later(raw: bytes) -> bool:
    try:
        _Versioned.model_validate_json(raw)
    except ValidationError:
        return False
    return True


def _errors(exc: ValidationError) -> list[Any]:
    return list(exc.errors(include_input=False))
