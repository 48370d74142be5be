"""An order log that lost what it had acknowledged, on real Kafka: nothing is decided otherwise without an operator."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition

from schemas.fast_decision import FastDecisions
from scorer import kafka
from scorer.bundle import Bundle
from scorer.local_services import Services
from scorer.replay import replay_topic
from scorer.runtime.fault_points import SETTING
from scorer.runtime.settings import PREFIX
from tests.integration.running import TopicReader, wait_for
from tests.integration.test_broker_changes import PARTITIONS, Application, ids

pytestmark = pytest.mark.usefixtures("one_decision_each")


@pytest.fixture
def app(services: Services, topics_prefix: str, database: str, bundle: Path, tmp_path: Path) -> Application:
    return Application(services, topics_prefix, database, bundle, tmp_path)


@pytest.mark.decided_anew("lost-")
@pytest.mark.parametrize("before", [20, 0], ids=["journal names the log", "empty journal"])
def test_an_order_log_made_anew_stops_the_shard_until_what_was_answered_is_accepted(
    app: Application, before: int
) -> None:
    """A worker is killed when its decisions have left and are not committed; then topic order is made anew. A start is
    refused, `recover` names the batches, and accepts them. Windows stay, each payment is decided once on topic
    decisions, and a reader of decisions-fast, which remembers its last place, takes every decision that comes."""
    first, lost, later = ids("first", before), ids("lost", 4), ids("later", 20)
    fast, taken = TopicReader(app.settings, app.topics.decisions_fast), FastDecisions()

    def new_decisions() -> set[str]:
        seen, places = len(fast.messages), [TopicPartition(app.topics.decisions_fast, p) for p in range(PARTITIONS)]
        wait_for(lambda: fast.fill() == sum(kafka.ends(app.admin, places)), 60, "all fast decisions")
        found = [taken.new(m.partition() or 0, m.value() or b"") for m in fast.messages[seen:]]
        return {decision.payment_id for decision in found if decision is not None}

    if first:
        with app.worker():
            app.send(first)
            app.wait_decided(first)
    with app.worker(**{SETTING: "before_commit:1:kill"}) as worker:
        app.send(lost)
        assert worker.wait(60) == -signal.SIGKILL
    answered = new_decisions() - set(first)
    assert answered <= set(lost)
    assert answered
    app.make_anew(app.topics.order, 1)

    _refused(app, "fraud-scorer recover")

    shown = app.command("recover", "--json")
    assert shown.returncode == 1
    found = [f for f in json.loads(shown.stdout.splitlines()[-1])["findings"] if f["trouble"] != "ok"]
    assert [f["trouble"] for f in found] == ["lost"]
    option, value = found[0]["command"].split()
    assert value.startswith("batches:0:")
    accepted = app.command("recover", "--bundle", str(app.bundle), option, value, "--reason", "the disk is gone")
    assert accepted.returncode == 0, accepted.stderr
    assert app.command("recover").returncode == 0
    with app.worker():
        app.send(later)
        app.wait_decided([*lost, *later])
    assert sorted(app.decided()) == sorted([*first, *lost, *later])
    assert new_decisions() == {*lost, *later}
    report = replay_topic(Bundle.load(app.bundle), app.settings, app.folder / "replay.parquet")
    assert report.decisions == len(first) + len(lost) + len(later)


def test_a_strangers_record_in_the_order_log_stops_the_shard_until_it_is_accepted(app: Application) -> None:
    """A worker is killed when its decisions have left and are not committed, and somebody writes to topic order. A
    start is refused and names the place; what `recover` shows helps, windows stay, and each payment is decided once, as
    it was answered. A record of a later release asks for an upgrade. Windows could be given up instead: that
    way is no dead end either."""
    first, lost, later = ids("first", 20), ids("lost", 4), ids("later", 20)
    with app.worker():
        app.send(first)
        app.wait_decided(first)
    with app.worker(**{SETTING: "before_commit:1:kill"}) as worker:
        app.send(lost)
        assert worker.wait(60) == -signal.SIGKILL
    place = TopicPartition(app.topics.order, 0)
    (strange,) = kafka.ends(app.admin, [place])
    producer = kafka.plain_producer(app.settings.kafka)
    producer.produce(app.topics.order, b"hello", partition=0)
    assert producer.flush(30) == 0

    refused = app.command("run", "--bundle", str(app.bundle))
    assert refused.returncode == 1, refused.stderr
    assert f"{app.topics.order}/0 offset {strange}" in refused.stderr
    assert "fraud-scorer recover" in refused.stderr
    found = _found(app)
    assert [finding["place"] for finding in found] == [f"{app.topics.order}/0"]
    option, value = found[0]["command"].split()
    assert value.startswith("batches:0:")
    accepted = app.command("recover", "--bundle", str(app.bundle), option, value, "--reason", "a console producer")
    assert accepted.returncode == 0, accepted.stderr
    assert _found(app) == []
    with app.worker():
        app.send(later)
        app.wait_decided([*lost, *later])
    assert sorted(app.decided()) == sorted([*first, *lost, *later])

    producer.produce(app.topics.order, b'{"kind":"batch","version":2}', partition=0)
    assert producer.flush(30) == 0
    (finding,) = _found(app)
    assert finding["command"] == ""
    assert "upgrade" in finding["broker"]
    accepted = app.command("recover", "--bundle", str(app.bundle), "--new-journal", "--reason", "a later release")
    assert accepted.returncode == 0, accepted.stderr
    with app.worker():
        app.send(ids("last", 20))
        app.wait_decided(ids("last", 20))


@pytest.mark.decided_anew("lost-")
@pytest.mark.parametrize("killed", [True, False], ids=["answered and not committed", "all committed"])
def test_an_order_log_made_anew_is_accepted_with_fast_decisions_off(app: Application, killed: bool) -> None:
    """Fast decisions are turned off, and topic order is made anew. A start is refused; a range that is not the one
    shown is refused as well; what `recover` shows helps for good, windows stay, and each payment is decided once."""
    first, lost, later = ids("first", 20), ids("lost", 4), ids("later", 20)
    with app.worker():
        app.send(first)
        app.wait_decided(first)
    if killed:
        with app.worker(**{SETTING: "before_commit:1:kill"}) as worker:
            app.send(lost)
            assert worker.wait(60) == -signal.SIGKILL
    app.make_anew(app.topics.order, 1)
    app.more[f"{PREFIX}WORKER__FAST_DECISIONS"] = "false"

    _refused(app, "the journal names a record of it")
    (finding,) = _found(app)
    option, value = finding["command"].split()
    assert value.startswith("batches:0:")
    accepted = app.command("recover", "--bundle", str(app.bundle), option, value, "--reason", "the disk is gone")
    assert accepted.returncode == 0, accepted.stderr
    assert _found(app) == []
    expected = [*first, *(lost if killed else []), *later]
    with app.worker():
        app.send(later)
        app.wait_decided(expected)
    with app.worker():
        app.send(ids("last", 4))
        app.wait_decided(ids("last", 4))
    assert sorted(app.decided()) == sorted([*expected, *ids("last", 4)])


def test_windows_given_up_with_fast_decisions_off_leave_no_loss_in_an_order_log_made_anew(app: Application) -> None:
    """Fast decisions are turned off, topic order is made anew, and an operator lets the windows begin anew. `recover`
    finds nothing afterwards, and a worker decides."""
    with app.worker():
        app.send(ids("first", 20))
        app.wait_decided(ids("first", 20))
    app.make_anew(app.topics.order, 1)
    app.more[f"{PREFIX}WORKER__FAST_DECISIONS"] = "false"
    anew = app.command("recover", "--bundle", str(app.bundle), "--new-journal", "--reason", "the disk is gone")
    assert anew.returncode == 0, anew.stderr
    assert _found(app) == []
    with app.worker():
        app.send(ids("later", 20))
        app.wait_decided(ids("later", 20))


def _refused(app: Application, words: str) -> None:
    """A start is refused with these words, and `recover` accepts no batches but those that it names."""
    refused = app.command("run", "--bundle", str(app.bundle))
    assert refused.returncode == 1, refused.stderr
    assert words in refused.stderr
    wrong = app.command(
        "recover", "--bundle", str(app.bundle), "--accept-loss", "batches:0:90-91", "--reason", "a test"
    )
    assert wrong.returncode == 2, wrong.stderr
    assert "not 90-91" in wrong.stderr


def _found(app: Application) -> list[dict[str, str]]:
    """What `recover` shows that does not fit."""
    shown = app.command("recover", "--json")
    findings = json.loads(shown.stdout.splitlines()[-1])["findings"]
    return [finding for finding in findings if finding["trouble"] != "ok"]
