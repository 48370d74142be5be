"""What a worker meets outside of itself, as one object: Kafka's clients, time and threads, and the states of shards.

    Ports.real(settings)            what a worker runs with

Membership, Shard, Publisher, Follower, Standby and Snapshotter call nothing else that waits or that reaches out of the
process. So a simulation that gives a Worker its own ports runs the very code that runs in production.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from features.engine_image import Image
from features.log_segments import SegmentError
from features.snapshot_store import Manifest, SnapshotError, SnapshotStore
from scorer import kafka
from scorer.bundle import Bundle
from scorer.errors import UsageError
from scorer.pipeline import Pipeline
from scorer.pipeline.state_image import ShardCapture, facts, restored
from scorer.runtime import fault_points
from scorer.runtime.settings import Settings
from scorer.runtime.span_export import SpanSink
from scorer.runtime.threads import SYSTEM, Threads

# Owner and standbys of one shard on one machine, and one that is just ending.
LOG_FOLDERS_MAX = 8


class Capture(Protocol):
    """A snapshot in the making: see scorer.pipeline.state_image.ShardCapture."""

    def copy(self) -> None: ...
    def again(self) -> bool: ...
    @property
    def stepping(self) -> bool: ...
    def finish(self) -> Mapping[str, Image] | None: ...


class Store(Protocol):
    """Where a shard's snapshots are kept: see features.snapshot.SnapshotStore."""

    def newest_first(self) -> Iterator[Manifest | SnapshotError]: ...
    def images(self, manifest: Manifest) -> dict[str, Image]: ...
    def write(self, sequence: int, meta: Mapping[str, Any], parts: Mapping[str, Image]) -> Any: ...
    def prune(self, keep: int) -> int: ...
    def give_up(self) -> None: ...


class States(Protocol):
    """Makes the pure part of a shard, and takes and keeps its image."""

    def fresh(self, bundle: Bundle, shard: int) -> Pipeline:
        """A pipeline before the first batch. Raises SegmentError."""

    def restored(self, bundle: Bundle, shard: int, known: Mapping[str, Any], parts: Mapping[str, Image]) -> Pipeline:
        """A pipeline that goes on from a snapshot. Raises StateMismatch or SegmentError."""

    def capture(self, pipeline: Pipeline) -> Capture: ...
    def facts(self, pipeline: Pipeline) -> dict[str, Any]: ...

    def store(self, shard: int) -> Store | None:
        """None when snapshots are switched off. Raises UsageError."""


@dataclass(frozen=True)
class Ports:
    """The three of them, and where spans go: nowhere by default."""

    clients: kafka.Clients
    threads: Threads
    states: States
    spans: SpanSink | None = None

    @classmethod
    def real(cls, settings: Settings) -> Ports:
        """The broker that `settings` name, this machine's clock and threads, and real pipelines."""
        return cls(kafka.RealClients(settings), SYSTEM, PipelineStates(settings))


class PipelineStates:
    """States that are real pipelines."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def fresh(self, bundle: Bundle, shard: int) -> Pipeline:
        keys = self._settings.pseudonym_keys
        return self._in_log_folder(shard, lambda folder: Pipeline(bundle, shard=shard, folder=folder, keys=keys))

    def restored(self, bundle: Bundle, shard: int, known: Mapping[str, Any], parts: Mapping[str, Image]) -> Pipeline:
        keys = self._settings.pseudonym_keys
        return self._in_log_folder(shard, lambda folder: restored(bundle, known, parts, folder=folder, keys=keys))

    def _in_log_folder(self, shard: int, make: Callable[[Path | None], Pipeline]) -> Pipeline:
        """What `make` gives for the first folder of the shard that no other engine holds; in memory without a setting.

        A standby of this machine, or a worker that is just ending, may hold another one. Raises SegmentError.
        """
        if self._settings.worker.log_folder is None:
            return make(None)
        base = self._settings.worker.log_folder.expanduser() / f"shard-{shard}"
        for number in range(LOG_FOLDERS_MAX):
            try:
                return make(base / str(number))
            except SegmentError as exc:
                error = exc
        raise error

    def capture(self, pipeline: Pipeline) -> Capture:
        return ShardCapture(pipeline)

    def facts(self, pipeline: Pipeline) -> dict[str, Any]:
        return facts(pipeline)

    def store(self, shard: int) -> Store | None:
        return store_of(self._settings, shard)


def store_of(settings: Settings, shard: int) -> SnapshotStore | None:
    """Where the snapshots of a shard are kept; None when they are switched off."""
    where = settings.snapshots
    if not where.every_payments and not where.every_s:
        return None
    url = where.url.get_secret_value() if where.url else f"{(settings.cache.expanduser() / 'snapshots').as_uri()}"
    name = f"{settings.kafka.topic_prefix}{settings.worker.application}"
    key = None if where.key is None else where.key.get_secret_value().encode()
    try:
        return SnapshotStore(f"{url.rstrip('/')}/{name}/shard-{shard}", key=key, on_step=fault_points.point)
    except (ValueError, ImportError) as exc:  # a protocol that fsspec does not know, or whose package is missing
        raise UsageError(f"setting FRAUD_SCORER_SNAPSHOTS__URL: {exc}") from exc
