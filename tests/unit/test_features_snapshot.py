"""Snapshots: complete, incremental, refused by name when they are damaged, and taken while payments go on."""

from __future__ import annotations

import json
import shutil
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from features.engine_image import Image, StateMismatch, strings_as_arrays, strings_from_arrays
from features.feature_set import FeatureSet
from features.snapshot_store import (
    SnapshotDamaged,
    SnapshotError,
    SnapshotMissing,
    SnapshotStore,
    SnapshotStoreError,
    SnapshotVersion,
)
from features.window_engine import WindowEngine
from tests.benchmarks.streams import bench_set, prepared

SET = FeatureSet.from_yaml(bench_set())


def play(engine: WindowEngine, rows: np.ndarray) -> np.ndarray:
    out = np.empty((len(rows), len(engine.feature_set.features)), dtype=np.float32)
    engine.apply_prepared(rows, out)
    return out


def image_of(engine: WindowEngine) -> Image:
    capture = engine.capture()
    capture.copy()
    image = capture.finish()
    assert image is not None
    return image


@pytest.fixture
def stream() -> np.ndarray:
    return prepared(SET, 6_000, keys=400, span_ms=40 * 86_400_000, seed=1)


def test_a_snapshot_read_back_goes_on_with_the_same_bits(stream: np.ndarray, tmp_path: Path) -> None:
    """An engine restored from a store continues exactly as the one that was snapshotted."""
    engine = WindowEngine(SET, segment_shift=9)
    play(engine, stream[:4_000])
    store = SnapshotStore(f"file://{tmp_path}")
    store.write(7, {"head": "abc"}, {"engine": image_of(engine)})
    meta, parts = SnapshotStore(str(tmp_path)).read(7)
    assert meta == {"head": "abc"}
    restored = WindowEngine.restore(SET, parts["engine"])
    assert replace(restored.counts(), arena_bytes=0) == replace(engine.counts(), arena_bytes=0)
    np.testing.assert_array_equal(play(restored, stream[4_000:]), play(engine, stream[4_000:]))


def test_a_second_snapshot_uploads_only_what_changed(stream: np.ndarray, tmp_path: Path) -> None:
    """Full segments of the log are uploaded once; a snapshot of an unchanged state uploads nothing but its manifest."""
    engine = WindowEngine(SET, segment_shift=9)
    store = SnapshotStore(str(tmp_path))
    play(engine, stream[:4_000])
    first = store.write(1, {}, {"engine": image_of(engine)})
    again = store.write(2, {}, {"engine": image_of(engine)})
    play(engine, stream[4_000:4_100])
    later = store.write(3, {}, {"engine": image_of(engine)})
    assert first.bytes_uploaded > 0
    assert again.bytes_uploaded == 0
    row_bytes, segments = engine.segments.row_bytes, 4_000 >> 9
    assert later.bytes_uploaded <= later.bytes - segments * (row_bytes << 9)


def damage_block(folder: Path) -> None:
    block = max((folder / "blocks").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(block.read_bytes())
    data[len(data) // 2] ^= 1
    block.write_bytes(data)


def truncate_block(folder: Path) -> None:
    block = max((folder / "blocks").iterdir(), key=lambda path: path.stat().st_size)
    block.write_bytes(block.read_bytes()[:-1])


def lose_block(folder: Path) -> None:
    max((folder / "blocks").iterdir(), key=lambda path: path.stat().st_size).unlink()


def truncate_manifest(folder: Path) -> None:
    manifest = max((folder / "manifests").iterdir())
    manifest.write_bytes(manifest.read_bytes()[:-10])


def edit_manifest(folder: Path) -> None:
    manifest = max((folder / "manifests").iterdir())
    manifest.write_bytes(manifest.read_bytes().replace(b"head", b"dead"))


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (damage_block, SnapshotDamaged),
        (truncate_block, SnapshotDamaged),
        (lose_block, SnapshotMissing),
        (truncate_manifest, SnapshotDamaged),
        (edit_manifest, SnapshotDamaged),
    ],
)
def test_a_damaged_snapshot_is_refused_by_name(
    damage: Any, error: type[SnapshotError], stream: np.ndarray, tmp_path: Path
) -> None:
    """A truncated, changed or missing part is named, and never gives an engine."""
    engine = WindowEngine(SET, segment_shift=9)
    play(engine, stream)
    SnapshotStore(str(tmp_path)).write(5, {"head": "x"}, {"engine": image_of(engine)})
    damage(tmp_path)
    with pytest.raises(error, match="snapshot 5"):
        SnapshotStore(str(tmp_path)).read(5)


