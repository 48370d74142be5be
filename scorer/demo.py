"""The demo: services, topics, tables, a bundle, simulated payments, worker and sink on one machine, and the sum at the end.

The worker and the sink are the real commands in processes of their own. Counts are read back from the topics and from Postgres;
latency runs from the moment a payment is handed to the client until its decision has been read under read_committed.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from confluent_kafka import KafkaError, TopicPartition
from psycopg import sql
from sqlalchemy.engine import make_url

from features.feature_set import FeatureSet
from schemas.decision import Decision
from scorer import assets, kafka
from scorer.bundle import Bundle, BundleError
from scorer.errors import FraudScorerError, PromiseBroken
from scorer.replay import chained, training_table
from scorer.send import Outgoing, Sender, outgoing_pairs
from scorer.services import local_services
from scorer.settings import PREFIX, Settings, load
from scorer.setup import setup
from scorer.simulate import World

CUSTOMERS = 2000
TRAINING_SEED, LIVE_SEED = 11, 12
TRAINING_PAYMENTS = 150_000
# A demo must not depend on today: the same seed and start give the same bundle and the same first payments.
TRAINING_START_MS = 1_704_067_200_000  # 2024-01-01
LIVE_START_MS = 1_735_689_600_000  # 2025-01-01
# Genuine payments that nobody reports count as genuine after this long, as in production.
LABEL_DELAY_MS = 7 * 86_400_000
READY_S = 120.0
DRAIN_S = 120.0
LATENCIES_MAX = 2_000_000
FLAGGED_SHOWN = 12

Report = Callable[[str], None]


@dataclass
class Seen:
    """What has been read from the decisions and dead-letter topics so far."""

    decisions: int = 0
    dead_letters: int = 0
    flagged: int = 0
    duplicate_decisions: int = 0
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES_MAX))
    last_flagged: deque[Decision] = field(default_factory=lambda: deque(maxlen=FLAGGED_SHOWN))


@dataclass(frozen=True)
class Result:
    """The sum at the end; the names are the interface of `demo --json`."""

    payments: int
    decisions: int
    dead_letters: int
    audit_rows: int
    flagged: int
    latency_p50_ms: float
    latency_p99_ms: float

    @property
    def reconciles(self) -> bool:
        return self.payments == self.decisions + self.dead_letters and self.decisions == self.audit_rows


class DecisionReader:
    """Reads decisions and dead letters as a payment system would, and measures how long each decision took."""

    def __init__(self, settings: Settings) -> None:
        topics = kafka.Topics.of(settings.kafka)
        self._decisions = topics.decisions
        self._consumer = kafka.reader(
            settings.kafka, group=f"{settings.kafka.topic_prefix}demo-reader", fetch_wait_ms=5
        )
        client = kafka.admin(settings.kafka)
        self._consumer.assign([
            TopicPartition(topic, p, 0) for topic in (topics.decisions, topics.dead_letters) for p in range(kafka.partition_count(client, topic))
        ])  # fmt: skip
        self.seen = Seen()
        self._handed_over: dict[str, float] = {}
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="decisions", daemon=True)
        self._thread.start()

    def sending(self, values: list[bytes]) -> None:
        """These payments are handed to the client now."""
        now = time.perf_counter()
        for value in values:
            # The simulator writes {"payment_id":"…" first.
            self._handed_over[value[15 : value.index(b'"', 15)].decode()] = now

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                first = self._consumer.poll(0.1)
                if first is None:
                    continue
                for message in (first, *self._consumer.consume(2000, 0)):
                    error = message.error()
                    if error is None:
                        self._take(message.topic(), message.value())
                    elif error.code() != KafkaError._PARTITION_EOF and error.fatal():
                        raise kafka.KafkaFailure(error.str())
        except BaseException as exc:  # noqa: BLE001 - shown by `check` in the main thread
            self._error = exc

    def _take(self, topic: str, value: bytes) -> None:
        if topic != self._decisions:
            self.seen.dead_letters += 1
            return
        decided = json.loads(value)
        self.seen.decisions += 1
        began = self._handed_over.pop(decided["payment_id"], None)
        if began is None:
            self.seen.duplicate_decisions += 1
        else:
            self.seen.latencies_ms.append((time.perf_counter() - began) * 1000.0)
        if decided.get("decision") == "flag":
            self.seen.flagged += 1
            self.seen.last_flagged.append(Decision.model_validate_json(value))

    def check(self) -> None:
        """Raise what ended the reading thread."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join(5)
        self._consumer.close()


