"""Answers of an admin client: none is waited for without an end, and none ends a command with a traceback."""

from __future__ import annotations

import ast
from concurrent.futures import Future
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, KafkaException

import scorer
from scorer import kafka
from scorer.kafka import admin_answers

ROOT = Path(scorer.__file__).parent
# Asks for what is there already.
DONE_BEFORE = {"sink/topic_offsets.py"}


def test_an_answer_that_does_not_come_is_a_broker_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked says so and ends, or asks again."""
    monkeypatch.setattr(admin_answers, "MORE_S", 0.0)
    with pytest.raises(kafka.Away, match="has not answered"):
        kafka.answer_of(Future(), 0.01)


def test_what_the_client_says_comes_as_it_is() -> None:
    """Its own error, for whoever knows what it means there."""
    future: Future[int] = Future()
    future.set_exception(KafkaException(KafkaError(KafkaError.TOPIC_ALREADY_EXISTS)))
    with pytest.raises(KafkaException):
        kafka.answer_of(future, 1.0)


def test_nothing_else_waits_for_an_answer_of_the_client() -> None:
    """A time-out of our own that is not longer than the client's ends a command with a TimeoutError."""
    waiting = []
    for path in sorted(ROOT.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        asks = any(isinstance(node, ast.ImportFrom) and node.module == "confluent_kafka.admin" for node in nodes)
        name = path.relative_to(ROOT).as_posix()
        if asks and name not in DONE_BEFORE:
            waiting += [
                f"{name}:{node.lineno}"
                for node in nodes
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "result"
            ]
    assert waiting == []
