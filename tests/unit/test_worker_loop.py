"""The main thread of a worker, at moments that no broker can be made to choose: before it joins, in callbacks of the
group's client, and while it leaves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from scorer import kafka
from scorer.errors import PromiseBroken
from scorer.kafka import TopicFacts
from scorer.runtime.settings import load
from scorer.sink.audit_partitions import AuditPartitions
from scorer.worker.ports import Ports
from scorer.worker.worker import Worker
from tests.simulation.shard_state import BUNDLE

FREEZE_S = 5.5
DENIED_S = 3.0


class _Thread:
    """One that has not been started. `hangs`: it never ends."""

    def __init__(self) -> None:
        self.hangs = False
        self.joined: list[float | None] = []
        self.at_end: Callable[[], None] = lambda: None

    def is_alive(self) -> bool:
        return self.hangs

    def join(self, timeout: float | None = None) -> None:
        assert timeout is not None or not self.hangs, "waited for without an end"
        self.joined.append(timeout)
        self.at_end()


class _Event:
    def __init__(self, threads: _Threads) -> None:
        self._threads, self._set = threads, False

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self._threads.now += 0.0 if self._set else timeout
        return self._set


class _Threads:
    """A clock that waits move on, and threads that do nothing."""

    def __init__(self) -> None:
        self.now = 100.0
        self.spawned: dict[str, _Thread] = {}
        self.full = False

    def monotonic(self) -> float:
        return self.now

    epoch_s = monotonic

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def event(self) -> _Event:
        return _Event(self)

    def queue(self) -> Any:
        return SimpleQueue()

    def future(self) -> Any:
        return Future()

    def spawn(self, work: Callable[[], None], *, name: str) -> _Thread:
        if self.full:
            raise RuntimeError("can't start new thread")
        self.spawned[name] = _Thread()
        return self.spawned[name]


class _Member:
    """The group's client: each poll does the next of `does`. What a callback raises is lost, as in the binding."""

    def __init__(self, threads: _Threads) -> None:
        self.does: deque[Callable[[], None]] = deque()
        self.commit_s = 0.0
        self.refuses: str | None = None  # the call that raises
        self._threads = threads

    def subscribe(self, topics: list[str], *, on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        self.on = {"assign": on_assign, "revoke": on_revoke, "lost": on_lost}

    def called_back(self, kind: str, *shards: int) -> None:
        try:
            self.on[kind](self, [TopicPartition("journal", shard) for shard in shards])
        except BaseException as exc:
            raise SystemError("returned a result with an exception set") from exc

    def poll(self, timeout: float) -> None:
        self._threads.now += timeout
        self.does.popleft()()

    def commit(self, **_: Any) -> None:
        self._threads.now += self.commit_s

    def consumer_group_metadata(self) -> str:
        return "generation"

    def memberid(self) -> str:
        return "a"

    def _call(self, name: str) -> None:
        if self.refuses == name:
            raise KafkaException(KafkaError(KafkaError._STATE))

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        self._call("incremental_assign")

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        self._call("incremental_unassign")

    def pause(self, partitions: list[TopicPartition]) -> None:
        self._call("pause")

    def close(self) -> None:
        return


class _Producer:
    def __init__(self, clients: _Clients) -> None:
        self._clients = clients

    def init_transactions(self, timeout: float) -> None:
        self._clients.asked("init_transactions")


class _Clients:
    """All clients of a worker. `fails`: what each question raises that is asked next."""

    def __init__(self, threads: _Threads) -> None:
        self.made = _Member(threads)
        self.fails: dict[str, deque[Callable[[], Exception]]] = {}
        self.group: list[str] | None = None

    def asked(self, question: str) -> None:
        if self.fails.get(question):
            raise self.fails[question].popleft()()

    def member(self, group: str) -> _Member:
        return self.made

    def broker(self) -> _Clients:
        return self

    def transactional_producer(self, owner: str, *, former: bool) -> _Producer:
        return _Producer(self)

    def lacking_rights(self) -> str:
        return ""

    def close(self) -> None:
        return

    def topic_facts(self, names: Sequence[str], **_: Any) -> Mapping[str, TopicFacts]:
        self.asked("topic_facts")
        one = ("control", "labels", "journal", "audit", "order")
        return {name: TopicFacts(name, "A" * 22, 1 if name in one else 4) for name in names}

    def timestamp_types(self, names: Sequence[str]) -> Mapping[str, str]:
        self.asked("timestamp_types")
        return {}

    def forgettable(self, names: Sequence[str]) -> str:
        self.asked("forgettable")
        return ""

    def group_clients(self, group: str) -> list[str] | None:
        self.asked("group_clients")
        return self.group


class Made:
    """A worker of one shard, and everything around it."""

    def __init__(self, **worker: Any) -> None:
        self.threads = _Threads()
        self.clients = _Clients(self.threads)
        self.member = self.clients.made
        self.stop = self.threads.event()
        settings = load(worker={"denied_s": DENIED_S, "standby_shards_max": 0, **worker})
        self.worker = Worker(settings, BUNDLE, Ports(self.clients, self.threads, object()))  # type: ignore[arg-type]
        self.member.does.append(lambda: self.member.called_back("assign", 0))

    def then(self, *steps: Callable[[], Any]) -> Made:
        """What the next polls do; with the last one it is asked to end."""
        self.member.does += steps
        self.member.does.append(self.stop.set)
        return self

    def run(self) -> None:
        self.worker.take_part(self.stop)

    def fails_at_its_end(self, failure: BaseException) -> None:
        owned = self.worker._owned[0]
        self.threads.spawned["shard-0"].at_end = lambda: setattr(owned, "failure", failure)

    def hangs(self, thread: str) -> None:
        self.threads.spawned[thread].hangs = True


def refused() -> kafka.Denied:
    return kafka.Denied("a right is missing")


def lost_for_a_moment() -> kafka.Rebuild:
    return kafka.Rebuild("unknown")


# while it leaves


def test_what_makes_decisions_wrong_ends_a_worker_loudly_while_it_drains() -> None:
    """A digest that differs, found with the last batch, is no clean end."""
    made = Made()
    made.then(lambda: made.fails_at_its_end(PromiseBroken("a digest differs")))
    with pytest.raises(PromiseBroken):
        made.run()


@pytest.mark.parametrize("failure", [kafka.Fenced("a newer owner"), kafka.Rebuild("no answer")])
def test_that_kafka_failed_while_it_drained_is_no_failure(failure: kafka.KafkaFailure) -> None:
    """What is not committed is decided by the next owner."""
    made = Made()
    made.then(lambda: made.fails_at_its_end(failure)).run()


def test_a_shard_that_does_not_end_ends_the_process_in_time(capsys: pytest.CaptureFixture[str]) -> None:
    """Asked to end, it waits as long as what is under way can still be committed, says so, and exits 0; while it goes
    on with other shards, it ends with an error."""
    made = Made()
    made.then(lambda: made.hangs("shard-0")).run()
    assert made.threads.spawned["shard-0"].joined == [35.0]
    assert "shard.not_ended" in "".join(capsys.readouterr())  # on either: another test may have set logging up
    made = Made(transaction_timeout_ms=20_000)
    made.then(lambda: made.hangs("shard-0"), lambda: made.member.called_back("revoke", 0))
    with pytest.raises(kafka.KafkaFailure, match="did not end within 65 s"):
        made.run()


def test_a_standby_does_not_hold_up_the_end() -> None:
    """One that restores a large state, or waits for an answer, has nothing to commit."""
    made = Made(shards=1, standby_shards_max=1)
    made.member.does.clear()
    made.member.does.append(lambda: made.member.called_back("assign"))
    made.then(lambda: made.hangs("standby-0"), lambda: made.hangs("topic-watch")).run()
    assert made.threads.spawned["standby-0"].joined == [2.0]


def test_a_shard_that_is_given_back_knows_the_snapshot_that_is_still_being_written() -> None:
    """It was revoked while its store hung: another snapshot beside that would keep another state, and write to the same
    store. The process ends such a thread with itself."""
    made, writer, given = Made(), _Thread(), list[Any]()
    writer.hangs = True
    made.then(
        lambda: setattr(made.worker._owned[0].shard, "left", writer),
        lambda: made.member.called_back("revoke", 0),
        lambda: made.member.called_back("assign", 0),
        lambda: given.append(made.worker._owned[0].shard.left),
    ).run()
    assert given == [writer]
    assert made.worker.left_running
    writer.hangs = False
    assert not made.worker.left_running


# before it joins


@pytest.mark.parametrize("question", ["topic_facts", "timestamp_types", "forgettable", "group_clients"])
@pytest.mark.parametrize("failure", [kafka.Away("no answer"), refused(), lost_for_a_moment()])
def test_a_question_before_it_joins_is_asked_again(question: str, failure: kafka.KafkaFailure) -> None:
    """A broker that has just started, or a right that is given a moment later, does not end it."""
    made = Made()
    made.clients.fails[question] = deque([lambda: failure] * 2)
    made.then().run()
    assert not made.clients.fails[question]


@pytest.mark.parametrize("question", ["topic_facts", "timestamp_types", "forgettable", "group_clients"])
def test_asked_to_end_before_it_has_joined_it_ends_without_an_error(question: str) -> None:
    """Whatever it waits for then: a broker that is away is no reason for another exit code."""
    made = Made()

    def failing() -> Exception:
        made.stop.set()
        return kafka.Away("no answer")

    made.clients.fails[question] = deque([failing])
    made.run()


def test_what_former_releases_left_open_is_waited_for_until_it_is_asked_to_end() -> None:
    """Ending an old transaction takes a coordinator, which may be away."""
    for ends in (True, False):
        made = Made()
        made.clients.group = []
        away = KafkaException(KafkaError(KafkaError._TIMED_OUT))

        def failing(made: Made = made, ends: bool = ends, away: Exception = away) -> Exception:
            if ends:
                made.stop.set()
            return away

        made.clients.fails["init_transactions"] = deque([failing])
        made.then().run()
        assert not made.clients.fails["init_transactions"]


def test_a_right_that_stays_missing_ends_it() -> None:
    """It does not wait for ever, without a sign that anything is missing."""
    made = Made()
    made.clients.fails["topic_facts"] = deque([refused] * 100)
    with pytest.raises(kafka.Denied):
        made.run()


# callbacks


@pytest.mark.parametrize(
    ("kind", "call"), [("assign", "incremental_assign"), ("assign", "pause"), ("revoke", "incremental_unassign"),
                       ("lost", "incremental_unassign")],
)  # fmt: skip
def test_what_the_client_raises_in_a_callback_is_raised_by_the_loop(kind: str, call: str) -> None:
    """With its cause, and never as the SystemError that the client's binding makes of it."""
    made = Made()
    made.then(lambda: setattr(made.member, "refuses", call), lambda: made.member.called_back(kind, 0))
    with pytest.raises(kafka.KafkaFailure, match="_STATE"):
        made.run()


def test_a_thread_that_cannot_be_started_ends_the_process_with_its_cause() -> None:
    """In a callback of the group's client, where shards begin."""
    made = Made()
    made.then(lambda: setattr(made.threads, "full", True), lambda: made.member.called_back("assign", 0))
    with pytest.raises(RuntimeError, match="can't start new thread"):
        made.run()


@pytest.mark.parametrize("call", ["incremental_assign", "pause", "incremental_unassign"])
def test_the_sinks_group_keeps_what_its_callbacks_raise(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sink ends with its cause, because without the group it would not know its partitions."""
    member = _Member(_Threads())
    member.refuses = call
    monkeypatch.setattr(kafka, "partition_member", lambda settings, group: member)
    partitions = AuditPartitions(load().kafka, "audit")
    member.does.append(lambda: member.called_back("revoke" if call == "incremental_unassign" else "assign", 0))
    with partitions:
        partitions._thread.join(10)
        with pytest.raises(kafka.KafkaFailure, match="_STATE"):
            _ = partitions.given


# freezes


def test_a_coordinator_that_is_away_is_no_freeze() -> None:
    """The client holds a commit back as long as a session lasts; losing its shards then, the worker goes on."""
    made = Made()
    made.member.commit_s = FREEZE_S

    def ask() -> None:
        made.worker._membership._questions.put((TopicPartition("journal", 0, 0), Future()))

    made.then(ask, lambda: made.member.called_back("lost", 0)).run()


def test_a_process_that_stood_still_ends() -> None:
    """Others own its shards then, and what stops it may do so again."""
    made = Made()
    made.then(
        lambda: setattr(made.threads, "now", made.threads.now + FREEZE_S), lambda: made.member.called_back("lost", 0)
    )
    with pytest.raises(kafka.Fenced, match="stood still"):
        made.run()