def demo_bundle(cache: Path, report: Report) -> Path:
    """The demo's bundle: trained on simulated history on the first start, cached by what it was made of."""
    feature_yaml = assets.path("deploy/demo/feature_set.yaml").read_text(encoding="utf-8")
    policy_yaml = assets.path("deploy/demo/policy.yaml").read_text(encoding="utf-8")
    feature_set = FeatureSet.from_yaml(feature_yaml)
    policy_hash = hashlib.sha256(policy_yaml.encode()).hexdigest()
    target = cache / f"demo-{feature_set.fingerprint[:12]}-{policy_hash[:8]}-{TRAINING_SEED}-{TRAINING_PAYMENTS}"
    if target.exists():
        try:
            Bundle.load(target)
            return target
        except BundleError as exc:
            raise FraudScorerError(f"the cached demo bundle is damaged ({exc}); remove {target}") from exc
    from scorer.train import train  # noqa: PLC0415 - xgboost is an extra

    report(f"First start: computing features of {TRAINING_PAYMENTS:,} simulated payments (compiling kernels first)")
    last = [0.0]

    def progress(count: int) -> None:
        if time.monotonic() - last[0] > 2.0:
            last[0] = time.monotonic()
            report(f"  {count:,} payments")

    table = training_table(
        feature_set, chained(history_blocks(World(TRAINING_SEED, customers=CUSTOMERS))), progress=progress
    )
    known_at = np.where(table.label_known_at_ms < 0, table.event_time_ms + LABEL_DELAY_MS, table.label_known_at_ms)
    report("Training the model (xgboost, early stopping on later days)")
    trained = train(
        table.features, np.maximum(table.label, 0).astype(np.int8), table.event_time_ms, known_at, feature_yaml, policy_yaml, target,
        seed=TRAINING_SEED, label_gap_ms=0, created_at="2024-01-01T00:00:00Z", name="demo",
    )  # fmt: skip
    report(
        f"Bundle {trained.bundle_id}: {trained.trees} trees, average precision {trained.metrics['average_precision']:.3f} on held-out days"
    )
    return target


def history_blocks(world: World) -> Iterator[Any]:
    """Simulated history as the training table takes it."""
    count = 0
    for batch in world.stream(TRAINING_START_MS):
        yield batch.keys(), batch.to_json(), batch.labels_json(), batch.label, batch.label_known_at_ms
        count += len(batch)
        if count >= TRAINING_PAYMENTS:
            return


def live_blocks(world: World) -> Iterator[Outgoing]:
    """Simulated payments as the sender takes them."""
    for batch in world.stream(LIVE_START_MS):
        known = batch.label_known_at_ms[batch.label_known_at_ms >= 0]
        yield Outgoing(batch.keys(), batch.to_json(), batch.event_time_ms, outgoing_pairs(batch.labels_json(), known))


