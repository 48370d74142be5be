"""`fraud-scorer recover`: what is missing or changed between the journal and the topics, and accepting it.

What an operator accepts is a record of the shard's journal (schemas.journal_record.Change), committed in a transaction
like every batch, so recovery, replay, verify and prove know it. The record decides nothing. It is made by the shard's
own transactional producer, which fences a worker that still runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, NamedTuple

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import NewPartitions

from schemas.journal_record import Change, ControlRange, InputRange, JournalRecord
from schemas.order_record import OrderRecord
from scorer import kafka
from scorer.audit.signed.signatures import Signer
from scorer.bundle import Bundle
from scorer.errors import UsageError
from scorer.journal import journal_reader, order_reader
from scorer.journal.activated_bundles import Bundles
from scorer.journal.answered_batches import AnsweredBatches
from scorer.journal.order_reader import OrderUnreadable
from scorer.journal.partition_buffers import MissingRange, PartitionBuffer, ShardInputs
from scorer.kafka import Topics
from scorer.operate.journal_summary import JournalSummary
from scorer.pipeline import Batch, Outcomes, Pipeline
from scorer.runtime.settings import Settings
from scorer.worker.batch_traces import Tracer
from scorer.worker.follower import Follower, shard_partitions
from scorer.worker.order_log import OrderLog
from scorer.worker.owner_clients import OwnerClients
from scorer.worker.pending_commits import AheadMax, PendingCommits
from scorer.worker.ports import Ports
from scorer.worker.publisher import Publisher
from scorer.worker.settlement import claimable, order_log, settle

OPERATOR = "fraud-scorer recover"
BATCHES = "batches"
# As many numbers are used up at most, a record of the journal each.
BATCHES_LOST_MAX = 10_000
READ_AGAIN_S = 10.0  # without progress, a batch cannot be read again
TIMEOUT_S = 30.0
# `int` takes neither every digit of Unicode nor a number of any length.
_PARTITION = re.compile(r"[0-9]{1,9}")
_SPAN = re.compile(r"([0-9]{1,19})-([0-9]{1,19})")
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
    """Offsets of one partition that an operator gives up: [start, end). Of topic order: batches that cannot be decided
    again, though their decisions may have left on topic decisions-fast.

    Of BATCHES: numbers of a shard's batches, answered on topic decisions-fast, whose order is gone from the order log.
    Their payments are decided anew, perhaps otherwise.
    """

    topic: str
    partition: int
    start: int
    end: int

    @classmethod
    def parse(cls, text: str, topics: Topics) -> Loss:
        """From TOPIC:PARTITION:FROM-TO, or batches:SHARD:FROM-TO. Raises UsageError."""
        topic, _, rest = text.rpartition(":")[0].partition(":")
        span = _SPAN.fullmatch(text.rpartition(":")[2])
        names = ("payments", "control", "labels", "order")
        known = {name: getattr(topics, name) for name in names} | {BATCHES: BATCHES}
        topic = known.get(topic, topic)
        if topic not in known.values() or span is None or not _PARTITION.fullmatch(rest):
            raise UsageError("a loss is TOPIC:PARTITION:FROM-TO, such as payments:0:1200-1350 (TO is the first kept)")
        loss = cls(topic, int(rest), int(span[1]), int(span[2]))
        if loss.end <= loss.start:
            raise UsageError(f"the range {loss.start}-{loss.end} is empty")
        return loss


class _Claimed(NamedTuple):
    """A shard's order log, claimed by this command: the offset up to which it is settled with the next record of the
    journal, None without such a log; how many batches before it are given up; and where these begin in each payments
    partition."""

    order: int | None
    given_up: int
    starts: Mapping[int, int] = MappingProxyType({})


class _Settled(NamedTuple):
    """A shard's state, what writes to its journal, and its order log. No worker of the shard can write any more."""

    follower: Follower
    publisher: Publisher
    claimed: _Claimed


