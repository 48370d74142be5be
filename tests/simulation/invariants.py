"""What must hold of the logs, whatever the schedule was: judged from outside, without the workers' own code paths."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

from schemas.journal_record import FIRST_PREVIOUS
from tests.simulation.broker import Log
from tests.simulation.protocol import Payment, State, decide, read_record
from tests.simulation.worker import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World


class Reader:
    """A payment system under read_committed: what it has read, it has acted upon."""

    def __init__(self, decisions: list[Log]) -> None:
        self._logs = decisions
        self._positions = [0] * len(decisions)
        self._seen: set[Payment] = set()

    def read(self) -> None:
        for n, log in enumerate(self._logs):
            end = log.stable_end
            for _, payment in log.committed(self._positions[n], end):
                if payment in self._seen:
                    raise Violation(f"a reader sees the decision on payment {payment} twice")
                self._seen.add(payment)
            self._positions[n] = max(self._positions[n], end)


def all_decided(world: World) -> bool:
    """Whether as many decisions are committed as there are payments."""
    return sum(log.visible for log in world.decisions) >= sum(map(len, world.payments))


def check(world: World) -> None:
    """Raise Violation naming the promise that does not hold."""
    for shard in range(world.shards):
        _check_shard(world, shard)


def _check_shard(world: World, shard: int) -> None:
    raws = [raw for _, raw in world.journal[shard].committed(0)]
    head, state = FIRST_PREVIOUS, State(shard)
    read: Counter[Payment] = Counter()
    decided: list[Payment] = []
    ends = dict.fromkeys(world.partitions(shard), 0)
    for n, raw in enumerate(raws):
        record = read_record(raw)
        if (record.sequence, record.previous) != (n, head):
            raise Violation(f"journal of shard {shard}: record {n} does not chain (it says {record.sequence})")
        head = record.head
        ranges = tuple((r.partition, r.start, r.end) for r in record.inputs)
        for partition, start, end in ranges:
            if start != ends[partition]:
                raise Violation(
                    f"shard {shard} batch {n} begins at {start} of partition {partition}, not {ends[partition]}"
                )
            ends[partition] = end
        payments = world.payments_of(ranges)
        read.update(payments)
        state, again, decisions = decide(state, ranges, payments)
        if again != raw:
            raise Violation(f"shard {shard} batch {n} is not f(journal)")
        decided += decisions
    expected = Counter((p, offset) for p in ends for offset in world.payments[p])
    if read != expected:
        raise Violation(f"shard {shard}: payments missing {expected - read}, more than once {read - expected}")
    if [payment for _, payment in world.decisions[shard].committed(0)] != decided:
        raise Violation(f"shard {shard}: the decisions topic is not what the journal says")
    if [raw for _, (raw, _) in world.audit[shard].committed(0)] != raws:
        raise Violation(f"shard {shard}: the audit topic is not what the journal says")
    _check_owners(shard, world.writers[shard])


def _check_owners(shard: int, writers: list[str]) -> None:
    """At most one owner commits: once another has committed, the former never does again."""
    former: set[str] = set()
    for before, writer in pairwise(writers):
        if writer != before:
            former.add(before)
        if writer in former:
            raise Violation(f"shard {shard}: {writer} commits again after {before} has")
