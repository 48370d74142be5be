"""A worker process as its threads: its member (scorer.worker), its shards, their commits.

Each thread is a generator; it yields wherever something else may happen first. Whoever holds the generators decides
who goes on, and a process that is killed is simply never asked again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from tests.simulation.broker import ABORTING, ClientError, Concurrent, FencedEpoch, InvalidState, StaleMember, TimedOut
from tests.simulation.protocol import Payment, Ranges, State, decide, read_record

if TYPE_CHECKING:
    from tests.simulation.world import World

Thread = Iterator[None]
NO_PROGRESS_MS = 60_000
BATCH_MAX = 3
SNAPSHOT_SHARE = 0.15  # of batches
REFUSALS_MAX = 5  # by the group, of one batch


class Violation(Exception):
    """A promise that did not hold."""


class _Rebuild(Exception):
    """Drop producer and state, and begin again."""


class _NoProgress(Exception):
    """The journal's end cannot be reached: loud exit."""


class _Flying:
    """A commit on its way."""

    __slots__ = ("batch", "done", "error", "positions")

    def __init__(self, batch: tuple[State, bytes, tuple[Payment, ...]], positions: dict[int, int]) -> None:
        self.batch = batch
        self.positions = positions  # after it
        self.done = False
        self.error: ClientError | None = None


class Standing:
    """A state and where it stands: what a standby moves along, a snapshot keeps, and recovery begins from."""

    __slots__ = ("offset", "positions", "state", "stop")

    def __init__(self, state: State, positions: dict[int, int], offset: int) -> None:
        self.state, self.positions = state, positions
        self.offset = offset  # of the journal, to read next
        self.stop = False


class _Owned:
    """A shard in the hands of this process."""

    __slots__ = ("ended", "number", "stop")

    def __init__(self, number: int) -> None:
        self.number = number
        self.stop = False
        self.ended = False