class Recovery:
    """Looks at one shard, and writes what an operator accepts to its journal."""

    def __init__(
        self, settings: Settings, shard: int, *, signer: Signer | None = None, ports: Ports | None = None
    ) -> None:
        self._settings, self._shard, self._signer = settings, shard, signer
        self._topics = Topics.of(settings.kafka)
        self._ports = ports or Ports.real(settings)
        self._broker = self._ports.clients.broker()
        self._clients = OwnerClients(settings, self._ports, shard)
        # What the numbers of batches were that `new_state` gave up could not be read: they may be used again.
        self.numbers_unknown = False
        self._look()

    def _look(self) -> None:
        """Read what there is now: the topics, and the shard's journal."""
        self._facts = self._broker.topic_facts(self._topics.all)
        self._sources = journal_reader.sources_of(self._facts, self._topics)
        records = journal_reader.journal_records(
            self._settings.kafka,
            self._ports.clients,
            self._shard,
            no_progress_s=self._settings.worker.no_progress_s,
            threads=self._ports.threads,
        )
        try:
            self._journal = JournalSummary.of(records)
        except MissingRange as exc:
            raise UsageError(
                f"the journal of shard {self._shard} cannot be read from its first batch on ({exc}). This command "
                "needs it whole; workers go on from a snapshot as long as there is one. Restore the journal topic"
            ) from exc

    def close(self) -> None:
        """Let its client of the broker go."""
        self._broker.close()

    @property
    def _last(self) -> JournalRecord:
        if self._journal.last is None:
            raise UsageError(
                f"the journal of shard {self._shard} is empty: nothing was decided, nothing can be missing"
            )
        return self._journal.last

    def lost_of_all(self) -> list[Loss]:
        """What this shard lacks of the topics that every shard reads."""
        last, topics = self._journal.last, (self._topics.control, self._topics.labels)
        if last is None:
            return []
        starts = self._broker.starts([TopicPartition(topic, 0) for topic in topics])
        return [
            Loss(topic, 0, decided.end, start)
            for topic, decided, start in zip(topics, (last.control, last.labels), starts, strict=True)
            if decided is not None and decided.end < start
        ]

    def positions(self) -> dict[int, int]:
        """Where the journal says that each payments partition was decided to."""
        return self._journal.positions

    def _last_written(self, where: Sequence[TopicPartition], starts: Sequence[int], ends: Sequence[int]) -> list[int]:
        """For each log, at its decided position: how far it still holds the records that were decided. Below the
        position where it was cut; by an offset that a later leader has written, also when it is longer again by now."""
        last, written = self._journal.last_records, []
        reader = self._ports.clients.reader(f"{self._settings.kafka.topic_prefix}fraud-scorer-recover")
        try:
            for place, start, end in zip(where, starts, ends, strict=True):
                until, noted = min(place.offset, end), last.get(place.partition)
                if place.topic == self._topics.payments and noted is not None and start < until:
                    until = kafka.first_of_later_epochs(
                        reader, place, start, until, noted.epoch, monotonic=self._ports.threads.monotonic
                    )
                written.append(until)
        finally:
            reader.close()
        return written

    def _refused_places(
        self, where: Sequence[TopicPartition], starts: Sequence[int], written: Sequence[int]
    ) -> list[bool]:
        """For each log, at its decided position, which it still holds: whether a client refuses to read on there."""
        last = self._journal.last_records
        return [
            place.topic == self._topics.payments
            and place.partition in last
            and start <= last[place.partition].end
            and until == place.offset
            and self._is_cut_below(place, last[place.partition])
            for place, start, until in zip(where, starts, written, strict=True)
        ]

    def _is_cut_below(self, place: TopicPartition, last: kafka.LastRecord) -> bool:
        # A new client each time: it asks for the end of an epoch when it first hears of a topic's leaders, and not with
        # a later assignment.
        reader = self._ports.clients.reader(f"{self._settings.kafka.topic_prefix}fraud-scorer-recover")
        try:
            return kafka.is_cut_below(reader, place, last, monotonic=self._ports.threads.monotonic)
        finally:
            reader.close()

    def survey(self) -> list[Finding]:
        """Everything that the journal stands on, fit or not, and what follows it in the order log."""
        if self._journal.last is None:
            return self._order_found()
        found = [*self._topics_found()]
        if any(finding.trouble == "made anew" for finding in found):
            return found
        found += self._order_found()
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
        noted = self._journal.sources
        for field, topic in zip(("payments", "control", "labels"), self._topics.inputs, strict=True):
            before, now = noted and getattr(noted, field), self._facts[topic].id
            anew = before is not None and before != now and kafka.NO_ID not in (before, now)
            found.append(
                Finding(topic, "made anew", f"id {before}", f"id {now}", "--new-journal")
                if anew
                else Finding(topic, "ok", f"id {before or 'not noted'}", f"id {now}")
            )
        payments = self._facts[self._topics.payments].partitions
        for topic in self._too_few(payments):
            has = f"{self._facts[topic].partitions} partitions"
            found.append(Finding(topic, "lost", f"{payments} partitions are needed", has, "--adopt-partitions"))
        return found

    def _order_found(self) -> list[Finding]:
        """What the order log holds beyond the journal, where it cannot be decided again; and what was answered beyond
        both."""
        name = f"{self._topics.order}/{self._shard}"
        newest, following = self._newest_answered(), self._journal.count
        found = []
        try:
            missing = self._unsettled(self._broker.ends([TopicPartition(self._topics.order, self._shard)])[0])
        except OrderUnreadable as exc:
            missing = exc.before  # these are settled when the rest is accepted
            behind = following + len(missing)
            way_out = self._way_out(behind, max(newest, behind) + 1, str(exc))
            if exc.later_release:
                way_out = f"{exc}; only where no release of fraud-scorer wrote it: {way_out[1]}", ""
            found.append(Finding(name, "lost", f"ordered to batch {behind - 1}", *way_out))
            newest = -1  # is part of that
        except (MissingRange, kafka.SourceChanged) as exc:
            end = max(newest, following) + 1
            return [
                Finding(name, "lost", f"decided to batch {following - 1}", *self._way_out(following, end, str(exc)))
            ]
        following += len(missing)
        if reason := self._unreadable([record for _, record in missing]):
            first, last = missing[0], missing[-1]
            holds = (
                f"the order of batches {first[1].sequence} to {last[1].sequence}, which were perhaps answered: {reason}"
            )
            command = f"--accept-loss {name.replace('/', ':')}:{first[0]}-{last[0] + 1}"
            found.insert(0, Finding(name, "lost", f"decided to batch {first[1].sequence - 1}", holds, command))
        if newest >= following:
            ends = f"journal and order log end with batch {following - 1}"
            holds = f"decisions of batches up to {newest}, whose order is gone"
            way_out = self._way_out(following, newest + 1, holds)
            found.append(Finding(self._topics.decisions_fast, "lost", ends, *way_out))
        return found

    def _way_out(self, following: int, end: int, found: str) -> tuple[str, str]:
        """What was found, and the command that accepts that batches from number `following` to `end` - 1 have no order;
        for more than can be used up, what is to be done instead."""
        if end - following > BATCHES_LOST_MAX:
            return f"{found}. {self._too_many(following, end)}", ""
        return found, f"--accept-loss {BATCHES}:{self._shard}:{following}-{end}"

    def _too_many(self, following: int, end: int) -> str:
        return (
            f"Decisions of batches {following} to {end - 1} are more than were ever on their way: journal and order "
            f"log are other ones than those along which they were decided. Delete the records of topic "
            f"{self._topics.decisions_fast} (kafka-delete-records.sh), and let its readers forget the last place that "
            "they have taken"
        )

    def _newest_answered(self) -> int:
        """Number of the newest batch that stands on topic decisions-fast; -1 for none."""
        ports = self._ports
        with closing(AnsweredBatches(self._settings, self._shard, ports.clients, ports.threads)) as answered:
            return answered.newest()

    def _unsettled(self, end: int) -> list[tuple[int, OrderRecord]]:
        """Batches of the order log before offset `end` that count and are not in the journal, each with its offset."""
        named = self._journal.ordered
        settled = None if named is None else order_reader.Settled(named.sequence, named.order or 0)
        return order_reader.unsettled(
            self._settings.kafka, self._shard, clients=self._ports.clients, threads=self._ports.threads,
            broker=self._broker, settled=settled, sequence=self._journal.count, end=end,
            no_progress_s=self._settings.worker.no_progress_s,
        )  # fmt: skip

    def _unreadable(self, records: Sequence[OrderRecord]) -> str:
        """Why these batches cannot be read again; empty when they can."""
        if not records:
            return ""
        known, starts = self.positions(), dict[int, int]()
        for record in records:  # of the partitions that they name: what another lacks says nothing of these batches
            for r in record.inputs:
                starts.setdefault(r.partition, known.get(r.partition, r.start))
        labels = records[0].labels
        inputs = ShardInputs(
            self._ports.clients.flat_reader(f"{self._settings.kafka.topic_prefix}fraud-scorer-recover"),
            payments=self._topics.payments,
            control=self._topics.control,
            labels=self._topics.labels,
            positions=starts,
            control_position=records[0].control.start,
            labels_position=0 if labels is None else labels.start,
            buffered_max=self._settings.worker.buffered_payments_max,
            sources=self._sources,
        )
        patience_s = min(READ_AGAIN_S, self._settings.worker.no_progress_s)
        try:
            for record in records:
                journal_reader.reread_order(record, 0, inputs, no_progress_s=patience_s, threads=self._ports.threads)
        except (MissingRange, kafka.SourceChanged, kafka.NoProgress) as exc:
            return str(exc)
        finally:
            inputs.close()
        return ""

    def _too_few(self, payments: int) -> list[str]:
        """Topics of decisions with fewer partitions than topic payments."""
        topics = (self._topics.decisions, self._topics.decisions_fast)
        return [topic for topic in topics if self._facts[topic].partitions < payments]

    def accept_loss(self, bundle: Bundle, losses: Sequence[Loss], reason: str) -> JournalRecord:
        """Pass over offsets that are gone. Raises UsageError for a range that is not exactly what is missing."""
        of_order = [loss for loss in losses if loss.topic == self._topics.order]
        of_batches = [loss for loss in losses if loss.topic == BATCHES]
        with self._settled(bundle, of_order, of_batches) as (follower, publisher, claimed):
            of_topics = [loss for loss in losses if loss not in of_order and loss not in of_batches]
            inputs, control, labels = self._passed_over(follower, of_topics)
            inputs = _first_named(follower, inputs, claimed.starts)
            return self._commit(publisher, follower.pipeline, inputs, control, labels, "accept_loss", reason, claimed)

    def adopt_partitions(self, bundle: Bundle, reason: str) -> JournalRecord | None:
        """Take up partitions that were added to the payments topic, and give the topics of decisions as many.

        Gives the journal's record; None when these alone lacked partitions.
        """
        payments = self._facts[self._topics.payments].partitions
        for topic in self._too_few(payments):
            self._grow(topic, payments)
        with self._settled(bundle) as (follower, publisher, claimed):
            added = follower.take_up(follower.added(payments))
            if not added:
                return None
            inputs = [InputRange(partition=p, start=offset, end=offset) for p, offset in sorted(added.items())]
            inputs = _first_named(follower, inputs)
            control, labels = (_here(buffer) for buffer in (follower.inputs.control, follower.inputs.labels))
            return self._commit(
                publisher, follower.pipeline, inputs, control, labels, "adopt_partitions", reason, claimed
            )

    def new_state(self, bundle: Bundle, reason: str) -> JournalRecord:
        """Begin with empty windows, lists and dedupe table; the journal goes on, and what stands in it is kept.

        A topic that is still the one that was read goes on where it was decided to, or where its log was cut below
        that; one made anew begins at its start.
        """
        _ = self._last  # nothing is fenced for an empty journal
        publisher = self._publisher()
        try:
            self._look()  # a worker may have committed until it was fenced
            return self._new_state(publisher, bundle, reason)
        finally:
            publisher.close()

    def _new_state(self, publisher: Publisher, bundle: Bundle, reason: str) -> JournalRecord:
        last, known = self._last, self.positions()
        noted = self._journal.sources
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
        pipeline = self._ports.states.fresh(bundle, self._shard)
        try:
            pipeline.restart(bundle, last.stream_time_ms)
            pipeline.sequence, pipeline.head = last.sequence + 1, last.head
            pipeline.activation_number = last.activation_number

            def passed_over(log: OrderLog) -> _Claimed:
                claim = log.claim(OPERATOR, pipeline.sequence)
                answered = max(0, self._newest_answered() + 1 - pipeline.sequence)
                if answered > BATCHES_LOST_MAX:
                    raise UsageError(self._too_many(pipeline.sequence, pipeline.sequence + answered))
                try:
                    return _Claimed(claim, max(answered, len(self._unsettled(claim))))
                except (MissingRange, kafka.SourceChanged):  # the order log is another one as well
                    self.numbers_unknown = not answered
                    return _Claimed(claim, answered)

            # What the order log holds beyond the journal is given up with the windows.
            claimed = self._claimed(passed_over)
            return self._commit(publisher, pipeline, inputs, control, labels, "new_state", reason, claimed)
        finally:
            pipeline.close()

    @contextmanager
    def _settled(
        self, bundle: Bundle, given_up: Sequence[Loss] = (), batches: Sequence[Loss] = ()
    ) -> Iterator[_Settled]:
        """The shard's state after all that journal and order log hold; or, where an operator gives up what the order
        log holds beyond the journal, without that. `batches`: what is answered and has no order any more. Raises
        UsageError when that is not exactly what is given up."""
        # Brought up before the shard is fenced, and what is left after it: a worker that is started again and again
        # fences this command in turn.
        state, stop, publisher = self._caught_up(bundle), self._ports.threads.event(), None
        try:
            publisher = writer = self._publisher()
            state.catch_up(stop, bounds=False)
            state.release_journal()

            def settled(log: OrderLog) -> _Claimed:
                commits = PendingCommits(writer, AheadMax(1, 1), lambda *_: None)
                claim, following = log.claim(OPERATOR, state.pipeline.sequence), state.pipeline.sequence
                newest, end = self._newest_answered(), claim
                if batches:
                    try:
                        _, end = readable(claim)
                    except (MissingRange, kafka.SourceChanged):  # what the log still holds is given up with them
                        return _Claimed(claim, self._lost_batches(following, max(newest, following), batches))
                tracer = Tracer(self._settings, self._ports, self._shard)
                settle(
                    log, end, state, writer, commits, stop, settings=self._settings, ports=self._ports, tracer=tracer
                )
                commits.finish()
                following = state.pipeline.sequence
                return _Claimed(claim, self._lost_batches(following, last_lost(following, newest, end, claim), batches))

            def readable(claim: int) -> tuple[list[order_reader.Ordered], int]:
                """The batches that follow the journal, and the offset before which they stand: with `batches`, that of
                a record that cannot be read."""
                try:
                    return state.unsettled(claim), claim
                except OrderUnreadable as exc:
                    if not batches:
                        raise
                    return exc.before, exc.offset

            def last_lost(following: int, newest: int, end: int, claim: int) -> int:
                """Behind a record that cannot be read one number at least is given up, as `survey` says."""
                return newest if end == claim else max(newest, following)

            def passed_over(log: OrderLog) -> _Claimed:
                claim = log.claim(OPERATOR, state.pipeline.sequence)
                orders, end = readable(claim)
                missing = [offset for offset, _ in orders]
                for loss in given_up:
                    if not missing or (loss.start, loss.end) != (missing[0], missing[-1] + 1):
                        found = f"{missing[0]}-{missing[-1] + 1}" if missing else "nothing"
                        raise UsageError(
                            f"{loss.topic}/{loss.partition}: {found} is not decided, not {loss.start}-{loss.end}"
                        )
                following = state.pipeline.sequence + len(missing)
                lost = self._lost_batches(following, last_lost(following, self._newest_answered(), end, claim), batches)
                return _Claimed(claim, len(missing) + lost, _starts(orders))

            yield _Settled(
                state, writer, self._claimed(passed_over if given_up else settled, lost=bool(given_up or batches))
            )
        finally:
            if publisher is not None:
                publisher.close()
            state.close()

    def _lost_batches(self, following: int, newest: int, accepted: Sequence[Loss]) -> int:
        """How many batches there are from number `following` to `newest`, answered without an order. Raises UsageError
        when they are not exactly those of `accepted`."""
        end = newest + 1
        lost = f"{following}-{end}" if end > following else "nothing"
        if end - following > BATCHES_LOST_MAX:
            raise UsageError(self._too_many(following, end))
        if [loss for loss in accepted if (loss.start, loss.end) != (following, end)]:
            given = ", ".join(f"{loss.start}-{loss.end}" for loss in accepted)
            raise UsageError(f"shard {self._shard}: of its answered batches {lost} lacks an order, not {given}")
        if end > following and not accepted:
            raise UsageError(
                f"shard {self._shard}: the order of batches {lost} is gone, and they were answered; accept that first: "
                f"--accept-loss {BATCHES}:{self._shard}:{lost}"
            )
        return max(0, end - following)

    def _claimed(self, use: Callable[[OrderLog], _Claimed], *, lost: bool = False) -> _Claimed:
        """What `use` gives for the shard's order log, if it has one. `lost`: whether something of it is given up.

        With fast decisions off an empty log is claimed too where the journal names a record of it: it was made anew,
        and only a change that names its claim lets the next owner go on.
        """
        opened = claimable if lost or self._journal.ordered is not None else order_log
        log = opened(
            self._settings, self._ports, self._shard, self._clients.limits(), producer=self._clients.log_producer
        )
        if log is None:
            return _Claimed(None, 0)
        try:
            return use(log)
        finally:
            log.close()

    def _follower(self, bundle: Bundle) -> Follower:
        """The shard's state at the journal's end, where snapshot and topics still give it."""
        follower = self._caught_up(bundle)
        follower.release_journal()
        return follower

    def _caught_up(self, bundle: Bundle) -> Follower:
        """The same, with the journal's reader."""
        bundles = Bundles(bundle, self._settings.bundle)
        follower = Follower(self._settings, bundles, self._shard, self._ports)
        try:
            follower.catch_up(self._ports.threads.event(), bounds=False)
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

    def _publisher(self) -> Publisher:
        """With which no worker of the shard can commit any more."""
        limits = self._clients.limits()
        return Publisher(
            self._clients.fencing_producer(),
            self._topics,
            self._ports.threads,
            shard=self._shard,
            group_metadata=lambda: None,
            limits=limits,
        )

    def _commit(
        self,
        publisher: Publisher,
        pipeline: Pipeline,
        inputs: Sequence[InputRange],
        control: ControlRange,
        labels: ControlRange,
        kind: Literal["accept_loss", "adopt_partitions", "new_state"],
        reason: str,
        claimed: _Claimed,
    ) -> JournalRecord:
        """Commit the change, and one that moves nothing for each further batch that is given up: so no later batch has
        the number of one that readers of topic decisions-fast may have taken."""
        change = Change(kind=kind, reason=reason)
        batch = journal_reader.empty_batch(
            inputs, control, labels=labels, sources=self._sources, change=change, order=claimed.order
        )
        moves_nothing = replace(
            batch,
            inputs=(),
            control_range=ControlRange(start=control.end, end=control.end),
            labels_range=ControlRange(start=labels.end, end=labels.end),
            change=Change(kind="accept_loss", reason=reason),
        )
        batches = [batch, *[moves_nothing] * (claimed.given_up - 1)]
        decided = [self._signed(pipeline, each) for each in batches]
        for commit in publisher.submit_together(decided):
            publisher.wait(commit)
        return decided[0].journal

    def _signed(self, pipeline: Pipeline, batch: Batch) -> Outcomes:
        """A change, decided: with the operator's signature where there is a key."""
        sequence, head = pipeline.sequence, pipeline.head
        outcomes = pipeline.run(batch)
        if self._signer is None or batch.change is None:
            return outcomes
        # Signed over the very record; the batch is decided once more with the signature in it.
        signed = self._signer.sign(outcomes.journal.accepted())
        pipeline.sequence, pipeline.head = sequence, head
        return pipeline.run(replace(batch, change=batch.change.model_copy(update={"signed": signed})))

    def _grow(self, topic: str, partitions: int) -> None:
        client = kafka.admin(self._settings.kafka)  # kept until its answer is there
        wanted = [NewPartitions(topic, partitions)]
        futures = client.create_partitions(wanted, operation_timeout=TIMEOUT_S, request_timeout=TIMEOUT_S)
        try:
            kafka.answer_of(futures[topic], TIMEOUT_S)
        except KafkaException as exc:
            raise kafka.KafkaFailure(f"topic {topic} cannot be given partitions: {kafka.describe(exc)}") from exc
        kafka.wait_until_visible(self._settings.kafka, {topic: partitions}, timeout_s=TIMEOUT_S)


