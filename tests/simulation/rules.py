"""The rules of the protocol, and each of them broken: by a method of the product replaced, never by a flag in it."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from scorer import kafka
from scorer.journal import journal_reader
from scorer.journal.journal_reader import JournalReader
from scorer.journal.partition_buffers import ShardInputs
from scorer.operate.loss_acceptance import Recovery
from scorer.runtime import fault_points
from scorer.worker import batcher, follower, publisher
from scorer.worker.follower import Follower
from scorer.worker.missing_rights import MissingRights
from scorer.worker.publisher import Committed, Publisher
from scorer.worker.shard import Shard
from scorer.worker.topic_watch import TopicWatch
from tests.simulation import shard_state

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
            self._ports.clients.reader("r"), payments="payments", control="control", labels="labels",
            positions=positions, control_position=self.inputs.control.position,
            labels_position=self.inputs.labels.position, buffered_max=8, sources=self.inputs.sources,
            fresh=self.pipeline.sequence == 0,
        )  # fmt: skip

    stack.enter_context(patch.object(Follower, "catch_up", catch_up))


def _same_producer_after_a_timeout(stack: ExitStack) -> None:
    """A timed-out commit is aborted and sent again; that there is nothing to abort is taken for the commit's answer."""
    real = Publisher._commit

    def commit(self: Any, outcomes: Any) -> Committed:
        while True:
            try:
                return real(self, outcomes)
            except kafka.Rebuild as exc:
                cause = exc.__cause__
                if not isinstance(cause, KafkaException) or cause.args[0].code() != KafkaError._TIMED_OUT:
                    raise
                try:
                    self._producer.abort_transaction(30)
                except KafkaException as refused:
                    if refused.args[0].code() != KafkaError.INVALID_TXN_STATE:
                        raise kafka.failure(refused) from refused
                    return Committed(outcomes, 0.0, 0, self._reports.journal_offset)

    stack.enter_context(patch.object(Publisher, "_commit", commit))


def _state_kept_after_a_failure(stack: ExitStack) -> None:
    real = Shard._finish

    def finish(self: Any, *arguments: Any) -> None:
        with suppress(kafka.Rebuild):
            real(self, *arguments)

    stack.enter_context(patch.object(Shard, "_finish", finish))


def _standby_as_it_is(stack: ExitStack) -> None:
    """A state that followed warm is taken without bringing it to the journal's end."""
    real_follow, real_catch_up = Follower.follow, Follower.catch_up

    def follow(self: Any, stop: Any) -> None:
        self.warm = True
        real_follow(self, stop)

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
            epochs={},
        )

    stack.enter_context(patch.object(Follower, "_start_of", start_of))
    stack.enter_context(patch.object(Follower, "_may_use", lambda self, found: True))


def _positions_from_the_watermark(stack: ExitStack) -> None:
    """A batch ends where the broker says that the log does, whatever of it was read."""
    real = ShardInputs.batch

    def batch(self: Any, counts: Any, control_count: int, labels_count: int) -> Any:
        for buffer in self.buffers.values():
            _, high = self._consumer.get_watermark_offsets(buffer.partition, cached=True)
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
    "journal_is_checked": _journal_unchecked,
    "topics_are_watched": _topics_believed,
    "producers_end": _producers_kept,
    "consumers_end": _consumers_kept,
    "lost_positions_stop": _lost_positions_ignored,
    "cuts_are_searched": _cuts_not_searched,
    "snapshots_end_with_their_state": _snapshots_outlive_their_state,
    "added_partitions_from_their_start": _partitions_taken_up_at_their_end,
    "denials_are_waited_for": _denials_end_the_worker,
}


@contextmanager
def product(broken: frozenset[str] = frozenset()) -> Iterator[Callable[[World], None]]:
    """The product's code as a simulation runs it: pure encoders cheap, logs into the trace, `broken` rules out.

    Gives the function that says which world is the present one. No cycle is collected within a schedule: what lives
    on in one is kept, as with a collector that comes every few minutes, and it is found in every run or in none.
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
        stack.callback(gc.unfreeze)
        gc.disable()
        stack.callback(gc.enable)
        stack.enter_context(patch.object(fault_points, "point", passing))
        stack.enter_context(patch.object(publisher, "encode", shard_state.encode_audit))
        stack.enter_context(patch.object(publisher, "encode_decisions", shard_state.encode_decisions))
        stack.enter_context(patch.object(batcher, "event_times", shard_state.event_times))
        structlog.configure(processors=[to_trace], cache_logger_on_first_use=False)
        stack.callback(structlog.configure, **before)
        for rule in sorted(broken):
            RULES[rule](stack)
        yield use
