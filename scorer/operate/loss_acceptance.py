"""`fraud-scorer recover`: what is missing or changed between the journal and the topics, and accepting it.

What an operator accepts is a record of the shard's journal (schemas.journal_record.Change), committed in a transaction
like every batch, so recovery, replay, verify and prove know it. The record decides nothing. It is made by the shard's
own transactional producer, which fences a worker that still runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import NewPartitions

from schemas.journal_record import Change, ControlRange, InputRange, JournalRecord, Sources
from scorer import kafka
from scorer.audit.signed.signatures import Signer
from scorer.bundle import Bundle
from scorer.errors import UsageError
from scorer.journal import journal_reader
from scorer.journal.activated_bundles import Bundles
from scorer.journal.partition_buffers import PartitionBuffer
from scorer.kafka import Topics
from scorer.pipeline import Pipeline
from scorer.runtime.settings import Settings
from scorer.worker.follower import Follower, shard_partitions
from scorer.worker.ports import Ports
from scorer.worker.publisher import Publisher

INIT_TIMEOUT_S = 60.0
TIMEOUT_S = 30.0
Trouble = Literal["ok", "made anew", "lost", "cut", "added"]


@dataclass(frozen=True)
class Finding:
    """One partition that a shard reads, or one topic: what the journal says, what the broker has, what helps."""

    place: str
    trouble: Trouble
    journal: str
    broker: str
    command: str = ""


@dataclass(frozen=True)
class Loss:
    """Offsets of one partition that an operator gives up: [start, end)."""

    topic: str
    partition: int
    start: int
    end: int

    @classmethod
    def parse(cls, text: str, topics: Topics) -> Loss:
        """From TOPIC:PARTITION:FROM-TO. Raises UsageError."""
        topic, _, rest = text.rpartition(":")[0].partition(":")
        span = text.rpartition(":")[2].split("-")
        known = {"payments": topics.payments, "control": topics.control, "labels": topics.labels}
        topic = known.get(topic, topic)
        if topic not in known.values() or not rest.isdigit() or len(span) != 2 or not all(s.isdigit() for s in span):
            raise UsageError("a loss is TOPIC:PARTITION:FROM-TO, such as payments:0:1200-1350 (TO is the first kept)")
        loss = cls(topic, int(rest), int(span[0]), int(span[1]))
        if loss.end <= loss.start:
            raise UsageError(f"the range {loss.start}-{loss.end} is empty")
        return loss


class Recovery:
    """Looks at one shard, and writes what an operator accepts to its journal."""

    def __init__(
        self, settings: Settings, shard: int, *, signer: Signer | None = None, ports: Ports | None = None
    ) -> None:
        self._settings, self._shard, self._signer = settings, shard, signer
        self._topics = Topics.of(settings.kafka)
        self._ports = ports or Ports.real(settings)
        self._broker = self._ports.clients.broker()
        self._facts = self._broker.topic_facts(self._topics.all)
        self._sources = journal_reader.sources_of(self._facts, self._topics)
        self._records = journal_reader.read_journal(
            settings.kafka,
            self._ports.clients,
            shard,
            no_progress_s=settings.worker.no_progress_s,
            threads=self._ports.threads,
        )

    @property
    def _noted(self) -> Sources | None:
        """Ids of the topics that were read last; None in a journal of an earlier release."""
        return next((record.sources for record in reversed(self._records) if record.sources is not None), None)

    @property
    def _last(self) -> JournalRecord:
        if not self._records:
            raise UsageError(
                f"the journal of shard {self._shard} is empty: nothing was decided, nothing can be missing"
            )
        return self._records[-1]

    def positions(self) -> dict[int, int]:
        """Where the journal says that each payments partition was decided to."""
        return {r.partition: r.end for record in self._records for r in record.inputs}

    def _epochs(self) -> dict[int, int]:
        """The leader epoch that the journal notes last for each payments partition, where it notes one."""
        last = {r.partition: r.epoch for record in self._records for r in record.inputs}
        return {partition: epoch for partition, epoch in last.items() if epoch is not None}

    def _last_written(self, where: Sequence[TopicPartition], starts: Sequence[int], ends: Sequence[int]) -> list[int]:
        """For each log, at its decided position: how far it still holds the records that were decided. Below the
        position where it was cut; by an offset that a later leader has written, also when it is longer again by now."""
        epochs, written = self._epochs(), []
        reader = self._ports.clients.reader(f"{self._settings.kafka.topic_prefix}fraud-scorer-recover")
        try:
            for place, start, end in zip(where, starts, ends, strict=True):
                until, epoch = min(place.offset, end), epochs.get(place.partition)
                if place.topic == self._topics.payments and epoch is not None and start < until:
                    until = kafka.first_of_later_epochs(
                        reader, place, start, until, epoch, monotonic=self._ports.threads.monotonic
                    )
                written.append(until)
        finally:
            reader.close()
        return written

    def _refused_places(
        self, where: Sequence[TopicPartition], starts: Sequence[int], written: Sequence[int]
    ) -> list[bool]:
        """For each log, at its decided position, which it still holds: whether a client refuses to read on there."""
        epochs, monotonic = self._epochs(), self._ports.threads.monotonic
        reader = self._ports.clients.reader(f"{self._settings.kafka.topic_prefix}fraud-scorer-recover")
        try:
            return [
                place.topic == self._topics.payments
                and place.partition in epochs
                and start <= until == place.offset
                and kafka.is_cut_below(reader, place, epochs[place.partition], monotonic=monotonic)
                for place, start, until in zip(where, starts, written, strict=True)
            ]
        finally:
            reader.close()

    def survey(self) -> list[Finding]:
        """Everything that the journal stands on, fit or not."""
        if not self._records:
            return []
        found = [*self._topics_found()]
        if any(finding.trouble == "made anew" for finding in found):
            return found
        positions = self.positions()
        where = [TopicPartition(self._topics.payments, p, offset) for p, offset in sorted(positions.items())]
        where.append(TopicPartition(self._topics.control, 0, self._last.control.end))
        labels = self._last.labels
        if labels is not None:
            where.append(TopicPartition(self._topics.labels, 0, labels.end))
        starts, ends = self._broker.starts(where), self._broker.ends(where)
        written = self._last_written(where, starts, ends)
        cut = self._refused_places(where, starts, written)
        found += [_of_log(*log) for log in zip(where, starts, ends, written, cut, strict=True)]
        payments = self._facts[self._topics.payments].partitions
        for p in shard_partitions(self._settings, self._shard, payments):
            if p not in positions:
                command = "--adopt-partitions" if self._settings.worker.shards > 1 else ""
                found.append(Finding(f"{self._topics.payments}/{p}", "added", "not read yet", "there", command))
        return found

    def _topics_found(self) -> list[Finding]:
        found = []
        noted = self._noted
        for field, topic in zip(("payments", "control", "labels"), self._topics.inputs, strict=True):
            before, now = noted and getattr(noted, field), self._facts[topic].id
            anew = before is not None and before != now and kafka.NO_ID not in (before, now)
            found.append(
                Finding(topic, "made anew", f"id {before}", f"id {now}", "--new-journal")
                if anew
                else Finding(topic, "ok", f"id {before or 'not noted'}", f"id {now}")
            )
        payments, decisions = (self._facts[t].partitions for t in (self._topics.payments, self._topics.decisions))
        if decisions < payments:
            found.append(
                Finding(
                    self._topics.decisions,
                    "lost",
                    f"{payments} partitions are needed",
                    f"{decisions} partitions",
                    "--adopt-partitions",
                )
            )
        return found

    def accept_loss(self, bundle: Bundle, losses: Sequence[Loss], reason: str) -> JournalRecord:
        """Pass over offsets that are gone. Raises UsageError for a range that is not exactly what is missing."""
        follower = self._follower(bundle)
        try:
            inputs, control, labels = self._passed_over(follower, losses)
            return self._commit(follower.pipeline, inputs, control, labels, "accept_loss", reason)
        finally:
            follower.close()

    def adopt_partitions(self, bundle: Bundle, reason: str) -> JournalRecord | None:
        """Take up partitions that were added to the payments topic, and give the decisions topic as many.

        Gives the journal's record; None when the decisions topic alone lacked partitions.
        """
        payments = self._facts[self._topics.payments].partitions
        if self._facts[self._topics.decisions].partitions < payments:
            self._grow(self._topics.decisions, payments)
        follower = self._follower(bundle)
        try:
            added = follower.take_up(follower.added(payments))
            if not added:
                return None
            inputs = [InputRange(partition=p, start=offset, end=offset) for p, offset in sorted(added.items())]
            control, labels = (_here(buffer) for buffer in (follower.inputs.control, follower.inputs.labels))
            return self._commit(follower.pipeline, inputs, control, labels, "adopt_partitions", reason)
        finally:
            follower.close()

    def new_state(self, bundle: Bundle, reason: str) -> JournalRecord:
        """Begin with empty windows, lists and dedupe table; the journal goes on, and what stands in it is kept.

        A topic that is still the one that was read goes on where it was decided to, or where its log was cut below
        that; one made anew begins at its start.
        """
        last, known = self._last, self.positions()
        noted = self._noted
        payments = self._facts[self._topics.payments].partitions
        where = [
            TopicPartition(self._topics.payments, p) for p in shard_partitions(self._settings, self._shard, payments)
        ]
        starts, ends = self._broker.starts(where), self._broker.ends(where)
        same = noted is None or noted.payments == self._sources.payments
        for place, start in zip(where, starts, strict=True):
            place.offset = known.get(place.partition, start) if same else start
        written = self._last_written(where, starts, ends) if same else starts
        inputs = []
        for place, start, until in zip(where, starts, written, strict=True):
            offset = max(start, until)
            inputs.append(InputRange(partition=place.partition, start=offset, end=offset))
        control, labels = (
            ControlRange(start=at, end=at)
            for at in self._broker.starts([
                TopicPartition(self._topics.control, 0), TopicPartition(self._topics.labels, 0)
            ])
        )  # fmt: skip
        producer = self._producer()
        pipeline = self._ports.states.fresh(bundle, self._shard)
        try:
            pipeline.restart(bundle, last.stream_time_ms)
            pipeline.sequence, pipeline.head = last.sequence + 1, last.head
            pipeline.activation_number = last.activation_number
            return self._commit(pipeline, inputs, control, labels, "new_state", reason, producer=producer)
        finally:
            pipeline.close()

    def _follower(self, bundle: Bundle) -> Follower:
        """The shard's state at the journal's end, where snapshot and topics still give it."""
        bundles = Bundles(bundle, self._settings.bundle)
        follower = Follower(self._settings, bundles, self._shard, self._ports)
        try:
            follower.catch_up(self._ports.threads.event(), bounds=False)
            follower.release_journal()
        except BaseException:
            follower.close()
            raise
        return follower

    def _passed_over(
        self, follower: Follower, losses: Sequence[Loss]
    ) -> tuple[list[InputRange], ControlRange, ControlRange]:
        control, labels = (_here(buffer) for buffer in (follower.inputs.control, follower.inputs.labels))
        inputs = []
        for loss in losses:
            place = TopicPartition(loss.topic, loss.partition)
            of_all = {self._topics.control: follower.inputs.control, self._topics.labels: follower.inputs.labels}
            buffer = of_all.get(loss.topic) or follower.inputs.buffers.get(loss.partition)
            name = f"{loss.topic}/{loss.partition}"
            if buffer is None:
                raise UsageError(f"{name} is no partition of shard {self._shard}")
            first_kept = self._broker.starts([place])[0]
            if (loss.start, loss.end) != (buffer.position, first_kept):
                missing = f"{buffer.position}-{first_kept}" if first_kept > buffer.position else "nothing"
                raise UsageError(f"{name}: {missing} is missing, not {loss.start}-{loss.end}")
            if loss.topic == self._topics.control:
                control = ControlRange(start=loss.start, end=loss.end)
            elif loss.topic == self._topics.labels:
                labels = ControlRange(start=loss.start, end=loss.end)
            else:
                inputs.append(InputRange(partition=loss.partition, start=loss.start, end=loss.end))
        return sorted(inputs, key=lambda r: r.partition), control, labels

    def _producer(self) -> kafka.TransactionalProducer:
        producer = self._ports.clients.transactional_producer(f"shard-{self._shard}")
        try:
            producer.init_transactions(INIT_TIMEOUT_S)
        except KafkaException as exc:
            raise kafka.failure(exc) from exc
        return producer

    def _commit(
        self,
        pipeline: Pipeline,
        inputs: Sequence[InputRange],
        control: ControlRange,
        labels: ControlRange,
        kind: Literal["accept_loss", "adopt_partitions", "new_state"],
        reason: str,
        *,
        producer: kafka.TransactionalProducer | None = None,
    ) -> JournalRecord:
        change = Change(kind=kind, reason=reason)
        sequence, head = pipeline.sequence, pipeline.head
        batch = journal_reader.empty_batch(inputs, control, labels=labels, sources=self._sources, change=change)
        outcomes = pipeline.run(batch)
        if self._signer is not None:
            # Signed over the very record; the batch is decided once more with the signature in it.
            signed = self._signer.sign(outcomes.journal.accepted())
            pipeline.sequence, pipeline.head = sequence, head
            change = change.model_copy(update={"signed": signed})
            outcomes = pipeline.run(replace(batch, change=change))
        publisher = Publisher(
            producer or self._producer(),
            self._topics,
            self._ports.threads,
            shard=self._shard,
            group_metadata=lambda: None,
        )
        try:
            publisher.wait(publisher.submit(outcomes))
        finally:
            publisher.close()
        return outcomes.journal

    def _grow(self, topic: str, partitions: int) -> None:
        client = kafka.admin(self._settings.kafka)  # kept until its answer is there
        futures = client.create_partitions([NewPartitions(topic, partitions)], operation_timeout=TIMEOUT_S)
        try:
            futures[topic].result(TIMEOUT_S)
        except KafkaException as exc:
            raise kafka.KafkaFailure(f"topic {topic} cannot be given partitions: {kafka.describe(exc)}") from exc
        deadline = self._ports.threads.monotonic() + TIMEOUT_S
        while self._broker.topic_facts([topic])[topic].partitions < partitions:  # metadata spreads in its own time
            if self._ports.threads.monotonic() > deadline:
                raise kafka.Away(f"topic {topic} does not show its new partitions")
            self._ports.threads.sleep(0.2)


def _here(buffer: PartitionBuffer) -> ControlRange:
    """Nothing of what comes next."""
    return ControlRange(start=buffer.position, end=buffer.position)


def _of_log(place: TopicPartition, start: int, end: int, written: int, refused: bool) -> Finding:
    """`written`: how far the log holds what was decided. `refused`: a client does not read on there."""
    name, position = f"{place.topic}/{place.partition}", place.offset
    decided = f"decided to offset {position}"
    holds = f"offsets {start} to {end - 1}" if end > start else f"no records, the next offset is {end}"
    if position < start:
        return Finding(name, "lost", decided, holds, f"--accept-loss {name.replace('/', ':')}:{position}-{start}")
    if position > written or refused:
        later = "" if position > end or refused else f", from {written} on by a later leader"
        return Finding(name, "cut", decided, holds + later, "--new-journal")
    return Finding(name, "ok", decided, holds)


def shards(settings: Settings) -> Sequence[int]:
    """All shards, by number."""
    return range(settings.worker.shards)


def by_shard(losses: Sequence[Loss], settings: Settings) -> Mapping[int, list[Loss]]:
    """Losses by the shard that reads the partition; topics control and labels are read by every shard."""
    topics, count = Topics.of(settings.kafka), settings.worker.shards
    found: dict[int, list[Loss]] = {}
    for loss in losses:
        of = range(count) if loss.topic != topics.payments else (loss.partition % count,)
        for shard in of:
            found.setdefault(shard, []).append(loss)
    return found
