"""What must hold of the logs, whatever the schedule was: judged from outside, without the workers' own code paths."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

from schemas.journal_record import FIRST_PREVIOUS, BatchOrder, JournalRecord, Sources
from schemas.order_record import ClaimRecord, OrderError, OrderRecord, order_log_record
from tests.simulation.broker import COMMITTED, Entry, Log, topic_id
from tests.simulation.shard_state import NAMED, Read, Row, State, decide

if TYPE_CHECKING:
    from tests.simulation.world import World

read_record = lru_cache(maxsize=4_000)(JournalRecord.from_bytes)


class Violation(Exception):
    """A promise that did not hold."""


class Reader:
    """A payment system under read_committed: what it has read, it has acted upon."""

    def __init__(self, decisions: list[Log]) -> None:
        self.lenient = False  # a repeated decision is none here
        self._logs = decisions  # grows with the topic
        self._positions: dict[int, int] = {}
        self._seen: set[bytes] = set()

    def read(self) -> None:
        for n, log in enumerate(self._logs):
            end = log.stable_end
            position = self._positions.get(n, 0)
            for _, entry in log.committed(position, end):
                payment = (entry.value or b"").split()[0]
                if payment in self._seen and not self.lenient:
                    raise Violation(f"a reader sees the decision on payment {payment.decode()} twice")
                self._seen.add(payment)
            self._positions[n] = max(position, end)


class FastReader:
    """A payment system on topic decisions-fast, as its documentation shows it: of each partition the last (sequence,
    row) is remembered, and what is not newer is dropped."""

    def __init__(self, logs: list[Log]) -> None:
        self._logs = logs  # grows with the topic
        self._positions: dict[int, int] = {}
        self._last: dict[int, tuple[int, int]] = {}
        self.taken: dict[int, list[bytes]] = {}  # by partition, as topic decisions has them
        self.every: dict[bytes, set[bytes]] = {}  # by payment, repeats included

    def read(self) -> None:
        for p, log in enumerate(self._logs):
            for _, entry in log.committed(self._positions.get(p, 0)):
                value, _, sequence, row = (entry.value or b"").rsplit(b" ", 3)
                self.every.setdefault(value.split()[0], set()).add(value)
                if (int(sequence), int(row)) > self._last.get(p, (-1, -1)):
                    self._last[p] = int(sequence), int(row)
                    self.taken.setdefault(p, []).append(value)
            self._positions[p] = log.end


def check_answers(world: World) -> None:
    """Raise Violation when two different decisions of a payment stand on any topic that payment systems read."""
    every = {payment: set(values) for payment, values in world.fast_reader.every.items()}
    for log in world.broker.topics["decisions"].logs:
        for _, entry in log.committed(0):
            value = entry.value or b""
            every.setdefault(value.split()[0], set()).add(value)
    for payment, values in every.items():
        if len(values) > 1:
            raise Violation(f"payment {payment.decode()} has several decisions: {sorted(values)}")


def counting_orders(world: World, shard: int) -> dict[int, OrderRecord]:
    """The batches of a shard's order log that count, by offset; those that retention took included."""
    epoch, found = None, {}
    for offset, entry in enumerate(world.broker.log("order", shard).all):
        try:
            record = order_log_record(entry.value)
        except OrderError:  # a stranger's
            continue
        if isinstance(record, ClaimRecord):
            epoch = offset
        elif record.epoch == epoch:
            found[offset] = record
    return found


def _journal(world: World, shard: int) -> list[JournalRecord]:
    return [read_record(entry.value or b"") for _, entry in world.broker.log("journal", shard).committed(0)]


def unsettled_orders(world: World, shard: int) -> list[int]:
    """Offsets of the orders that count and that the journal does not hold."""
    settled = [record.order for record in _journal(world, shard) if record.order is not None]
    return [offset for offset in counting_orders(world, shard) if offset > max(settled, default=-1)]


def newest_answered(world: World, shard: int) -> int:
    """The newest batch with a decision on topic decisions-fast; -1 for none."""
    logs = world.broker.topics["decisions-fast"].logs
    values = (entry.value or b"" for log in logs for _, entry in log.committed(0))
    places = (value.rsplit(b" ", 3)[1:3] for value in values)
    return max((int(sequence) for number, sequence in places if int(number) == shard), default=-1)


def all_settled(world: World) -> bool:
    """Whether the journals hold all that the order logs do."""
    return all(
        counting_orders(world, shard).keys() <= {record.order for record in _journal(world, shard)}
        for shard in range(world.shards)
    )


