"""Snapshots edited by whoever can write to their store: refused, or without harm; never a crash, a hang, or a change of
what a worker decides."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features import kernel_tables as kt
from features.engine_image import Image, StateMismatch
from features.engine_state import CHUNK_WORDS
from features.feature_set import FeatureSet
from features.log_segments import SegmentError
from features.snapshot_store import SnapshotDamaged, SnapshotError, SnapshotForged, SnapshotStore
from features.window_plan import lower
from scorer.bundle import Bundle
from scorer.pipeline import Pipeline
from scorer.pipeline.records import Batch
from scorer.pipeline.state_image import ShardCapture, facts, restored
from tests.golden_rows import golden_rows
from tests.older_images import as_format_3

ROOT = Path(__file__).resolve().parents[2]
REFUSED = (StateMismatch, SegmentError, SnapshotError)
KEY = b"k" * 32
SEEDS, EDITS = 3, 40
# Every kind of thing that a state holds: releasing and lasting keys, late rows, series, distinct values, labels.
FEATURES = """
name: hostile
currency: EUR
allowed_lateness: 10m
entities: {customer: [customer_id], terminal: [terminal_id], pair: [customer_id, terminal_id]}
features:
  - {name: amount, payment: amount}
  - {name: n, entity: customer, aggregate: count, window: 20m}
  - {name: std, entity: customer, aggregate: std, of: amount, window: 20m}
  - {name: least, entity: customer, aggregate: min, of: amount, window: 20m}
  - {name: middle, entity: customer, aggregate: median, of: amount, window: 20m, delay: 2m}
  - {name: shops, entity: customer, aggregate: distinct, of: terminal_id, window: 20m}
  - {name: shop_share, entity: customer, aggregate: share, of: terminal_id, window: 30m, delay: 1m}
  - {name: hour_unlike, entity: customer, aggregate: circular_dispersion, of: hour_of_day, window: 30m}
  - {name: mean_5, entity: terminal, aggregate: mean, of: amount, window: 30m, latest: 5}
  - {name: trouble, entity: customer, aggregate: neighbour_frauds, of: terminal, window: 20m}
  - {name: near, entity: customer, aggregate: nearest_km, window: 20m}
  - {name: most, entity: pair, aggregate: max, of: amount, window: 10m}
  - {name: rate, entity: terminal, aggregate: fraud_rate, window: 30m, delay: 5m}
  - {name: since_fraud, entity: terminal, aggregate: since_fraud}
  - {name: last_label, entity: terminal, aggregate: last_label}
  - {name: decayed, entity: terminal, aggregate: decayed_sum, of: amount, half_life: 10m}
  - {name: decayed_std, entity: terminal, aggregate: decayed_std, of: amount, half_life: 10m}
