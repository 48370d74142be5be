"""The decision contract and its canonical bytes: what payment systems read from the decisions topic.

Canonical: names in the order of the fields below, no spaces, UTF-8 without needless escapes, floats as the shortest
decimal that reads back as the same double. Equal decisions are equal bytes, so that a replay can be compared byte by
byte. No wall clock is in it; the record's own timestamp says when.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt
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


def encode_decisions(
    payment_ids: Sequence[str],
    decisions: npt.NDArray[np.uint8],
    scores: npt.NDArray[np.float64],
    margins: npt.NDArray[np.float32],
    reasons: Sequence[Sequence[str]],
    modes: npt.NDArray[np.uint8],
    bundles: Sequence[str] | str,
) -> list[bytes]:
    """Canonical bytes of n decisions. `bundles`: one id for all, or one for each.

    decisions and modes are positions in DECISIONS and MODES. Texts are taken as they are
    (payment ids were checked on arrival, codes come from the policy). Raises ValueError for columns of unequal length,
    unknown codes, scores outside 0..1, NaN.
    """
    count = len(payment_ids)
    each = [bundles] * count if isinstance(bundles, str) else bundles
    lengths = {len(column) for column in (decisions, scores, margins, reasons, modes, each)} | {count}
    if len(lengths) != 1:
        raise ValueError(f"the columns of {count} decisions have different lengths: {sorted(lengths)}")
    if count == 0:
        return []
    if int(decisions.max()) >= len(DECISIONS) or int(modes.max()) >= len(MODES):
        found = f"found {decisions.max()} and {modes.max()}"
        raise ValueError(f"decisions are below {len(DECISIONS)} and modes below {len(MODES)}; {found}")
    if not (((scores >= 0) & (scores <= 1)).all() and np.isfinite(margins).all()):
        raise ValueError("a score lies outside 0..1 or a margin is not finite; JSON has no form for NaN")
    wires = map(
        _Wire,
        payment_ids,
        map(DECISIONS.__getitem__, decisions.tolist()),
        scores.tolist(),
        margins.astype(np.float64).tolist(),
        reasons,
        each,
        map(MODES.__getitem__, modes.tolist()),
    )
    return list(map(_encode, wires))
