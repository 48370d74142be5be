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
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import psycopg
from confluent_kafka import TopicPartition

from scorer import kafka
from scorer.demo.broker_warmup import warm_broker
from scorer.demo.decision_reader import DecisionReader
from scorer.demo.demo_bundle import CUSTOMERS, LIVE_SEED, demo_bundle, demo_bundle_id, live_blocks
from scorer.demo.demo_processes import answer, command, end, environment_of, free_ports, own_database
from scorer.demo.start_progress import StartProgress
from scorer.errors import FraudScorerError, PromiseBroken
from scorer.local_services import ServicesError, local_prometheus, local_services
from scorer.operate.kernel_compilation import KernelCompilation
from scorer.operate.record_sender import Sender
from scorer.operate.setup import setup
from scorer.runtime.settings import load
from scorer.simulate import World

# How many kernels there are, for a line of progress.
KERNELS = 250
# Kernels come from the cache by then.
READY_S = 120.0
# A minute of CPU on two cores, much longer on a machine with other work.
COMPILE_S = 900.0
DRAIN_S = 120.0
# Nothing is sent any more when payments are counted: a record that is there comes at once.
COUNT_QUIET_S = 1.0
POLL_S = 0.1


@dataclass(frozen=True)
class Result:
    """The sum at the end; the names are the interface of `demo --json`."""

    payments: int
    decisions: int
    dead_letters: int
    refused: int
    audit_rows: int
    flagged: int
    # None: no decision was read there.
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    fast_latency_p50_ms: float | None
    fast_latency_p99_ms: float | None

    @property
    def reconciles(self) -> bool:
        """Every payment has its answer, and every answer its row."""
        return self.payments == self.decisions + self.dead_letters - self.refused and self.decisions == self.audit_rows


class StoppedEarly(FraudScorerError):
    """Whoever started the demo stopped it before everything had started."""


