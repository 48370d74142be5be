"""The one loop for a range of a partition that is read once: from an offset up to an end that is known before.

Transaction markers and aborted records take offsets too, so the end of a range is reached in three ways: by its last
record, by the first record past it, or by the client's end-of-partition event (EOF) at or past it. An EOF before the
end is passed over: an open transaction may still be committed. Where nothing comes for `no_progress_s`, reading fails.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from confluent_kafka import KafkaError, Message, TopicPartition

from scorer.kafka.failures import Away, NoProgress, present, read_failure, surfaced

if TYPE_CHECKING:
    from scorer.kafka.client_ports import Reader

NO_PROGRESS_S: Final = 60.0
MESSAGES_MAX: Final = 10_000
_POLL_S = 0.2


def read_range(
    consumer: Reader,
    place: TopicPartition,
    end: int,
    *,
    messages_max: int = MESSAGES_MAX,
    no_progress_s: float = NO_PROGRESS_S,
) -> Iterator[Message]:
    """The records of a partition from `place.offset` up to offset `end` (exclusive), in order, each as soon as it is
    there; `consumer` (one of `kafka.reader`) is assigned to it.

    `end`: from `ends`, or from `stable_ends` where an open transaction must not be waited for. `messages_max`: the most
    records taken from the client at once. Raises NoProgress, and KafkaFailure for errors that do not pass.
    """
    if place.offset >= end:
        return
    with surfaced():
        consumer.assign([place])
    deadline = time.monotonic() + no_progress_s
    while True:
        messages = take(consumer, _POLL_S, messages_max=messages_max)
        for message in messages:
            error = message.error()
            offset = message.offset()
            if error is None:
                offset = present(offset, "offset")
                if offset >= end:
                    return
                yield message
                if offset + 1 >= end:
                    return
                deadline = time.monotonic() + no_progress_s
            elif error.code() == KafkaError._PARTITION_EOF:
                if present(offset, "offset") >= end:
                    return
            else:
                failed = read_failure(error, f"{place.topic}/{place.partition}")
                if not isinstance(failed, Away):  # what passes by itself is waited for
                    raise failed
        if time.monotonic() > deadline:
            raise NoProgress(
                f"{place.topic}/{place.partition} cannot be read to offset {end}: no progress for {no_progress_s:.0f} "
                "s; a transaction may have been left open, or the log was truncated"
            )


def take(consumer: Reader, wait_s: float, *, messages_max: int) -> list[Message]:
    """What has come, waiting at most `wait_s` for the first: `consume(n, t)` would wait for n or the whole of t."""
    with surfaced():
        first = consumer.poll(wait_s)
        if first is None:
            return []
        return [first, *(consumer.consume(messages_max - 1, 0) if messages_max > 1 else [])]
