"""The rules of the protocol, and each of them broken: by a method of the product replaced, never by a flag in it."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from schemas.order_record import ClaimRecord, OrderRecord, order_log_record
from scorer import kafka
from scorer.journal import answered_batches, journal_reader, order_reader
from scorer.journal.answered_batches import AnsweredBatches
from scorer.journal.journal_reader import JournalReader
from scorer.journal.order_reader import OrderLogReader
from scorer.journal.partition_buffers import PartitionBuffer, ShardInputs
from scorer.operate.loss_acceptance import Recovery
from scorer.runtime import fault_points
from scorer.worker import answers, batcher, follower, order_log, publisher
from scorer.worker.decided_ahead import DecidedAhead
from scorer.worker.follower import Follower
from scorer.worker.missing_rights import MissingRights
from scorer.worker.order_log import Delivery, OrderLog
from scorer.worker.pending_commits import PendingCommits
from scorer.worker.publisher import Committed, Publisher
from scorer.worker.topic_watch import TopicWatch
from tests.simulation import shard_state
from tests.simulation.invariants import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World


COLLECTED_EVERY = 50  # schedules


def _positions_from_the_group(stack: ExitStack) -> None:
    """Recovery takes the positions that the group remembers."""
    real = Follower.catch_up

    def catch_up(self: Any, stop: Any, *, bounds: bool = True) -> None:
        real(self, stop, bounds=bounds)
        world = self._ports.clients._world
        buffers = self.inputs.buffers
        positions = {p: world.broker.offsets.get(("payments", p), 0) for p in buffers}
        self.inputs.close()
        self.inputs = ShardInputs(
            self._ports.clients.flat_reader("r"), payments="payments", control="control", labels="labels",
            positions=positions, control_position=self.inputs.control.position,
            labels_position=self.inputs.labels.position, buffered_max=8, sources=self.inputs.sources,
            fresh=self.pipeline.sequence == 0,
        )  # fmt: skip

    stack.enter_context(patch.object(Follower, "catch_up", catch_up))


def _same_producer_after_a_timeout(stack: ExitStack) -> None:
    """A timed-out commit is aborted and sent again; that there is nothing to abort is taken for the commit's answer."""
    real = Publisher._commit

    def commit(self: Any, works: Any) -> list[Committed]:
        while True:
            try:
                return real(self, works)
            except kafka.Rebuild as exc:
                cause = exc.__cause__
                if not isinstance(cause, KafkaException) or cause.args[0].code() != KafkaError._TIMED_OUT:
                    raise
                try:
                    self._producer.abort_transaction(30)
                except KafkaException as refused:
                    if refused.args[0].code() != KafkaError.INVALID_TXN_STATE:
                        raise kafka.failure(refused) from refused
                    return [Committed(work.outcomes, 0.0, 0, -1, len(works), 0.0) for work in works]

    stack.enter_context(patch.object(Publisher, "_commit", commit))


def _state_kept_after_a_failure(stack: ExitStack) -> None:
    real = PendingCommits._finish

    def finish(self: Any) -> None:
        first = self._waiting[0]
        try:
            real(self)
        except kafka.Rebuild:
            self._waiting.remove(first)
            self._payments -= first.payments
            self._record_bytes -= first.record_bytes
            self._publisher._failed = False

    stack.enter_context(patch.object(PendingCommits, "_finish", finish))


def _standby_as_it_is(stack: ExitStack) -> None:
    """A state that followed warm is taken without bringing it to the journal's end."""
    real_follow, real_catch_up = Follower.follow, Follower.catch_up

    def follow(self: Any, *given: Any) -> None:
        self.warm = True
        real_follow(self, *given)

    def catch_up(self: Any, stop: Any, *, bounds: bool = True) -> None:
        if not getattr(self, "warm", False):
            real_catch_up(self, stop, bounds=bounds)

    stack.enter_context(patch.object(Follower, "follow", follow))
    stack.enter_context(patch.object(Follower, "catch_up", catch_up))


def _snapshots_unchecked(stack: ExitStack) -> None:
    def start_of(self: Any, store: Any, found: Any) -> Any:
        known = found.meta
        journal = self._journal_from(int(known["journal_offset"]) + 1, sequence=known["sequence"], previous=None)
        pipeline = self._ports.states.restored(self._bundles.initial, self._shard, known, store.images(found))
        positions = {int(p): int(position) for p, position in known["positions"].items()}
        return follower._Start(
            pipeline,
            journal,
            positions,
            int(known["control_position"]),
            int(known["labels_position"]),
            fresh=False,
            last={},
        )

    stack.enter_context(patch.object(Follower, "_start_of", start_of))
    stack.enter_context(patch.object(Follower, "_may_use", lambda self, found: True))


