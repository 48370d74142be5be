"""The pure part of a shard, cheap: a stand-in for scorer.pipeline.Pipeline, its snapshots, and their store.

What a batch gives is a function of the state before and of what was read, as with the real one, and the state is a hash
over everything decided so far, in order. So whatever is read twice, not at all, or in another order shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from features.snapshot_store import Manifest, SnapshotDamaged, SnapshotError, SnapshotStoreError
from schemas.audit_record import AuditContext
from schemas.byte_column import ByteColumn
from schemas.card_fields import UNDECLARED, CardFields
from schemas.contract_error import ContractError, DeadLetterReason
from schemas.journal_record import (
    FIRST_PREVIOUS,
    Change,
    ControlRange,
    InputRange,
    JournalRecord,
    SnapshotDigest,
    Sources,
)
from scorer.pipeline import Outcomes
from scorer.pipeline.ordering import journal_order
from scorer.pipeline.records import Batch, Rejected
from tests.simulation.broker import TimedOut

if TYPE_CHECKING:
    from tests.simulation.incarnation import Incarnation
    from tests.simulation.world import World

GARBAGE = b"no payment"
NAMED = b"refused "  # before the id of what is no payment, and is answered beside its dead letter
CONTEXT = AuditContext(bundle="b", threshold=0.5, feature_fingerprint="f", feature_names=("x",))
BUNDLE: Any = SimpleNamespace(
    id="b",
    golden=None,
    challengers=(),
    feature_set=SimpleNamespace(
        fingerprint="f",
        names=["x"],
        max_future_skew=10**15,
        allowed_lateness=10**15,
        cards=UNDECLARED,
        check_sharding=lambda key, shards: None,
    ),
)
_ZEROS = SimpleNamespace(
    keys=0, keys_refused=0, log_rows=0, arena_bytes=0, labels_applied=0, labels_pending=0, unmatched_labels=0,
    labels_refused=0, unmatched_labels_dropped=0, unmatched_labels_expired=0,
)  # fmt: skip
_REFUSED = ContractError(DeadLetterReason("not_json"), None, "garbage")

Row = tuple[int, int, bytes]  # partition, offset, value


class State(NamedTuple):
    """What the next batch's outcome depends on."""

    shard: int
    sequence: int = 0
    head: str = FIRST_PREVIOUS
    windows: str = ""


class Payments:
    """As much of a batch's payments as the worker asks for."""

    keys: Mapping[int, bytes] = MappingProxyType({})

    def __init__(self, values: list[Any]) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def column(self, _name: str) -> Any:
        return np.array(self._values, object)

    def text(self, _name: str) -> pa.StringArray:
        return pa.nulls(len(self), pa.string())


class Decided(NamedTuple):
    """What came of a batch. `order`: places of the decided rows, in journal order; `refused`: of the others."""

    state: State
    journal: JournalRecord
    order: tuple[int, ...]
    refused: tuple[int, ...]
    values: tuple[bytes, ...]


class Read(NamedTuple):
    """What a batch reads: everything that its outcome may depend on besides the state."""

    rows: tuple[Row, ...]
    inputs: tuple[InputRange, ...]
    control: tuple[bytes, ...]
    control_range: ControlRange
    labels: tuple[bytes, ...]
    labels_range: ControlRange | None
    degraded: tuple[bool, str | None]
    sources: Sources | None
    snapshot: SnapshotDigest | None
    change: Change | None = None
    order: int | None = None


def is_refused(value: bytes) -> bool:
    """Whether a record is no payment."""
    return value == GARBAGE or value.startswith(NAMED)


