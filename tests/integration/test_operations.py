"""FAULTS rows 35 and 37, lag and readiness: what an operator sees of worker and sink, and how they end."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import KafkaException, Producer, TopicPartition

from scorer import kafka
from scorer.local_services import Services
from scorer.operate.record_sender import Sender
from scorer.operate.setup import setup
from scorer.runtime.fault_points import SETTING
from scorer.runtime.settings import PREFIX, Settings
from tests.integration.handbook import handbook
from tests.integration.running import environment, is_ready, metrics, process, test_settings, wait_for
from tests.integration.sinks import query
from tests.ports import free_ports

PAYMENTS = 5_000


@pytest.fixture
def settings(own_services: Services, topics_prefix: str, database: str) -> Settings:
    made = test_settings(
        own_services.kafka.bootstrap_servers,
        topics_prefix,
        postgres={"url": database},
        worker={"batch_payments_max": 256},
        topics={"payments_partitions": 2},
    )
    setup(made)
    return made


@contextmanager
def starting(
    name: str, arguments: list[str], settings: Settings, log: Path, **more: str
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process that need not become ready, and its port."""
    (port,) = free_ports(1)
    env = environment(settings, **{f"{PREFIX}HTTP__{'WORKER' if name == 'run' else 'SINK'}_PORT": str(port)}, **more)
    with log.open("ab") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "scorer", name, *arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        yield child, port
    finally:
        child.kill()
        child.wait()


def ready(port: int) -> tuple[bool, str]:
    """What /readyz says."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return True, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return False, error.read().decode()
    except OSError as error:
        return False, f"unreachable: {error}"


def ready_for_s(ports: list[int], what: str) -> float:
    """Wait until all of them answer that they are not ready for the sake of Kafka; gives the seconds from now to the
    last question that one of them answered otherwise."""
    began, ready_s = time.monotonic(), 0.0

    def all_unready() -> bool:
        nonlocal ready_s
        unready = 0
        for port in ports:
            asked_s = time.monotonic() - began
            good, why = ready(port)
            if good:
                ready_s = asked_s
            unready += not good and "Kafka" in why
        return unready == len(ports)

    wait_for(all_unready, 60, what)
    return ready_s


@pytest.fixture(autouse=True)
def _hang_up_ends() -> Iterator[None]:
    """Children inherit what SIGHUP does: also where these tests themselves run under nohup, it must not be ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def send(settings: Settings, count: int = PAYMENTS) -> None:
    Sender(settings).run(handbook(count), stop=threading.Event())


def test_a_broker_that_is_away_makes_owner_standby_and_sink_unready_in_seconds(
    settings: Settings, own_services: Services, bundle: Path, tmp_path: Path
) -> None:
    """The broker hangs (its connections stay open), and is then killed: each time /readyz of the owner, of a standby
    that owns nothing, of the sink and of a spare one turns within 4 s (and the probes' own time), and turns back by
    itself.

    A stop is bounded too while the broker hangs: with nothing in flight all of them end with 0.
    """
    broker = own_services.kafka
    with (
        process("run", ["--bundle", str(bundle)], settings, tmp_path / "owner.log") as owner,
        process("run", ["--bundle", str(bundle)], settings, tmp_path / "standby.log") as standby,
        process("sink", [], settings, tmp_path / "sink.log") as sink,
        process("sink", [], settings, tmp_path / "spare.log") as spare,
    ):
        ports = [child.port for child in (owner, standby, sink, spare)]  # type: ignore[attr-defined]
        pid = broker.service.pids["service"]  # type: ignore[union-attr]
        os.kill(pid, signal.SIGSTOP)
        try:
            assert ready_for_s(ports, "all of them to be unready while the broker hangs") < 6.0
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_for(lambda: all(ready(port)[0] for port in ports), 60, "all of them to be ready again")
        broker.kill()
        try:
            assert ready_for_s(ports, "all of them to be unready without a broker") < 6.0
        finally:
            broker.start()
        wait_for(lambda: all(ready(port)[0] for port in ports), 180, "all of them to be ready after the restart")
        os.kill(broker.service.pids["service"], signal.SIGSTOP)  # type: ignore[union-attr]
        try:
            began, children = time.monotonic(), {"standby": standby, "owner": owner, "sink": sink, "spare": spare}
            for child in children.values():
                child.send_signal(signal.SIGTERM)
            ended = {name: (child.wait(120), round(time.monotonic() - began, 1)) for name, child in children.items()}
            assert {code for code, _ in ended.values()} == {0}, ended
        finally:
            os.kill(broker.service.pids["service"], signal.SIGCONT)  # type: ignore[union-attr]
    # Others use this broker too: it has to take transactions again.
    topic = kafka.Topics.of(settings.kafka).control
    wait_for(lambda: commits(settings, topic), 120, "the broker to commit a transaction again")