def _positions_from_the_watermark(stack: ExitStack) -> None:
    """A batch ends where the broker says that the log does, whatever of it was read."""
    real = ShardInputs.batch

    def batch(self: Any, counts: Any, control_count: int, labels_count: int) -> Any:
        for buffer in self.buffers.values():
            _, high = self._reader.get_watermark_offsets(buffer.partition, cached=True)
            buffer.reached = max(buffer.reached, high)
        return real(self, counts, control_count, labels_count)

    stack.enter_context(patch.object(ShardInputs, "batch", batch))


def _by_the_world(stack: ExitStack) -> None:
    """Broken by the simulated clients, which look at World.broken."""


def _journal_unchecked(stack: ExitStack) -> None:
    """A record that does not follow, or that gives another digest, is taken for good."""

    def rerun(pipeline: Any, record: Any, batch: Any, bundles: Any) -> None:
        pipeline.run(batch)

    stack.enter_context(patch.object(JournalReader, "_checked", lambda self, record: record))
    stack.enter_context(patch.object(follower, "rerun", rerun))


def _topics_believed(stack: ExitStack) -> None:
    """A topic is taken for the one that was read before because it has its name."""

    def see(self: Any, facts: Any) -> None:
        self._answered_at = self._threads.monotonic()
        self.payments = facts["payments"].partitions

    stack.enter_context(patch.object(TopicWatch, "_see", see))
    stack.enter_context(patch.object(journal_reader, "check_sources", lambda named, present, what: None))


def _producers_kept(stack: ExitStack) -> None:
    """Something still has the producer of a shard that was rebuilt or released, as a callback or a traceback may."""
    kept: list[Any] = []
    real = Publisher.close

    def close(self: Any) -> None:
        kept.append(self._producer)
        real(self)

    stack.enter_context(patch.object(Publisher, "close", close))


def _consumers_kept(stack: ExitStack) -> None:
    """A follower that is given up leaves its readers open."""
    stack.enter_context(patch.object(Follower, "close", lambda self: self.release_journal()))


def _lost_positions_ignored(stack: ExitStack) -> None:
    """A position outside its log, or a log that was cut, is taken for something that passes by itself."""
    real = ShardInputs._on_error

    def on_error(self: Any, error: KafkaError, *arguments: Any) -> None:
        if error.code() not in (KafkaError._AUTO_OFFSET_RESET, KafkaError._LOG_TRUNCATION):
            real(self, error, *arguments)

    stack.enter_context(patch.object(ShardInputs, "_on_error", on_error))


def _cuts_not_searched(stack: ExitStack) -> None:
    """`recover --new-journal` goes on at the decided position, whoever has written what stands before it by now."""

    def last_written(self: Any, where: Any, starts: Any, ends: Any) -> list[int]:
        return [min(place.offset, end) for place, end in zip(where, ends, strict=True)]

    stack.enter_context(patch.object(Recovery, "_last_written", last_written))


def _snapshots_outlive_their_state(stack: ExitStack) -> None:
    """A snapshot is used although an operator has let the state begin anew after it."""
    real = Follower._new_state
    stack.enter_context(
        patch.object(Follower, "_new_state", lambda self, start=None: real(self) if start is None else None)
    )


def _partitions_taken_up_at_their_end(stack: ExitStack) -> None:
    """Of a partition that is added, what was sent before it was noticed is not read."""

    def take_up(self: Any, added: list[int]) -> dict[int, int]:
        ends = self._broker.ends([TopicPartition("payments", p) for p in added]) if added else []
        positions = dict(zip(added, ends, strict=True))
        if positions:
            self.inputs.add(positions)
        return positions

    stack.enter_context(patch.object(Follower, "take_up", take_up))


def _denials_end_the_worker(stack: ExitStack) -> None:
    """A right that is missing for a moment is not waited for."""
    stack.enter_context(patch.object(MissingRights, "outlasted", lambda self, denial, batches, stop: denial))


def _offsets_not_compared(stack: ExitStack) -> None:
    """An order counts for its owner wherever the broker has put it."""
    real = OrderLog.appended

    def appended(self: Any) -> None:
        report = self._append
        try:
            real(self)
        except kafka.Fenced:
            self._last = report.offset

    stack.enter_context(patch.object(OrderLog, "appended", appended))


def _published_before_it_is_durable(stack: ExitStack) -> None:
    """Decisions leave while their order is on its way."""

    def appended(self: Any) -> None:
        self._append = None
        self._last += 1

    stack.enter_context(patch.object(OrderLog, "appended", appended))