"""


def payment(rng: random.Random, n: int, at_ms: int) -> bytes:
    late = rng.randrange(1, 300_000) if rng.random() < 0.1 else 0
    fields = {
        "payment_id": f"p{n}", "event_time": at_ms - late, "amount_minor": rng.randrange(1, 50_000), "currency": "EUR",
        "customer_id": f"c{rng.randrange(40)}", "terminal_id": f"t{rng.randrange(30)}",
        "latitude": rng.randrange(-3, 4) * 30.0, "longitude": rng.randrange(-6, 7) * 30.0,
    }  # fmt: skip
    return json.dumps(fields).encode()


def stream(seed: int, first: int, count: int) -> Batch:
    rng = random.Random(seed)
    values = [payment(rng, n, 1_767_225_600_000 + 4_000 * n) for n in range(first, first + count)]
    return Batch.of_payments(values, first_offset=first)


def labelled(pipeline: Pipeline, first: int) -> None:
    for n in range(first, first + 120):  # of payments that came, and of some that come later
        pipeline.engine.add_label(f"p{n * 3}", fraud=n % 3 == 0, known_at_ms=1_767_225_600_000 + 9_000 * n)


def snapshot(bundle: Bundle) -> tuple[Pipeline, dict[str, Any], dict[str, Image]]:
    pipeline = Pipeline(bundle)
    pipeline.lists.add("blocked", "t1")
    for k in range(6):
        labelled(pipeline, 100 * k)
        pipeline.run(stream(k, 250 * k, 250))
    capture = ShardCapture(pipeline)
    capture.copy()
    parts = capture.finish()
    assert parts is not None
    return pipeline, facts(pipeline), parts


NUMBERS = (
    0, 1, 2, 3, 7, 8, 40, 255, 1 << 12, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 32) + 1, 1 << 40, 1 << 48,
    1 << 62, (1 << 63) - 1, -1, -2, -(1 << 31), -(1 << 62), -(1 << 63),
)  # fmt: skip
ODD: tuple[Any, ...] = (None, -1, 0, 1, 3, 7, 25, 1 << 62, 1 << 70, 1.5, True, "", "0" * 32, "0" * 64, [], {}, "é")


def changed(rng: random.Random, array: np.ndarray) -> np.ndarray:
    """One field of an array flipped, replaced or copied from another place; or the array itself another one."""
    way, flat = rng.randrange(9), array.copy().reshape(-1)
    if way == 0:
        return array[: len(array) // 2]
    if way == 1:
        return np.concatenate([array, array[:3]])
    if way == 2:
        return array.astype(rng.choice([np.int64, np.uint64, np.float64, np.uint8]))
    if way == 3:
        return array.reshape(-1, 1) if array.ndim == 1 else array.reshape(-1)
    if len(flat) == 0:
        return np.concatenate([array, np.ones((1, *array.shape[1:]), array.dtype)])
    used = np.flatnonzero(flat)
    at = int(rng.choice(used.tolist())) if len(used) and rng.random() < 0.8 else rng.randrange(len(flat))
    raw = flat[at : at + 1].view(np.uint8)
    if way == 4 or flat.dtype.kind == "f":
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif way == 5:
        flat[at] = flat[rng.randrange(len(flat))]
    elif way == 6:
        flat[at] = np.array([int(flat[at]) + rng.choice([-8, -3, -1, 1, 3, 8])]).astype(flat.dtype)[0]
    else:
        number = rng.choice(NUMBERS) & ((1 << 8 * flat.dtype.itemsize) - 1)
        flat[at] = np.frombuffer(number.to_bytes(flat.dtype.itemsize, "little"), flat.dtype)[0]
    return flat.reshape(array.shape)


def attacked(rng: random.Random, known: dict[str, Any], parts: dict[str, Image]) -> tuple[dict[str, Any], Any, str]:
    """A snapshot with one to three fields changed, and which."""
    known, parts, names = dict(known), dict(parts), []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        part = rng.choice(["engine", "engine", "engine", "engine", "dedupe", "lists", "facts"])
        if part == "facts":
            name = rng.choice(list(known))
            known[name] = rng.choice(ODD)
        elif rng.random() < 0.1:
            name = rng.choice(list(parts[part].meta))
            parts[part] = Image({**parts[part].meta, name: rng.choice(ODD)}, parts[part].arrays)
        else:
            name = rng.choice(list(parts[part].arrays))
            arrays = dict(parts[part].arrays)
            arrays[name] = changed(rng, arrays[name])
            if rng.random() < 0.05:
                arrays[rng.choice(["rows-1", "labels-0", "known-0", "pending-99", "strange", name])] = arrays.pop(name)
            parts[part] = Image(parts[part].meta, arrays)
        names.append(f"{part}.{name}")
    return known, parts, ", ".join(names)


def attack(seed: int, count: int, folder: Path) -> None:
    """What the child process does: `count` edited snapshots, each written with right checksums, read, restored and
    played on. Prints what it does, for whoever reads how it ended."""
    rng = random.Random(seed)
    bundle = Bundle.load(folder / "bundle")
    pipeline, known, parts = snapshot(bundle)
    if seed == 1:  # of the release before
        parts["engine"] = as_format_3(parts["engine"])
    nexts = [stream(90 + k, 1_500 + 250 * k, 250) for k in range(4)]
    sound = restored(bundle, known, parts)
    for batch in nexts:
        assert sound.run(batch).journal.head == pipeline.run(batch).journal.head
    refused = 0
    for n in range(count):
        signal.alarm(20)  # a hang ends the process
        new_known, new_parts, what = attacked(rng, known, parts)
        print(n, what, flush=True)
        store = SnapshotStore(str(folder / f"store-{seed}"))
        try:
            store.write(n, new_known, new_parts)
            read_known, read_parts = store.read(n)
            victim = restored(bundle, read_known, read_parts)
        except REFUSED:
            refused += 1
            continue
        for batch in nexts:
            labelled(victim, 500)
            victim.run(batch)
        capture = ShardCapture(victim)
        capture.copy()
        capture.finish()
    print(f"refused {refused} of {count}", flush=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import xgboost as xgb  # noqa: PLC0415

    from scorer.bundle import write_bundle  # noqa: PLC0415

    made = tmp_path_factory.mktemp("hostile")
    features = len(FeatureSet.from_yaml(FEATURES).features)
    rows = np.random.default_rng(3).uniform(0, 500, (500, features)).astype(np.float32)
    data = xgb.DMatrix(rows, (rows[:, 0] > 300).astype(np.float32), nthread=1)
    booster = xgb.train({"objective": "binary:logistic", "max_depth": 2, "nthread": 1}, data, 2)
    policy = "name: hostile\nflag: {score: 0.6}\nlists: [{name: blocked, field: terminal_id, reason: BLOCKED}]\n"
    model = bytes(booster.save_raw("ubj"))
    write_bundle(
        made / "bundle", name="hostile", created_at="2026-01-01T00:00:00Z", model=model,
        feature_set_yaml=FEATURES, policy_yaml=policy, threshold_score=0.6, golden=golden_rows(model),
    )  # fmt: skip
    return made


@pytest.mark.parametrize("seed", range(SEEDS))
def test_an_edited_snapshot_is_refused_or_harmless(seed: int, folder: Path) -> None:
    """Whatever one field of a snapshot is replaced by, its checksums made right again: it is refused by name, or the
    engine goes on within its memory. Nothing crashes, nothing runs for ever."""
    code = (
        "from pathlib import Path; from tests.unit.test_hostile_snapshots import attack; "
        f"attack({seed}, {EDITS}, Path({str(folder)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stdout[-500:], done.stderr[-3000:])
    refused, count = map(int, done.stdout.splitlines()[-1].removeprefix("refused ").split(" of "))
    assert refused > count // 2


def test_a_neighbour_that_is_no_key_is_refused(folder: Path) -> None:
    """The place of a neighbour in a snapshot is followed when features are read, so it has to be a slot of its own
    entity."""
    bundle = Bundle.load(folder / "bundle")
    _, known, parts = snapshot(bundle)
    engine = parts["engine"]
    ops = lower(bundle.feature_set, segment_shift=12).tables.ops
    (op,) = ops[ops[:, kt.O_KIND] == kt.OP_NEIGHBOURS]
    arena, owner = engine.arrays["arena"], engine.arrays["owner"]
    (customers,) = np.flatnonzero(owner == op[kt.O_ENTITY])[:1]
    block = arena[customers * CHUNK_WORDS + op[kt.O_ACCUMULATOR]]
    assert block > 0
    first = int(engine.arrays["pool"][block] >> 32)
    for place in (0, 1, int(customers) * CHUNK_WORDS, len(arena) - 1, len(arena), 1 << 40, -8):
        pool = engine.arrays["pool"].copy()
        pool[block + 3 + 2 * first] = place
        edited = {**parts, "engine": Image(engine.meta, {**engine.arrays, "pool": pool})}
        with pytest.raises(StateMismatch, match="series of a key"):
            restored(bundle, known, edited)


def test_a_place_that_is_not_on_the_earth_is_refused(folder: Path) -> None:
    """Places of a key's latest payments come back as they were, or the snapshot is not used."""
    bundle = Bundle.load(folder / "bundle")
    _, known, parts = snapshot(bundle)
    engine = parts["engine"]
    ops = lower(bundle.feature_set, segment_shift=12).tables.ops
    (op,) = ops[ops[:, kt.O_KIND] == kt.OP_PLACES]
    (customers,) = np.flatnonzero(engine.arrays["owner"] == op[kt.O_ENTITY])[:1]
    block = engine.arrays["arena"][customers * CHUNK_WORDS + op[kt.O_ACCUMULATOR]]
    first = int(engine.arrays["pool"][block] >> 32)
    north, east = 1 << 32, 1
    for place, sound in (
        (900_000_000 * north, True), (-900_000_000 * north, True), (1_800_000_000 * east, True),
        (900_000_001 * north, False), (-900_000_001 * north, False), (1_800_000_001 * east, False), (-(1 << 63), False),
    ):  # fmt: skip
        pool = engine.arrays["pool"].copy()
        pool[block + 3 + 2 * first] = place
        edited = {**parts, "engine": Image(engine.meta, {**engine.arrays, "pool": pool})}
        if sound:
            restored(bundle, known, edited)
            continue
        with pytest.raises(StateMismatch, match="series of a key"):
            restored(bundle, known, edited)