@lru_cache(maxsize=4_000)
def decide(state: State, read: Read) -> Decided:
    """A function of its arguments, as Pipeline.run is."""
    good = [i for i, (_, _, value) in enumerate(read.rows) if not is_refused(value)]
    partition = np.array([read.rows[i][0] for i in good], np.int32)
    offset = np.array([read.rows[i][1] for i in good], np.int64)
    event_time_ms = np.array([int(read.rows[i][2].split()[0]) for i in good], np.int64)
    named = [i for i, (_, _, value) in enumerate(read.rows) if value.startswith(NAMED)]
    order = (*(good[i] for i in journal_order(partition, offset, event_time_ms).tolist()), *named)
    seen = (state.windows, [read.rows[i] for i in order], read.control, read.labels, read.degraded)
    windows = hashlib.sha256(repr(seen).encode()).hexdigest()
    journal = JournalRecord(
        shard=state.shard,
        sequence=state.sequence,
        inputs=read.inputs,
        control=read.control_range,
        labels=read.labels_range,
        stream_time_ms=0,
        bundle=BUNDLE.id,
        degraded=read.degraded[0],
        degraded_rows=read.degraded[1],
        decisions=len(order),
        dead_letters=len(read.rows) - len(good),
        refused=None if read.change is not None else len(named),
        digest=windows,
        previous=state.head,
        sources=read.sources,
        labels_by=None if read.change is not None else "known_at",
        snapshot=read.snapshot,
        change=read.change,
        order=read.order,
    )
    values = tuple(b"%s %s" % (read.rows[i][2].split()[1], windows[:12].encode()) for i in order)
    after = State(state.shard, state.sequence + 1, journal.head, windows)
    refused = tuple(i for i in range(len(read.rows)) if is_refused(read.rows[i][2]))
    return Decided(after, journal, order, refused, values)