def test_the_next_older_snapshot_is_offered_when_the_newest_is_damaged(stream: np.ndarray, tmp_path: Path) -> None:
    """newest_first gives a reason for the damaged one and then the one before it."""
    engine = WindowEngine(SET, segment_shift=9)
    store = SnapshotStore(str(tmp_path))
    store.write(1, {"head": "old"}, {"engine": image_of(engine)})
    play(engine, stream)
    store.write(2, {"head": "new"}, {"engine": image_of(engine)})
    truncate_manifest(tmp_path)
    found = list(SnapshotStore(str(tmp_path)).newest_first())
    assert isinstance(found[0], SnapshotDamaged)
    assert not isinstance(found[1], SnapshotError)
    assert (found[1].sequence, found[1].meta) == (1, {"head": "old"})


@pytest.mark.parametrize("damage", [damage_block, truncate_block, lose_block])
@pytest.mark.parametrize("restart", [True, False])
def test_a_damaged_block_does_not_spoil_later_snapshots(
    damage: Any, restart: bool, stream: np.ndarray, tmp_path: Path
) -> None:
    """After a restart, or once a read has met the damage, the next snapshot writes the block again."""
    engine = WindowEngine(SET, segment_shift=9)
    play(engine, stream)
    store = SnapshotStore(str(tmp_path))
    store.write(1, {}, {"engine": image_of(engine)})
    damage(tmp_path)
    if restart:
        store = SnapshotStore(str(tmp_path))
    else:
        with pytest.raises(SnapshotError):
            store.read(1)
    assert 0 < store.write(2, {}, {"engine": image_of(engine)}).bytes_uploaded < 10 << 20
    SnapshotStore(str(tmp_path)).read(2)
    assert SnapshotStore(str(tmp_path)).write(3, {}, {"engine": image_of(engine)}).bytes_uploaded == 0


def test_another_layout_format_or_feature_set_is_refused(stream: np.ndarray, tmp_path: Path) -> None:
    """A snapshot of another version or feature set is refused with both sides named."""
    engine = WindowEngine(SET, segment_shift=9)
    play(engine, stream)
    image = image_of(engine)
    other = FeatureSet.from_yaml(bench_set().replace("name: bench", "name: other"))
    with pytest.raises(StateMismatch, match=other.fingerprint[:12]):
        WindowEngine.restore(other, image)
    with pytest.raises(StateMismatch, match="format 0"):
        WindowEngine.restore(SET, Image({**image.meta, "format": 0}, image.arrays))
    without = {name: array for name, array in image.arrays.items() if name != "pool"}
    with pytest.raises(StateMismatch, match="pool"):
        WindowEngine.restore(SET, Image(image.meta, without))
    SnapshotStore(str(tmp_path)).write(1, {}, {"engine": image})
    manifest = next((tmp_path / "manifests").iterdir())
    body = json.loads(manifest.read_bytes())["body"].replace('"layout":1', '"layout":99')
    import hashlib  # noqa: PLC0415

    manifest.write_text(json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "body": body}))
    with pytest.raises(SnapshotVersion, match="99"):
        SnapshotStore(str(tmp_path)).read(1)


def test_pruning_keeps_what_the_kept_snapshots_need(stream: np.ndarray, tmp_path: Path) -> None:
    """After pruning to one, that one still reads back and the others' blocks are gone."""
    engine = WindowEngine(SET, segment_shift=9)
    store = SnapshotStore(str(tmp_path))
    for n in range(3):
        play(engine, stream[n * 2_000 : (n + 1) * 2_000])
        store.write(n, {}, {"engine": image_of(engine)})
    assert store.prune(1) > 0
    assert store.sequences() == [2]
    WindowEngine.restore(SET, store.read(2)[1]["engine"])


