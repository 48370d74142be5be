"""Answers to an admin client's requests, waited for within a bound."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Final, TypeVar

from scorer.kafka.failures import Away

# The client itself ends a request at its time-out, with an error that says more than that there is no answer.
MORE_S: Final = 1.0

_Answer = TypeVar("_Answer")


def answer_of(future: Future[_Answer], request_timeout_s: float) -> _Answer:
    """What a request gave that was made with `request_timeout`. Raises KafkaException, and Away without an answer."""
    try:
        return future.result(request_timeout_s + MORE_S)
    except TimeoutError as exc:
        raise Away(f"Kafka has not answered a request for {request_timeout_s:g} s") from exc
