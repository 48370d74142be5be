"""Batches that a standby has decided along the order log and that the journal does not hold yet.

An order that counts is decided for good, so its batch can be decided as soon as it is read, by whoever has the state
before it. What came of it is kept until the journal's record is there, and compared with that. Records of the chain
name each other: those here are chained anew when the standby becomes the owner, on the last one that the journal holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from schemas.journal_record import JournalRecord
from scorer import kafka
from scorer.journal.rerun import differs
from scorer.pipeline import Outcomes
from scorer.runtime.trace_context import Carried
from scorer.worker.pending_commits import AheadMax

# What came of a batch, and the trace contexts that its payments carried, by their place in it.
Ahead = tuple[Outcomes, Mapping[int, Carried]]


class DecidedAhead:
    """In their order, and bounded: `full` once there is so much of them."""

    def __init__(self, ahead: AheadMax) -> None:
        self._max = ahead
        self._waiting: deque[Ahead] = deque()
        self._payments = self._record_bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether the journal has to come on before another batch is decided."""
        return self._max.reached(len(self._waiting), self._payments, self._record_bytes)

    def add(self, outcomes: Outcomes, carried: Mapping[int, Carried]) -> None:
        """What came of the batch that follows."""
        self._waiting.append((outcomes, carried))
        self._payments += len(outcomes.records)
        self._record_bytes += outcomes.record_bytes

    def confirm(self, record: JournalRecord) -> None:
        """Drop the first one, which the journal holds as `record`.

        Raises PromiseBroken when something else came of the same order, and Rebuild when that is another batch: the
        state has gone on from what the journal does not hold, as when an operator gives up what the order log holds,
        and is of no use any more.
        """
        outcomes, _ = self._waiting[0]
        own = outcomes.journal
        if _committed_as(own, record).head != record.head:
            if record.change is None and record.order == own.order and record.inputs == own.inputs:
                raise differs(own, record)
            raise kafka.Rebuild(
                f"batch {record.sequence} of shard {record.shard} was decided along the order log, and the journal "
                "holds another one: the state begins anew from the journal"
            )
        self._waiting.popleft()
        self._payments -= len(outcomes.records)
        self._record_bytes -= outcomes.record_bytes

    def take(self, head: str) -> list[Ahead]:
        """All, the first one chained on the journal record with this head, each other one on the one before."""
        taken = []
        while self._waiting:
            outcomes, carried = self._waiting.popleft()
            outcomes = replace(outcomes, journal=_changed(outcomes.journal, previous=head))
            head = outcomes.journal.head
            taken.append((outcomes, carried))
        self._payments = self._record_bytes = 0
        return taken


def _committed_as(own: JournalRecord, record: JournalRecord) -> JournalRecord:
    """`own` with what the owner alone chooses or knows as it stands in `record`: the digest, which is under a salt of
    its batch, and the head of the record before."""
    if record.decided is None:
        return _changed(own, previous=record.previous)
    return _changed(own, previous=record.previous, digest=record.digest)


def _changed(record: JournalRecord, **fields: str) -> JournalRecord:
    """A record of its own, for a head is computed once for each."""
    present: dict[str, Any] = {name: getattr(record, name) for name in JournalRecord.model_fields}
    return JournalRecord(**present | fields)