def _check_order(world: World) -> None:
    """Each batch whose order counts is in the journal, at its offset; what is taken of topic decisions-fast equals
    topic decisions."""
    always_fast = world.settings.worker.fast_decisions and not world.fast_changes
    for shard in range(world.shards):
        records, counting = _journal(world, shard), counting_orders(world, shard)
        settled = {record.order: record for record in records if record.order in counting}
        for offset, found in counting.items():
            record = settled.get(offset)
            if record is None:
                raise Violation(f"shard {shard}: the order at offset {offset} counts, and no batch is its")
            if any(getattr(record, name) != getattr(found, name) for name in BatchOrder.model_fields):
                raise Violation(f"shard {shard} batch {record.sequence} is not what its order says")
        others = [record.sequence for record in records if record.order not in counting]
        if others and always_fast:
            raise Violation(f"shard {shard}: batches {others} have no order that counts")
    for p, log in enumerate(world.broker.topics["decisions"].logs if always_fast else ()):
        decided = [entry.value or b"" for _, entry in log.committed(0)]
        taken = world.fast_reader.taken.get(p, [])
        if taken != decided:
            raise Violation(f"partition {p}: fast decisions {taken} are not the decisions {decided}")


def _check_fast_is_complete(world: World) -> None:
    """Whatever an operator has given up: each decision of topic decisions has been taken of topic decisions-fast."""
    for p, log in enumerate(world.broker.topics["decisions"].logs):
        missed = {entry.value or b"" for _, entry in log.committed(0)} - set(world.fast_reader.taken.get(p, []))
        if missed:
            raise Violation(f"partition {p}: a reader takes the fast decisions {sorted(missed)} for old ones")


def all_decided(world: World) -> bool:
    """Whether as many payments are decided, or dead letters alone, as there are payments; where logs were changed,
    whether the journals have come to the end of each."""
    topics = world.broker.topics
    if world.disturbed:
        logs, known = topics["payments"].logs, world.positions()
        return all(known[p] <= log.end and not any(log.committed(known[p])) for p, log in enumerate(logs))
    decided = sum(log.visible for name in ("decisions", "dead-letters") for log in topics[name].logs)
    letters = (entry.value or b"" for log in topics["dead-letters"].logs for _, entry in log.committed(0))
    decided -= sum(value.startswith(NAMED) for value in letters)
    return decided >= sum(log.visible for log in topics["payments"].logs)


def positions_after(raws: list[bytes]) -> dict[int, int]:
    """Of each payments partition, after these journal records."""
    return {r.partition: r.end for raw in raws for r in read_record(raw).inputs}


def check(world: World) -> None:
    """Raise Violation naming the promise that does not hold."""
    letters: Counter[bytes] = Counter()
    for shard in range(world.shards):
        letters += _check_shard(world, shard)
    if not world.disturbed:
        _check_order(world)
    elif world.settings.worker.fast_decisions and not world.fast_changes:
        _check_fast_is_complete(world)
    found = Counter(entry.value or b"" for _, entry in world.broker.log("dead-letters", 0).committed(0))
    if found != letters and not world.remade:
        raise Violation(f"{sum(found.values())} dead letters, the journals say {sum(letters.values())}")


def _given_up(log: Log, partition: int, position: int, end: int, what: str) -> set[Entry]:
    """The payments from `position` on that are passed over: they are gone, and none that is there is passed over."""
    if end > max(position, log.start):
        raise Violation(
            f"{what} passes over {position} to {end} of partition {partition}, gone is what stands before {log.start}"
        )
    return {entry for entry in log.all[position:end] if entry.state == COMMITTED}