def _here(buffer: PartitionBuffer) -> ControlRange:
    """Nothing of what comes next."""
    return ControlRange(start=buffer.position, end=buffer.position)


def _starts(orders: Sequence[tuple[int, OrderRecord]]) -> dict[int, int]:
    """Where the first of these batches that names a payments partition begins in it."""
    starts: dict[int, int] = {}
    for _, record in orders:
        for r in record.inputs:
            starts.setdefault(r.partition, r.start)
    return starts


def _first_named(
    follower: Follower, inputs: list[InputRange], starts: Mapping[int, int] = MappingProxyType({})
) -> list[InputRange]:
    """`inputs`; in the first record of a journal every other partition as well, as the first batch names them: else
    a partition would begin, after a restart, wherever retention has left it by then. `starts`: where batches that are
    given up begin; what is gone from there on is passed over with them."""
    if follower.pipeline.sequence > 0:
        return inputs
    found = {
        p: InputRange(partition=p, start=min(starts.get(p, buffer.position), buffer.position), end=buffer.position)
        for p, buffer in follower.inputs.buffers.items()
    } | {r.partition: r for r in inputs}
    return [found[p] for p in sorted(found)]


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


class Recoveries:
    """Of the shards that a command looks at: the journal of each is read when it is first asked for."""

    def __init__(self, settings: Settings, *, signer: Signer | None = None) -> None:
        self.settings, self._signer = settings, signer
        self._made: dict[int, Recovery] = {}

    def of(self, shard: int) -> Recovery:
        """That of one shard."""
        if shard not in self._made:
            self._made[shard] = Recovery(self.settings, shard, signer=self._signer)
        return self._made[shard]

    @property
    def shards(self) -> Sequence[int]:
        """All shards, by number."""
        return range(self.settings.worker.shards)

    def close(self) -> None:
        """Close those that were asked for."""
        for recovery in self._made.values():
            recovery.close()