def _degraded_rows_not_ordered(stack: ExitStack) -> None:
    """An order does not say for which rows a clock left no time for the model."""
    real = order_log.order_record

    def order_record(*given: Any) -> OrderRecord:
        return real(*given).model_copy(update={"degraded": False, "degraded_rows": None})

    stack.enter_context(patch.object(order_log, "order_record", order_record))


def _orders_left_unsettled(stack: ExitStack) -> None:
    """A new owner goes on from the journal, whatever stands in the order log."""
    stack.enter_context(patch.object(Follower, "unsettled", lambda self, claim: []))


def _every_order_counts(stack: ExitStack) -> None:
    """What an owner appended after the claim of a later one is taken for good."""

    def counting(records: Any) -> Any:
        return [(offset, record) for offset, record in records if isinstance(record, OrderRecord)]

    stack.enter_context(patch.object(order_reader, "counting", counting))


def _no_claim(stack: ExitStack) -> None:
    """A new owner appends under the claim that it finds."""
    real = OrderLog.claim

    def claim(self: Any, owner: str, sequence: int) -> int:
        log = self._producer._world.broker.log("order", self._shard)
        known = [n for n, entry in enumerate(log.all) if isinstance(order_log_record(entry.value), ClaimRecord)]
        if not known:
            return real(self, owner, sequence)
        self._epoch, self._last = known[-1], log.end - 1
        return int(log.end)

    stack.enter_context(patch.object(OrderLog, "claim", claim))


def _read_before_the_claim(stack: ExitStack) -> None:
    """A new owner takes of the order log what stood there when it fenced the former one, and claims it later."""
    real_catch_up, real_unsettled = Follower.catch_up, Follower.unsettled

    def catch_up(self: Any, stop: Any, *, bounds: bool = True) -> None:
        self.known_end = self._ports.clients._world.broker.log("order", self._shard).end
        real_catch_up(self, stop, bounds=bounds)
        self._ports.threads.sleep(2.0)  # until it claims

    def unsettled(self: Any, claim: int) -> Any:
        return [(offset, record) for offset, record in real_unsettled(self, claim) if offset < self.known_end]

    stack.enter_context(patch.object(Follower, "catch_up", catch_up))
    stack.enter_context(patch.object(Follower, "unsettled", unsettled))


def _committed_before_it_is_published(stack: ExitStack) -> None:
    """A transaction does not wait for the fast decisions of its batches."""
    stack.enter_context(patch.object(Delivery, "wait", lambda self: None))


def _zombies_followed(stack: ExitStack) -> None:
    """A standby takes every order that it reads for one that counts."""
    real = OrderLogReader._read

    def read(self: Any, wait_s: float) -> Any:
        return [(offset, record, isinstance(record, OrderRecord)) for offset, record, _ in real(self, wait_s)]

    stack.enter_context(patch.object(OrderLogReader, "_read", read))


def _ahead_not_compared(stack: ExitStack) -> None:
    """What a standby has decided along the order log is taken for what the journal holds."""

    def confirm(self: Any, record: Any) -> None:
        outcomes, _ = self._waiting.popleft()
        self._payments -= len(outcomes.records)
        self._record_bytes -= outcomes.record_bytes

    stack.enter_context(patch.object(DecidedAhead, "confirm", confirm))


def _ahead_forgotten(stack: ExitStack) -> None:
    """A new owner goes on from the state that it has, and commits nothing of what it decided while it followed."""

    def take(self: Any, head: str) -> list[Any]:
        self._waiting.clear()
        return []

    stack.enter_context(patch.object(DecidedAhead, "take", take))


def _commits_after_a_failure(stack: ExitStack) -> None:
    """What waits behind a transaction that failed is committed all the same."""

    def commit_next(self: Any, works: Any) -> None:
        for work, committed in zip(works, self._commit(works), strict=True):
            work.future.set_result(committed)

    stack.enter_context(patch.object(Publisher, "_commit_next", commit_next))


def _numbers_used_again(stack: ExitStack) -> None:
    """After batches were given up the journal goes on with their numbers, and no new owner looks what was answered."""
    real = Recovery._commit

    def commit(self: Any, *given: Any) -> Any:
        *others, claimed = given
        return real(self, *others, claimed._replace(given_up=0))

    stack.enter_context(patch.object(Recovery, "_commit", commit))
    stack.enter_context(patch.object(AnsweredBatches, "check", lambda *_: None))


