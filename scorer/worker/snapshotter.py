"""Snapshots of a shard while it decides: begun and finished between two batches, copied and written on a thread.

    idle ──due──▶ copying ──copied──▶ finished (images of batch n) ──batch n committed──▶ writing ──▶ idle

A snapshot is of the state after batch n and is written only when n is committed; when the commit fails, it is dropped
with the state. It names the journal offset of n, so recovery begins there, after comparing n's head with its own. And
the next batch's journal record names its digest: what no record names is not used, whoever wrote it.
Payments wait for `begin` and `finish` alone; how long is a metric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import structlog

from features.engine_image import Image
from features.snapshot_store import SnapshotError
from schemas.journal_record import SnapshotDigest
from scorer.errors import FraudScorerError
from scorer.journal.partition_buffers import ShardInputs
from scorer.pipeline import Pipeline
from scorer.pipeline.records import Batch
from scorer.runtime import fault_points
from scorer.runtime.settings import Settings
from scorer.runtime.threads import Thread
from scorer.worker import worker_metrics
from scorer.worker.ports import Capture, Ports, Store

log = structlog.get_logger()

# A snapshot that could not be finished or written is tried again no sooner.
RETRY_S = 30.0
# How long the end of a shard waits for a block that is being written, or for a copy: a shard that has to be handed over
# in 35 s, or decides again after a failed commit, waits for no upload.
END_S = 5.0
# What a store or a disk may do; anything else that ends the thread is a defect and ends the process.
EXPECTED = (SnapshotError, OSError, MemoryError)


def refused(shard: int, reason: str) -> None:
    """Count and log a snapshot that cannot be used."""
    worker_metrics.SNAPSHOTS_REFUSED.labels(str(shard)).inc()
    log.warning("snapshot.refused", shard=shard, reason=reason)


@dataclass
class _Finished:
    sequence: int
    known: dict[str, Any]
    parts: Mapping[str, Image]


class Snapshotter:
    """Takes the snapshots of one owned shard. All calls from the shard's own thread."""

    def __init__(
        self,
        settings: Settings,
        shard: int,
        store: Store,
        bundle_location: Callable[[str], str],
        ports: Ports,
        *,
        kept: Mapping[str, int] | None = None,
        last_commit: tuple[int, int] | None = None,
        former: Thread | None = None,
    ) -> None:
        """`former`: what a snapshotter of this shard before this one has left running; nothing is begun beside it.
        `kept`: the positions in the snapshot that the state was made from, as `places` gives them; None without one.
        `last_commit`: what `committed` is given, of the last batch that was decided again."""
        self._threads, self._states = ports.threads, ports.states
        self._every_payments = settings.snapshots.every_payments
        self._every_s = settings.snapshots.every_s
        self._kept = settings.snapshots.kept
        self._shard, self._label = shard, str(shard)
        self._store = store
        self._bundle_location = bundle_location
        self._capture: Capture | None = None
        self._finished: _Finished | None = None
        self._former = former
        self._thread: Thread | None = None
        self._failed: Exception | None = None
        self._written: SnapshotDigest | None = None
        self._naming: int | None = None  # sequence of the batch whose record names one
        self._payments = 0
        self._kept_places = kept  # of the newest snapshot; None: not known
        self._last_commit = last_commit  # sequence, journal offset
        self._last_at = self._threads.monotonic()
        self._not_before = 0.0
        self._ending = False

    def between_batches(self, pipeline: Pipeline, inputs: ShardInputs, payments: int) -> None:
        """The state is that after a batch of `payments`, and nothing writes to it now.

        To be called, with 0, when nothing comes as well: else the snapshot of a shard that has become idle would wait
        for the next payment to be finished.
        """
        self._payments += payments
        if self.running is not None:
            return
        self._check_thread()
        if self._capture is None:
            if self._finished is None and self._due(pipeline, inputs):
                self._begin(pipeline)
            return
        self._finish(pipeline, inputs)

    def committed(self, sequence: int, journal_offset: int) -> None:
        """Batch `sequence` is committed, its journal record stands at `journal_offset`: -1 when that is not known."""
        self._last_commit = sequence, journal_offset
        if self._naming is not None and sequence >= self._naming:
            self._naming = None
            worker_metrics.SNAPSHOTS.labels(self._label).inc()
        self._write_committed()

    def _write_committed(self) -> None:
        finished, last = self._finished, self._last_commit
        if self._ending or finished is None or last is None or finished.sequence != last[0] + 1:
            return
        if last[1] < 0:  # a snapshot without the place of its record is of no use; the next one has another record
            self._give_up("where the journal record stands is not known")
            return
        self._finished = None
        finished.known["journal_offset"] = last[1]
        self._start(lambda: self._write(finished), "write")

    @property
    def unnamed(self) -> bool:
        """Whether a snapshot was written that no journal record names yet."""
        return self._written is not None

    def named_by(self, batch: Batch, sequence: int) -> Batch:
        """The batch, whose journal record is to name the snapshot that was written last, if none has done so."""
        written, self._written = self._written, None
        if written is None:
            return batch
        self._naming = sequence
        return replace(batch, snapshot=written)

    @property
    def running(self) -> Thread | None:
        """The thread of a copy or a write that runs, of a snapshotter before this one too."""
        return next(
            (thread for thread in (self._thread, self._former) if thread is not None and thread.is_alive()), None
        )

    def end(self) -> None:
        """The shard ends here, so that no record of it names another snapshot: a write ends before its next block."""
        self._ending = True
        self._store.give_up()

    def close(self) -> None:
        """Wait for a copy or a write that runs, but not for a store that hangs: that thread runs on, and keeps what it
        reads. Raises what ended a thread unexpectedly."""
        self.end()
        if self._thread is not None:
            self._thread.join(END_S)
            if self._thread.is_alive():
                worker_metrics.SNAPSHOTS_FAILED.labels(self._label).inc()
                log.error("snapshot.not_ended", shard=self._shard, waited_s=END_S)
                return
        self._check_thread()

    def _check_thread(self) -> None:
        """Act on what ended the thread: a store or a disk that fails is tried again later, anything else is raised."""
        failed, self._failed = self._failed, None
        if failed is None:
            return
        if not isinstance(failed, EXPECTED):
            raise FraudScorerError(f"the snapshot writer ended with {type(failed).__name__}: {failed}") from failed
        if self._ending:
            log.info("snapshot.given_up", shard=self._shard, reason=str(failed))
        else:
            self._give_up(str(failed))

    def _due(self, pipeline: Pipeline, inputs: ShardInputs) -> bool:
        now = self._threads.monotonic()
        enough = bool(self._every_payments) and self._payments >= self._every_payments
        late = bool(self._every_s) and now - self._last_at >= self._every_s
        # Also where no payment was read: what lies behind the positions of the newest snapshot may be removed from the
        # topics, and a state from that snapshot has to read it again.
        return now >= self._not_before and (
            enough or (late and pipeline.sequence > 0 and inputs.places != self._kept_places)
        )

    def _begin(self, pipeline: Pipeline) -> None:
        started = self._threads.monotonic()
        self._capture = capture = self._states.capture(pipeline)
        fault_points.point("snapshot_begin")
        self._pause(started)
        self._start(lambda: self._copy(capture), "copy")

    @staticmethod
    def _copy(capture: Capture) -> None:
        capture.copy()
        fault_points.point("snapshot_copy")

    def _finish(self, pipeline: Pipeline, inputs: ShardInputs) -> None:
        assert self._capture is not None
        started, capture = self._threads.monotonic(), self._capture
        if not capture.again():
            self._pause(started)
            if not capture.stepping:
                self._start(lambda: self._copy(capture), "copy")
            return
        parts = capture.finish()
        fault_points.point("snapshot_finish")
        self._capture = None
        self._pause(started)
        if parts is None:
            self._not_before = self._threads.monotonic() + 1.0  # arrays grew meanwhile; they do so ever more rarely
            return
        known = self._states.facts(pipeline) | {
            "positions": {str(p): buffer.position for p, buffer in inputs.buffers.items()},
            "last_records": inputs.last_records,
            "control_position": inputs.control.position,
            "labels_position": inputs.labels.position,
            "sources": None if inputs.sources is None else inputs.sources.model_dump(),
            "bundle_location": self._bundle_location(pipeline.bundle.id),
        }
        self._finished = _Finished(pipeline.sequence, known, parts)
        self._payments, self._last_at, self._kept_places = 0, self._threads.monotonic(), inputs.places
        self._write_committed()  # of an idle shard the batch is committed already

    def _pause(self, started: float) -> None:
        worker_metrics.SNAPSHOT_PAUSE.labels(self._label).observe(self._threads.monotonic() - started)

    def _start(self, work: Callable[[], None], name: str) -> None:
        def run() -> None:
            try:
                work()
            except Exception as exc:  # noqa: BLE001 - acted upon by the shard's thread (_check_thread)
                self._failed = exc

        self._thread = self._threads.spawn(run, name=f"snapshot-{name}-{self._shard}")

    def _write(self, finished: _Finished) -> None:
        started = self._threads.monotonic()
        written = self._store.write(finished.sequence, finished.known, finished.parts)
        self._written = SnapshotDigest(sequence=finished.sequence, sha256=written.digest)
        try:
            self._store.prune(self._kept + 1)  # this one is of no use until the journal names it
        except SnapshotError as exc:  # a damaged one among those to keep: nothing is deleted until it has aged out
            note = log.info if self._ending else log.warning  # an ordinary end gives the rest up
            note("snapshot.not_pruned", shard=self._shard, reason=str(exc))
        seconds = self._threads.monotonic() - started
        worker_metrics.SNAPSHOT_SEQUENCE.labels(self._label).set(written.sequence)
        worker_metrics.SNAPSHOT_BYTES.labels(self._label).set(written.bytes)
        log.info(
            "snapshot.written", shard=self._shard, sequence=written.sequence, bytes=written.bytes,
            bytes_uploaded=written.bytes_uploaded, seconds=round(seconds, 3),
        )  # fmt: skip

    def _give_up(self, reason: str) -> None:
        worker_metrics.SNAPSHOTS_FAILED.labels(self._label).inc()
        log.warning("snapshot.failed", shard=self._shard, reason=reason)
        self._capture, self._finished, self._kept_places = None, None, None
        self._not_before = self._threads.monotonic() + RETRY_S