def unfit_shards(recoveries: Recoveries) -> Sequence[int]:
    """Those whose journal stands on something that is made anew, lost or cut; all, where nothing is found to be."""
    unfit = [
        shard
        for shard in recoveries.shards
        if any(finding.trouble in ("made anew", "lost", "cut") for finding in recoveries.of(shard).survey())
    ]
    return unfit or recoveries.shards


def by_shard(losses: Sequence[Loss], recoveries: Recoveries) -> Mapping[int, list[Loss]]:
    """Losses by the shard that reads the partition. Topics control and labels are read by every shard, each from where
    it has decided to: a loss there is that of the shards that lack this very range. Raises UsageError where none does.
    """
    topics, count = Topics.of(recoveries.settings.kafka), len(recoveries.shards)
    lost: dict[int, list[Loss]] | None = None
    found: dict[int, list[Loss]] = {}
    for loss in losses:
        if loss.topic in (topics.order, BATCHES) and loss.partition >= count:
            raise UsageError(f"{loss.topic}:{loss.partition}: there are shards 0 to {count - 1}")
        of: Sequence[int] = (loss.partition % count,)
        if loss.topic not in (topics.payments, topics.order, BATCHES):
            lost = lost or {shard: recoveries.of(shard).lost_of_all() for shard in recoveries.shards}
            of = [shard for shard, lacking in lost.items() if loss in lacking]
            if not of:
                lacks = {
                    (each.start, each.end) for lacking in lost.values() for each in lacking if each.topic == loss.topic
                }
                missing = " and ".join(f"{start}-{end}" for start, end in sorted(lacks)) or "nothing"
                raise UsageError(f"{loss.topic}/{loss.partition}: {missing} is missing, not {loss.start}-{loss.end}")
        for shard in of:
            found.setdefault(shard, []).append(loss)
    return found
