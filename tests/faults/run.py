"""One application on a broker of the tests' own: supervised workers, a payment system, the reckoning."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from schemas.audit_record import Chunk, decode_parts, digest_chunks
from schemas.dead_letter import DeadLetter
from schemas.fast_decision import FastDecision, FastDecisions
from schemas.journal_record import JournalRecord
from scorer import kafka
from scorer.bundle import Bundle
from scorer.operate.setup import create_topics
from scorer.replay import replay_topic
from scorer.runtime.settings import PREFIX, Settings, load
from tests.answers import check_answers
from tests.faults.broker import Brokers
from tests.faults.nursery import Child, Nursery
from tests.faults.payments import Payment, undisturbed
from tests.integration.running import NO_PROGRESS_S, holds, is_ready
from tests.ports import free_ports
from tests.waits import WaitEnded

# Long enough that a busy machine does not keep a worker still for it: that would end the worker, as it should.
SESSION_MS, TRANSACTION_MS = 6_000, 10_000
# Where workers are frozen, by chance or by a schedule, and supervised: another one takes over in a test's time.
QUICK_TO_REPLACE = {"session_timeout_ms": 2_000, "transaction_timeout_ms": 3_000}
# What a worker logs that another one has replaced, whatever it notices first: the fence, the group, its own clock, or a
# record of the other owner on the order log.
REPLACED = ("another worker owns", "put this member out", "stood still", "another worker has written there")
RESTART_S = 0.2


def was_replaced(log: str) -> bool:
    """Whether the worker that has written `log` ended because another one owns its shards now."""
    return any(words in log for words in REPLACED)


class Torn(AssertionError):
    """The outcome is not that of an undisturbed run."""


class TornWait(Torn, WaitEnded):
    """It has not come in time."""


class Topic:
    """Everything that read_committed readers see of a topic."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._client = kafka.admin(settings.kafka)
        self._partitions = [TopicPartition(topic, p, 0) for p in range(kafka.partition_count(self._client, topic))]
        self._consumer: Consumer = kafka.reader(settings.kafka, group="test-reader")
        self._consumer.assign(self._partitions)
        self._reached: dict[int, int] = {}
        self.messages: list[Any] = []

    def fill(self) -> int:
        """Take what has come, and return how much there is by now. A broker that is away is no error here."""
        for message in self._consumer.consume(5_000, 0.02):
            error = message.error()
            if error is None:
                self.messages.append(message)
            elif error.code() != KafkaError._PARTITION_EOF:
                continue
            self._reached[message.partition()] = message.offset() + (error is None)
        return len(self.messages)

    def read_to_end(self) -> None:
        """All that is committed now, past every transaction marker."""
        ends = kafka.ends(self._client, self._partitions)
        deadline, reached = time.monotonic() + NO_PROGRESS_S, dict(self._reached)
        while any(self._reached.get(p, 0) < end for p, end in enumerate(ends)):
            self.fill()
            if reached != self._reached:
                deadline, reached = time.monotonic() + NO_PROGRESS_S, dict(self._reached)
            if time.monotonic() > deadline:
                raise Torn(f"{self._partitions[0].topic} cannot be read to its end: {self._reached} of {ends}")

    def close(self) -> None:
        self._consumer.close()


