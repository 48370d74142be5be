"""When a snapshot of a shard is due, and that none holds up the end of its shard."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from features.snapshot_store import SnapshotStoreError
from scorer.runtime.settings import load
from scorer.runtime.threads import SystemThreads
from scorer.worker import snapshotter
from scorer.worker.ports import Ports
from scorer.worker.snapshotter import RETRY_S, Snapshotter

EVERY_S = 300.0


class _Threads(SystemThreads):
    """Real threads, and a clock that the test moves on."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:  # type: ignore[override]
        return self.now


class _Capture:
    stepping = False

    def copy(self) -> None:
        return

    def again(self) -> bool:
        return True

    def finish(self) -> Mapping[str, Any]:
        return {}


class _States:
    """States and the store of one shard: what was written, by sequence, with the positions it names."""

    def __init__(self) -> None:
        self.written: list[tuple[int, Mapping[str, Any]]] = []
        self.captured = 0  # states that were kept to be written
        self.fails = False
        self.answers = threading.Event()  # a call of the store comes back
        self.answers.set()
        self.given_up = self.prune_fails = False
        self.pruning = threading.Event()
        self.prunes = threading.Event()  # old ones are deleted
        self.prunes.set()

    def capture(self, pipeline: Any) -> _Capture:
        self.captured += 1
        return _Capture()

    def facts(self, pipeline: Any) -> dict[str, Any]:
        return {}

    def give_up(self) -> None:
        self.given_up = True

    def write(self, sequence: int, meta: Mapping[str, Any], parts: Any) -> Any:
        self.answers.wait()
        if self.fails:
            raise SnapshotStoreError("the store is away")
        self.written.append((sequence, dict(meta)))
        return SimpleNamespace(sequence=sequence, digest="d" * 64, bytes=0, bytes_uploaded=0)

    def prune(self, keep: int) -> int:
        self.pruning.set()
        self.prunes.wait()
        if self.given_up or self.prune_fails:
            raise SnapshotStoreError("given up by its writer" if self.given_up else "the store is away")
        return 0


class Made:
    """A snapshotter of a shard that nothing is sent to; `moved` is a batch that holds no payment."""

    def __init__(self, *, kept: Mapping[str, int] | None, sequence: int) -> None:
        self.threads, self.states = _Threads(), _States()
        self.offset = 600
        self.pipeline: Any = SimpleNamespace(sequence=sequence, bundle=SimpleNamespace(id="b"))
        self.snapshotter = self.another(kept, None)

    def another(self, kept: Mapping[str, int] | None, former: Any) -> Snapshotter:
        """The snapshotter of this state, after one that left `former` running."""
        sequence = self.pipeline.sequence
        return Snapshotter(
            load(snapshots={"every_s": EVERY_S}), 0, self.states, lambda _: "",  # type: ignore[arg-type]
            Ports(object(), self.threads, self.states),  # type: ignore[arg-type]
            kept=kept, last_commit=(sequence - 1, 70) if sequence else None, former=former,
        )  # fmt: skip

    def moved(self, offset: int) -> None:
        """A batch that reads on to `offset` and decides nothing."""
        self.offset = offset
        self.pipeline.sequence += 1
        self.snapshotter.between_batches(self.pipeline, self._inputs(), 0)
        self.snapshotter.committed(self.pipeline.sequence - 1, 100)

    def idle(self, seconds: float) -> None:
        """So long nothing comes; threads end meanwhile."""
        for _ in range(8):
            self.threads.now += seconds / 8
            self.snapshotter.between_batches(self.pipeline, self._inputs(), 0)
            thread = self.snapshotter.running
            if thread is not None and self.states.answers.is_set() and self.states.prunes.is_set():
                thread.join()

    def positions(self) -> list[tuple[int, int]]:
        return [(sequence, known["positions"]["0"]) for sequence, known in self.states.written]

    def _inputs(self) -> Any:
        at = lambda offset: SimpleNamespace(position=offset)  # noqa: E731
        return SimpleNamespace(
            buffers={0: at(self.offset)}, control=at(0), labels=at(0), last_records={}, sources=None,
            places=places(self.offset),
        )  # fmt: skip


def places(offset: int) -> dict[str, int]:
    return {"0": offset, "control": 0, "labels": 0}


def test_positions_that_moved_past_markers_alone_come_into_a_snapshot() -> None:
    """Else a worker that starts again would have to read what stood before them, which retention may take, though
    nothing that was decided is missing. While nothing moves, no other is written."""
    made = Made(kept=places(600), sequence=5)
    made.idle(10 * EVERY_S)
    assert made.positions() == []
    made.moved(611)
    made.idle(2 * EVERY_S)
    assert made.positions() == [(6, 611)]
    made.idle(10 * EVERY_S)
    assert made.positions() == [(6, 611)]


def test_what_was_decided_again_after_the_snapshot_comes_into_one() -> None:
    """An owner that goes on from an older snapshot keeps what the one before it had decided since, also where nothing
    comes any more; before the first batch there is nothing to keep."""
    made = Made(kept=places(500), sequence=5)
    made.idle(2 * EVERY_S)
    assert made.positions() == [(5, 600)]
    made = Made(kept=None, sequence=5)
    made.idle(2 * EVERY_S)
    assert made.positions() == [(5, 600)]
    made = Made(kept=None, sequence=0)
    made.idle(2 * EVERY_S)
    assert made.positions() == []


def test_a_snapshot_that_failed_is_taken_again_of_a_shard_that_has_become_idle() -> None:
    """The store was away when it was written; nothing moves after that."""
    made = Made(kept=places(600), sequence=5)
    made.states.fails = True
    made.moved(640)
    made.idle(2 * EVERY_S)
    assert made.positions() == []
    made.states.fails = False
    made.idle(RETRY_S + 2 * EVERY_S)
    assert made.positions() == [(6, 640)]


def test_a_store_that_hangs_holds_up_no_end_of_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shard ends while a call of the store does not come back, and may be taken up again in this process: then no
    other snapshot is begun until that call has come back, so that one state at most is kept for it."""
    monkeypatch.setattr(snapshotter, "END_S", 0.05)
    made = Made(kept=places(600), sequence=5)
    made.states.answers.clear()
    made.moved(640)
    made.idle(2 * EVERY_S)
    made.snapshotter.close()
    left = made.snapshotter.running
    assert made.states.given_up
    assert left is not None
    made.snapshotter = made.another(None, left)
    made.idle(2 * EVERY_S)
    assert made.states.captured == 1
    made.states.answers.set()
    left.join()
    made.idle(2 * EVERY_S)
    assert made.positions() == [(6, 640)] * 2
    made.snapshotter.close()
    assert made.snapshotter.running is None


@pytest.mark.parametrize("ends", [True, False])
def test_old_snapshots_that_are_left_at_an_ordinary_end_are_no_warning(ends: bool) -> None:
    """The end of a shard gives up what its store does. A store that fails while the shard goes on is one."""
    made = Made(kept=places(600), sequence=5)
    made.states.prune_fails = not ends
    made.states.prunes.clear()
    with capture_logs() as logged:
        made.moved(640)
        made.idle(2 * EVERY_S)
        assert made.states.pruning.wait(30)
        if ends:
            made.snapshotter.end()
        made.states.prunes.set()
        made.idle(1.0)
        made.snapshotter.close()
    levels = [entry["log_level"] for entry in logged if entry["event"] == "snapshot.not_pruned"]
    assert levels == ["info" if ends else "warning"]