class StandIn:
    """A shard's pipeline."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._next: State | None = None  # after the batch that was decided and not sealed
        self.bundle = BUNDLE
        self.activation_number = 0
        self.engine = SimpleNamespace(counts=lambda: _ZEROS, stream_time_ms=0)
        self.dedupe = _Empty()
        self.lists = SimpleNamespace(refused=0)

    @property
    def shard(self) -> int:
        return self.state.shard

    @property
    def sequence(self) -> int:
        return self.state.sequence

    @sequence.setter
    def sequence(self, sequence: int) -> None:
        self.state = self.state._replace(sequence=sequence)

    @property
    def head(self) -> str:
        return self.state.head

    @head.setter
    def head(self, head: str) -> None:
        self.state = self.state._replace(head=head)

    def key_id(self, batch: Batch) -> str | None:
        return None

    def restart(self, bundle: Any, stream_time_ms: int) -> None:
        self.state = self.state._replace(windows="")

    def begin_at(self, record: JournalRecord) -> None:
        self.state = self.state._replace(sequence=record.sequence, head=record.previous)

    def run(self, batch: Batch) -> Outcomes:
        return self.seal(batch, self.decide(batch))

    def seal(self, batch: Batch, decided: Outcomes) -> Outcomes:
        assert self._next is not None, "nothing was decided"
        self.state, self._next = self._next, None
        return decided

    def decide(self, batch: Batch) -> Outcomes:
        assert self._next is None, "what was decided last is not sealed"
        records = batch.records
        rows = tuple(zip(records.partition.tolist(), records.offset.tolist(), records.values, strict=True))
        control = tuple(record.value or b"" for record in batch.control)
        labels = tuple(record.value or b"" for record in batch.labels)
        decided = decide(
            self.state,
            Read(
                rows,
                tuple(batch.inputs),
                control,
                batch.control_range,
                labels,
                batch.labels_range,
                batch.degraded_fields(),
                batch.sources,
                batch.snapshot,
                batch.change,
                batch.order,
            ),
        )
        self._next = decided.state
        n, order = len(decided.order), np.array(decided.order, np.int64)
        zeros: Any = np.zeros(n, np.uint8)
        columns: Any = SimpleNamespace(
            payment_id=list(decided.values),
            decision=zeros,
            mode=zeros,
            score=zeros,
            margin=zeros,
            reasons=[()] * n,
            partition=records.partition[order],
        )
        return Outcomes(
            records=records,
            control=batch.control,
            rows=order,
            payment=np.where([is_refused(records.values[i] or b"") for i in order.tolist()], -1, np.arange(n)),
            payments=Payments(decided.values),  # type: ignore[arg-type]
            columns=columns,
            kinds=None,
            bundles=["b"] * n,
            rejected=[Rejected(i, _REFUSED) for i in decided.refused],
            rejected_control=[],
            labels=batch.labels,
            rejected_labels=[],
            answered=decided.journal.refused,
            journal=decided.journal,
            duplicates=0,
            conflicts=0,
            late=0,
            context=CONTEXT,
            cards=UNDECLARED,
        )

    def activate(self, bundle: Any) -> None:
        raise AssertionError("no other bundle is ever activated")

    def close(self) -> None:
        return


class _Empty:
    evicted_early = 0

    def __len__(self) -> int:
        return 0


# The pure encoders of scorer.worker.publisher and batcher, cheap: what a simulated reader sees.


def encode_decisions(values: list[bytes], *columns: Any, kinds: Any) -> list[bytes]:
    return values


def placed(values: ByteColumn, shard: int, sequence: int) -> ByteColumn:
    return ByteColumn.of([b"%s %d %d %d" % (value or b"", shard, sequence, row) for row, value in enumerate(values)])


def place_of(value: bytes) -> tuple[int, int]:
    _, shard, sequence, _ = value.rsplit(b" ", 3)
    return int(shard), int(sequence)


def encode_audit(columns: Any, header: Any, **_: int) -> list[bytes]:
    return [header.journal.encode()]


def event_times(values: list[bytes], *, missing: int, cards: CardFields) -> Any:
    return np.array([missing if is_refused(value) else int(value.split()[0]) for value in values], np.int64)


# snapshots


class Capture:
    """Of a StandIn: begun between two batches, finished between two later ones."""

    stepping = False

    def __init__(self, pipeline: StandIn, world: World) -> None:
        self._pipeline, self._world = pipeline, world

    def copy(self) -> None:
        self._world.scheduler.pause()

    def again(self) -> bool:
        return self._world.random() < 0.7

    def finish(self) -> Mapping[str, Any] | None:
        return {"state": self._pipeline.state} if self._world.random() < 0.9 else None


class Kept(NamedTuple):
    sequence: int
    known: dict[str, Any]
    parts: dict[str, Any]
    damaged: bool = False

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr((self.sequence, self.known, self.parts)).encode()).hexdigest()


class Store:
    """A shard's snapshots, the same for all processes."""

    def __init__(self, world: World, process: Incarnation, shard: int) -> None:
        self._world, self._process, self._kept = world, process, world.snapshots[shard]
        self._given_up = False

    def newest_first(self) -> Iterator[Manifest | SnapshotError]:
        try:
            found = self._world.network.call(lambda: list(self._kept), "snapshots read")
        except TimedOut:
            raise SnapshotStoreError("the store does not answer") from None
        for kept in reversed(found):
            if kept.damaged:
                yield SnapshotDamaged("a bit has flipped")
            else:
                yield Manifest(kept.sequence, kept.digest, kept.known, kept.parts)

    def images(self, manifest: Manifest) -> Any:
        return manifest.body

    def write(self, sequence: int, meta: Mapping[str, Any], parts: Mapping[str, Any]) -> Any:
        kept = Kept(sequence, dict(meta), dict(parts))
        if self._given_up:
            raise SnapshotStoreError("given up by its writer")
        try:
            self._world.network.call(lambda: self._kept.append(kept), "snapshot written")
        except TimedOut:
            raise SnapshotStoreError("the store does not answer") from None
        self._world.note(self._process, f"keeps a snapshot after batch {sequence - 1}")
        return SimpleNamespace(sequence=sequence, digest=kept.digest, bytes=0, bytes_uploaded=0)

    def give_up(self) -> None:
        self._given_up = True

    def prune(self, keep: int) -> int:
        del self._kept[:-keep]
        return 0


class States:
    """scorer.worker.ports.States with stand-ins."""

    def __init__(self, world: World, process: Incarnation) -> None:
        self._world, self._process = world, process

    def fresh(self, bundle: Any, shard: int) -> Any:
        return StandIn(State(shard))

    def restored(self, bundle: Any, shard: int, known: Mapping[str, Any], parts: Mapping[str, Any]) -> Any:
        self._world.note(self._process, f"takes shard {shard} from the snapshot after batch {known['sequence'] - 1}")
        return StandIn(parts["state"])

    def capture(self, pipeline: Any) -> Any:
        return Capture(pipeline, self._world)

    def facts(self, pipeline: Any) -> dict[str, Any]:
        return {"sequence": pipeline.sequence, "head": pipeline.head, "bundle": pipeline.bundle.id}

    def store(self, shard: int) -> Any:
        return Store(self._world, self._process, shard) if self._world.keeps_snapshots else None