@pytest.mark.parametrize("folder", ["/manifests/", "/blocks/"])
def test_a_store_that_refuses_deletion_raises_its_own_error(
    stream: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """A store without the right to delete is an error of the store, which names it; what was written reads back."""
    engine = WindowEngine(SET, segment_shift=9)
    store = SnapshotStore(str(tmp_path))
    for n in range(2):
        play(engine, stream[n * 2_000 : (n + 1) * 2_000])
        store.write(n, {}, {"engine": image_of(engine)})
    real = LocalFileSystem.rm_file

    def refused(fs: LocalFileSystem, path: str) -> None:
        if folder in path:
            raise PermissionError(13, "Access Denied")
        real(fs, path)

    monkeypatch.setattr(LocalFileSystem, "rm_file", refused)
    with pytest.raises(SnapshotStoreError, match=f"cannot be deleted from {tmp_path}.*Access Denied"):
        store.prune(1)
    WindowEngine.restore(SET, store.read(1)[1]["engine"])


@pytest.mark.parametrize("steps", [1, 3])
def test_a_write_that_is_given_up_ends_before_its_next_block(stream: np.ndarray, tmp_path: Path, steps: int) -> None:
    """Whoever waits for a writer's end waits for one block; no manifest names what was left out, another writer goes
    on with the blocks that are there."""
    passed: list[str] = []

    def on_step(step: str) -> None:
        passed.append(step)
        if len(passed) == steps:
            store.give_up()

    engine, store = WindowEngine(SET, segment_shift=9), SnapshotStore(str(tmp_path), on_step=on_step)
    play(engine, stream)
    with pytest.raises(SnapshotError, match="given up"):
        store.write(1, {}, {"engine": image_of(engine)})
    assert passed == ["snapshot_block"] * steps
    assert store.sequences() == []
    with pytest.raises(SnapshotError, match="given up"):
        store.write(2, {}, {"engine": image_of(engine)})
    SnapshotStore(str(tmp_path)).write(2, {}, {"engine": image_of(engine)})
    SnapshotStore(str(tmp_path)).read(2)


def test_images_of_an_engine_can_be_read_after_it_is_closed(stream: np.ndarray, tmp_path: Path) -> None:
    """A writer that a store holds up reads them while the shard's next engine uses the same folder."""
    engine = WindowEngine(SET, segment_shift=9, folder=tmp_path / "log")
    play(engine, stream)
    image = image_of(engine)
    before = {name: array.copy() for name, array in image.arrays.items()}
    engine.close()
    with closing(WindowEngine(SET, segment_shift=9, folder=tmp_path / "log")) as other:
        play(other, stream[::-1])
        assert all(np.array_equal(array, before[name]) for name, array in image.arrays.items())


def test_a_folder_that_others_emptied_is_filled_again(stream: np.ndarray, tmp_path: Path) -> None:
    """Blocks that somebody deleted, a person or an object store's rule, are written again by the next snapshot."""
    engine, store = WindowEngine(SET, segment_shift=9), SnapshotStore(str(tmp_path / "s"))
    play(engine, stream[:1_000])
    store.write(1, {}, {"engine": image_of(engine)})
    shutil.rmtree(tmp_path / "s")
    play(engine, stream[1_000:1_100])
    store.write(2, {}, {"engine": image_of(engine)})
    restored = WindowEngine.restore(SET, store.read(2)[1]["engine"])
    np.testing.assert_array_equal(play(restored, stream[1_100:]), play(engine, stream[1_100:]))


def test_a_snapshot_taken_beside_a_running_engine_is_one_moment(tmp_path: Path) -> None:
    """The bulk is copied on another thread while batches run; the image is the state at `finish`, bit for bit."""
    rows = prepared(SET, 60_000, keys=5_000, span_ms=40 * 86_400_000, seed=2)
    engine, twin = WindowEngine(SET, segment_shift=12), WindowEngine(SET, segment_shift=12)
    play(engine, rows[:40_000])
    play(twin, rows[:40_000])
    at = 40_000
    for _ in range(20):  # growing arrays end a capture early; then it begins again
        capture = engine.capture()
        copier = threading.Thread(target=capture.copy)
        copier.start()
        while at < 55_000:
            play(engine, rows[at : at + 64])
            play(twin, rows[at : at + 64])
            at += 64
            if not copier.is_alive():
                break
        copier.join()
        for _ in range(2):  # and some more, so that there is always something to copy again
            capture.next_round()
            capture.copy()
            play(engine, rows[at : at + 64])
            play(twin, rows[at : at + 64])
            at += 64
        image = capture.finish()
        if image is not None:
            break
    assert image is not None
    restored = WindowEngine.restore(SET, image)
    np.testing.assert_array_equal(play(restored, rows[at:]), play(twin, rows[at:]))


@pytest.mark.parametrize("batch", [64, 4_096])
def test_a_snapshot_comes_to_its_end_whatever_a_batch_writes(batch: int) -> None:
    """Batches that outrun the copying thread do not put a snapshot off for ever: it ends after a few, and the image is
    the state between two of them, bit for bit."""
    rows = prepared(SET, 260_000, keys=100_000, span_ms=40 * 86_400_000, seed=3)
    engine, twin = WindowEngine(SET), WindowEngine(SET)
    play(engine, rows[:150_000])
    play(twin, rows[:150_000])
    capture, at, rounds = engine.capture(), 150_000, 0
    capture.copy()
    while True:
        for _ in range(4 if rounds < 2 else 1):  # the thread is slower than the payments: several batches to a round
            play(engine, rows[at : at + batch])
            play(twin, rows[at : at + batch])
            at += batch
        rounds += 1
        if capture.next_round():
            break
        if not capture.copies_between_batches:
            capture.copy()
        assert rounds < 12, "the snapshot does not end"
    image = capture.finish()
    assert image is not None, "the arrays grew: give the test fewer keys"
    restored = WindowEngine.restore(SET, image)
    np.testing.assert_array_equal(play(restored, rows[at:]), play(twin, rows[at:]))


def test_texts_survive_as_arrays() -> None:
    """Lists of texts go through arrays unchanged, empty ones and empty lists included."""
    for values in ([], [""], ["a", "", "ünï", "x" * 1000]):
        assert strings_from_arrays(strings_as_arrays(values)) == values
