"""Snapshots on disk or in an object store: content-addressed blocks, and a manifest that names them. Nothing else in
this package reads or writes them.

    <url>/blocks/<sha256>                    up to 4 MiB of an array, under its own checksum
    <url>/manifests/<sequence, 20 digits>.json   facts, arrays, blocks; the sha256 of all that, and with a key its HMAC

A block that exists and that this process has compared with its checksum is not written again, so a snapshot uploads
only what has changed since the last one: each full segment of the log once, and the blocks of the arrays that differ.
The manifest is written last, so a snapshot is complete or does not exist. What does not match its checksum is refused
by name, and the caller uses the next older snapshot.

Checksums find damage; they prove nothing to a reader when others may write to the store. So the sha256 of the manifest,
which covers every block, is given back by `write` and with each manifest read, to be compared with a copy in a place of
trust before the arrays are read; and with a key a manifest without the right HMAC is refused unread.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import fsspec
import numpy as np
import numpy.typing as npt

from features.engine_image import Image

# Raised with every change of this layout; an image has a format of its own.
LAYOUT = 1
BLOCK_BYTES = 4 << 20
# A manifest names 67 bytes a block: this one would be of 4 TB.
MANIFEST_BYTES_MAX = 64 << 20
# What an array may hold: numbers. (NumPy would take "O" for addresses of Python objects.)
_TYPES = frozenset(np.dtype(kind).str for kind in ("<i8", "<u8", "<i4", "|u1", "<f4", "<f8"))
_DIGEST = re.compile(r"[0-9a-f]{64}")


class SnapshotError(Exception):
    """A snapshot cannot be used; the message says which one and why. The next older one may do."""


class SnapshotMissing(SnapshotError):
    """There is no such snapshot, or one of its blocks is missing."""


class SnapshotDamaged(SnapshotError):
    """Manifest or block do not match their checksum: truncated or changed."""


class SnapshotForged(SnapshotError):
    """The manifest was not written with the key that is set here."""


class SnapshotVersion(SnapshotError):
    """Written in another layout than this version reads."""


class SnapshotStoreError(SnapshotError):
    """The store cannot be written or read at all."""


@dataclass(frozen=True)
class Written:
    """What a snapshot cost: bytes of all its arrays, and bytes that were new and have been uploaded. `digest`: sha256
    of its manifest."""

    sequence: int
    digest: str
    bytes: int
    bytes_uploaded: int
    blocks: int


@dataclass(frozen=True)
class Manifest:
    """A snapshot whose arrays have not been read yet. `digest`: sha256 that covers all of it."""

    sequence: int
    digest: str
    meta: dict[str, Any]
    body: Mapping[str, Any]


def _ignore(step: str) -> None:  # noqa: ARG001 - the signature of `on_step`
    return


class SnapshotStore:
    """The snapshots of one shard under a URL of fsspec (a local folder, s3://…). One writer; any thread, one call at a
    time."""

    def __init__(
        self, url: str, *, key: bytes | None = None, on_step: Callable[[str], object] = _ignore, **options: Any
    ) -> None:
        """`key`: manifests carry its HMAC, and others are refused. `on_step` is called at each named step of a write;
        `options` are fsspec's."""
        self._key = key
        self._on_step = on_step
        self._fs, self._root = fsspec.core.url_to_fs(url, **options)
        self._local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))
        self._sizes: dict[str, int] | None = None
        # Blocks that this process has written, or has read and compared with their checksum; others are read before a
        # snapshot relies on them.
        self._sound: set[str] = set()
        self._given_up = False
        # Checksums of arrays that never change, by the object they belong to.
        self._sealed: WeakKeyDictionary[Any, list[str]] = WeakKeyDictionary()

    def give_up(self) -> None:
        """Let a write or a deletion that runs end before its next block, and refuse any other: from any thread, once
        and for all."""
        self._given_up = True

    def _go_on(self) -> None:
        if self._given_up:
            raise SnapshotStoreError(f"{self._root}: given up by its writer")

    def write(self, sequence: int, meta: Mapping[str, Any], parts: Mapping[str, Image]) -> Written:
        """Write the images of all parts (engine, dedupe table …) as snapshot `sequence`. Raises SnapshotStoreError."""
        try:
            return self._write(sequence, meta, parts)
        except OSError as exc:
            raise SnapshotStoreError(f"snapshot {sequence} cannot be written to {self._root}: {exc}") from exc

    def _write(self, sequence: int, meta: Mapping[str, Any], parts: Mapping[str, Image]) -> Written:
        sizes = self._stored_blocks(listed_now=True)
        total = uploaded = blocks = 0
        body: dict[str, Any] = {"layout": LAYOUT, "sequence": sequence, "meta": dict(meta), "parts": {}}
        for part, image in parts.items():
            arrays: dict[str, Any] = {}
            for name, array in image.arrays.items():
                owner = image.sealed.get(name)
                known = self._sealed.get(owner) if owner is not None else None
                flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                if known is None or not self._sound.issuperset(known):
                    known = []
                    for start in range(0, len(flat), BLOCK_BYTES):
                        self._go_on()
                        block = flat[start : start + BLOCK_BYTES].data
                        digest = hashlib.sha256(block).hexdigest()
                        if sizes.get(digest) != len(block) or not self._is_sound(digest):
                            self._put(f"{self._root}/blocks/{digest}", block, "snapshot_block")
                            sizes[digest] = len(block)
                            self._sound.add(digest)
                            uploaded += len(block)
                        known.append(digest)
                    if owner is not None:
                        self._sealed[owner] = known
                arrays[name] = {"dtype": array.dtype.str, "shape": list(array.shape), "blocks": known}
                total += len(flat)
                blocks += len(known)
            body["parts"][part] = {"meta": dict(image.meta), "arrays": arrays}
        self._go_on()
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()
        proof = {} if self._key is None else {"hmac": _hmac(self._key, text)}
        document = json.dumps({"sha256": digest, **proof, "body": text}).encode()
        self._put(self._path(sequence), memoryview(document), "snapshot_manifest")
        self._on_step("snapshot_written")
        return Written(sequence, digest, total, uploaded, blocks)

    def sequences(self) -> list[int]:
        """Sequences of the snapshots in the store, newest first."""
        try:
            found = self._fs.ls(f"{self._root}/manifests", detail=False)
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise SnapshotStoreError(f"{self._root} cannot be listed: {exc}") from exc
        matches = (re.search(r"/(\d{20})\.json$", path) for path in found)
        return sorted((int(match[1]) for match in matches if match), reverse=True)

    def read(self, sequence: int) -> tuple[dict[str, Any], dict[str, Image]]:
        """Facts and images of a snapshot. Raises as `manifest` and `images` do."""
        manifest = self.manifest(sequence)
        return manifest.meta, self.images(manifest)

    def images(self, manifest: Manifest) -> dict[str, Image]:
        """The images of a snapshot, every byte checked. Raises SnapshotMissing or SnapshotDamaged."""
        sequence = manifest.sequence
        try:
            return {
                part: Image(
                    content["meta"],
                    {name: self._array(sequence, f"{part}.{name}", entry) for name, entry in content["arrays"].items()},
                )
                for part, content in manifest.body["parts"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError, MemoryError) as exc:
            raise SnapshotDamaged(f"snapshot {sequence} in {self._root}: its manifest lacks {exc}") from exc

    def newest_first(self) -> Iterator[Manifest | SnapshotError]:
        """Every snapshot from the newest on; in place of one that cannot be read, the error that says why."""
        for sequence in self.sequences():
            try:
                yield self.manifest(sequence)
            except SnapshotStoreError:
                raise
            except SnapshotError as error:
                yield error

    def prune(self, keep: int) -> int:
        """Delete all but the newest `keep` snapshots, and the blocks that none of those needs; how many blocks that
        were. Raises SnapshotStoreError where the store does not let it, SnapshotError for a damaged one among those to
        keep."""
        try:
            return self._prune(keep)
        except OSError as exc:
            raise SnapshotStoreError(f"old snapshots cannot be deleted from {self._root}: {exc}") from exc

    def _prune(self, keep: int) -> int:
        kept = self.sequences()
        needed: set[str] = set()
        for sequence in kept[:keep]:
            self._go_on()
            # A damaged manifest names no blocks: then none is deleted, because the snapshot may still be repaired.
            needed.update(self._needed(self.manifest(sequence).body))
        for sequence in kept[keep:]:
            self._go_on()
            self._fs.rm_file(self._path(sequence))
        stale = [digest for digest in self._stored_blocks() if digest not in needed]
        for digest in stale:
            self._go_on()
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(f"{self._root}/blocks/{digest}")
            self._distrust(digest)
        return len(stale)

    @staticmethod
    def _needed(body: Mapping[str, Any]) -> Iterator[str]:
        try:
            for content in body["parts"].values():
                for entry in content["arrays"].values():
                    yield from entry["blocks"]
        except (KeyError, TypeError, AttributeError) as exc:
            raise SnapshotDamaged(f"a manifest lacks {exc}") from exc

    def _path(self, sequence: int) -> str:
        return f"{self._root}/manifests/{sequence:020d}.json"

    def _stored_blocks(self, *, listed_now: bool = False) -> dict[str, int]:
        """Blocks and their sizes. `listed_now`: list the store again, because others may delete blocks, and a snapshot
        must not rely on one that is missing."""
        if self._sizes is None or listed_now:
            self._fs.invalidate_cache(f"{self._root}/blocks")
            try:
                found = self._fs.ls(f"{self._root}/blocks", detail=True)
            except FileNotFoundError:
                found = []
            self._sizes = {str(item["name"]).rsplit("/", 1)[-1]: int(item["size"] or 0) for item in found}
            self._sound &= self._sizes.keys()
        return self._sizes

    def _is_sound(self, digest: str) -> bool:
        """Whether the block holds what its name says: read once and compared, because its size alone proves little."""
        if digest not in self._sound:
            try:
                data = self._fs.cat_file(f"{self._root}/blocks/{digest}")
            except OSError:
                return False
            if hashlib.sha256(data).hexdigest() != digest:
                return False
            self._sound.add(digest)
        return True

    def _distrust(self, digest: str) -> None:
        """The block is missing or damaged: the next snapshot that needs it writes it again."""
        self._sound.discard(digest)
        self._stored_blocks().pop(digest, None)

    def _put(self, path: str, data: memoryview, step: str) -> None:
        """Write a file completely or not at all. Object stores do so themselves."""
        if not self._local:
            self._on_step(step)
            self._fs.pipe_file(path, bytes(data))
            return
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        temporary = f"{path}.part"
        with open(temporary, "wb") as file:  # noqa: PTH123 - fsspec's own paths
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._on_step(step)
        os.replace(temporary, path)  # noqa: PTH105

    def _get(self, sequence: int, path: str, bytes_max: int) -> bytes:
        """A whole file; of one that is larger than `bytes_max` the beginning, which matches no checksum."""
        try:
            found: bytes = self._fs.cat_file(path, start=0, end=bytes_max + 1)
        except FileNotFoundError as exc:
            raise SnapshotMissing(f"snapshot {sequence}: {path} does not exist") from exc
        except OSError as exc:
            raise SnapshotStoreError(f"snapshot {sequence}: {path} cannot be read: {exc}") from exc
        return found

    def _read_block(self, sequence: int, path: str, room: memoryview) -> bytes | memoryview:
        """A block: from a local folder straight into `room`, else as bytes."""
        if not self._local:
            return self._get(sequence, path, BLOCK_BYTES)
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - fsspec's own paths
                size = os.fstat(file.fileno()).st_size
                if size > len(room):
                    return file.read(BLOCK_BYTES + 1)
                done = 0
                while done < size and (count := file.readinto(room[done:size])):
                    done += count
                return room[:done]
        except FileNotFoundError as exc:
            raise SnapshotMissing(f"snapshot {sequence}: {path} does not exist") from exc
        except OSError as exc:
            raise SnapshotStoreError(f"snapshot {sequence}: {path} cannot be read: {exc}") from exc

    def manifest(self, sequence: int) -> Manifest:
        """The manifest of a snapshot. Raises SnapshotMissing, SnapshotDamaged, SnapshotForged or SnapshotVersion."""
        path = self._path(sequence)
        try:
            document = json.loads(self._get(sequence, path, MANIFEST_BYTES_MAX))
            text, proof = document["body"], document.get("hmac")
            digest = hashlib.sha256(text.encode()).hexdigest()
            proved = self._key is None or (
                isinstance(proof, str) and hmac.compare_digest(proof.encode(), _hmac(self._key, text).encode())
            )
            right = digest == document["sha256"]
            body: dict[str, Any] = json.loads(text) if right and proved else {}
            if right and proved and not (isinstance(body, dict) and isinstance(body["meta"], dict)):
                raise ValueError("no facts")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise SnapshotDamaged(f"snapshot {sequence}: the manifest {path} is not readable") from exc
        if not right:
            raise SnapshotDamaged(f"snapshot {sequence}: the manifest {path} does not match its checksum")
        if not proved:
            raise SnapshotForged(
                f"snapshot {sequence}: the manifest {path} does not carry the HMAC of this application's secret: it "
                "was written by others, or under another secret"
            )
        if body.get("layout") != LAYOUT:
            raise SnapshotVersion(f"snapshot {sequence}: layout {body.get('layout')}, this version reads {LAYOUT}")
        return Manifest(sequence, digest, body["meta"], body)

    def _array(self, sequence: int, name: str, entry: Mapping[str, Any]) -> npt.NDArray[Any]:
        shape, blocks = entry["shape"], entry["blocks"]
        if entry["dtype"] not in _TYPES or not all(type(n) is int and n >= 0 for n in shape) or not shape:
            raise SnapshotDamaged(f"snapshot {sequence}: {name} is no array of numbers")
        if not all(isinstance(digest, str) and _DIGEST.fullmatch(digest) for digest in blocks):
            raise SnapshotDamaged(f"snapshot {sequence}: {name} names blocks that are none")
        dtype = np.dtype(entry["dtype"])
        size = math.prod(shape) * dtype.itemsize
        if size > len(blocks) * BLOCK_BYTES:
            raise SnapshotDamaged(f"snapshot {sequence}: {name} has fewer blocks than its manifest says")
        flat = np.empty(size, dtype=np.uint8)
        start = 0
        for digest in blocks:
            path = f"{self._root}/blocks/{digest}"
            try:
                data = self._read_block(sequence, path, flat[start:].data)
            except SnapshotMissing:
                self._distrust(digest)
                raise
            if hashlib.sha256(data).hexdigest() != digest:
                self._distrust(digest)
                raise SnapshotDamaged(f"snapshot {sequence}: {name}: the block {path} does not match its checksum")
            self._sound.add(digest)
            if start + len(data) > len(flat):
                raise SnapshotDamaged(f"snapshot {sequence}: {name} is longer than its manifest says")
            if isinstance(data, bytes):
                flat[start : start + len(data)] = np.frombuffer(data, dtype=np.uint8)
            start += len(data)
        if start != len(flat):
            raise SnapshotDamaged(f"snapshot {sequence}: {name} is shorter than its manifest says")
        array: npt.NDArray[Any] = flat.view(dtype).reshape(shape)
        return array


def _hmac(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
