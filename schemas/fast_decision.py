"""Decisions as topic decisions-fast has them: the bytes of topic decisions, and behind them where each stands.

Whoever publishes a decision again publishes the same bytes. So a reader remembers the last (sequence, row) of each
partition, and drops what is not newer. schemas.fast_decision_bytes writes those of a batch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from pydantic import Field

from schemas.decision import Decision

# As schemas.fast_decision_bytes.placed writes it.
_PLACE = re.compile(rb',"shard":(\d{1,10}),"sequence":(\d{1,19}),"row":\d{1,10}}\Z')


class FastDecision(Decision):
    """What was decided about one payment, and the decision's place."""

    shard: int = Field(ge=0, lt=2**31, description="The shard that decided.", examples=[0])
    sequence: int = Field(ge=0, lt=2**63, description="Number of its batch, as in the journal.", examples=[41])
    row: int = Field(ge=0, lt=2**31, description="Place in the batch, from 0.", examples=[7])


class FastDecisions:
    """Drops what a reader of topic decisions-fast has taken before. One for each reader; a reader that must not take a
    decision again after a restart keeps `last` with the positions that it has read to.

        decision = fast.new(record.partition(), record.value())     # None: taken before
    """

    def __init__(self, last: Mapping[int, tuple[int, int]] = MappingProxyType({})) -> None:
        """`last`: as a reader before has left it."""
        self.last = dict(last)  # (sequence, row) of the newest decision taken, by partition

    def new(self, partition: int, value: bytes) -> Decision | None:
        """The decision that a record holds, as topic decisions has it; None for one that was taken before. Raises
        pydantic's ValidationError for what is no record of the topic."""
        found = FastDecision.model_validate_json(value)
        place = found.sequence, found.row
        if place <= self.last.get(partition, (-1, -1)):
            return None
        self.last[partition] = place
        return Decision(**{name: getattr(found, name) for name in Decision.model_fields})


def place_of(value: bytes) -> tuple[int, int]:
    """Shard and batch of a record of topic decisions-fast, from its canonical bytes. Raises ValueError for what is
    none."""
    found = _PLACE.search(value)
    if found is None:
        raise ValueError("no record of topic decisions-fast: it does not end with a place")
    return int(found[1]), int(found[2])
