"""Topics that change under the worker, on real Kafka: a loud stop or a taken-up change, never a skipped payment."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import TopicPartition

from scorer import kafka
from scorer.bundle import Bundle
from scorer.local_services import Services
from scorer.operate.loss_acceptance import Recovery
from scorer.operate.setup import APPEND_TIME, setup
from scorer.replay import replay_topic
from scorer.runtime.fault_points import SETTING
from scorer.runtime.settings import PREFIX, Settings
from tests.integration.running import TopicReader, environment, metrics, process, test_settings, wait_for
from tests.record_ways import BOTH_WAYS, RECORD_ACCESS
from tests.topic_made_anew import grow, make_anew

pytestmark = pytest.mark.usefixtures("one_decision_each")

PARTITIONS = 2


class Application:
    """One test's topics, payments and commands."""

    def __init__(self, services: Services, prefix: str, database: str, bundle: Path, folder: Path) -> None:
        self.settings = test_settings(
            services.kafka.bootstrap_servers,
            prefix,
            postgres={"url": database},
            worker={"batch_payments_max": 64},
            topics={"payments_partitions": PARTITIONS},
        )
        self.bundle, self.folder = bundle, folder
        self.topics = kafka.Topics.of(self.settings.kafka)
        self.admin = kafka.admin(self.settings.kafka)
        self.log = folder / "worker.log"
        self.more = {f"{PREFIX}SNAPSHOTS__URL": (folder / "snapshots").as_uri()}
        setup(self.settings)
        self.decisions = TopicReader(self.settings, self.topics.decisions)

    def send(self, ids: Iterable[str], *, partitions: int = PARTITIONS, first: int = 0) -> None:
        """To so many partitions, from number `first` on."""
        producer = kafka.plain_producer(self.settings.kafka)
        refused: list[Any] = []
        for i, name in enumerate(ids):
            payment = {
                "payment_id": name, "event_time": int(time.time() * 1000), "amount_minor": 100 + i, "currency": "EUR",
                "customer_id": f"c{i % 7}", "terminal_id": f"t{i % 5}",
            }  # fmt: skip
            producer.produce(
                self.topics.payments,
                json.dumps(payment).encode(),
                partition=first + i % partitions,
                on_delivery=lambda error, _: refused.append(error) if error is not None else None,
            )
        assert producer.flush(30) == 0
        assert refused == []

    def worker(self, **more: str) -> Any:
        return process("run", ["--bundle", str(self.bundle)], self.settings, self.log, **self.more, **more)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "scorer", *arguments],
            env=environment(self.settings, **self.more), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def decided(self) -> list[str]:
        self.decisions.fill()
        return [decision["payment_id"] for decision in self.decisions.json() if decision["mode"] != "duplicate"]

    def wait_decided(self, ids: Iterable[str]) -> None:
        wanted = set(ids)
        wait_for(lambda: wanted <= set(self.decided()), 60, f"{len(wanted)} decisions")

    def make_anew(self, topic: str, partitions: int) -> None:
        make_anew(self.admin, topic, partitions, APPEND_TIME)


@pytest.fixture
def app(services: Services, topics_prefix: str, database: str, bundle: Path, tmp_path: Path, way: str) -> Application:
    made = Application(services, topics_prefix, database, bundle, tmp_path)
    made.more[RECORD_ACCESS] = way
    return made


def ids(name: str, count: int) -> list[str]:
    return [f"{name}-{i}" for i in range(count)]