def _positions_behind_markers(stack: ExitStack) -> None:
    """Reading goes on where it ended, under the epoch of the last record, whoever wrote the markers behind it."""

    def next_place(self: Any) -> Any:
        if self.epoch < 0:
            return TopicPartition(self.partition.topic, self.partition.partition, self.reached)
        return TopicPartition(self.partition.topic, self.partition.partition, self.reached, leader_epoch=self.epoch)

    stack.enter_context(patch.object(PartitionBuffer, "next", property(next_place)))


RULES: dict[str, Callable[[ExitStack], None]] = {
    "one_transactional_id": _by_the_world,
    "generation_in_commits": _by_the_world,
    "journal_read_to_its_end": _by_the_world,
    "positions_from_journal": _positions_from_the_group,
    "new_producer_after_timeout": _same_producer_after_a_timeout,
    "state_dropped_after_failure": _state_kept_after_a_failure,
    "standby_catches_up": _standby_as_it_is,
    "snapshots_are_checked": _snapshots_unchecked,
    "positions_from_what_was_read": _positions_from_the_watermark,
    "positions_behind_records": _positions_behind_markers,
    "journal_is_checked": _journal_unchecked,
    "topics_are_watched": _topics_believed,
    "producers_end": _producers_kept,
    "consumers_end": _consumers_kept,
    "lost_positions_stop": _lost_positions_ignored,
    "cuts_are_searched": _cuts_not_searched,
    "snapshots_end_with_their_state": _snapshots_outlive_their_state,
    "added_partitions_from_their_start": _partitions_taken_up_at_their_end,
    "denials_are_waited_for": _denials_end_the_worker,
    "order_offsets_are_compared": _offsets_not_compared,
    "order_is_durable_first": _published_before_it_is_durable,
    "degraded_rows_are_ordered": _degraded_rows_not_ordered,
    "orders_are_settled": _orders_left_unsettled,
    "later_claims_end_earlier_ones": _every_order_counts,
    "owners_claim": _no_claim,
    "orders_are_read_up_to_the_claim": _read_before_the_claim,
    "commits_wait_for_fast_decisions": _committed_before_it_is_published,
    "standbys_follow_what_counts": _zombies_followed,
    "decided_ahead_is_compared": _ahead_not_compared,
    "decided_ahead_is_committed": _ahead_forgotten,
    "nothing_commits_after_a_failure": _commits_after_a_failure,
    "log_producers_give_nothing_up": _by_the_world,
    "given_up_numbers_are_used_up": _numbers_used_again,
}


@contextmanager
def product(broken: frozenset[str] = frozenset()) -> Iterator[Callable[[World], None]]:
    """The product's code as a simulation runs it: pure encoders cheap, logs into the trace, `broken` rules out.

    Gives the function that says which world is the present one. No cycle is collected within a schedule: what lives
    on in one is kept, as with a collector that comes every few minutes, and it is found in every run or in none. What
    is there before stays frozen: else each use would look through all modules of the process once more.
    """
    present: list[World] = []
    used = itertools.count(1)

    def use(world: World) -> None:
        if next(used) % COLLECTED_EVERY == 0:
            gc.collect()
        Publisher.given_up = 0
        present[:] = [world]

    def passing(point: str) -> None:
        present[0].passing(point)

    confirm = DecidedAhead.confirm

    def confirmed(self: Any, record: Any) -> None:
        try:
            confirm(self, record)
        except kafka.Rebuild as exc:  # an order that counts is the journal's, unless an operator has given it up
            if not (present[0].disturbed or present[0].spoilt):
                raise Violation(str(exc)) from exc
            raise

    def to_trace(logger: object, method: str, event: dict[str, Any]) -> Any:
        world = present[0]
        name = event.pop("event")
        facts = ", ".join(f"{key}={value}" for key, value in event.items())
        current = world.scheduler.current
        world.note(current.process if current else None, f"logs {name} {facts}")
        raise structlog.DropEvent

    before = structlog.get_config()
    with ExitStack() as stack:
        gc.collect()
        gc.freeze()
        gc.disable()
        stack.callback(gc.enable)
        stack.enter_context(patch.object(fault_points, "point", passing))
        stack.enter_context(patch.object(publisher, "encode", shard_state.encode_audit))
        stack.enter_context(patch.object(answers, "encode_decisions", shard_state.encode_decisions))
        stack.enter_context(patch.object(order_log, "placed", shard_state.placed))
        stack.enter_context(patch.object(answered_batches, "place_of", shard_state.place_of))
        stack.enter_context(patch.object(batcher, "event_times", shard_state.event_times))
        stack.enter_context(patch.object(DecidedAhead, "confirm", confirmed))
        structlog.configure(processors=[to_trace], cache_logger_on_first_use=False)
        stack.callback(structlog.configure, **before)
        for rule in sorted(broken):
            RULES[rule](stack)
        yield use
