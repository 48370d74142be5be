"""Worker and sink as processes of their own, and topics read to their end: what the integration tests share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, TopicPartition

from scorer import kafka
from scorer.runtime.settings import PREFIX, Settings, load
from tests.ports import free_ports
from tests.waits import WaitEnded

NO_PROGRESS_S = 120.0  # from the last record that came


def test_settings(bootstrap: str, prefix: str, **sections: dict[str, Any]) -> Settings:
    """Settings for one test's own topics."""
    return load(kafka={"bootstrap_servers": bootstrap, "topic_prefix": prefix}, **sections)


test_settings.__test__ = False  # type: ignore[attr-defined]


def environment(settings: Settings, **more: str) -> dict[str, str]:
    """The same settings for a child process."""
    given = {
        f"{PREFIX}KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        f"{PREFIX}KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix,
        f"{PREFIX}WORKER__BATCH_PAYMENTS_MAX": str(settings.worker.batch_payments_max),
        f"{PREFIX}POSTGRES__URL": settings.postgres.url.get_secret_value(),
    }
    return {**os.environ, **given, **more}


@contextmanager
def process(
    name: str, arguments: list[str], settings: Settings, log: Path, *, port: int | None = None, **more: str
) -> Iterator[subprocess.Popen[bytes]]:
    """`fraud-scorer NAME …`, ready; killed at the end if it still runs. `more` is its environment's own."""
    port = free_ports(1)[0] if port is None else port
    env = environment(settings, **{f"{PREFIX}HTTP__{'WORKER' if name == 'run' else 'SINK'}_PORT": str(port)}, **more)
    with log.open("ab") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "scorer", name, *arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    child.port = port  # type: ignore[attr-defined]
    try:
        wait_for(lambda: child.poll() is not None or is_ready(port), 300, f"{name} to be ready")
        assert child.poll() is None, log.read_text()[-3000:]
        yield child
    finally:
        child.kill()
        child.wait()


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
            return True
    except OSError:
        return False


def readiness(port: int) -> str:
    """What /readyz answers while a process is not ready; empty while it is, or does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
            return ""
    except urllib.error.HTTPError as answer:
        return str(answer.read().decode())
    except OSError:
        return ""


def metrics(port: int) -> dict[str, float]:
    """A process's metrics by their full name with labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line and not line.startswith("#")
    }


def wait_for(condition: Callable[[], object], seconds: float, what: str, *, every_s: float = 0.1) -> None:
    """Poll until `condition` holds; fail the test naming `what` otherwise. A process that was asked and did not answer,
    being busy, is asked again; when the time is up its error is raised."""
    deadline = time.monotonic() + seconds
    while not holds(condition, deadline):
        if time.monotonic() > deadline:
            raise WaitEnded(f"waited {seconds:g} s for {what}")
        time.sleep(every_s)


def holds(condition: Callable[[], object], deadline: float) -> bool:
    """Whether `condition` holds; an OSError that it raises before the deadline is no answer yet."""
    try:
        return bool(condition())
    except OSError:
        if time.monotonic() > deadline:
            raise
        return False


class TopicReader:
    """Everything that read_committed readers see of a topic, gathered as it comes."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._client = kafka.admin(settings.kafka)
        self._places = [TopicPartition(topic, p, 0) for p in range(kafka.partition_count(self._client, topic))]
        self._consumer: Consumer = kafka.reader(settings.kafka, group="test-reader")
        self._consumer.assign(self._places)
        self._reached: dict[int, int] = {}
        self.messages: list[Any] = []

    def fill(self) -> int:
        """Take what has come; gives how many messages there are by now."""
        for message in self._consumer.consume(5000, 0.2):
            error = message.error()
            if error is None:
                self.messages.append(message)
                self._reached[message.partition()] = message.offset() + 1
            elif error.code() == KafkaError._PARTITION_EOF:  # behind the markers of transactions, which are no records
                self._reached[message.partition()] = message.offset()
            else:  # the client goes on by itself where the broker was away, or too busy to answer
                assert error.code() in kafka.TRANSIENT, error
        return len(self.messages)

    def read_to_end(self) -> int:
        """Take all that is committed now, past every marker; gives how many messages there are. An open transaction is
        waited for."""
        ends = kafka.ends(self._client, self._places)
        deadline, reached = time.monotonic() + NO_PROGRESS_S, dict(self._reached)
        while any(self._reached.get(p, 0) < end for p, end in enumerate(ends)):
            self.fill()
            if reached != self._reached:
                deadline, reached = time.monotonic() + NO_PROGRESS_S, dict(self._reached)
            assert time.monotonic() < deadline, f"read to {self._reached} of {ends}, and nothing more came"
        return len(self.messages)

    def json(self) -> list[dict[str, Any]]:
        return [json.loads(message.value()) for message in self.messages]

    def close(self) -> None:
        self._consumer.close()
