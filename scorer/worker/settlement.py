"""What a new owner of a shard does with the order log before it decides anything: it claims the log, and settles it.

The journal is a beginning of the order log. What stands in the log and not in the journal may have been answered by the
owner before, on topic decisions-fast: it is decided again, published again, and committed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from confluent_kafka import TopicPartition

from scorer import kafka
from scorer.errors import PromiseBroken
from scorer.journal import order_reader
from scorer.journal.activated_bundles import BundleUnavailable
from scorer.journal.answered_batches import AnsweredBatches
from scorer.journal.journal_reader import WAY_OUT
from scorer.pipeline import Outcomes
from scorer.runtime.settings import Settings
from scorer.runtime.threads import Event
from scorer.runtime.trace_context import Carried
from scorer.worker.answers import answers_of
from scorer.worker.batch_traces import PUBLISHED, Tracer
from scorer.worker.follower import Follower, undecidable
from scorer.worker.order_log import OrderLog
from scorer.worker.pending_commits import PendingCommits
from scorer.worker.ports import Ports
from scorer.worker.publisher import Publisher


def order_log(
    settings: Settings,
    ports: Ports,
    shard: int,
    limits: Mapping[str, int],
    *,
    producer: Callable[[], kafka.LogProducer],
    named: bool = False,
) -> OrderLog | None:
    """The shard's order log, to be claimed; None where fast decisions are off and it was never written. `limits`: the
    largest record of each topic, where it is known. `producer`: gives the one to write it with. `named`: whether the
    journal names a record of it. Raises SourceChanged when it does and there is none.

    With them off it is claimed as well: a worker that still has them on must not go on publishing.
    """
    topics = kafka.Topics.of(settings.kafka)
    if not settings.worker.fast_decisions:
        broker = ports.clients.broker()
        try:
            if broker.ends([TopicPartition(topics.order, shard)]) == [0]:
                if named:
                    raise kafka.SourceChanged(
                        f"{topics.order}/{shard} is empty, and the journal names a record of it: the topic was made "
                        f"anew. {WAY_OUT}"
                    )
                return None
        finally:
            broker.close()
    return claimable(settings, ports, shard, limits, producer=producer)


def claimable(
    settings: Settings,
    ports: Ports,
    shard: int,
    limits: Mapping[str, int],
    *,
    producer: Callable[[], kafka.LogProducer],
) -> OrderLog:
    """The shard's order log, also where it was never written. Arguments as for `order_log`."""
    return OrderLog(
        producer(),
        kafka.Topics.of(settings.kafka),
        ports.threads,
        shard=shard,
        columns=ports.clients.columns,
        limits=limits,
        timeout_s=settings.worker.transaction_timeout_ms / 1000.0,
    )


def owner_name(settings: Settings) -> str:
    """The worker as a claim names it."""
    return settings.worker.instance_id or settings.kafka.client_id


def settle(
    order: OrderLog,
    claim: int,
    follower: Follower,
    publisher: Publisher,
    commits: PendingCommits,
    stop: Event,
    *,
    settings: Settings,
    ports: Ports,
    tracer: Tracer,
    answered: AnsweredBatches | None = None,
) -> None:
    """Decide, publish and begin to commit what the log holds before its owner's claim and beyond the journal, to whose
    end `follower` was brought. What a standby has decided already is published and committed as it is. `commits` has
    what is on its way: deciding need not wait for it. `answered`: where more was answered, nothing is decided.

    Raises KafkaFailure, and as Follower.unsettled, AnsweredBatches.check and Follower.decide do; once `stop` is set it
    ends early, and the next owner goes on.
    """

    def answer(outcomes: Outcomes, carried: Mapping[int, Carried], closed_at: float) -> None:
        sequence, now_s = outcomes.journal.sequence, ports.threads.epoch_s()
        traces = tracer.of(outcomes, carried, sequence, now_s)
        traces.reached("decided", now_s)
        answers, delivery = traces.given_back(answers_of(outcomes)), None
        if settings.worker.fast_decisions:
            delivery = order.publish(answers, sequence)
            traces.reached(PUBLISHED, ports.threads.epoch_s())
        commits.make_room()
        commits.add(publisher.submit(outcomes, answers, delivery), closed_at, outcomes)

    pending = follower.unsettled(claim)
    if answered is not None:
        try:
            answered.check(follower.pipeline.sequence + len(pending), stop)
        except kafka.SourceChanged as exc:
            order_reader.check_newest(claim, settings, ports.clients, follower.pipeline.shard, exc)
            raise
    for outcomes, carried in follower.take_ahead():  # whatever comes: the state has them already
        answer(outcomes, carried, ports.threads.monotonic())
    for offset, record in pending:
        if stop.is_set():
            break
        closed_at = ports.threads.monotonic()
        try:
            outcomes = follower.decide(offset, record, stop)
        except BundleUnavailable:  # stopped
            break
        except PromiseBroken as exc:  # its order is fixed: without a way out every start would end here
            raise undecidable(follower.pipeline.shard, offset, record, exc, end=pending[-1][0] + 1) from exc
        answer(outcomes, follower.inputs.carried, closed_at)
