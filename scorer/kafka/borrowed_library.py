"""The C interface of the very librdkafka that confluent-kafka has loaded, for the two calls made for each record.

Clients stay confluent-kafka's: configuration, callbacks, tokens, assignment, transactions. Only reading and producing
borrow their handle. A callback (errors, tokens, logs, statistics, deliveries) that ran within a call of ours would
abort the process, for confluent-kafka finds its state by its own calls alone. So the client's main queue is never
served here, and the queue that is (scorer.kafka.borrowed_reader) is taken as events; the call that produces serves no
queue, and what it is answered by comes in `Producer.poll` and the calls of transactions.

What is borrowed proves itself first (`handle_of`): where it does not, the plain way serves.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any, Final, NamedTuple

import confluent_kafka
from confluent_kafka import Consumer, Producer, cimpl

from scorer.errors import FraudScorerError

_PRODUCER, _CONSUMER = 0, 1
# Of rd_kafka.h: rd_kafka_message_t, and what its fields' places in scorer.kafka.borrowed_kernels rest on.
MESSAGE_BYTES: Final = 72
_EVENT_ERROR: Final = 0x8
_NO_PARTITION, _NO_OFFSET = -1, -1001


class NotBorrowed(FraudScorerError):
    """The client's C interface is not what is known here; the plain way has to serve."""


class _Message(ctypes.Structure):
    """rd_kafka_message_t as rd_kafka.h declares it."""

    _fields_ = (
        ("err", ctypes.c_int),
        ("rkt", ctypes.c_void_p),
        ("partition", ctypes.c_int32),
        ("payload", ctypes.c_void_p),
        ("len", ctypes.c_size_t),
        ("key", ctypes.c_void_p),
        ("key_len", ctypes.c_size_t),
        ("offset", ctypes.c_int64),
        ("private", ctypes.c_void_p),
    )


class _TopicPartition(ctypes.Structure):
    """rd_kafka_topic_partition_t as rd_kafka.h declares it, up to the last field that is read."""

    _fields_ = (("topic", ctypes.c_char_p), ("partition", ctypes.c_int32), ("offset", ctypes.c_int64))


class EventError(NamedTuple):
    """What an event of the kind error says. `topic`: empty when it concerns no partition."""

    code: int
    text: str
    fatal: bool
    topic: str
    partition: int
    offset: int


class Addresses(NamedTuple):
    """Where the functions are that kernels call."""

    queue_poll: int
    event_message: int
    event_destroy: int
    timestamp: int
    leader_epoch: int
    headers: int
    header_get: int
    produce_batch: int