def test_lag_is_shown_by_partition_and_reaches_zero_past_markers_and_aborted_records(
    settings: Settings, bundle: Path, tmp_path: Path
) -> None:
    """Lag counts what is not decided and its age, and is 0 when nothing is left to decide, though the partitions end
    in transaction markers and aborted records."""
    send(settings)
    topic, slow = kafka.Topics.of(settings.kafka).payments, ",".join(f"after_consume:{n}:sleep=1" for n in range(2, 15))
    for commit in (True, False):
        in_transaction(settings, topic, [b"{}", b"{}"], commit=commit)
    with process("run", ["--bundle", str(bundle)], settings, tmp_path / "run.log", **{SETTING: slow}) as worker:
        port = worker.port  # type: ignore[attr-defined]

        def shows_what_waits() -> bool:
            """In one scrape: its age, and records of the partitions that add up. Another batch may begin with the next
            one, and one that is made while the gauges are set adds up to something else."""
            now = metrics(port)
            age_s, behind = (
                [now.get(f'fraud_scorer_lag_{unit}{{partition="{p}",shard="0"}}', 0) for p in (0, 1)]
                for unit in ("seconds", "records")
            )
            return max(age_s) > 0 and 0 < sum(behind) == now.get('fraud_scorer_lag_payments{shard="0"}')

        wait_for(shows_what_waits, 60, "the age of what waits")

        def at_end() -> bool:
            now = metrics(port)
            lags = [
                now.get(f'fraud_scorer_lag_{unit}{{partition="{p}",shard="0"}}')
                for unit in ("records", "seconds")
                for p in (0, 1)
            ]
            return now.get('fraud_scorer_lag_payments{shard="0"}') == 0 and lags == [0] * 4

        wait_for(at_end, 180, "a lag of 0")
        in_transaction(settings, topic, [b"{}"], commit=False)
        time.sleep(2.5)
        wait_for(at_end, 60, "a lag of 0 again")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0


def commits(settings: Settings, topic: str) -> bool:
    try:
        in_transaction(settings, topic, [b"{}"], commit=True)
    except (KafkaException, kafka.KafkaFailure):
        return False
    return True


def in_transaction(settings: Settings, topic: str, values: list[bytes], *, commit: bool) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers, "transactional.id": f"{topic}-test"})
    producer.init_transactions(30)
    producer.begin_transaction()
    for partition in range(kafka.partition_count(kafka.admin(settings.kafka), topic)):
        for value in values:
            producer.produce(topic, value, partition=partition)
    producer.flush(30)
    (producer.commit_transaction if commit else producer.abort_transaction)(30)


