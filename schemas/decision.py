"""The decision contract and its canonical bytes: what payment systems read from the decisions topic.

Canonical: names in the order of the fields below, no spaces, UTF-8 without needless escapes, floats as the shortest
decimal that reads back as the same double. Equal decisions are equal bytes, so that a replay can be compared byte by
byte. No wall clock is in it; the record's own timestamp says when. schemas.decision_bytes writes those of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal, get_args

import msgspec
from pydantic import Field, StringConstraints

from schemas.field_types import Contract, Identifier

# The only place where decisions and modes stand: names as on the topics, their positions as the codes of columns.
DecisionName = Literal["approve", "flag"]
ModeName = Literal["normal", "degraded", "duplicate", "late", "refused"]
DECISIONS: Final[tuple[DecisionName, ...]] = get_args(DecisionName)
MODES: Final[tuple[ModeName, ...]] = get_args(ModeName)
NORMAL, DEGRADED, DUPLICATE, LATE, REFUSED = range(len(MODES))
REASONS_MAX: Final = 16

ReasonCode = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]{0,63}$")]


class Decision(Contract):
    """What was decided about one payment."""

    payment_id: Identifier = Field(description="The payment.", examples=["p_7f3a19"])
    decision: DecisionName = Field(description="What to do.")
    score: float = Field(ge=0, le=1, description="Probability of fraud.", examples=[0.0953494648991095])
    margin: float = Field(
        description="The model's raw output: a float32, written as the double of the same value.", examples=[-2.25]
    )
    reasons: tuple[ReasonCode, ...] = Field(
        strict=False,
        max_length=REASONS_MAX,
        description="Reason codes of the policy, strongest first.",
        examples=[["UNUSUAL_AMOUNT"]],
    )
    bundle: Identifier = Field(description="Id of the bundle that decided.", examples=["cards-3f9c2a11d07b"])
    mode: ModeName = Field(
        description="normal; degraded (the deadline left no time for the model); duplicate (seen before, same "
        "decision); late (scored, state unchanged); refused (the record is no payment: the policy's default, "
        "replaced by the decision on a right record of the same id)."
    )

    def to_bytes(self) -> bytes:
        """The canonical bytes."""
        return _encode(
            _Wire(self.payment_id, self.decision, self.score, self.margin, self.reasons, self.bundle, self.mode)
        )

    @classmethod
    def from_bytes(cls, raw: bytes) -> Decision:
        """Back from JSON. Raises pydantic's ValidationError."""
        return cls.model_validate_json(raw)


class _Wire(msgspec.Struct, gc=False):
    payment_id: str
    decision: str
    score: float
    margin: float
    reasons: Sequence[str]
    bundle: str
    mode: str


_encode = msgspec.json.Encoder().encode
