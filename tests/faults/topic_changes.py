"""What happens to the topics after a schedule has ended equal, FAULTS.md rows 24-26 and 29: the change, the outcome
that its row names, and every payment sent from then on decided once.

Each change is drawn by tests.faults.schedule, and gets an application of which nothing runs.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

from confluent_kafka import TopicPartition

from scorer import kafka
from scorer.bundle import Bundle
from scorer.journal.partition_buffers import MissingRange
from scorer.operate.loss_acceptance import Loss, Recovery
from scorer.operate.setup import APPEND_TIME
from scorer.runtime.settings import PREFIX
from tests.faults.nursery import Child
from tests.faults.payments import Payment, payments
from tests.faults.run import Application, Topic, Torn
from tests.topic_made_anew import grow, make_anew

PAYMENTS = 120
END_S = 60.0


def made_anew(app: Application, bundle: Path, seed: int) -> None:
    """Row 24: payments deleted and made anew under a running worker: it stops, naming the way out, and so does the next
    one; after --new-journal the new topic is decided from its beginning."""
    topic, partitions = app.topics.payments, app.settings.topics.payments_partitions
    worker = app.start("a")
    app.ready("a", 60)
    client = kafka.admin(app.settings.kafka)
    make_anew(client, topic, partitions, APPEND_TIME)
    kafka.wait_until_visible(app.settings.kafka, {topic: partitions}, timeout_s=30)
    given = _later(seed, PAYMENTS)
    app.reconnect()
    _send(app, given)
    _refused(app, worker, "fraud-scorer recover")
    _refused(app, app.start("a"), "fraud-scorer recover")
    _found(app, "made anew")
    _new_journal(app, bundle)
    _decides(app, given)


def partitions_added(app: Application, bundle: Path, seed: int) -> None:
    """Row 25: one shard takes new partitions up by itself; with several the worker stops and names the command."""
    count = app.settings.topics.payments_partitions + 1
    worker = app.start("a")
    app.ready("a", 60)
    for topic in (app.topics.decisions, app.topics.payments):
        grow(app.settings.kafka, topic, count)
    app.decisions.close()
    app.decisions = Topic(app.settings, app.topics.decisions)
    app.decisions.read_to_end()
    before = app.decided()
    given = _later(seed, PAYMENTS)
    _send(app, given)
    if app.settings.worker.shards > 1:
        _refused(app, worker, "recover --adopt-partitions")
        for shard in range(app.settings.worker.shards):
            Recovery(app.settings, shard).adopt_partitions(Bundle.load(bundle), "more load")
        app.start("a")
    _decided_once(app, before, len(given))


def decided_deleted(app: Application, bundle: Path, seed: int) -> None:
    """Row 26: what was decided is gone: a worker with a snapshot goes on, one without refuses and names the way out."""
    _delete_before(app, {p: offset for shard in _recoveries(app) for p, offset in shard.positions().items()})
    _goes_on_or_is_refused(app, bundle, _later(seed, PAYMENTS))


def undecided_deleted(app: Application, bundle: Path, seed: int) -> None:
    """Row 26: payments are gone before they were decided: refused with the range; --accept-loss of exactly that (or,
    where the windows are lost too, --new-journal), and the rest is decided."""
    given = _later(seed, PAYMENTS)
    _send(app, given)
    positions = {p: offset for shard in _recoveries(app) for p, offset in shard.positions().items()}
    ends = _ends(app, sorted(positions))
    gone = {p: (positions[p] + ends[p]) // 2 for p in positions if ends[p] > positions[p]}
    _delete_before(app, gone)
    _refused(app, app.start("a"), "are gone")
    _found(app, "lost")
    losses = [Loss(app.topics.payments, p, positions[p], offset) for p, offset in gone.items() if offset > positions[p]]
    shards = app.settings.worker.shards
    try:
        for shard in range(shards):
            if of_shard := [loss for loss in losses if loss.partition % shards == shard]:
                Recovery(app.settings, shard).accept_loss(Bundle.load(bundle), of_shard, "deleted by mistake")
    except MissingRange:
        _new_journal(app, bundle)
    before = app.decided()
    app.start("a")
    _decided_once(app, before, len(given) - sum(loss.end - loss.start for loss in losses))


def before_setup(app: Application, bundle: Path, seed: int) -> None:
    """Row 29: a worker whose topics were never made ends, names setup, and makes none."""
    prefix = f"none-{secrets.token_hex(4)}-"
    child = app.start("a", **{f"{PREFIX}KAFKA__TOPIC_PREFIX": prefix})
    if child.wait(END_S) == 0 or "fraud-scorer setup" not in child.log_end():
        raise Torn(f"a worker before setup did not name it:\n{child.log_end()}")
    names = kafka.admin(app.settings.kafka).list_topics(timeout=15).topics
    if made := [name for name in names if name.startswith(prefix)]:
        raise Torn(f"a worker before setup made {made}")


Change = Callable[[Application, Path, int], None]
CHANGES: Final[dict[str, Change]] = {
    "payments made anew": made_anew,
    "partitions added": partitions_added,
    "decided records deleted": decided_deleted,
    "undecided records deleted": undecided_deleted,
    "a worker before setup": before_setup,
}


def _later(seed: int, count: int) -> list[Payment]:
    """Payments with ids of their own."""
    return [(key, value.replace(b'"payment_id": "p', b'"payment_id": "later')) for key, value in payments(-seed, count)]


def _send(app: Application, given: list[Payment]) -> None:
    app.pay(given)
    app.wait(app.flushed, 60, "the payments to reach Kafka")


def _recoveries(app: Application) -> list[Recovery]:
    return [Recovery(app.settings, shard) for shard in range(app.settings.worker.shards)]


def _found(app: Application, trouble: str) -> None:
    """What `recover` shows without an option."""
    troubles = {finding.trouble for shard in _recoveries(app) for finding in shard.survey()}
    if trouble not in troubles:
        raise Torn(f"recover shows {troubles}, not {trouble!r}")


def _new_journal(app: Application, bundle: Path) -> None:
    for shard in _recoveries(app):
        if shard.positions():
            shard.new_state(Bundle.load(bundle), "a fault test")


def _passing(child: Child) -> bool:
    """Whether the worker has ended because this machine kept it still, or kept the broker from answering: a supervisor
    starts it again."""
    return any(words in child.log_end() for words in ("stood still", "Kafka does not answer"))


def _refused(app: Application, child: Child, words: str) -> None:
    code = child.wait(END_S)
    while words not in child.log_end() and _passing(child):
        child = app.start("a")
        code = child.wait(END_S)
    if code != 1 or words not in child.log_end():
        raise Torn(f"a worker ended with {code}, and its log does not say {words!r}:\n{child.log_end()}")


def _goes_on_or_is_refused(app: Application, bundle: Path, given: list[Payment]) -> None:
    before = app.decided()
    child = app.start("a")
    _send(app, given)

    def is_settled() -> bool:
        nonlocal child
        if child.poll() is not None and _passing(child):
            child = app.start("a")
        return child.poll() is not None or app.decided() >= before + len(given)

    app.wait(is_settled, 90, "an outcome")
    if child.poll() is not None:
        _refused(app, child, "fraud-scorer recover")
        _new_journal(app, bundle)
        app.start("a")
    _decided_once(app, before, len(given))


def _decides(app: Application, given: list[Payment]) -> None:
    before = app.decided()
    app.start("a")
    _decided_once(app, before, len(given))


def _decided_once(app: Application, before: int, count: int) -> None:
    """So many decisions and dead letters more than `before`, and no more; the worker drains."""
    app.wait(lambda: app.decided() >= before + count, 90, f"{count} payments to be decided")
    app.stop()
    app.decisions.read_to_end()
    app.dead_letters.read_to_end()
    if app.decided() != before + count:
        raise Torn(f"{app.decided() - before} decisions and dead letters of {count} payments")


def _ends(app: Application, partitions: list[int]) -> dict[int, int]:
    where = [TopicPartition(app.topics.payments, p) for p in partitions]
    return dict(zip(partitions, kafka.ends(kafka.admin(app.settings.kafka), where), strict=True))


def _delete_before(app: Application, offsets: dict[int, int]) -> None:
    client = kafka.admin(app.settings.kafka)  # kept until its answers are there
    for future in client.delete_records(
        [TopicPartition(app.topics.payments, p, offset) for p, offset in offsets.items()]
    ).values():
        future.result(30)