class Process:
    """One incarnation of a worker: a restart makes another one."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.frozen = False
        self.metadata: tuple[str, int] | None = None
        self._owned: dict[int, _Owned] = {}
        self._standbys: dict[int, Standing] = {}
        self.failed = False
        self.ownerships = 0

    # the member's loop: scorer.worker.worker.Worker.run

    def main(self) -> Thread:
        world, group = self.world, self.world.group
        yield
        group.join(self.name, world.broker.now_ms)
        seen = -1
        while True:
            yield
            if group.generation == seen and not self.failed:
                continue
            seen = group.generation
            assigned = group.assigned(self.name)
            if assigned is None:  # on_lost
                yield from self._drain(list(self._owned))
                group.join(self.name, world.broker.now_ms)
                continue
            for number in group.revoked(self.name):  # on_revoke
                yield from self._drain([number] if number in self._owned else [])
                group.released(self.name, number)
            for number in assigned - self._owned.keys():  # on_assign
                owned = self._owned[number] = _Owned(number)
                warm = self._standbys.pop(number, None)
                if warm is not None:
                    warm.stop = True
                world.start(self, self._shard(owned, warm))
            yield
            self._keep_standby()
            # Kept for commits: by the time of one, it may be an old generation.
            if self.name in group.members:
                self.metadata = (self.name, group.generation)
            if self.failed:
                yield from self._drain(list(self._owned))
                group.leave(self.name)
                world.exited(self)
                return

    def _keep_standby(self) -> None:
        """Follow one shard of another's, if there is one."""
        if not self.world.standbys or self._standbys or self.failed:
            return
        for number in range(self.world.shards):
            if number not in self._owned and not self._standbys:
                standing = self._standbys[number] = self._from_scratch(number)
                self.world.start(self, self._follow(number, standing))

    def _follow(self, shard: int, standing: Standing) -> Thread:
        """scorer.worker.standby: what is committed is decided again, record by record."""
        while not standing.stop:
            yield
            if standing.offset < self.world.journal[shard].stable_end and not standing.stop:
                self._moved(standing, shard, records_max=1)

    def _drain(self, numbers: list[int]) -> Thread:
        for number in numbers:
            owned = self._owned.pop(number)
            owned.stop = True
            while not owned.ended:
                yield

    # a shard's thread: scorer.worker.shard_thread.Owned and scorer.worker.shard.Shard.run

    def _shard(self, owned: _Owned, warm: Standing | None) -> Thread:
        while not owned.stop:
            try:
                yield from self._own(owned, warm)
            except (_Rebuild, FencedEpoch) as exc:
                warm = None
                yield
                if (yield from self._confirmed(owned)):
                    continue
                if isinstance(exc, FencedEpoch):
                    self.failed = True
                    break
                while not owned.stop:  # it waits to be released
                    yield
            except _NoProgress:
                self.failed = True
                break
        owned.ended = True

    def _confirmed(self, owned: _Owned) -> Generator[None, None, bool]:
        """Whether the group takes a commit of this member now; a rebalance is waited out (group_membership)."""
        while not owned.stop:
            yield
            if self.name not in self.world.group.members:
                return False
            if self.metadata is not None and self.world.group.known(self.metadata):
                return not owned.stop
        return False

    def _own(self, owned: _Owned, warm: Standing | None) -> Thread:
        world, shard = self.world, owned.number
        owner = f"shard-{shard}" if world.protocol.fencing else f"{self.name}-{shard}"
        epoch = 0
        while True:
            yield
            try:
                epoch = world.call(world.broker.init, owner)
                break
            except Concurrent:
                continue
            except FencedEpoch:
                raise
            except ClientError as exc:
                raise _Rebuild from exc
        self.ownerships += 1
        yield from self._decide(owned, warm, owner, epoch)

    def _recover(self, owned: _Owned, warm: Standing | None) -> Iterator[tuple[State, dict[int, int]] | None]:
        world, shard = self.world, owned.number
        journal, whole = world.journal[shard], world.protocol.reads_journal_to_its_end
        end = journal.end if whole else journal.stable_end
        give_up_ms = world.broker.now_ms + NO_PROGRESS_MS
        while journal.stable_end < end:
            yield None
            if owned.stop:
                raise _Rebuild
            if world.broker.now_ms > give_up_ms:
                raise _NoProgress
        yield None
        standing = warm or self._from_snapshot(shard) or self._from_scratch(shard)
        if warm is None or world.protocol.standby_catches_up:
            self._moved(standing, shard, end)
        state, positions = standing.state, standing.positions
        yield None
        if not world.protocol.positions_from_journal:
            positions = {p: world.broker.offsets.get(p, 0) for p in positions}
        yield state, positions

    def _from_scratch(self, shard: int) -> Standing:
        return Standing(State(shard), dict.fromkeys(self.world.partitions(shard), 0), 0)

    def _from_snapshot(self, shard: int) -> Standing | None:
        """scorer.worker.follower: the newest one whose head the journal has at its offset."""
        journal = self.world.journal[shard]
        for kept in reversed(self.world.snapshots[shard]):
            there = next(journal.committed(kept.offset - 1, kept.offset), None)
            found = there is not None and read_record(there[1]).head == kept.state.head
            if found or not self.world.protocol.snapshots_are_checked:
                self.world.note(self, f"takes shard {shard} from the snapshot after batch {kept.state.sequence - 1}")
                return Standing(kept.state, dict(kept.positions), kept.offset)
        return None

    def _moved(self, standing: Standing, shard: int, end: int | None = None, *, records_max: int = 1 << 30) -> None:
        """Decide again what the journal holds from where `standing` is, each record held against its own."""
        world = self.world
        found = list(islice(world.journal[shard].committed(standing.offset, end), records_max))
        if not found:
            standing.offset = max(standing.offset, world.journal[shard].stable_end)  # nothing but markers was left
        for offset, raw in found:
            record = read_record(raw)
            ranges = tuple((r.partition, r.start, r.end) for r in record.inputs)
            standing.state, again, _ = decide(standing.state, ranges, world.payments_of(ranges))
            if again != raw:
                raise Violation(f"{self.name} runs batch {record.sequence} again and gets another journal record")
            standing.positions.update((p, e) for p, _, e in ranges)
            standing.offset = offset + 1

    def _decide(self, owned: _Owned, warm: Standing | None, owner: str, epoch: int) -> Thread:
        world = self.world
        state, positions = State(), {}
        for found in self._recover(owned, warm):
            if found is None:
                yield
            else:
                state, positions = found
        world.note(self, f"decides shard {owned.number} from batch {state.sequence}, epoch {epoch}")
        flying: _Flying | None = None
        while not owned.stop:
            yield
            ranges = self._gather(positions)
            if flying is not None and (flying.done or ranges):
                while not flying.done:
                    yield
                self._landed(flying)
                flying = None
            if not ranges:
                continue
            batch = decide(state, ranges, world.payments_of(ranges))
            state = batch[0]
            positions.update((p, end) for p, _, end in ranges)
            flying = _Flying(batch, dict(positions))
            world.start(self, self._commit(flying, owner, epoch, owned.number, ranges, self.ownerships))
        if flying is not None:
            while not flying.done:
                yield
            self._landed(flying)

    def _gather(self, positions: dict[int, int]) -> Ranges:
        """Any cut of what is there is a batch: how the real gatherer cuts is its own affair."""
        world, ranges = self.world, []
        for partition, start in positions.items():
            log = world.payments[partition]
            first = bisect_left(log, start)
            if first < len(log):
                count = int(world.random() * min(BATCH_MAX, len(log) - first))
                ranges.append((partition, start, log[first + count] + 1))
        return tuple(ranges)

    def _landed(self, flying: _Flying) -> None:
        if flying.error is None:
            return
        if isinstance(flying.error, FencedEpoch):
            raise flying.error
        if self.world.protocol.drops_state_after_failure:
            raise _Rebuild
        # Broken on purpose: the state that ran ahead is kept, and what follows is built on it.

    # a commit's thread: scorer.worker.publisher.Publisher._commit

    def _commit(self, flying: _Flying, owner: str, epoch: int, shard: int, ranges: Ranges, ownership: int) -> Thread:
        world, broker = self.world, self.world.broker
        _, raw, decisions = flying.batch
        if world.crowded():
            yield
        again, refusals = True, 0
        while again:
            again = False
            steps: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
                (broker.produce, (owner, epoch, world.decisions[shard], decisions)),
                (broker.produce, (owner, epoch, world.audit[shard], ((raw, decisions),))),
                (broker.produce, (owner, epoch, world.journal[shard], (raw,))),
                (self._send_offsets, (owner, epoch, {p: end for p, _, end in ranges})),
                (broker.end, (owner, epoch)),
            ]
            try:
                for function, arguments in steps:
                    yield from self._asked(function, *arguments)
                world.committed(self, shard, ownership)
                if world.random() < SNAPSHOT_SHARE:
                    world.start(self, self._snapshot(flying, shard))
            except ClientError as exc:
                flying.error = exc
                if isinstance(exc, StaleMember) and self.name in world.group.members and refusals < REFUSALS_MAX:
                    # Of an older generation: rolled back, and sent again under the new one.
                    refusals += 1
                    again = yield from self._rolled_back(flying, owner, epoch)
                if (
                    isinstance(exc, TimedOut)
                    and function == broker.end
                    and not world.protocol.new_producer_after_timeout
                ):
                    flying.error = None
                    again = yield from self._aborted(owner, epoch)
        flying.done = True

    def _snapshot(self, flying: _Flying, shard: int) -> Thread:
        """scorer.worker.snapshotter: the state after a batch that is committed, written a while later."""
        state, raw, _ = flying.batch
        entries = self.world.journal[shard].entries
        offset = next(n for n in range(len(entries) - 1, -1, -1) if entries[n][0] == raw)
        yield
        yield
        self.world.snapshots[shard].append(Standing(state, flying.positions, offset + 1))

    def _send_offsets(self, owner: str, epoch: int, offsets: dict[int, int]) -> None:
        metadata = self.metadata if self.world.protocol.fencing else None
        if metadata is None and self.world.protocol.fencing:
            raise StaleMember
        self.world.broker.send_offsets(owner, epoch, offsets, metadata)

    def _rolled_back(self, flying: _Flying, owner: str, epoch: int) -> Generator[None, None, bool]:
        try:
            yield from self._asked(self.world.broker.end, owner, epoch, ABORTING)
        except ClientError as exc:
            flying.error = exc
            return False
        flying.error = None
        return True

    def _aborted(self, owner: str, epoch: int) -> Generator[None, None, bool]:
        """Broken on purpose: the producer is used again after a timed-out commit. It aborts what it thinks is open and
        sends the batch once more; an answer that there is nothing to abort is taken for the commit's."""
        try:
            yield from self._asked(self.world.broker.end, owner, epoch, ABORTING)
        except InvalidState:
            return False
        except ClientError:
            return True
        return True

    def _asked(self, function: Callable[..., Any], *arguments: Any) -> Thread:
        """One call, repeated as long as the transaction before is being completed, as the client does."""
        while True:
            yield
            try:
                self.world.call(function, *arguments)
                return
            except Concurrent:
                continue