@pytest.mark.decided_anew("new-")
def test_payments_made_anew_stop_the_worker_and_none_of_them_is_skipped(app: Application) -> None:
    """A payments topic that is deleted, made anew and filled past the old positions stops the worker, which names both
    ids and the command that helps; a restart is refused; after `recover --new-journal` every payment is decided."""
    old, new = ids("old", 60), ids("new", 90)
    before = kafka.topic_facts(app.admin, [app.topics.payments])[app.topics.payments].id
    with app.worker() as worker:
        app.send(old)
        app.wait_decided(old)
        app.make_anew(app.topics.payments, PARTITIONS)
        app.send(new)
        assert worker.wait(60) == 1
    after = kafka.topic_facts(app.admin, [app.topics.payments])[app.topics.payments].id
    last = app.log.read_text()[-3000:]
    # It may have looked between the deletion and the new topic, or have read on before it looked: a restart names both.
    assert before in last or "is outside the log" in last, last
    assert "fraud-scorer recover" in last
    again = app.command("run", "--bundle", str(app.bundle))
    assert again.returncode == 1
    assert before in again.stderr
    assert after in again.stderr
    shown = app.command("recover", "--json")
    assert shown.returncode == 1
    findings = json.loads(shown.stdout.splitlines()[-1])["findings"]
    assert [f["trouble"] for f in findings if f["place"] == app.topics.payments] == ["made anew"]
    accepted = app.command("recover", "--bundle", str(app.bundle), "--new-journal", "--reason", "the topic was lost")
    assert accepted.returncode == 0, accepted.stderr
    with app.worker():
        app.wait_decided(new)
        app.send(ids("later", 10))
        app.wait_decided(ids("later", 10))
    with (
        process("sink", [], app.settings, app.folder / "sink.log"),
        psycopg.connect(app.settings.postgres_url, autocommit=True) as connection,
    ):
        count = lambda: connection.execute("SELECT count(DISTINCT payment_id) FROM decisions").fetchone()[0]  # noqa: E731
        wait_for(lambda: count() == len(old) + len(new) + 10, 60, "the audit rows")
        verified = app.command("audit", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    report = replay_topic(Bundle.load(app.bundle), app.settings, app.folder / "replay.parquet")
    assert report.batches_checked > 1


def test_windows_that_begin_anew_go_on_where_the_worker_stopped(app: Application) -> None:
    """What a worker commits while `recover --new-journal` looks is neither decided again nor in the way of the next
    start: the command reads the journal once more when it has fenced the worker."""
    with app.worker():
        app.send(ids("first", 20))
        app.wait_decided(ids("first", 20))
        recovery = Recovery(app.settings, 0)
        app.send(ids("second", 20))
        app.wait_decided(ids("second", 20))
        recovery.new_state(Bundle.load(app.bundle), "a test")
    with app.worker():
        app.send(ids("third", 20))
        app.wait_decided(ids("third", 20))
    assert sorted(app.decided()) == sorted(ids("first", 20) + ids("second", 20) + ids("third", 20))


def test_partitions_added_to_a_running_worker_are_read_from_their_first_record(app: Application) -> None:
    """Payments on partitions that are added while one shard owns the topic are decided, before and after a restart."""
    with app.worker():
        app.send(ids("first", 20))
        app.wait_decided(ids("first", 20))
        for topic in (app.topics.decisions, app.topics.decisions_fast, app.topics.payments):
            grow(app.settings.kafka, topic, 4)
        app.decisions = TopicReader(app.settings, app.topics.decisions)
        app.send(ids("second", 40), partitions=4)
        app.wait_decided(ids("second", 40))
    with app.worker():
        app.send(ids("third", 40), partitions=4)
        app.wait_decided(ids("third", 40))
    everything = ids("first", 20) + ids("second", 40) + ids("third", 40)
    assert sorted(app.decided()) == sorted(everything)
    report = replay_topic(Bundle.load(app.bundle), app.settings, app.folder / "replay.parquet")
    assert report.decisions == len(everything)


def test_decisions_with_fewer_partitions_than_payments_stop_the_worker_until_they_are_adopted(
    app: Application,
) -> None:
    """More partitions of payments alone are refused loudly, naming the command; it adds what decisions lack."""
    with app.worker() as worker:
        app.send(ids("first", 10))
        app.wait_decided(ids("first", 10))
        grow(app.settings.kafka, app.topics.payments, 3)
        assert worker.wait(60) == 1
    assert "recover --adopt-partitions" in app.log.read_text()[-3000:]
    adopted = app.command("recover", "--bundle", str(app.bundle), "--adopt-partitions", "--reason", "more load")
    assert adopted.returncode == 0, adopted.stderr
    app.decisions = TopicReader(app.settings, app.topics.decisions)
    with app.worker():
        app.send(ids("second", 30), partitions=3)
        app.wait_decided(ids("second", 30))


@BOTH_WAYS
def test_deleted_records_that_were_decided_are_no_loss_and_others_are_accepted_by_command(app: Application) -> None:
    """A worker starts when retention took what was decided already. What was not decided is refused with its range, and
    `recover --accept-loss` of exactly that range lets it go on."""
    snapshots = {f"{PREFIX}SNAPSHOTS__EVERY_PAYMENTS": "1"}
    with app.worker(**snapshots) as worker:
        app.send(ids("decided", 40))
        app.wait_decided(ids("decided", 40))
        wait_snapshot(worker.port)
    where = [TopicPartition(app.topics.payments, p) for p in range(PARTITIONS)]
    _delete_before(app.settings, where, kafka.ends(app.admin, where))
    with app.worker(**snapshots) as worker:
        app.send(ids("after", 10))
        app.wait_decided(ids("after", 10))
        wait_snapshot(worker.port)
    ends = kafka.ends(app.admin, where)
    app.send(ids("lost", 10))
    _delete_before(app.settings, where, [end + 3 for end in ends])
    refused = app.command("run", "--bundle", str(app.bundle))
    assert refused.returncode == 1
    assert f"offsets {ends[0]} to {ends[0] + 2}" in refused.stderr, refused.stderr
    accept = [f"payments:{p}:{end}-{end + 3}" for p, end in enumerate(ends)]
    wrong = app.command(
        "recover", "--bundle", str(app.bundle), "--accept-loss", f"payments:0:{ends[0]}-{ends[0] + 4}", "--reason", "x"
    )
    assert wrong.returncode != 0
    assert f"{ends[0]}-{ends[0] + 3} is missing" in wrong.stderr
    options = [word for loss in accept for word in ("--accept-loss", loss)]
    accepted = app.command("recover", "--bundle", str(app.bundle), *options, "--reason", "deleted by mistake")
    assert accepted.returncode == 0, accepted.stderr
    with app.worker():
        app.wait_decided([f"lost-{i}" for i in range(6, 10)])
    assert app.command("recover").returncode == 0
    assert not {f"lost-{i}" for i in range(6)} & set(app.decided())


@BOTH_WAYS
def test_lag_reaches_zero_over_markers_and_aborted_records_and_their_removal_is_no_loss(
    app: Application, way: str
) -> None:
    """A transaction that an upstream system aborts leaves nothing to decide: lag is 0, and when retention takes its
    records and markers, the worker starts again. Its metrics show which way it reads."""
    with app.worker() as worker:
        app.send(ids("decided", 10))
        app.wait_decided(ids("decided", 10))
        abort_transaction(app)
        lag = 'fraud_scorer_lag_payments{shard="0"}'
        wait_for(lambda: metrics(worker.port).get(lag) == 0, 60, "lag 0")
        shown = metrics(worker.port)
        ways = {"borrowed": float(way == "auto"), "plain": float(way == "plain")}
        assert {name: shown[f'fraud_scorer_record_access{{shard="0",way="{name}"}}'] for name in ways} == ways
        where = [TopicPartition(app.topics.payments, p) for p in range(PARTITIONS)]
        ends = kafka.ends(app.admin, where)
        wait_for(lambda: _positions(app) == ends, 60, "positions past the markers")
    with app.worker(**{f"{PREFIX}SNAPSHOTS__EVERY_PAYMENTS": "1"}) as worker:
        app.send(ids("again", 4))
        app.wait_decided(ids("again", 4))
        wait_snapshot(worker.port)
    _delete_before(app.settings, where, kafka.ends(app.admin, where))
    with app.worker():
        app.send(ids("last", 4))
        app.wait_decided(ids("last", 4))


@pytest.mark.parametrize(
    "snapshots",
    [{"EVERY_S": "1"}, {"EVERY_PAYMENTS": "1", "EVERY_S": "0"}],
    ids=["in a snapshot", "behind the newest one"],
)
def test_markers_alone_that_retention_takes_are_no_loss_to_a_shard_without_payments(
    app: Application, snapshots: dict[str, str]
) -> None:
    """The last that a shard reads are aborted payments, and then retention takes them, with all before them. Whether a
    snapshot was taken since or not, a worker starts again, with its windows."""
    more = {f"{PREFIX}SNAPSHOTS__{name}": value for name, value in snapshots.items()}
    where = [TopicPartition(app.topics.payments, p) for p in range(PARTITIONS)]
    with app.worker(**more) as worker:
        app.send(ids("decided", 10))
        app.wait_decided(ids("decided", 10))
        wait_snapshot(worker.port)
        kept = 'fraud_scorer_snapshot_sequence{shard="0"}'
        before = metrics(worker.port)[kept]
        abort_transaction(app)
        wait_for(lambda: _positions(app) == kafka.ends(app.admin, where), 60, "positions past the markers")
        ends = kafka.ends(app.admin, where)
        if "EVERY_PAYMENTS" not in snapshots:
            wait_for(lambda: metrics(worker.port)[kept] > before, 60, "a snapshot of the positions")
            wait_snapshot(worker.port)
    _delete_before(app.settings, where, ends)
    with app.worker(**more):
        app.send(ids("last", 4))
        app.wait_decided(ids("last", 4))
    assert app.log.read_text().count("snapshot.restored") == 1


def test_what_one_partition_lost_gives_up_no_ordered_batch_of_another(app: Application) -> None:
    """A worker is killed with an ordered batch of one partition, and another lost payments that were not decided.
    `recover` names those alone; the batch is decided as it was, and all that is still there."""
    first, ordered, lost = ids("first", 20), ids("ordered", 4), ids("lost", 10)
    with app.worker(**{f"{PREFIX}SNAPSHOTS__EVERY_PAYMENTS": "1"}) as worker:
        app.send(first)
        app.wait_decided(first)
        wait_snapshot(worker.port)
    with app.worker(**{SETTING: "before_commit:1:kill"}) as worker:
        app.send(ordered, partitions=1)
        assert worker.wait(60) == -signal.SIGKILL
    other = TopicPartition(app.topics.payments, 1)
    (end,) = kafka.ends(app.admin, [other])
    app.send(lost, partitions=1, first=1)
    _delete_before(app.settings, [other], [end + 3])
    shown = app.command("recover", "--json")
    findings = json.loads(shown.stdout.splitlines()[-1])["findings"]
    found = [finding["command"] for finding in findings if finding["trouble"] != "ok"]
    assert found == [f"--accept-loss {app.topics.payments}:1:{end}-{end + 3}"]
    option, value = found[0].split()
    accepted = app.command("recover", "--bundle", str(app.bundle), option, value, "--reason", "deleted by mistake")
    assert accepted.returncode == 0, accepted.stderr
    with app.worker():
        app.wait_decided([*ordered, *lost[3:]])
    assert sorted(app.decided()) == sorted([*first, *ordered, *lost[3:]])


def abort_transaction(app: Application) -> None:
    """As an upstream system that takes its payments back."""
    producer = kafka.transactional_producer(app.settings, "upstream")
    producer.init_transactions(30)
    producer.begin_transaction()
    for i in range(6):
        producer.produce(app.topics.payments, b"{}", partition=i % PARTITIONS)
    producer.flush(30)
    producer.abort_transaction(30)


def wait_snapshot(port: int) -> None:
    """Wait until a snapshot holds all that was decided, and the journal names it: no other is used."""
    committed, kept = 'fraud_scorer_journal_sequence{shard="0"}', 'fraud_scorer_snapshot_sequence{shard="0"}'

    since: list[float] = []

    def is_there() -> bool:
        shown = metrics(port)
        # The batch that names it comes behind it, a moment later.
        if committed not in shown or shown.get(kept, 0) < shown[committed]:
            since.clear()
            return False
        since.append(time.monotonic())
        return since[-1] - since[0] > 3.0

    wait_for(is_there, 60, "a snapshot that the journal names")


def _positions(app: Application) -> list[int]:
    shown = app.command("recover", "--json")
    findings = json.loads(shown.stdout.splitlines()[-1])["findings"]
    return [
        int(finding["journal"].rsplit(" ", 1)[1])
        for finding in findings
        if finding["place"].startswith(app.topics.payments + "/")
    ]


def _delete_before(settings: Settings, where: list[TopicPartition], offsets: list[int]) -> None:
    places = [
        TopicPartition(place.topic, place.partition, offset) for place, offset in zip(where, offsets, strict=True)
    ]
    admin = kafka.admin(settings.kafka)  # kept until its answers are there
    for future in admin.delete_records(places).values():
        future.result(30)
