"""The decisions of a batch as messages: made once, for every topic that they go to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.byte_column import ByteColumn
from schemas.decision_bytes import encode_decisions
from scorer.pipeline import Decided
from scorer.runtime.trace_context import NO_HEADERS, HeadersOfRows


class Answers(NamedTuple):
    """n decisions: canonical bytes, the payments' own keys, and partition int32 [n], that of the payment.

    `headers`: by row what the payment's record carried of a trace, given back · `audit_headers`: of the audit record
    """

    values: ByteColumn
    keys: ByteColumn
    partition: npt.NDArray[np.int32]
    headers: HeadersOfRows = NO_HEADERS
    audit_headers: Sequence[tuple[str, bytes]] = ()


def answers_of(decided: Decided) -> Answers:
    """One for each row of a batch, in journal order."""
    columns = decided.columns
    values = encode_decisions(
        columns.payment_id,
        columns.decision,
        columns.score,
        columns.margin,
        columns.reasons,
        columns.mode,
        decided.bundles,
        kinds=decided.kinds,
    )
    return Answers(ByteColumn.of(values), ByteColumn.of(decided.keys()), columns.partition)
