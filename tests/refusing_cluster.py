"""A broker that refuses on demand: librdkafka's own mock cluster, which a client of ours holds and talks to.

A real broker gives some errors only once, or at a moment that no test can choose. What is real here is the client: its
states, the order of its events, the errors that its calls raise.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

from confluent_kafka import Consumer, Producer, cimpl
from pydantic import SecretStr

from scorer.kafka.borrowed_library import handle_of
from scorer.runtime.settings import Settings, load

PRODUCE: Final = 0
FIND_COORDINATOR: Final = 10


def held_by_each_client() -> Settings:
    """Settings with which each client that is made holds a cluster of its own."""
    settings = load()
    security = {"test.mock.num.brokers": SecretStr("1")}  # which no user's settings may hold
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"security": security})})


class RefusingCluster:
    """The cluster that a client holds. It ends with the client."""

    def __init__(self, client: Consumer | Producer, client_id: str) -> None:
        self._library = ctypes.PyDLL(cimpl.__file__)
        handle = ctypes.c_void_p(handle_of(client, client_id))
        self._cluster = self._call("handle_mock_cluster", ctypes.c_void_p, handle)

    def create(self, topic: str, partitions: int = 1) -> None:
        """Make a topic."""
        self._mock("topic_create", topic.encode(), ctypes.c_int(partitions), ctypes.c_int(1))

    def refuse(self, request: int, codes: Sequence[int]) -> None:
        """Answer the next requests of a kind with these errors, one each."""
        self._mock(
            "push_request_errors_array",
            ctypes.c_int16(request),
            ctypes.c_size_t(len(codes)),
            (ctypes.c_int * len(codes))(*codes),
        )

    def answer_after(self, milliseconds: int) -> None:
        """Answer each request so late."""
        self._mock("broker_set_rtt", ctypes.c_int32(1), ctypes.c_int(milliseconds))

    def _mock(self, name: str, *arguments: Any) -> None:
        error = self._call(f"mock_{name}", ctypes.c_int, ctypes.c_void_p(self._cluster), *arguments)
        assert not error, f"{name} gives {error}"

    def _call(self, name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(self._library, f"rd_kafka_{name}")
        function.restype = result
        return function(*arguments)
