"""Errors of a topic's metadata (it is gone, has fewer partitions, or may not be described) as a reader's own events.

librdkafka puts one for each partition that it reads into that partition's queue. confluent-kafka gives these to the
client's error callback, where nothing but a log would see them, and gives what a fetch met as a message.
"""

from __future__ import annotations

from typing import Final

from confluent_kafka import KafkaError, Message

CODES: Final = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }
)


class TopicErrors:
    """What the error callback of one client was given of them. All calls from the thread that reads."""

    def __init__(self) -> None:
        self._noted: dict[int, KafkaError] = {}  # by code: each partition has the same

    def note(self, error: KafkaError) -> None:
        """The client's error callback."""
        if error.code() in CODES:
            self._noted[error.code()] = error

    def taken(self) -> list[Message]:
        """What came since the last call, each code once. No topic is named: the callback is given none."""
        if not self._noted:
            return []
        messages = [Message(error=error) for error in self._noted.values()]
        self._noted.clear()
        return messages
