"""Everything that runs, and the sum at the end.

The worker and the sink are the real commands in processes of their own. Counts are read back from the topics and from
Postgres; latency runs from the moment a payment is handed to the client until its decision has been read under
read_committed.
"""

from __future__ import annotations

import secrets
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psycopg
from confluent_kafka import TopicPartition

from scorer import kafka
from scorer.bundle import Bundle
from scorer.demo.broker_warmup import warm_broker
from scorer.demo.decision_reader import DecisionReader
from scorer.demo.demo_processes import command, end, environment_of, free_ports, own_database
from scorer.demo.trained_bundle import CUSTOMERS, LIVE_SEED, Report, demo_bundle, live_blocks
from scorer.errors import FraudScorerError, PromiseBroken
from scorer.local_services import local_services
from scorer.operate.record_sender import Sender
from scorer.operate.setup import setup
from scorer.runtime.settings import load
from scorer.simulate import World

# The first start on a machine compiles every kernel: a minute on an idle core.
READY_S = 300.0
DRAIN_S = 120.0
# Nothing is sent any more when payments are counted: a record that is there comes at once.
COUNT_QUIET_S = 1.0


@dataclass(frozen=True)
class Result:
    """The sum at the end; the names are the interface of `demo --json`."""

    payments: int
    decisions: int
    dead_letters: int
    refused: int
    audit_rows: int
    flagged: int
    latency_p50_ms: float
    latency_p99_ms: float

    @property
    def reconciles(self) -> bool:
        """Every payment has its answer, and every answer its row."""
        return self.payments == self.decisions + self.dead_letters - self.refused and self.decisions == self.audit_rows


class Demo:
    """Everything that runs, with what a view needs to show it."""

    def __init__(self, stack: ExitStack, *, cache: Path, report: Report) -> None:
        self._report = report
        bundle = demo_bundle(cache, report)
        self.bundle = Bundle.load(bundle)
        report("Starting Kafka and Postgres")
        services = stack.enter_context(local_services(demo_only_broker_allowed=True, fsync=False, report=report))
        self._services = services
        self.log_folder = services.log_folder
        self.kafka_kind = services.kafka.kind
        run_id = secrets.token_hex(4)
        self._url = stack.enter_context(own_database(services.postgres.url, f"fraud_scorer_demo_{run_id}"))
        worker_port, sink_port = free_ports(2)
        environment = stack.enter_context(
            environment_of({
                "KAFKA__BOOTSTRAP_SERVERS": services.kafka.bootstrap_servers,
                "KAFKA__TOPIC_PREFIX": f"demo-{run_id}-",
                "POSTGRES__URL": self._url,
                "HTTP__WORKER_PORT": str(worker_port),
                # This broker keeps what producers write, whatever a topic's message.timestamp.type is.
                "WORKER__PRODUCER_TIMESTAMPS": str(self.kafka_kind == "tansu").lower(),
                "HTTP__SINK_PORT": str(sink_port),
            })
        )  # fmt: skip
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
        if self.kafka_kind != "tansu":  # nothing to warm there: it is compiled ahead
            warm_broker(self.settings, f"demo-{run_id}-warm-up")
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
        self._services.check()
        for name, process in (("worker", self.worker), ("sink", self.sink)):
            if process.poll() is not None:
                raise FraudScorerError(
                    f"the {name} ended with {process.returncode}; "
                    f"see {self.log_folder / f'{name}.log'}\n{self._tail(name)}"
                )

    def finish(self) -> Result:
        """Stop sending, let everything through, end worker and sink, count."""
        self._stop.set()
        self._sending.join(60)
        self.check()
        payments = self._payments_on_topic()
        seen = self.reader.seen
        self._wait(
            lambda: seen.decisions + seen.dead_letters - seen.refused >= payments, f"{payments} payments to be decided"
        )
        if end(self.worker) != 0:
            raise FraudScorerError(f"the worker ended with {self.worker.returncode}\n{self._tail('worker')}")
        self._wait(lambda: self._audit_rows() >= seen.decisions, "the audit rows")
        if end(self.sink) != 0:
            raise FraudScorerError(f"the sink ended with {self.sink.returncode}\n{self._tail('sink')}")
        time.sleep(0.5)  # a decision too many would still be on its way to the reader
        result = Result(
            payments,
            seen.decisions,
            seen.dead_letters,
            seen.refused,
            self._audit_rows(),
            seen.flagged,
            *self.reader.latency_ms(),
        )
        if not result.reconciles or seen.duplicate_decisions:
            raise PromiseBroken(f"the counts do not reconcile: {result}")
        return result

    def _payments_on_topic(self) -> int:
        """How many payments the topic holds, by its own offsets."""
        client = kafka.admin(self.settings.kafka)
        topic = self.topics.payments
        partitions = [TopicPartition(topic, p) for p in range(kafka.partition_count(client, topic))]
        ends = dict(enumerate(kafka.ends(client, partitions)))
        # The stand-in broker answers where its last batch begins, not where it ends: read on from there.
        consumer = kafka.reader(self.settings.kafka, group=f"{self.settings.kafka.topic_prefix}demo-count")
        try:
            consumer.assign([TopicPartition(topic, p, end) for p, end in ends.items()])
            quiet_at = time.monotonic() + COUNT_QUIET_S
            while time.monotonic() < quiet_at:
                message = consumer.poll(0.1)
                if message is not None and message.error() is None:
                    partition, offset = message.partition(), message.offset()
                    ends[kafka.present(partition, "partition")] = kafka.present(offset, "offset") + 1
                    quiet_at = time.monotonic() + COUNT_QUIET_S
        finally:
            consumer.close()
        return sum(ends.values()) - sum(kafka.starts(client, partitions))

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
        for future in client.delete_topics(list(self.topics.all), operation_timeout=5).values():
            future.exception(10)
