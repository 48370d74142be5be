"""Callbacks of a group's client: nothing is raised in them, because the binding loses what C code has raised there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaException, TopicPartition

from scorer.kafka.failures import KafkaFailure, describe


class KeptCallbacks:
    """What callbacks of ours raise, kept for the loop that polls.

    An exception of C code that is called in a callback (`incremental_assign`, say) comes out of `poll` and `close` as a
    SystemError without a cause.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None  # the first one

    def kept(
        self, callback: Callable[[Any, list[TopicPartition]], None]
    ) -> Callable[[Any, list[TopicPartition]], None]:
        """`callback`, which raises nothing any more."""

        def called(consumer: Any, partitions: list[TopicPartition]) -> None:
            try:
                callback(consumer, partitions)
            except KafkaException as exc:
                self.error = self.error or KafkaFailure(f"a rebalance of the group failed: {describe(exc)}")
            except BaseException as exc:  # noqa: BLE001 - raised by the loop that polls
                self.error = self.error or exc

        return called

    def check(self) -> None:
        """Raise what was kept."""
        if self.error is not None:
            raise self.error
