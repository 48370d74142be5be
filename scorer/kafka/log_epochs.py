"""Where a log was cut by an election of a leader that lacked records: from there on later leaders have written it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from confluent_kafka import KafkaError, Message, TopicPartition

from scorer.kafka.client_ports import Reader
from scorer.kafka.failures import Away, OutOfRange, log_was_cut, present, read_failure, surfaced
from scorer.kafka.range_reader import take

ANSWER_S = 15.0


class LastRecord(NamedTuple):
    """The newest record before a position: the offset after it, and the leader epoch under which it was written."""

    end: int
    epoch: int


def first_of_later_epochs(
    reader: Reader,
    log: TopicPartition,
    start: int,
    end: int,
    epoch: int,
    *,
    monotonic: Callable[[], float] = time.monotonic,
) -> int:
    """The first offset in [start, end) of a record that a leader after `epoch` has written; `end` when there is none.

    Leader epochs rise along a log, so it is searched by halves. Raises Away when the broker does not answer, and what
    read_failure gives for another error.
    """
    low, high, first = start, end, end
    while low < high:
        # The last one first: mostly there is nothing to be found.
        middle = end - 1 if high == end else (low + high) // 2
        record = _record_from(reader, TopicPartition(log.topic, log.partition, middle), monotonic)
        at = end if record is None else present(record.offset(), "offset")
        if at >= end:  # markers and aborted records alone
            high = middle
        elif record is not None and (record.leader_epoch() or 0) > epoch:
            first, high = at, middle
        else:
            low = at + 1
    return first


def is_cut_below(
    reader: Reader, log: TopicPartition, last: LastRecord, *, monotonic: Callable[[], float] = time.monotonic
) -> bool:
    """Whether a client that has read `last` refuses to go on behind it, because that epoch ended before."""
    known = TopicPartition(log.topic, log.partition, last.end, leader_epoch=last.epoch)
    try:
        _record_from(reader, known, monotonic)
    except _Cut:
        return True
    return False


class _Cut(OutOfRange):
    """The log was cut below the position."""


def _record_from(reader: Reader, place: TopicPartition, monotonic: Callable[[], float]) -> Message | None:
    """The first record from an offset on; None at the end of the log."""
    with surfaced():
        reader.assign([place])
    until = monotonic() + ANSWER_S
    while monotonic() < until:
        for message in take(reader, 0.5, messages_max=1):
            error = message.error()
            if error is None:
                return message
            if error.code() == KafkaError._PARTITION_EOF:
                return None
            if log_was_cut(error):
                raise _Cut(f"the log of {place.topic}/{place.partition} was cut below offset {place.offset}")
            failed = read_failure(error, f"{place.topic}/{place.partition}")
            if not isinstance(failed, Away):
                raise failed
    raise Away(f"{place.topic}/{place.partition} cannot be read at offset {place.offset}: no answer")