class Application:
    """Topics, workers and payments of one run."""

    def __init__(
        self,
        broker: Brokers,
        nursery: Nursery,
        folder: Path,
        bundle: Path,
        *,
        partitions: int = 1,
        shards: int = 1,
        replicas_in_sync: int = 1,
        snapshot_every: int = 0,
        login: dict[str, str] | None = None,
        workers_environment: dict[str, str] | None = None,
        **worker: Any,
    ) -> None:
        """`snapshot_every`: payments between two snapshots; 0: none. `worker`: its settings.

        `login`: Kafka settings of the payment system and the readers; the workers' are in `workers_environment`.
        """
        self._environment = workers_environment or {}
        self.broker, self._nursery, self._folder, self._bundle = broker, nursery, folder, bundle
        prefix = f"faults-{secrets.token_hex(4)}-"
        section = {"shards": shards, "session_timeout_ms": SESSION_MS, "transaction_timeout_ms": TRANSACTION_MS,
                   "batch_payments_max": 64, "no_progress_s": 30.0, "shard_key": ["customer_id"]} | worker  # fmt: skip
        self._worker = {k: v for k, v in section.items() if v is not None}
        self.snapshots = folder / "snapshots"
        self._snapshots = {"URL": self.snapshots.as_uri(), "EVERY_PAYMENTS": str(snapshot_every), "EVERY_S": "0"}
        self.settings = load(
            kafka={"bootstrap_servers": broker.bootstrap_servers, "topic_prefix": prefix} | (login or {}),
            topics={"payments_partitions": partitions, "min_insync_replicas": replicas_in_sync},
            worker=self._worker,
        )
        create_topics(self.settings)
        self.topics = kafka.Topics.of(self.settings.kafka)
        if self.settings.worker.group_protocol == "consumer":
            self._set_session()
        self.sent: list[Payment] = []
        self._producer: Producer = kafka.plain_producer(self.settings.kafka)
        self.decisions = Topic(self.settings, self.topics.decisions)
        self.dead_letters = Topic(self.settings, self.topics.dead_letters)
        self.fast = Topic(self.settings, self.topics.decisions_fast)
        self.workers: dict[str, Child] = {}
        self._beside: list[Child] = []
        self.exits: Counter[str] = Counter()
        self._ended_at: dict[str, float] = {}
        self._lives = 0

    # workers

    def start(self, name: str, fault: str | None = None, **more: str) -> Child:
        """Start a worker; `fault` as scorer.runtime.fault_points reads it."""
        (port,) = free_ports(1)
        self._lives += 1
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(PREFIX)},
            f"{PREFIX}KAFKA__BOOTSTRAP_SERVERS": self.broker.proxied_servers,
            f"{PREFIX}KAFKA__TOPIC_PREFIX": self.settings.kafka.topic_prefix,
            f"{PREFIX}HTTP__WORKER_PORT": str(port),
            **{
                f"{PREFIX}WORKER__{k.upper()}": json.dumps(v) if isinstance(v, list) else str(v)
                for k, v in self._worker.items()
            },
            **{f"{PREFIX}SNAPSHOTS__{k}": v for k, v in self._snapshots.items()},
            **({f"{PREFIX}FAULT": fault} if fault else {}),
            **self._environment,
            **more,
        }
        child = self._nursery.start(environment, port, self._folder / f"{name}-{self._lives}.log")
        self.workers[name] = child
        return child

    def beside(self, name: str, **more: str) -> Child:
        """Start a worker that is not supervised, and ends with the application at the latest."""
        child = self.start(name, **more)
        self._beside.append(self.workers.pop(name))
        return child

    def _set_session(self) -> None:
        """Under the consumer protocol the broker knows how long a session of this group is."""
        value = str(self.settings.worker.session_timeout_ms)
        entry = ConfigEntry("consumer.session.timeout.ms", value, incremental_operation=AlterConfigOpType.SET)
        group = f"{self.topics.journal}-workers"
        resource = ConfigResource(ResourceType.GROUP, group, incremental_configs=[entry])
        client = kafka.admin(self.settings.kafka)  # its futures end with it
        client.incremental_alter_configs([resource])[resource].result(30)

    def limited(self, topic: str, record_bytes_max: int) -> Callable[[], None]:
        """Let a topic take no larger records than this, if the broker answers; gives what removes the limit, and raises
        KafkaException when the broker does not answer: to be called again."""
        client = kafka.admin(self.settings.kafka)

        def alter(operation: AlterConfigOpType, value: str | None) -> None:
            entry = ConfigEntry("max.message.bytes", value, incremental_operation=operation)
            resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
            client.incremental_alter_configs([resource], request_timeout=5.0)[resource].result(15)

        with contextlib.suppress(KafkaException):  # the broker is away
            alter(AlterConfigOpType.SET, str(record_bytes_max))
        return lambda: alter(AlterConfigOpType.DELETE, None)

    def ready(self, name: str, seconds: float = 90) -> Child:
        """Wait until the worker reports that it is ready."""
        child = self.workers[name]
        self.wait(lambda: is_ready(child.port), seconds, f"{name} to be ready")
        return child

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        self.workers[name].signal(number)

    def supervise(self) -> None:
        """Start again what has ended, as an operator's supervisor would, and note how it ended."""
        now = time.monotonic()
        for name, child in list(self.workers.items()):
            code = child.poll()
            if code is None:
                continue
            if name not in self._ended_at:
                self._ended_at[name] = now
                self.exits[self._how(child, code)] += 1
            elif now - self._ended_at[name] > RESTART_S:
                del self._ended_at[name]
                self.start(name)

    def _how(self, child: Child, code: int) -> str:
        log = child.log_end().strip().splitlines()
        last = log[-1] if log else ""
        # "fault at": an exception that was let in (scorer.runtime.fault_points); it ends the process, as row 35 wants.
        if code == 3 or ("Traceback" in child.log_end() and "fault at" not in child.log_end()):
            raise Torn(f"a worker ended with {code}:\n{child.log_end()}")
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit {code}" + (f": {last}" if code else "")

    # payments

    def pay(self, given: list[Payment]) -> None:
        """Hand payments to the client; by key they go to a partition."""
        for key, value in given:
            self._producer.produce(self.topics.payments, value, key=key)
        self.sent += given
        self._producer.poll(0)

    def reconnect(self) -> None:
        """A new client: an idempotent one is of no use on a log that lost what it had sent."""
        self._producer = kafka.plain_producer(self.settings.kafka)

    def flushed(self) -> bool:
        """Whether all payments have reached Kafka."""
        return self._producer.flush(0.05) == 0

    def decided(self) -> int:
        """Payments answered, and dead letters without an answer, seen so far."""
        self.dead_letters.fill()
        self.fast.fill()
        return self.decisions.fill() + self._unanswered()

    def _unanswered(self) -> int:
        """Dead letters that name no payment."""
        return sum(not _names_payment(message.value()) for message in self.dead_letters.messages)

    def wait(self, condition: Callable[[], object], seconds: float, what: str, *, supervised: bool = False) -> None:
        deadline = time.monotonic() + seconds
        while not holds(condition, deadline):
            if supervised:
                self.supervise()
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {name}\n{child.log_end()[-2500:]}" for name, child in self.workers.items())
                raise TornWait(f"waited {seconds:.0f} s for {what}\n{logs}")
            time.sleep(0.02)

    def finish(self, seconds: float = 120, *, supervised: bool = True) -> None:
        """All payments sent are decided; the workers drain and exit 0."""
        self.wait(self.flushed, 60, "the payments to reach Kafka", supervised=supervised)
        n = len(self.sent)
        self.wait(lambda: self.decided() >= n, seconds, f"{n} payments to be decided", supervised=supervised)
        self.stop()

    def stop(self) -> None:
        """Ask the workers to end; they drain and exit 0."""
        for name, child in self.workers.items():
            child.signal(signal.SIGCONT)
            self.kill(name, signal.SIGTERM)
        for child in self.workers.values():
            code = child.wait(90)  # three transactions and 5 s are its own bound
            log = child.log_end()
            # Asked a second time while it was leaving, or before it could hear: then the signal alone ended it.
            unheard = code == -signal.SIGTERM and ("worker.left" in log or "worker.start" not in log)
            # A worker that was frozen, or starved, past its session logs it and ends with 1, as row 3 wants.
            replaced = code == 1 and was_replaced(log)
            if code not in (0, -signal.SIGKILL) and not unheard and not replaced:
                raise Torn(f"a worker was asked to stop and ended with {code}:\n{child.log_end()}")

    def close(self) -> None:
        for child in (*self.workers.values(), *self._beside):
            with contextlib.suppress(ProcessLookupError):
                child.signal(signal.SIGKILL)
        self.decisions.close()
        self.dead_letters.close()
        self.fast.close()

    # the reckoning

    def check_answers(self) -> None:
        """Raise AssertionError when a payment has two different decisions on any topic, repeats included."""
        check_answers(self.settings)

    def check(self, *, fast_whole: bool = True) -> None:
        """Raise Torn unless decisions, audit rows, dead letters and journal are those of an undisturbed run.

        `fast_whole`: topic decisions-fast has all decisions, and not only such."""
        self.check_answers()
        self.decisions.read_to_end()
        self.dead_letters.read_to_end()
        _same("records answered", len(self.decisions.messages) + self._unanswered(), len(self.sent))
        bundle = Bundle.load(self._bundle)
        rows = self._audit_rows(bundle)
        replayed: list[dict[str, Any]] = []
        for shard in range(self.settings.worker.shards):
            output = self._folder / f"replay-{shard}.parquet"
            replay_topic(bundle, self.settings, output, shard=shard)  # checks each digest along the journal
            replayed += pq.read_table(output).to_pylist()
        names = bundle.feature_set.names
        expected_rows = {(r["partition"], r["offset"]): _row(r, names) for r in replayed}
        _same("audit rows", dict(sorted(rows.items())), dict(sorted(expected_rows.items())))
        decided: dict[int, list[str]] = {}
        for message in self.decisions.messages:
            decided.setdefault(message.partition(), []).append(_identity(message.value()))
        audited: dict[int, list[str]] = {}
        for r in sorted(replayed, key=lambda r: (r["partition"], r["offset"])):
            audited.setdefault(r["partition"], []).append(r["payment_id"])
        _same("decisions of each partition, in order", decided, audited)
        self._check_fast(whole=fast_whole and self.settings.worker.fast_decisions)
        if self.settings.topics.payments_partitions == 1:
            expected = undisturbed(bundle, self.sent)
            _same("decisions", [m.value() for m in self.decisions.messages], expected.decisions)
            _same("dead letters", self._letters(), expected.dead_letters)
            features = np.array([rows[key][-1] for key in sorted(rows)], np.float32)
            if not np.array_equal(features.view(np.uint32), _canonical(expected.features)):
                raise Torn("the features in the audit are not those of an undisturbed run")

    def _check_fast(self, *, whole: bool) -> None:
        """What a reader of topic decisions-fast takes equals topic decisions, and what it drops is equal to what it has
        taken before."""
        self.fast.read_to_end()
        reader = FastDecisions()
        taken: dict[int, list[bytes]] = {}
        known: dict[tuple[int, int, int], bytes] = {}
        for message in self.fast.messages:
            partition, value = message.partition(), message.value()
            place = FastDecision.model_validate_json(value)
            _same("repeats", known.setdefault((partition, place.sequence, place.row), value), value)
            decision = reader.new(partition, value)
            if decision is not None:
                taken.setdefault(partition, []).append(decision.to_bytes())
        decided: dict[int, list[bytes]] = {}
        for message in self.decisions.messages:
            decided.setdefault(message.partition(), []).append(message.value())
        if not whole:
            among = {p: [value for value in decided[p] if value in set(values)] for p, values in taken.items()}
            _same("fast decisions among the decisions", taken, among)
        else:
            _same(
                "fast decisions of each partition, in order", dict(sorted(taken.items())), dict(sorted(decided.items()))
            )

    def _letters(self) -> list[tuple[int, str]]:
        letters = [DeadLetter.from_headers(message.headers()) for message in self.dead_letters.messages]
        return sorted((letter.offset, letter.reason.value) for letter in letters)

    def _audit_rows(self, bundle: Bundle) -> dict[tuple[int, int], tuple[Any, ...]]:
        """Rows by (partition, offset); each batch's digest recomputed and compared with its journal record."""
        topic = Topic(self.settings, self.topics.audit)
        topic.read_to_end()
        topic.close()
        batches: dict[tuple[int, int], list[Chunk]] = {}
        for message in topic.messages:
            chunk = decode_parts(message.value())
            batches.setdefault((chunk.header.shard, chunk.header.sequence), []).append(chunk)
        rows: dict[tuple[int, int], tuple[Any, ...]] = {}
        for (shard, sequence), chunks in batches.items():
            header = chunks[0].header
            record = JournalRecord.from_bytes(header.journal.encode())
            _same("the batch of an audit record", (record.shard, record.sequence), (shard, sequence))
            _same("an audit digest", digest_chunks(chunks), record.digest)
            for chunk in chunks:
                for r in chunk.rows.to_pylist():
                    key = (r["partition"], r["offset"])
                    if key in rows:
                        raise Torn(f"the payment at {key} has two audit rows")
                    rows[key] = (r["payment_id"], float(r["score"]), float(r["margin"]), tuple(r["reasons"]),
                                 tuple(_bits(r["features"])))  # fmt: skip
        return rows