def forge(folder: Path, edit: Any) -> None:
    """Edit the newest manifest and make its checksum right."""
    path = max((folder / "manifests").iterdir())
    document = json.loads(path.read_bytes())
    body = json.loads(document["body"])
    edit(body)
    text = json.dumps(body)
    path.write_text(json.dumps({**document, "sha256": hashlib.sha256(text.encode()).hexdigest(), "body": text}))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    SnapshotStore(str(tmp_path), key=KEY).write(3, {"head": "x"}, {"lists": Image({}, {"a": np.arange(9)})})
    return tmp_path


def test_with_a_key_only_snapshots_under_it_are_read(store: Path) -> None:
    """A manifest without HMAC, with another key's, or edited under a right checksum is refused unread."""
    assert SnapshotStore(str(store), key=KEY).read(3)[0] == {"head": "x"}
    with pytest.raises(SnapshotForged, match="snapshot 3"):
        SnapshotStore(str(store), key=b"j" * 32).read(3)
    forge(store, lambda body: body["meta"].update(head="y"))
    with pytest.raises(SnapshotForged, match="snapshot 3"):
        SnapshotStore(str(store), key=KEY).read(3)
    SnapshotStore(str(store)).write(4, {}, {})
    with pytest.raises(SnapshotForged, match="snapshot 4"):
        SnapshotStore(str(store), key=KEY).read(4)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "|O"}, {"dtype": "|O8"}, {"dtype": "<U9"}, {"dtype": None}, {"shape": [-9]}, {"shape": [1 << 60]},
        {"shape": []}, {"shape": [9.0]}, {"shape": ["9"]}, {"shape": None}, {"blocks": ["../../../etc/passwd"]},
        {"blocks": [1]}, {"blocks": None}, {"blocks": {}},
    ],
)  # fmt: skip
def test_a_manifest_cannot_ask_for_objects_memory_or_other_files(entry: dict[str, Any], store: Path) -> None:
    """Types that hold addresses, sizes beyond the blocks, and blocks that are paths are refused by name."""
    forge(store, lambda body: body["parts"]["lists"]["arrays"]["a"].update(entry))
    with pytest.raises(SnapshotDamaged, match="snapshot 3"):
        SnapshotStore(str(store)).read(3)


def test_nesting_and_strange_bodies_are_refused(store: Path) -> None:
    """JSON that nests without end, and a body that is no object, do not end the reader."""
    path = store / "manifests" / f"{3:020d}.json"
    for body in ("[" * 100_000, "[]", "7", '{"layout":1}', '{"layout":1,"meta":[]}', '{"layout":1,"meta":{}}'):
        digest = hashlib.sha256(body.encode()).hexdigest()
        path.write_text(json.dumps({"sha256": digest, "body": body}))
        with pytest.raises(SnapshotDamaged, match="snapshot 3"):
            SnapshotStore(str(store)).read(3)
    path.write_text("[" * 100_000)
    with pytest.raises(SnapshotDamaged, match="snapshot 3"):
        SnapshotStore(str(store)).read(3)