def test_positions_of_the_sink_move_over_a_tail_that_holds_no_record(settings: Settings, tmp_path: Path) -> None:
    """Partitions of audit, control, labels and dead-letters end in aborted records and markers: positions in Postgres
    reach the true ends without a stop, lag is 0; retention may then remove the tail, and a killed sink starts again."""
    topics, client = kafka.Topics.of(settings.kafka), kafka.admin(settings.kafka)
    names = (topics.audit, topics.control, topics.labels, topics.dead_letters)
    for name in names:
        in_transaction(settings, name, [b"{}"] * 3, commit=False)
    places = [TopicPartition(n, p) for n in names for p in range(kafka.partition_count(client, n))]
    ends = {(place.topic, place.partition): end for place, end in zip(places, kafka.ends(client, places), strict=True)}

    def stored() -> dict[tuple[str, int], int]:
        found = query(settings.postgres_url, "SELECT topic, partition, next_offset FROM positions")
        return {(topic, partition): offset for topic, partition, offset in found}

    def lags(port: int) -> list[float]:
        return [value for name, value in metrics(port).items() if name.startswith("fraud_scorer_sink_lag_")]

    with process("sink", [], settings, tmp_path / "sink.log") as sink:
        wait_for(lambda: stored() == ends, 60, "the positions to reach the ends")
        port = sink.port  # type: ignore[attr-defined]
        wait_for(lambda: len(lags(port)) == 2 * len(places) and not any(lags(port)), 60, "a lag of 0 everywhere")
        sink.kill()
        sink.wait()
    for future in client.delete_records([TopicPartition(t, p, end) for (t, p), end in ends.items()]).values():
        future.result(30)
    with process("sink", [], settings, tmp_path / "sink.log") as sink:
        wait_for(lambda: not any(lags(sink.port)), 60, "a lag of 0 after retention")  # type: ignore[attr-defined]
        sink.send_signal(signal.SIGHUP)
        assert sink.wait(60) == 0, (tmp_path / "sink.log").read_text()[-2000:]
    assert stored() == ends


def test_a_hang_up_drains_as_a_termination_does(settings: Settings, bundle: Path, tmp_path: Path) -> None:
    """SIGHUP in the middle of a stream: the batch in flight is committed, and the worker ends with 0."""
    log = tmp_path / "run.log"
    with process("run", ["--bundle", str(bundle)], settings, log) as worker:
        send(settings)
        port = worker.port  # type: ignore[attr-defined]
        wait_for(lambda: metrics(port).get('fraud_scorer_batches_total{shard="0"}', 0) > 2, 60, "batches")
        worker.send_signal(signal.SIGHUP)
        assert worker.wait(60) == 0, log.read_text()[-2000:]
    assert "shard.released" in log.read_text()


def test_a_stop_while_kernels_compile_ends_the_start(settings: Settings, bundle: Path, tmp_path: Path) -> None:
    """A first start that compiles for minutes says so in the log and on /readyz, and SIGTERM ends it at once with 0."""
    log = tmp_path / "run.log"
    with starting("run", ["--bundle", str(bundle)], settings, log, **{SETTING: "warm_up:1:sleep=120"}) as (child, port):
        wait_for(lambda: "worker.warming_up" in log.read_text(), 60, "a line of progress")
        good, why = ready(port)
        assert not good
        assert "compiling" in why
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0, log.read_text()[-2000:]


@pytest.mark.parametrize("name", ["run", "sink"])
def test_a_stop_during_imports_ends_the_start(name: str, settings: Settings, bundle: Path, tmp_path: Path) -> None:
    """SIGTERM while a broker that does not answer is asked for rights and topics: it ends at once, with 0."""
    log = tmp_path / "start.log"
    arguments = ["--bundle", str(bundle)] if name == "run" else []
    nothing = {f"{PREFIX}KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:9"}
    with starting(name, arguments, settings, log, **nothing) as (child, _):
        wait_for(lambda: _catches(child.pid, signal.SIGTERM), 30, "the handler to stand")
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0, log.read_text()[-2000:]


def _catches(pid: int, number: signal.Signals) -> bool:
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    return bool(int(status["SigCgt"], 16) >> (number - 1) & 1)


def test_a_stop_during_recovery_is_drained(settings: Settings, bundle: Path, tmp_path: Path) -> None:
    """SIGTERM while the state is rebuilt from the journal: the worker leaves in bounded time with 0."""
    log = tmp_path / "run.log"
    send(settings)
    with process("run", ["--bundle", str(bundle)], settings, log) as worker:
        port = worker.port  # type: ignore[attr-defined]
        wait_for(lambda: metrics(port).get('fraud_scorer_batches_total{shard="0"}', 0) > 10, 60, "batches")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
    more = {SETTING: "in_recovery:3:sleep=12", f"{PREFIX}SNAPSHOTS__EVERY_PAYMENTS": "0"}
    with starting("run", ["--bundle", str(bundle)], settings, log, **more) as (child, port):
        wait_for(lambda: "recovering" in ready(port)[1], 60, "the recovery")
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0, log.read_text()[-2000:]