def _names_payment(value: bytes | None) -> bool:
    try:
        document = json.loads(value or b"")
    except ValueError:
        return False
    return isinstance(document, dict) and isinstance(document.get("payment_id"), str)


def _identity(value: bytes) -> str:
    return str(json.loads(value)["payment_id"])


def _canonical(features: Any) -> Any:
    bits = np.ascontiguousarray(features, np.float32)
    return np.where(np.isnan(bits), np.float32("nan"), bits + np.float32(0.0)).view(np.uint32)


def _bits(features: Any) -> list[float]:
    return list(features)


def _row(r: dict[str, Any], names: list[str]) -> tuple[Any, ...]:
    features = [r[name] if name in r and name != "score" else r[f"feature.{name}"] for name in names]
    return (r["payment_id"], float(r["score"]), float(r["margin"]), tuple(r["reasons"]), tuple(features))


def _same(what: str, found: Any, expected: Any) -> None:
    if repr(found) != repr(expected) and found != expected:  # repr: NaN is equal to itself
        raise Torn(f"{what} differ: {_first_difference(found, expected)}")


def _first_difference(found: Any, expected: Any) -> str:
    if isinstance(found, dict) and isinstance(expected, dict):
        missing, more = list(expected.keys() - found.keys())[:5], list(found.keys() - expected.keys())[:5]
        if missing or more:
            return f"missing {missing}, more {more}"
        for key, value in found.items():
            if repr(value) != repr(expected[key]):
                return f"{key}: {str(value)[:300]} instead of {str(expected[key])[:300]}"
    if isinstance(found, list) and isinstance(expected, list):
        for i, (a, b) in enumerate(zip(found, expected, strict=False)):
            if repr(a) != repr(b):
                return f"[{i}]: {str(a)[:300]} instead of {str(b)[:300]}"
        return f"{len(found)} instead of {len(expected)}"
    return f"{str(found)[:300]} instead of {str(expected)[:300]}"
