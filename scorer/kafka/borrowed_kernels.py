"""Kernels over librdkafka's messages: many taken at once, sorted by partition, copied into columns, given back.

A message is rd_kafka_message_t of rd_kafka.h, 72 bytes; the places of its fields are below. Pointers and addresses are
int64.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from features.raw_memory import call, inlined, kernel, peek8, peek32, peek64, poke8, poke32, poke64
from schemas.byte_copy import move
from scorer.runtime.trace_context import (
    HEADERS_OF_A_NAME_MAX,
    TRACEPARENT,
    TRACEPARENT_BYTES_MAX,
    TRACESTATE,
    TRACESTATE_BYTES_MAX,
)

Words = npt.NDArray[np.int64]

_ERROR: Final = 0  # int32
_TOPIC: Final = 8  # rd_kafka_topic_t *
_PARTITION: Final = 16  # int32
_VALUE: Final = 24
_VALUE_BYTES: Final = 32
_KEY: Final = 40
_KEY_BYTES: Final = 48
_OFFSET: Final = 56
MESSAGE_WORDS: Final = 9

# Columns of `places`, one row for each partition that messages are of.
TOPIC, PARTITION, FIRST, LAST, COUNT, KEY_BYTES, VALUE_BYTES, PLACE_COLUMNS = range(8)

_APPEND_TIME: Final = 2  # RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME
_ZERO, _NINE = 48, 57
_COMMA = np.uint8(44)
TRACE_NAMES: Final = f"{TRACEPARENT}\0{TRACESTATE}\0".encode()
_SECOND_NAME: Final = len(TRACEPARENT) + 1
TRACE_BYTES: Final = TRACEPARENT_BYTES_MAX + TRACESTATE_BYTES_MAX
_ANY_PARTITION: Final = -1
_COPY: Final = 0x2  # RD_KAFKA_MSG_F_COPY
_EACH_ITS_PARTITION: Final = 0x8  # RD_KAFKA_MSG_F_PARTITION


@inlined
def _signed(word: Any) -> Any:
    """An int that a function returned or a field holds, from the lower half of a word."""
    half = np.int64(word) & 0xFFFFFFFF
    return half - (1 << 32) if half >= (1 << 31) else half


@kernel
def take(queue_poll: int, event_message: int, queue: int, wait_ms: int, events: Words, pointers: Words) -> int:
    """Take events from a queue into `events`, as many as fit there, and the message of each into `pointers` (0: it has
    none); how many. Waits for the first one at most `wait_ms`. A record is an event with one message, which lives as
    long as the event does."""
    count = 0
    wait = np.int64(wait_ms)
    while count < len(events):
        event = call(queue_poll, queue, wait, 0, 0, 0)
        if event == 0:
            break
        events[count] = event
        pointers[count] = call(event_message, event, 0, 0, 0, 0)
        count += 1
        wait = np.int64(0)
    return count


@kernel
def sort(pointers: Words, count: int, places: Words, following: Words) -> int:
    """Group the first `count` messages by partition: rows of `places` (how many: returned), and in `following` for each
    message the next of the same partition, -1 after the last. What is no record is in no group and has -2 there. -1
    when `places` has too few rows."""
    used = 0
    row = -1
    for i in range(count):
        message = pointers[i]
        if message == 0 or peek32(message + _ERROR) != 0:
            following[i] = -2
            continue
        topic = peek64(message + _TOPIC)
        partition = np.int64(peek32(message + _PARTITION))
        if row < 0 or places[row, TOPIC] != topic or places[row, PARTITION] != partition:
            row = 0
            while row < used and (places[row, TOPIC] != topic or places[row, PARTITION] != partition):
                row += 1
            if row == used:
                if used == len(places):
                    return -1
                used += 1
                places[row, TOPIC] = topic
                places[row, PARTITION] = partition
                places[row, FIRST] = i
                places[row, LAST] = -1
                places[row, COUNT] = 0
                places[row, KEY_BYTES] = 0
                places[row, VALUE_BYTES] = 0
        if places[row, LAST] >= 0:
            following[places[row, LAST]] = i
        following[i] = -1
        places[row, LAST] = i
        places[row, COUNT] += 1
        places[row, KEY_BYTES] += peek64(message + _KEY_BYTES)
        places[row, VALUE_BYTES] += peek64(message + _VALUE_BYTES)
    return used


@kernel
def copy(
    functions: Words,
    header: npt.NDArray[np.uint8],
    events: Words,
    pointers: Words,
    following: Words,
    first: int,
    offset: Words,
    timestamp_ms: Words,
    created: npt.NDArray[np.bool_],
    epoch: npt.NDArray[np.int32],
    key_offsets: Words,
    value_offsets: Words,
    key_absent: npt.NDArray[np.bool_],
    value_absent: npt.NDArray[np.bool_],
    key_data: npt.NDArray[np.uint8],
    value_data: npt.NDArray[np.uint8],
    numbers: npt.NDArray[np.float64],
    traces: Words,
    trace_data: npt.NDArray[np.uint8],
    trace_names: npt.NDArray[np.uint8],
) -> tuple[int, int, int]:
    """Copy the messages of one partition, from the one at `first` on, and give their events back to the client.

    functions: addresses of message_timestamp, message_leader_epoch, event_destroy, message_headers, header_get, then
    two words to work in · header: a header's name, ended by a zero · all others are filled; numbers may be empty: then
    no header is read · traces: three words for each message that carries a trace context (its place here, bytes of
    traceparent and tracestate); empty: none is read · trace_data: room for TRACE_BYTES of each · trace_names: the two
    headers' names, each ended by a zero. Returns how many keys and values are absent, how many messages carry one.
    """
    scratch = functions.ctypes.data + 8 * 5
    keys, values = key_data.ctypes.data, value_data.ctypes.data
    key_end, value_end = np.int64(0), np.int64(0)
    keys_absent, values_absent, traced = 0, 0, 0
    i = first
    for k in range(len(offset)):
        message, event = pointers[i], events[i]
        i = following[i]
        offset[k] = peek64(message + _OFFSET)
        poke64(scratch, 0)
        timestamp_ms[k] = call(functions[0], message, scratch, 0, 0, 0)
        created[k] = peek32(scratch) != _APPEND_TIME
        epoch[k] = np.int32(_signed(call(functions[1], message, 0, 0, 0, 0)))
        key, size = peek64(message + _KEY), peek64(message + _KEY_BYTES)
        key_offsets[k] = key_end
        key_absent[k] = key == 0
        if key == 0:
            keys_absent += 1
        else:
            move(keys + key_end, key, size)
            key_end += size
        value, size = peek64(message + _VALUE), peek64(message + _VALUE_BYTES)
        value_offsets[k] = value_end
        value_absent[k] = value == 0
        if value == 0:
            values_absent += 1
        else:
            move(values + value_end, value, size)
            value_end += size
        if len(numbers):
            numbers[k] = _number(functions[3], functions[4], header.ctypes.data, message, scratch)
        if len(traces) and _trace(
            functions[3], functions[4], trace_names.ctypes.data, message, scratch, traces.ctypes.data + 24 * traced,
            trace_data.ctypes.data + TRACE_BYTES * traced,
        ):  # fmt: skip
            traces[3 * traced] = k
            traced += 1
        call(functions[2], event, 0, 0, 0, 0)
    key_offsets[len(offset)] = key_end
    value_offsets[len(offset)] = value_end
    return keys_absent, values_absent, traced


@inlined
def _number(headers: int, header_get: int, name: int, message: int, scratch: int) -> float:
    """The first number that one of the first HEADERS_OF_A_NAME_MAX headers of this name says in digits; NaN without
    one. `scratch`: two words. Each call looks at the headers from the first one on, of which a record may have 100,000.

    Exact up to 2**53, in epoch milliseconds the year 287396; beyond it may be off in the last place.
    """
    poke64(scratch, 0)
    if _signed(call(headers, message, scratch, 0, 0, 0)) != 0:
        return np.nan
    found = peek64(scratch)
    index = 0
    while index < HEADERS_OF_A_NAME_MAX and _signed(call(header_get, found, index, name, scratch, scratch + 8)) == 0:
        index += 1
        value, size = peek64(scratch), peek64(scratch + 8)
        if value == 0 or size == 0:
            continue
        number = 0.0
        digits = True
        for k in range(size):
            byte = peek8(value + k)
            if byte < _ZERO or byte > _NINE:
                digits = False
                break
            number = number * 10.0 + np.float64(byte - _ZERO)
        if digits:
            return number
    return np.nan


@inlined
def _trace(headers: int, header_get: int, names: int, message: int, scratch: int, found: int, data: int) -> bool:
    """Whether the message has one traceparent, and no longer than is known: then it stands at `data`, all tracestate
    behind it with commas between (none where they are too long or too many), and their sizes in the words after the
    first at `found`. `scratch`: two words."""
    poke64(scratch, 0)
    if _signed(call(headers, message, scratch, 0, 0, 0)) != 0:
        return False
    known = peek64(scratch)
    if _signed(call(header_get, known, 0, names, scratch, scratch + 8)) != 0:
        return False
    value, size = peek64(scratch), peek64(scratch + 8)
    if value == 0 or size == 0 or size > TRACEPARENT_BYTES_MAX:
        return False
    if _signed(call(header_get, known, 1, names, scratch, scratch + 8)) == 0:
        return False
    move(data, value, size)
    poke64(found + 8, size)
    state = data + TRACEPARENT_BYTES_MAX
    length, index = np.int64(0), 0
    while _signed(call(header_get, known, index, names + _SECOND_NAME, scratch, scratch + 8)) == 0:
        index += 1
        if index > HEADERS_OF_A_NAME_MAX:
            length = np.int64(0)
            break
        value, size = peek64(scratch), peek64(scratch + 8)
        if value == 0 or size == 0:
            continue
        before = np.int64(1) if length else np.int64(0)
        if length + before + size > TRACESTATE_BYTES_MAX:
            length = np.int64(0)
            break
        if before:
            poke8(state + length, _COMMA)
        move(state + length + before, value, size)
        length += before + size
    poke64(found + 16, length)
    return True


@kernel
def produce(
    produce_batch: int,
    topic: int,
    partitions: npt.NDArray[np.int32],
    key_data: npt.NDArray[np.uint8],
    key_offsets: Words,
    key_absent: npt.NDArray[np.bool_],
    value_data: npt.NDArray[np.uint8],
    value_offsets: Words,
    value_absent: npt.NDArray[np.bool_],
    messages: Words,
) -> int:
    """Hand one message for each value to the client, which copies it; how many it took. `messages`: words of as many
    messages, in which the error of each is found afterwards. key_absent, value_absent: empty, none is absent."""
    count = len(partitions)
    if count == 0:
        return 0
    keys, values = key_data.ctypes.data, value_data.ctypes.data
    for i in range(count):
        at = messages.ctypes.data + i * 8 * MESSAGE_WORDS
        for k in range(MESSAGE_WORDS):
            poke64(at + 8 * k, 0)
        poke32(at + _PARTITION, np.uint32(partitions[i]))
        if len(key_absent) == 0 or not key_absent[i]:
            poke64(at + _KEY, keys + key_offsets[i])
            poke64(at + _KEY_BYTES, key_offsets[i + 1] - key_offsets[i])
        if len(value_absent) == 0 or not value_absent[i]:
            poke64(at + _VALUE, values + value_offsets[i])
            poke64(at + _VALUE_BYTES, value_offsets[i + 1] - value_offsets[i])
    taken = call(produce_batch, topic, _ANY_PARTITION, _COPY | _EACH_ITS_PARTITION, messages.ctypes.data, count)
    whole: int = _signed(taken)
    return whole