class Library:
    """The functions that Python calls, none of which waits or serves a callback; `addresses`: those for kernels."""

    def __init__(self, path: str) -> None:
        # Names are looked up in the extension module and what it is linked with, in the order of the linker: whatever
        # confluent-kafka calls is what is found. PyDLL: these calls are shorter than a release of the GIL.
        self._library = ctypes.PyDLL(path)
        pointer, text = ctypes.c_void_p, ctypes.c_char_p
        self.version = self._function("version", ctypes.c_int)
        self.name = self._function("name", text, pointer)
        self.type = self._function("type", ctypes.c_int, pointer)
        self.queue_new = self._function("queue_new", pointer, pointer)
        self.queue_of_partition = self._function("queue_get_partition", pointer, pointer, text, ctypes.c_int32)
        self.queue_forward = self._function("queue_forward", None, pointer, pointer)
        self.queue_destroy = self._function("queue_destroy", None, pointer)
        self.topic_name = self._function("topic_name", text, pointer)
        self.topic_new = self._function("topic_new", pointer, pointer, text, pointer)
        self.topic_destroy = self._function("topic_destroy", None, pointer)
        self.event_destroy = self._function("event_destroy", None, pointer)
        self._event_type = self._function("event_type", ctypes.c_int, pointer)
        self._event_error = self._function("event_error", ctypes.c_int, pointer)
        self._event_error_string = self._function("event_error_string", text, pointer)
        self._event_error_is_fatal = self._function("event_error_is_fatal", ctypes.c_int, pointer)
        self._event_partition = self._function("event_topic_partition", pointer, pointer)
        self._partition_destroy = self._function("topic_partition_destroy", None, pointer)
        self.addresses = Addresses(
            queue_poll=self._address("queue_poll"),
            event_message=self._address("event_message_next"),
            event_destroy=self._address("event_destroy"),
            timestamp=self._address("message_timestamp"),
            leader_epoch=self._address("message_leader_epoch"),
            headers=self._address("message_headers"),
            header_get=self._address("header_get"),
            produce_batch=self._address("produce_batch"),
        )

    def error(self, event: int) -> EventError | None:
        """What an event says that has no message; None when it is no error."""
        if self._event_type(event) != _EVENT_ERROR:
            return None
        topic, partition, offset = "", _NO_PARTITION, _NO_OFFSET
        if where := self._event_partition(event):
            try:
                fields = _TopicPartition.from_address(where)
                topic, partition, offset = fields.topic.decode(), fields.partition, fields.offset
            finally:
                self._partition_destroy(where)
        text = (self._event_error_string(event) or b"").decode(errors="replace")
        fatal = bool(self._event_error_is_fatal(event))
        return EventError(self._event_error(event), text, fatal, topic, partition, offset)

    def _symbol(self, name: str) -> Any:
        try:
            return self._library[f"rd_kafka_{name}"]
        except AttributeError as exc:
            raise NotBorrowed(f"librdkafka shows no function rd_kafka_{name}") from exc

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        function = self._symbol(name)
        function.restype, function.argtypes = result, arguments
        return function

    def _address(self, name: str) -> int:
        address = ctypes.cast(self._symbol(name), ctypes.c_void_p).value
        if not address:
            raise NotBorrowed(f"rd_kafka_{name} has no address")
        return address


@cache
def library() -> Library:
    """The one that confluent-kafka uses. Raises NotBorrowed where it is not as it is known here."""
    if sys.implementation.name != "cpython" or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise NotBorrowed("the C interface is known for CPython of 64 bits alone")
    if ctypes.sizeof(_Message) != MESSAGE_BYTES:
        raise NotBorrowed(f"a message takes {ctypes.sizeof(_Message)} bytes here, known is {MESSAGE_BYTES}")
    try:
        found = Library(cimpl.__file__)
    except OSError as exc:
        raise NotBorrowed(f"confluent-kafka's library cannot be opened ({exc})") from exc
    client, here = confluent_kafka.libversion()[1], found.version()
    if client != here:
        raise NotBorrowed(f"confluent-kafka has librdkafka {client:#x}, and {here:#x} is found")
    return found


def handle_of(client: Consumer | Producer, client_id: str) -> int:
    """The rd_kafka_t of a client that is open. Raises NotBorrowed when that is not certain."""
    kind = Consumer if isinstance(client, Consumer) else Producer
    if kind.__basicsize__ < object.__basicsize__ + 8:
        raise NotBorrowed(f"a {kind.__name__} holds no handle")
    # It is the first field behind the object's head (confluent_kafka.h, Handle).
    handle = ctypes.c_void_p.from_address(id(client) + object.__basicsize__).value
    if not handle or handle % 8:
        raise NotBorrowed(f"the {kind.__name__}'s handle is not where it is known to be")
    known = library()
    want = f"{client_id}#{kind.__name__.lower()}-"
    name = (known.name(handle) or b"").decode(errors="replace")
    if not name.startswith(want) or known.type(handle) != (_CONSUMER if kind is Consumer else _PRODUCER):
        raise NotBorrowed(f"the {kind.__name__}'s handle has the name {name!r}, wanted is {want}…")
    return handle