def _check_shard(world: World, shard: int) -> Counter[bytes]:
    log = world.broker.log
    raws = [entry.value or b"" for _, entry in log("journal", shard).committed(0)]
    head, state = FIRST_PREVIOUS, State(shard)
    taken: Counter[Entry] = Counter()
    letters: Counter[bytes] = Counter()
    topics = world.broker.topics
    sources = read_record(raws[0]).sources if raws else None
    if sources is None:
        ids = {name: topic_id(topics[name].id) for name in ("payments", "control", "labels")}
        sources = Sources(**ids)
    payments = world.broker.logs_of[sources.payments]
    partitions = range(shard, len(topics["payments"].logs), world.shards)
    expected: dict[int, list[bytes]] = {p: [] for p in partitions}
    ends, control_end, labels_end = dict.fromkeys(partitions, 0), 0, 0
    given_up: set[Entry] = set()
    named: set[int] = set()
    unsure, now = False, topic_id(topics["payments"].id)
    for n, raw in enumerate(raws):
        record = read_record(raw)
        if (record.sequence, record.previous) != (n, head):
            raise Violation(f"journal of shard {shard}: record {n} does not chain (it says {record.sequence})")
        head = record.head
        unnamed = set(range(shard, world.partitions_at_first, world.shards)) - {r.partition for r in record.inputs}
        if n == 0 and unnamed:  # a restart would begin there wherever retention has left it, and nothing would show it
            raise Violation(f"the first record of shard {shard} does not name partitions {sorted(unnamed)}")
        rows: list[Row] = []
        entries: list[Entry] = []
        kind = None if record.change is None else record.change.kind
        if kind == "new_state":
            assert record.sources is not None
            if record.sources != sources:
                payments = world.broker.logs_of[record.sources.payments]
                ends = dict.fromkeys(partitions, 0)
            sources, state = record.sources, state._replace(windows="")
        for r in record.inputs:
            if kind is not None:
                given_up |= _given_up(payments[r.partition], r.partition, ends[r.partition], r.end, kind)
                if kind == "new_state":  # a later leader wrote them below what was decided, and retention was faster
                    gone = payments[r.partition].all[: min(r.end, payments[r.partition].start)]
                    given_up |= {entry for entry in gone if entry.state == COMMITTED and not taken[entry]}
                named.add(r.partition)
                ends[r.partition] = r.end
                continue
            if r.partition not in named and r.start > ends[r.partition]:  # gone before the first batch that names it
                given_up |= _given_up(payments[r.partition], r.partition, ends[r.partition], r.start, "the first batch")
                ends[r.partition] = r.start
            named.add(r.partition)
            if r.start != ends[r.partition]:
                raise Violation(
                    f"shard {shard} batch {n} begins at {r.start} of partition {r.partition}, not {ends[r.partition]}"
                )
            ends[r.partition] = r.end
            # As the log was when it was read. Without an epoch no record of the partition had been read.
            until = r.end if r.records_end is None else r.records_end
            under = () if r.epoch is None else payments[r.partition].under(r.epoch, r.start, until)
            found = list(under)
            rows += [(r.partition, at, entry.value or b"") for at, entry in found]
            entries += [entry for _, entry in found]
        if kind == "new_state":
            control_end = record.control.start
            labels_end = labels_end if record.labels is None else record.labels.start
        if record.control.start != control_end:
            raise Violation(f"shard {shard} batch {n} begins at {record.control.start} of control, not {control_end}")
        control_end = record.control.end
        if record.labels is None or record.labels.start != labels_end:
            raise Violation(f"shard {shard} batch {n} reads {record.labels} of labels, from {labels_end} on is next")
        labels_end = record.labels.end
        if kind is None and sources.payments != now and n >= world.remade.get(shard, len(raws)):
            # The topic was made anew, and for a second the worker may not know it: which of the two this batch has read
            # is not known. What it has read of the new one is decided once more after `recover --new-journal`.
            state, unsure = State(shard, n + 1, record.head), True
            continue
        if record.sources != sources:
            raise Violation(f"shard {shard} batch {n} names the topics {record.sources}, the first one {sources}")
        taken.update(entries)
        control = tuple(e.value or b"" for _, e in log("control", 0).committed(record.control.start, control_end))
        labels = tuple(e.value or b"" for _, e in log("labels", 0).committed(record.labels.start, labels_end))
        decided = decide(
            state,
            Read(
                tuple(rows),
                record.inputs,
                control,
                record.control,
                labels,
                record.labels,
                (record.degraded, record.degraded_rows),
                record.sources,
                record.snapshot,
                record.change,
                record.order,
            ),
        )
        state = decided.state
        if decided.journal.to_bytes() != raw:
            raise Violation(f"shard {shard} batch {n} is not f(journal)")
        for i, value in zip(decided.order, decided.values, strict=True):
            expected[rows[i][0]].append(value)
        letters.update(rows[i][2] for i in decided.refused)
    for p in set(partitions) - named:  # as for the first batch: nothing of the partition was ever read into a batch
        given_up |= _given_up(topics["payments"].logs[p], p, 0, topics["payments"].logs[p].start, "the journal")
    wanted = [
        entry for p in partitions for entry in topics["payments"].logs[p].all if entry.state == COMMITTED
    ]  # fmt: skip
    missing = [entry.value for entry in wanted if not taken[entry] and entry not in given_up]
    repeated = [entry.value for entry, times in taken.items() if times > 1]
    if missing or repeated:
        raise Violation(f"shard {shard}: payments missing {missing}, more than once {repeated}")
    # What an operator commits moves no offsets of the group.
    accepted = shard in world.operated or any(read_record(raw).change is not None for raw in raws)
    for p, end in positions_after(raws).items() if not accepted else ():
        known = world.broker.offsets.get(("payments", p), end)  # none, where the group has forgotten it
        if known != end:
            raise Violation(f"the group says {known} for partition {p}, the journal of shard {shard} {end}")
    for p in partitions if not unsure else ():
        if [entry.value for _, entry in log("decisions", p).committed(0)] != expected[p]:
            raise Violation(f"partition {p}: the decisions topic is not what the journal of shard {shard} says")
    if [entry.value for _, entry in log("audit", shard).committed(0)] != raws:
        raise Violation(f"shard {shard}: the audit topic is not what the journal says")
    return letters
