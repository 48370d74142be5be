"""What goes wrong: processes are killed, frozen, asked to end; shards move; clocks jump; the broker is away; strangers
write where they should not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.journal_record import ControlRange, JournalRecord
from tests.simulation import invariants
from tests.simulation.broker import ABORTED, COMMITTED, OPEN, Entry
from tests.simulation.incarnation import Incarnation
from tests.simulation.operator import Operator
from tests.simulation.shard_state import BUNDLE, Kept, State

if TYPE_CHECKING:
    from tests.simulation.world import World

STRANGER = "a stranger's open transaction"
AWAY_S_MAX = 20.0
DENIED_S_MAX = 60.0
AUDIT_BYTES_MAX = 300
PARTITIONS_MAX = 4
CLOCK_JUMP_S = 7_200.0
GIVEN_UP = 0.984


class Chaos:
    """One fault with each call of `strike`, until `heal`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = world.random

    def strike(self) -> None:
        world, random = self._world, self._random
        kind = random()
        processes = world.processes
        process = processes[int(random() * len(processes))] if processes else None
        shard = int(random() * world.shards)
        if kind < 0.25:
            world.launch()
        elif kind < 0.42 and process is not None:
            world.note(process, "is killed")
            world.kill(process)
        elif kind < 0.47 and process is not None:
            world.note(process, "is asked to end")
            process.stop.set_from_outside()
        elif kind < 0.72 and process is not None:
            self._freeze_or_wake(process)
        elif kind < 0.85:
            world.group.move(shard, random())
        elif kind < 0.88:
            world.note(None, "the group's offsets expire")
            world.broker.offsets.clear()
        elif kind < 0.91:
            self._spoil_snapshots(shard)
        elif kind < 0.92 and process is not None:
            world.note(process, "its clock jumps")
            process.threads_port.clock_offset_s = CLOCK_JUMP_S * (random() - 0.5)
        elif kind < 0.930:
            self._add_partitions()
        elif kind < 0.940:
            self._make_payments_anew()
        elif kind < 0.948:
            self._cut_payments()
        elif kind < 0.956:
            self._retain_payments()
        elif kind < 0.962:
            world.note(None, "the authoriser refuses")
            world.network.denied_until_s = world.scheduler.now_s + DENIED_S_MAX * random()
        elif kind < 0.966:
            world.note(None, "the audit topic takes no record of a batch")
            world.broker.record_bytes_max["audit"] = AUDIT_BYTES_MAX
        elif kind < 0.974:
            world.note(None, "the broker is away")
            world.network.away_until_s = world.scheduler.now_s + AWAY_S_MAX * random()
        elif kind < GIVEN_UP:
            if world.operator is None and invariants.unsettled_orders(world, shard):
                world.operator = Operator(world, gives_up=shard)
        else:
            self._write_to_journal(shard)

    def heal(self) -> None:
        """Everything is repaired that does not repair itself."""
        world = self._world
        world.note(None, "from here on nothing fails")
        world.network.heal()
        world.broker.record_bytes_max.clear()
        for process in world.processes:
            if process.silent_since_s is not None:
                self._freeze_or_wake(process)
        for log in world.broker.topics["journal"].logs:
            if STRANGER in log.open:
                log.mark(STRANGER, ABORTED)

    def _freeze_or_wake(self, process: Incarnation) -> None:
        world = self._world
        if process.silent_since_s is None:
            world.note(process, "is frozen")
            world.scheduler.freeze(process)
            world.silent(process)
        else:
            world.note(process, "is awake")
            world.scheduler.thaw(process)

    def _add_partitions(self) -> None:
        """With several shards an operator has to accept that: payments of one key may be split between two."""
        broker = self._world.broker
        if broker.partition_count("payments") < PARTITIONS_MAX:
            self._world.note(None, "the payments topic gets another partition")
            broker.add_partitions("decisions", 1)
            broker.add_partitions("decisions-fast", 1)
            broker.add_partitions("payments", 1)
            self._world.disturbed |= self._world.shards > 1

    def _make_payments_anew(self) -> None:
        """Deleted and made again: nothing of the new topic is decided along a journal that read the old one."""
        world = self._world
        if any(log.visible for log in world.broker.topics["journal"].logs):
            world.note(None, "the payments topic is deleted and made anew")
            world.broker.create("payments", world.broker.partition_count("payments"))
            world.disturbed = world.rewritten = True
            for shard, log in enumerate(world.broker.topics["journal"].logs):
                world.remade.setdefault(shard, sum(1 for _ in log.committed(0)))
            world.reader.lenient = True

    def _cut_payments(self) -> None:
        """An unclean election: the newest records of a partition are lost, decided ones perhaps among them."""
        world = self._world
        partition = int(self._random() * world.broker.partition_count("payments"))
        log = world.broker.log("payments", partition)
        offset = log.start + int(self._random() * (log.end - log.start))
        if offset < log.end:
            world.note(None, f"partition {partition} of the payments is cut at {offset}, it was at {log.end}")
            log.truncate(offset)
            world.disturbed = world.rewritten = True

    def _retain_payments(self) -> None:
        """Retention, or records deleted by command: decided ones, and in some schedules others."""
        world = self._world
        partition, known = int(self._random() * world.broker.partition_count("payments")), world.positions()
        log = world.broker.log("payments", partition)
        end = log.stable_end if self._random() < 0.5 else min(known[partition], log.stable_end)
        offset = log.start + int(self._random() * (1 + max(0, end - log.start)))
        if offset > log.start:
            world.note(None, f"partition {partition} of the payments begins at {offset}, decided to {known[partition]}")
            log.retain_from(offset)
            world.disturbed = True

    def _spoil_snapshots(self, shard: int) -> None:
        """The newest one is damaged, or one of another life of the journal lies in its place."""
        world, kept = self._world, self._world.snapshots[shard]
        if kept and self._random() < 0.5:
            world.note(None, f"the newest snapshot of shard {shard} is damaged")
            kept[-1] = kept[-1]._replace(damaged=True)
            return
        end = world.broker.log("journal", shard).end
        if not world.keeps_snapshots or end == 0:
            return
        world.note(None, f"a stranger's snapshot lies among those of shard {shard}")
        offset = int(self._random() * end)
        sequence = 1 + int(self._random() * offset / 2)
        known = {
            "journal_offset": offset, "sequence": sequence, "head": "f" * 64,
            "bundle": BUNDLE.id, "bundle_location": "",
            "positions": {str(p): world.broker.log("payments", p).end // 2 for p in world.partitions(shard)},
            "control_position": 0,
            "labels_position": 0,
        }  # fmt: skip
        kept.append(Kept(sequence, known, {"state": State(shard, sequence, "f" * 64, "another life")}))

    def _write_to_journal(self, shard: int) -> None:
        """Somebody who is no owner leaves a transaction open there, or adds a batch of another deployment."""
        world = self._world
        log = world.broker.log("journal", shard)
        if log.open:
            return
        if world.keeps_snapshots or self._random() < 0.5:  # from a later snapshot the chain would hold again
            world.note(None, f"a stranger leaves a transaction open in the journal of shard {shard}")
            log.append(Entry(None, b"", OPEN, 0), STRANGER)
            return
        raws = [entry.value or b"" for _, entry in log.committed(0)]
        owner = world.broker.transactions.get(f"shard-{shard}")
        if not raws or owner is None:
            return
        last = invariants.read_record(raws[-1])
        record = JournalRecord(
            shard=shard,
            sequence=last.sequence + 1,
            inputs=(),
            control=ControlRange(start=last.control.end, end=last.control.end),
            labels=None if last.labels is None else ControlRange(start=last.labels.end, end=last.labels.end),
            stream_time_ms=0,
            bundle=BUNDLE.id,
            decisions=0,
            dead_letters=0,
            digest="e" * 64,
            previous="e" * 64,
        )
        world.note(None, f"a stranger's batch stands in the journal of shard {shard}")
        world.spoilt[shard] = owner.epoch
        log.append(Entry(None, record.to_bytes(), COMMITTED, 0))