@contextmanager
def command(
    name: str, arguments: list[str], environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """One of our own long-running commands in a process of its own; drained by SIGTERM at the end, killed if it does not end."""
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "scorer", name, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes], seconds: float = 40.0) -> int:
    """SIGTERM, then SIGKILL after `seconds`; gives the exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return process.returncode


@contextmanager
def own_database(url: str, name: str) -> Iterator[str]:
    """A database of the demo's own on the server at `url`, dropped at the end: audit rows of a given server are never touched."""
    with psycopg.connect(url, autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(sql.Identifier(name)))
    try:
        yield make_url(url).set(drivername="postgresql", database=name).render_as_string(hide_password=False)
    finally:
        with psycopg.connect(url, autocommit=True) as server:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that are free now."""
    import socket  # noqa: PLC0415

    sockets = [socket.socket() for _ in range(count)]
    for item in sockets:
        item.bind(("127.0.0.1", 0))
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


class Demo:
    """Everything that runs, with what a view needs to show it."""

    def __init__(self, stack: ExitStack, *, cache: Path, report: Report) -> None:
        self._report = report
        bundle = demo_bundle(cache, report)
        self.bundle = Bundle.load(bundle)
        report("Starting Kafka and Postgres")
        services = stack.enter_context(local_services(demo_only_broker_allowed=True, fsync=False, report=report))
        self.log_folder = services.log_folder
        self.kafka_kind = services.kafka.kind
        run_id = secrets.token_hex(4)
        self._url = stack.enter_context(own_database(services.postgres.url, f"fraud_scorer_demo_{run_id}"))
        worker_port, sink_port = free_ports(2)
        environment = {
            **os.environ,
            f"{PREFIX}KAFKA__BOOTSTRAP_SERVERS": services.kafka.bootstrap_servers,
            f"{PREFIX}KAFKA__TOPIC_PREFIX": f"demo-{run_id}-",
            f"{PREFIX}POSTGRES__URL": self._url,
            f"{PREFIX}HTTP__WORKER_PORT": str(worker_port),
            f"{PREFIX}HTTP__SINK_PORT": str(sink_port),
        }
        environment.pop(f"{PREFIX}POSTGRES__PASSWORD", None)
        before = dict(os.environ)
        os.environ.update(environment)
        stack.callback(lambda: (os.environ.clear(), os.environ.update(before)))
        self.settings = load()
        self.topics = kafka.Topics.of(self.settings.kafka)
        setup(self.settings)
        stack.callback(self._delete_topics)
        self.metrics = f"http://127.0.0.1:{worker_port}/metrics"
        report("Starting worker and sink")
        self.worker = stack.enter_context(
            command("run", ["--bundle", str(bundle)], environment, self.log_folder / "worker.log")
        )
        self.sink = stack.enter_context(command("sink", [], environment, self.log_folder / "sink.log"))
        self._wait_ready("worker", self.worker, worker_port)
        self._wait_ready("sink", self.sink, sink_port)
        self.reader = DecisionReader(self.settings)
        stack.callback(self.reader.close)
        self.sender = Sender(self.settings, on_payments=self.reader.sending)
        self._stop = threading.Event()
        self._failure: BaseException | None = None

    def start(self, rate: float) -> None:
        """Payments begin to flow."""
        world = World(LIVE_SEED, customers=CUSTOMERS)

        def send() -> None:
            try:
                self.sender.run(live_blocks(world), stop=self._stop, rate=rate)
            except BaseException as exc:  # noqa: BLE001 - shown by `check` in the main thread
                self._failure = exc

        self._sending = threading.Thread(target=send, name="payments", daemon=True)
        self._sending.start()

    def check(self) -> None:
        """Raise when a part has ended that should run."""
        if self._failure is not None:
            raise self._failure
        self.reader.check()
        for name, process in (("worker", self.worker), ("sink", self.sink)):
            if process.poll() is not None:
                raise FraudScorerError(
                    f"the {name} ended with {process.returncode}; see {self.log_folder / f'{name}.log'}\n{self._tail(name)}"
                )

    def finish(self) -> Result:
        """Stop sending, let everything through, end worker and sink, count."""
        self._stop.set()
        self._sending.join(60)
        self.check()
        client = kafka.admin(self.settings.kafka)
        partitions = [
            TopicPartition(self.topics.payments, p) for p in range(kafka.partition_count(client, self.topics.payments))
        ]
        payments = sum(kafka.ends(client, partitions)) - sum(kafka.starts(client, partitions))
        seen = self.reader.seen
        self._wait(lambda: seen.decisions + seen.dead_letters >= payments, f"{payments} payments to be decided")
        if end(self.worker) != 0:
            raise FraudScorerError(f"the worker ended with {self.worker.returncode}\n{self._tail('worker')}")
        self._wait(lambda: self._audit_rows() >= seen.decisions, "the audit rows")
        if end(self.sink) != 0:
            raise FraudScorerError(f"the sink ended with {self.sink.returncode}\n{self._tail('sink')}")
        time.sleep(0.5)  # a decision too many would still be on its way to the reader
        result = Result(
            payments, seen.decisions, seen.dead_letters, self._audit_rows(), seen.flagged, *self.latency_ms()
        )
        if not result.reconciles or seen.duplicate_decisions:
            raise PromiseBroken(f"the counts do not reconcile: {result}")
        return result

    def latency_ms(self) -> tuple[float, float]:
        """Median and 99th percentile so far."""
        values = np.array(list(self.reader.seen.latencies_ms))
        return (
            (round(float(np.percentile(values, 50)), 2), round(float(np.percentile(values, 99)), 2))
            if len(values)
            else (0.0, 0.0)
        )

    def _audit_rows(self) -> int:
        with psycopg.connect(self._url) as database:
            row = database.execute("SELECT count(*) FROM decisions").fetchone()
            return int(row[0]) if row else 0

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DRAIN_S
        while not condition():
            self.reader.check()
            if time.monotonic() > deadline:
                raise FraudScorerError(
                    f"waited {DRAIN_S:.0f} s for {what}; logs are in {self.log_folder}\n{self._tail('worker')}"
                )
            time.sleep(0.1)

    def _wait_ready(self, name: str, process: subprocess.Popen[bytes], port: int) -> None:
        deadline = time.monotonic() + READY_S
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                pass
            if process.poll() is not None or time.monotonic() > deadline:
                raise FraudScorerError(
                    f"the {name} did not become ready; see {self.log_folder / f'{name}.log'}\n{self._tail(name)}"
                )
            time.sleep(0.1)

    def _tail(self, name: str) -> str:
        log = self.log_folder / f"{name}.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-5:]) if log.exists() else ""

    def _delete_topics(self) -> None:
        client = kafka.admin(self.settings.kafka)
        names = [
            self.topics.payments,
            self.topics.decisions,
            self.topics.audit,
            self.topics.journal,
            self.topics.control,
            self.topics.dead_letters,
        ]
        for future in client.delete_topics(names, operation_timeout=5).values():
            future.exception(10)