class Demo:
    """Everything that runs, with what a view needs to show it."""

    def __init__(
        self, stack: ExitStack, *, report: Callable[[str], None], stopped: Callable[[], bool] = lambda: False
    ) -> None:
        """Starts everything, side by side where it can be. `report` gets a line for whatever begins, is ready or takes
        long, from several threads. Raises StoppedEarly once `stopped` is true."""
        self._stopped = stopped
        progress = stack.enter_context(StartProgress(report))
        self.progress = progress
        folder = demo_bundle()
        # First of all, since it takes longest; and before this process imports a kernel, so that it compiles none.
        kernels = stack.enter_context(KernelCompilation(folder))
        progress.begin(
            "kernels", lambda: f"{kernels.count} compiled for this machine, of some {KERNELS} at a first start"
        )
        progress.begin("Kafka and Postgres")
        services = stack.enter_context(
            local_services(demo_only_broker_allowed=True, fsync=False, short_lived=True, report=progress.line)
        )
        self._services = services
        self.log_folder = services.log_folder
        self.kafka_kind = services.kafka.kind
        self._go_on()
        progress.end("Kafka and Postgres", "ready")
        progress.begin("topics and tables")
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
                "AUDIT__QUALITY_EVERY_S": "5",
            })
        )  # fmt: skip
        self.settings = load()
        self.topics = kafka.Topics.of(self.settings.kafka)
        setup(self.settings)
        stack.callback(self._delete_topics)
        progress.end("topics and tables", "made")
        self.sink = stack.enter_context(command("sink", [], environment, self.log_folder / "sink.log"))
        if self.kafka_kind != "tansu":  # nothing to warm there: it is compiled ahead
            progress.begin("the broker's own compiler")
            warm_broker(self.settings, f"demo-{run_id}-warm-up")
            progress.end("the broker's own compiler", "warm")
        give_up = time.monotonic() + COMPILE_S
        while not kernels.wait(POLL_S):
            self._go_on()
            if time.monotonic() > give_up:
                raise FraudScorerError(f"the kernels were not compiled within {COMPILE_S:.0f} s")
        progress.end(
            "kernels", f"{kernels.count} compiled, the others were in the cache" if kernels.count else "in the cache"
        )
        progress.begin("worker and sink")
        self.metrics = f"http://127.0.0.1:{worker_port}/metrics"
        self.sink_metrics = f"http://127.0.0.1:{sink_port}/metrics"
        self.worker = stack.enter_context(
            command("run", ["--bundle", str(folder)], environment, self.log_folder / "worker.log")
        )
        self.bundle_id = demo_bundle_id()
        self.reader = DecisionReader(self.settings)
        stack.callback(self.reader.close)
        self.fast_reader: DecisionReader | None = None
        if self.settings.worker.fast_decisions:
            self.fast_reader = DecisionReader(self.settings, fast=True)
            stack.callback(self.fast_reader.close)
        self.sender = Sender(self.settings, on_payments=self._hand_over)
        self._wait_ready("worker", self.worker, worker_port)
        self._wait_ready("sink", self.sink, sink_port)
        progress.end("worker and sink", "ready")
        self.prometheus = self._start_prometheus(stack, progress, (worker_port, sink_port))
        progress.line(f"metrics: {self.metrics} (worker), {self.sink_metrics} (sink)")
        progress.line(f"logs: {self.log_folder}")
        progress.close()
        self._stop = threading.Event()
        self._failure: BaseException | None = None

    def _start_prometheus(self, stack: ExitStack, progress: StartProgress, ports: tuple[int, int]) -> str | None:
        """Its address; None, with a line that says why, where it is not installed or does not start."""
        self._no_prometheus = "none on the PATH"
        try:
            address = stack.enter_context(local_prometheus(self.log_folder.parent, ports, temporary=True))
        except ServicesError as exc:
            progress.line(f"Prometheus: it did not start, and the demo goes on without it ({exc})")
            self._no_prometheus = "did not start, see its log"
            return None
        if address is None:
            progress.line(
                "Prometheus: none on the PATH, so there are metrics and no graphs (Debian: apt install prometheus)"
            )
        else:
            progress.line(f"Prometheus: {address}, scrapes both each second and evaluates the alerts")
        return address

    def _go_on(self) -> None:
        if self._stopped():
            raise StoppedEarly("stopped before the first payment")

    @property
    def places(self) -> tuple[tuple[str, str], ...]:
        """Where metrics, graphs and logs are: what, and its address or folder."""
        return (
            ("worker metrics", self.metrics),
            ("sink metrics", self.sink_metrics),
            ("Prometheus", self.prometheus or self._no_prometheus),
            ("logs", str(self.log_folder)),
        )

    def _hand_over(self, values: list[bytes]) -> None:
        for reader in self._readers():
            reader.sending(values)

    def _readers(self) -> list[DecisionReader]:
        return [self.reader] if self.fast_reader is None else [self.reader, self.fast_reader]

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
        for reader in self._readers():
            reader.check()
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
            *_both(self.reader),
            *_both(self.fast_reader),
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
            time.sleep(POLL_S)

    def _wait_ready(self, name: str, process: subprocess.Popen[bytes], port: int) -> None:
        deadline = time.monotonic() + READY_S
        while True:
            self._go_on()
            if answer(f"http://127.0.0.1:{port}/readyz") is not None:
                return
            if process.poll() is not None or time.monotonic() > deadline:
                raise FraudScorerError(
                    f"the {name} did not become ready; see {self.log_folder / f'{name}.log'}\n{self._tail(name)}"
                )
            time.sleep(POLL_S)

    def _tail(self, name: str) -> str:
        log = self.log_folder / f"{name}.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-5:]) if log.exists() else ""

    def _delete_topics(self) -> None:
        client = kafka.admin(self.settings.kafka)
        for future in client.delete_topics(list(self.topics.all), operation_timeout=5).values():
            future.exception(10)


def _both(reader: DecisionReader | None) -> tuple[float | None, float | None]:
    """Median and 99th percentile of all latencies, ms."""
    found = reader and reader.latency()
    return (found.p50_ms, found.p99_ms) if found else (None, None)