def test_the_second_interrupt_ends_at_once(settings: Settings, bundle: Path, tmp_path: Path) -> None:
    """The first SIGINT drains, which may take as long as a commit; the second one ends the process with 130."""
    log = tmp_path / "run.log"
    with process("run", ["--bundle", str(bundle)], settings, log, **{SETTING: "before_commit:1:sleep=60"}) as worker:
        send(settings)
        port = worker.port  # type: ignore[attr-defined]
        wait_for(lambda: metrics(port).get('fraud_scorer_batches_in_flight{shard="0"}', 0) > 0, 60, "a batch in flight")
        worker.send_signal(signal.SIGINT)
        time.sleep(1)
        assert worker.poll() is None, "it drains"
        worker.send_signal(signal.SIGINT)
        assert worker.wait(30) == 130, log.read_text()[-2000:]


@pytest.mark.parametrize(
    ("limit", "value", "named"),
    [(resource.RLIMIT_NOFILE, 100, "ulimit -n"), (resource.RLIMIT_AS, 1 << 30, "ulimit -v")],
    ids=["files", "memory"],
)
@pytest.mark.parametrize("name", ["run", "sink"])
def test_a_limit_that_is_too_low_is_named_before_anything_begins(
    name: str, limit: int, value: int, named: str, tmp_path: Path
) -> None:
    """A process that may not open enough files, or use enough memory, ends at once with the setting to change."""
    arguments = ["--bundle", str(tmp_path)] if name == "run" else []
    done = subprocess.run(
        [sys.executable, "-m", "scorer", name, *arguments],
        preexec_fn=lambda: resource.setrlimit(limit, (value, value)),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert named in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "point",
    [
        "main_loop:5",
        "warm_up:1",
        "after_consume:1",
        "in_transaction:1",
        "snapshot_copy:1",
        "topic_watch:2",
        "health:4",
        "in_transaction:1:timeout,after_failure:1",
    ],
)
def test_an_unexpected_exception_in_any_thread_ends_the_worker(
    point: str, settings: Settings, bundle: Path, tmp_path: Path
) -> None:
    """Whichever thread meets it (main, compiler, shard, commit, snapshot, topic watch, health,
    and the shard again while it asks the group after a failure), the process ends by
    itself with a non-zero code and the error on stderr."""
    log = tmp_path / "run.log"
    send(settings)
    more = {SETTING: f"{point}:error", f"{PREFIX}SNAPSHOTS__EVERY_PAYMENTS": "500"}
    more[f"{PREFIX}SNAPSHOTS__URL"] = (tmp_path / "snapshots").as_uri()
    with starting("run", ["--bundle", str(bundle)], settings, log, **more) as (child, _):
        assert child.wait(300) == 1, log.read_text()[-3000:]
    assert f"fault at {point.rpartition(',')[2].partition(':')[0]}" in log.read_text()


def test_an_unexpected_exception_of_a_standby_ends_it(settings: Settings, bundle: Path, tmp_path: Path) -> None:
    """The thread that follows a shard of another worker fails: this process ends non-zero, and the owner goes on."""
    send(settings)
    log = tmp_path / "standby.log"
    with process("run", ["--bundle", str(bundle)], settings, tmp_path / "owner.log") as owner:
        with starting("run", ["--bundle", str(bundle)], settings, log, **{SETTING: "in_recovery:3:error"}) as (
            child,
            _,
        ):
            assert child.wait(300) == 1, log.read_text()[-3000:]
        assert "fault at in_recovery" in log.read_text()
        wait_for(lambda: is_ready(owner.port), 60, "the owner to be ready")  # type: ignore[attr-defined]
