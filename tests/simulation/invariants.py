"""What must hold of the logs, whatever the schedule was: judged from outside, without the workers' own code paths."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

from schemas.journal_record import FIRST_PREVIOUS, JournalRecord, Sources
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
            under = () if r.epoch is None else payments[r.partition].under(r.epoch, r.start, r.end)
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
            ),
        )
        state = decided.state
        if decided.journal.to_bytes() != raw:
            raise Violation(f"shard {shard} batch {n} is not f(journal)")
        for i, value in zip(decided.order, decided.values, strict=True):
            expected[rows[i][0]].append(value)
        letters.update(rows[i][2] for i in decided.refused)
    wanted = [
        entry for p in partitions for entry in topics["payments"].logs[p].all if entry.state == COMMITTED
    ]  # fmt: skip
    missing = [entry.value for entry in wanted if not taken[entry] and entry not in given_up]
    repeated = [entry.value for entry, times in taken.items() if times > 1]
    if missing or repeated:
        raise Violation(f"shard {shard}: payments missing {missing}, more than once {repeated}")
    accepted = any(read_record(raw).change is not None for raw in raws)
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
