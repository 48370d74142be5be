"""What the protocol is, what may be broken of it on purpose, and the pure function that decides a batch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from schemas.journal_record import FIRST_PREVIOUS, ControlRange, InputRange, JournalRecord
from scorer.pipeline.ordering import journal_order

Ranges = tuple[tuple[int, int, int], ...]  # (partition, start, end), ascending
Payment = tuple[int, int]  # (partition, offset): a payment is where it stands
NO_CONTROL = ControlRange(start=0, end=0)


@dataclass(frozen=True)
class Protocol:
    """The rules; False breaks one of them."""

    fencing: bool = True  # one transactional id per shard, and the member's generation in each commit
    positions_from_journal: bool = True  # not from the group's committed offsets
    new_producer_after_timeout: bool = True  # a timed-out EndTxn ends the producer
    drops_state_after_failure: bool = True  # state that ran ahead of a failed commit is rebuilt
    reads_journal_to_its_end: bool = True  # not only to the last stable offset
    standby_catches_up: bool = True  # a state that followed warm is brought to the journal's end after fencing
    snapshots_are_checked: bool = True  # used only when the journal has their head at their offset


@dataclass(frozen=True)
class State:
    """A shard's state: what the next batch's outcome depends on."""

    shard: int = 0
    sequence: int = 0
    head: str = FIRST_PREVIOUS
    windows: str = ""  # stands for everything that payments left behind: a hash over their order


@lru_cache(maxsize=100_000)
def ordered(payments: tuple[Payment, ...]) -> tuple[Payment, ...]:
    """Payments of a batch in journal order, by the product's own rule. Event times follow from the place."""
    partition = np.array([p for p, _ in payments], np.int32)
    offset = np.array([o for _, o in payments], np.int64)
    event_time_ms = offset * 5 + (offset * offset + partition * 3) % 11
    return tuple(payments[i] for i in journal_order(partition, offset, event_time_ms).tolist())


@lru_cache(maxsize=200_000)
def decide(state: State, ranges: Ranges, payments: tuple[Payment, ...]) -> tuple[State, bytes, tuple[Payment, ...]]:
    """(state after, journal record, decisions) of a batch: a function of its arguments, as Pipeline.run is."""
    decisions = ordered(payments)
    windows = hashlib.sha256(f"{state.windows}{decisions}".encode()).hexdigest()
    record = JournalRecord(
        shard=state.shard,
        sequence=state.sequence,
        inputs=tuple(InputRange(partition=p, start=start, end=end) for p, start, end in ranges),
        control=NO_CONTROL,
        stream_time_ms=0,
        bundle="b",
        decisions=len(decisions),
        dead_letters=0,
        digest=windows,
        previous=state.head,
    )
    return State(state.shard, state.sequence + 1, record.head, windows), record.to_bytes(), decisions


read_record = lru_cache(maxsize=200_000)(JournalRecord.from_bytes)
