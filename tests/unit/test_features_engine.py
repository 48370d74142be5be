"""What the engine promises beyond its values: exact sums for ever, bounded memory, a log on disk, explanations."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import numba as nb
import numpy as np
import pytest

from features import kernel_tables as kt
from features import log_segments, pending_labels
from features.arithmetic import add_square, deviation, halved
from features.engine_state import UNMATCHED_MAX
from features.feature_description import describe
from features.feature_set import FeatureSet, FeatureSetError
from features.hashing import PUBLIC_KEY, hash_strings
from features.log_segments import SegmentError
from features.window_engine import WindowEngine
from tests.benchmarks.streams import bench_set, prepared
from tests.properties.engine_streams import PROOF, feed, give_labels

T0 = 1_767_225_600_000


def feature_set(*features: str, head: str = "") -> FeatureSet:
    lines = "".join(f"  - {feature}\n" for feature in features)
    return FeatureSet.from_yaml(f"name: t\ncurrency: EUR\nentities: {{c: [customer_id]}}\n{head}features:\n{lines}")


def rows_of(s: FeatureSet, times: Any, amounts: Any, keys: Any) -> np.ndarray:
    rows = np.zeros((len(times), kt.B_KEYS + 2 * len(s.entities)), dtype=np.uint64)
    rows[:, kt.B_TIME], rows[:, kt.B_AMOUNT] = times, amounts
    rows[:, kt.B_PRESENT] = (1 << len(s.entities)) - 1
    rows[:, kt.B_ID] = np.arange(len(times), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1)
    for e in range(len(s.entities)):
        rows[:, kt.B_KEYS + 2 * e] = (np.asarray(keys, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        rows[:, kt.B_KEYS + 2 * e + 1] = np.asarray(keys, dtype=np.uint64) + np.uint64(7)
    return rows


def restored(engine: WindowEngine) -> WindowEngine:
    capture = engine.capture()
    capture.copy()
    image = capture.finish()
    assert image is not None
    return WindowEngine.restore(engine.feature_set, image)


def play(engine: WindowEngine, rows: np.ndarray) -> np.ndarray:
    out = np.empty((len(rows), len(engine.feature_set.features)), dtype=np.float32)
    engine.apply_prepared(rows, out)
    return out


@nb.njit(cache=True)
def _add_and_remove(arena, pairs, seed):  # type: ignore[no-untyped-def]
    """`pairs` additions, each removed again later, as edges do it; a few stay."""
    np.random.seed(seed)
    ring = np.zeros(1024, np.int64)
    for k in range(pairs):
        place = k & 1023
        if k >= 1024:
            arena[0] -= ring[place]
            add_square(arena, 1, ring[place], -1)
        ring[place] = np.random.randint(0, 10**12)
        arena[0] += ring[place]
        add_square(arena, 1, ring[place], 1)
    return ring


def test_sums_and_squares_are_exact_after_a_hundred_million_additions_and_removals() -> None:
    """10^8 additions and removals of amounts up to 10^12 leave exactly what is still inside."""
    arena = np.zeros(3, dtype=np.int64)
    left = [int(x) for x in _add_and_remove(arena, 50_000_000, 7)]
    assert int(arena[0]) == sum(left)
    assert (int(arena.view(np.uint64)[2]) << 64) + int(arena.view(np.uint64)[1]) == sum(x * x for x in left)


def test_a_deviation_keeps_its_digits_on_large_amounts_with_a_small_spread() -> None:
    """Amounts of 10^11 that differ by cents have the deviation of those cents."""
    amounts = [10**11 + d for d in (0, 1, 2, 3, 5, 8)]
    squares = sum(a * a for a in amounts)
    found = deviation(len(amounts), sum(amounts), np.uint64(squares & ((1 << 64) - 1)), np.uint64(squares >> 64))
    assert found == pytest.approx(float(np.std([0, 1, 2, 3, 5, 8])), rel=1e-12)


def test_halving_is_right_and_ends_at_zero() -> None:
    """2^-x to 3 units in the last place over the whole range of doubles."""
    for x in (0.0, 1e-300, 1e-9, 0.5, 1.0, 1.25, 52.7, 1000.0, 1073.5):
        assert halved(x) == pytest.approx(2.0**-x, rel=1e-15)
    assert halved(1e9) == 0.0


def test_a_hot_key_costs_no_more_than_others() -> None:
    """Half of all traffic on one key, amounts falling for a maximum and rising for a minimum, does not become
    quadratic."""
    s = feature_set(
        "{name: least, entity: c, aggregate: min, of: amount, window: 30d}",
        "{name: most, entity: c, aggregate: max, of: amount, window: 1h}",
        "{name: n, entity: c, aggregate: count, window: 30d}",
    )
    n = 300_000
    times = T0 + np.arange(n) * 1000
    amounts = {"falling": 10**9 - np.arange(n), "rising": 1 + np.arange(n)}
    keys = np.where(np.arange(n) % 2 == 0, 0, np.arange(n))
    play(WindowEngine(s), rows_of(s, times[:100], amounts["rising"][:100], keys[:100]))  # compiles
    for shape in amounts.values():
        engine, before = WindowEngine(s), time.process_time()
        for at in range(0, n, 4096):
            play(engine, rows_of(s, times[at : at + 4096], shape[at : at + 4096], keys[at : at + 4096]))
        assert (time.process_time() - before) / n < 20e-6


def test_thousands_of_late_payments_and_labels_of_one_key_in_any_order() -> None:
    """Windows, medians and known frauds of one busy key do not depend on how far apart its payments and their verdicts
    arrive: they are what the sorted history says."""
    s = feature_set(
        "{name: n, entity: c, aggregate: count, window: 500s}",
        "{name: middle, entity: c, aggregate: median, of: amount, window: 1d}",
        "{name: first_fraud, entity: c, aggregate: since_first_fraud}",
        "{name: last_fraud, entity: c, aggregate: since_fraud}",
        head="allowed_lateness: 1h\nlabel_horizon: 2d\n",
    )
    rng = np.random.default_rng(8)
    count = 3_000
    times = T0 + 1_000 * rng.permutation(count)
    times[0] = T0 + 1_000 * count  # stream time from the first payment on: all others are late
    rows = rows_of(s, times, rng.integers(1, 10**6, count), np.zeros(count, dtype=int))
    engine = WindowEngine(s)
    rows[:, kt.B_ID : kt.B_ID + 2] = hash_strings([f"p{k}" for k in range(count)], engine.hash_key)[0]
    play(engine, rows)
    verdicts = rng.permutation(count)[:2_000]
    for k in verdicts.tolist():
        engine.add_label(f"p{k}", fraud=True, known_at_ms=T0)
    cleared = verdicts[rng.permutation(2_000)[:1_500]]
    for k in cleared.tolist():
        engine.add_label(f"p{k}", fraud=False, known_at_ms=T0 + 1)
    now = int(times[0]) + 250_000
    probe = rows_of(s, [now], [1], [0])
    frauds = np.setdiff1d(verdicts, cleared)
    latest = np.argsort(times, kind="stable")[-128:]
    found = play(engine, probe)[0]
    assert found[0] == np.count_nonzero(times > now - 500_000)
    assert found[1] == np.float32(np.median(rows[latest, kt.B_AMOUNT].astype(np.int64)) / 100.0)
    assert found[2] == np.float32((now - times[frauds].min()) / 1000.0)
    assert found[3] == np.float32((now - times[frauds].max()) / 1000.0)


def test_idle_keys_free_their_slots() -> None:
    """200,000 keys that come once and never again leave no key, no block and no distinct value behind."""
    s = feature_set(
        "{name: n, entity: c, aggregate: count, window: 1h}",
        "{name: least, entity: c, aggregate: min, of: amount, window: 1h}",
    )
    engine = WindowEngine(s, segment_shift=12)
    for k in range(50):
        keys = np.arange(4000) + 4000 * k
        play(engine, rows_of(s, T0 + np.arange(4000) + k * 3_600_000, np.full(4000, 5), keys))
        assert engine.counts().keys <= 8_000
    play(engine, rows_of(s, [T0 + 10**9], [1], [0]))
    assert engine.counts().keys == 1
    assert engine.counts().log_rows <= 1
    assert engine.counts().arena_bytes < 5_000_000


def test_new_keys_beyond_keys_max_are_refused_and_counted() -> None:
    """A full table refuses new keys: they are scored as keys without history, the known ones go on, and a metric counts
    them."""
    s = feature_set("{name: n, entity: c, aggregate: count, window: 1h, include_current: true}", head="keys_max: 3\n")
    engine = WindowEngine(s)
    out = play(engine, rows_of(s, T0 + np.arange(8), np.ones(8), [0, 1, 2, 3, 3, 0, 1, 3]))
    assert out[:, 0].tolist() == [1, 1, 1, 1, 1, 2, 2, 1]
    assert engine.counts().keys == 3
    assert engine.counts().keys_refused == 3
    # When the known ones have gone idle there is room again.
    assert play(engine, rows_of(s, T0 + 4_000_000 + np.arange(2), [1, 1], [3, 3]))[:, 0].tolist() == [1, 2]


def test_the_log_on_disk_gives_the_same_bits(tmp_path: Path) -> None:
    """Segments in files and segments in memory give the same features; passed segments are deleted, the rest on
    close."""
    s = FeatureSet.from_yaml(bench_set().replace("label_horizon: 40d", "label_horizon: 31d"))
    rows = prepared(s, 40_000, keys=2_000, span_ms=100 * 86_400_000, seed=3)
    on_disk, in_memory = WindowEngine(s, folder=tmp_path, segment_shift=10), WindowEngine(s)
    for at in range(0, len(rows), 1500):
        np.testing.assert_array_equal(play(on_disk, rows[at : at + 1500]), play(in_memory, rows[at : at + 1500]))
    files = list(tmp_path.glob("segment-*.log"))
    assert 40_000 * 31 / 100 / 1024 - 2 <= len(files) <= 40_000 * 31 / 100 / 1024 + 4
    on_disk.close()
    assert not list(tmp_path.glob("segment-*.log"))


def test_a_folder_belongs_to_one_engine(tmp_path: Path) -> None:
    """A second engine on the same folder is refused; what a former engine left is cleared, never read."""
    s = feature_set("{name: n, entity: c, aggregate: count, window: 1h}")
    (tmp_path / "segment-000000000000.log").write_bytes(b"left by a crash")
    engine = WindowEngine(s, folder=tmp_path)
    with pytest.raises(SegmentError, match="in use by another engine"):
        WindowEngine(s, folder=tmp_path)
    assert play(engine, rows_of(s, [T0, T0 + 1], [1, 1], [0, 0]))[:, 0].tolist() == [0, 1]
    engine.close()
    WindowEngine(s, folder=tmp_path).close()


def test_a_full_disk_is_a_clear_error_before_anything_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room for a segment: the batch is refused with folder, need and way out, and the state is as before."""
    s = feature_set("{name: n, entity: c, aggregate: count, window: 1h}")
    engine = WindowEngine(s, folder=tmp_path, segment_shift=6)
    play(engine, rows_of(s, T0 + np.arange(60), np.ones(60), np.zeros(60)))
    counts = engine.counts()

    def full(_descriptor: int, _offset: int, _size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(log_segments.os, "posix_fallocate", full)
        with pytest.raises(SegmentError, match=r"segment-0+1\.log.*No space left.*free some"):
            play(engine, rows_of(s, T0 + 60 + np.arange(60), np.ones(60), np.zeros(60)))
    assert engine.counts() == counts
    assert play(engine, rows_of(s, [T0 + 60], [1], [0]))[0, 0] == 60


def test_the_payments_inside_a_window_explain_its_value() -> None:
    """`payments_in_window` lists exactly the payments that the feature counts now, and nothing for an unknown key."""

    engine = WindowEngine(PROOF, segment_shift=6)
    same = {"currency": "EUR", "customer_id": "c1", "terminal_id": "t1"}
    rows = [
        {**same, "payment_id": f"p{i}", "t": T0 + 1000 * t, "amount": 100 * (i + 1), "channel": channel}
        for i, (t, channel) in enumerate([(0, "pos"), (50, "ecom"), (45, "pos"), (70, "ecom"), (100, "pos")])
    ]
    give_labels(engine, [("p1", T0, True)])
    feed(engine, rows)
    assert engine.payments_in_window(["c1"], "n").amount_minor.tolist() == [300, 200, 400, 500]
    assert engine.payments_in_window(["c1"], "mean_2").amount_minor.tolist() == [400, 500]
    online = engine.payments_in_window(["c1"], "online")
    assert online.amount_minor.tolist() == [200, 400]
    assert online.label.tolist() == [1, 0]
    assert engine.payments_in_window(["t1"], "late_n").amount_minor.tolist() == [300, 200, 400]
    assert len(engine.payments_in_window(["unknown"], "n").seq) == 0
    with pytest.raises(FeatureSetError, match="gap"):
        engine.payments_in_window(["c1"], "gap")
    with pytest.raises(FeatureSetError, match="customer_id"):
        engine.payments_in_window(["c1", "m1"], "n")


def test_no_feature_is_ever_infinite() -> None:
    """Attributes beyond float32 and quotients that overflow are NaN, as is whatever is made of them."""
    s = feature_set(
        "{name: amount, payment: amount}",
        "{name: x, payment: attributes.x}",
        "{name: y, payment: attributes.y}",
        "{name: ratio, ratio: [amount, y]}",
        "{name: difference, difference: [x, y]}",
        "{name: far, difference: [amount, x]}",
        "{name: score, zscore: [amount, x, y]}",
    )
    names = s.names
    for x, y in ((1e300, 1e-40), (-1e300, 1e-40), (3e38, -3e38), (-3e38, 3e38), (10**18, 0)):
        row = {"payment_id": "p", "t": T0, "amount": 999_999_999_999, "currency": "EUR", "attributes": {"x": x, "y": y}}
        found = dict(zip(names, feed(WindowEngine(s), [row])[0].tolist(), strict=True))
        assert not any(np.isinf(value) for value in found.values()), found
        assert np.isnan(found["x"]) == (abs(x) == 1e300)
        assert np.isnan(found["ratio"]) == (abs(y) in (1e-40, 0))


def labelled(payment: int) -> tuple[str, dict[str, Any]]:
    return f"p{payment}", {"payment_id": f"p{payment}", "amount": 1, "currency": "EUR", "customer_id": "c"}


def test_a_label_without_its_payment_makes_room_for_younger_ones() -> None:
    """More labels of payments that never come than there is room for: one that comes early still finds its payment, the
    oldest are dropped and counted, wherever batches are cut and snapshots are taken."""
    s = feature_set("{name: frauds, entity: c, aggregate: fraud_count, window: 30d}")
    extra = 1_000
    found = []
    for way in ("whole", "cut", "restored"):
        engine = WindowEngine(s)
        feed(engine, [{**labelled(0)[1], "t": T0}])
        give_labels(engine, [(f"never{k}", T0 + 1, True) for k in range(UNMATCHED_MAX + extra)])
        if way != "whole":
            feed(engine, [{**labelled(1)[1], "t": T0 + 1}])
        if way == "restored":
            engine = restored(engine)
        give_labels(engine, [("p2", T0 + 1, True)])
        rows = [] if way != "whole" else [{**labelled(1)[1], "t": T0 + 1}]
        rows += [{**labelled(2)[1], "t": T0 + 2}, {**labelled(3)[1], "t": T0 + 3}]
        values = feed(engine, rows)[-1]
        assert values.tolist() == [1.0]
        counts = engine.counts()
        found.append((counts.unmatched_labels, counts.unmatched_labels_dropped, counts.unmatched_labels_expired))
    assert found == [(UNMATCHED_MAX - 1, extra + 1, 0)] * 3


def test_a_label_waits_no_longer_than_a_payment_stays_in_the_log() -> None:
    """Labels of payments that never came are dropped, and a payment that comes with such an id is not corrected."""
    s = feature_set("{name: frauds, entity: c, aggregate: fraud_count, window: 1d}", head="label_horizon: 2d\n")
    for days, value in ((1, 1.0), (2, 0.0)):
        engine = WindowEngine(s)
        feed(engine, [{**labelled(0)[1], "t": T0}])
        give_labels(engine, [("p2", T0 + 1, True), ("never", T0 + 1, True)])
        feed(engine, [{**labelled(1)[1], "t": T0 + 1}])
        engine = restored(engine)
        later = T0 + 1 + days * 86_400_000
        assert feed(engine, [{**labelled(2)[1], "t": later}, {**labelled(3)[1], "t": later}])[-1].tolist() == [value]
        assert engine.counts().unmatched_labels == (1 if days == 1 else 0)
        assert engine.counts().unmatched_labels_expired == (0 if days == 1 else 2)


def test_labels_that_find_their_payments_leave_no_gaps_behind() -> None:
    """Labels that come just before their payments, many times over, never push out one that waits."""
    s = feature_set("{name: frauds, entity: c, aggregate: fraud_count, window: 30d}")
    engine = WindowEngine(s)
    feed(engine, [{**labelled(0)[1], "t": T0}])
    give_labels(engine, [("waits", T0, True)])
    n = 50_000
    for start in range(0, 4 * n, n):
        give_labels(engine, [(f"q{k}", T0, False) for k in range(start, start + n)])
        feed(engine, [{**labelled(start + 1)[1], "t": T0}])
        feed(engine, [{**labelled(0)[1], "payment_id": f"q{k}", "t": T0} for k in range(start, start + n)])
    counts = engine.counts()
    assert (counts.unmatched_labels, counts.unmatched_labels_dropped, counts.labels_applied) == (1, 0, 4 * n)
    last = {**labelled(0)[1], "t": T0}
    assert feed(engine, [{**last, "payment_id": "waits"}, {**last, "payment_id": "z"}])[-1].tolist() == [1.0]


def test_waiting_labels_keep_their_order_however_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Added in pieces of any size and taken out step by step: as if all had been sorted at once. Full: counted."""
    generator = np.random.default_rng(5)
    monkeypatch.setattr(pending_labels, "MERGED_MAX", 64)
    waiting, plain, taken = pending_labels.PendingLabels(PUBLIC_KEY), [], []
    now = 0
    for k in range(600):
        for _ in range(int(generator.integers(0, 9))):
            known, fraud = now + int(generator.integers(1, 60)), bool(generator.integers(2))
            waiting.add(f"p{len(plain)}", fraud=fraud, known_at_ms=known)
            plain.append((known, 1 if fraud else 2, f"p{len(plain)}"))
        waiting.gather()
        if k % 50 == 49:
            waiting = pending_labels.PendingLabels(PUBLIC_KEY, waiting.runs(), refused=waiting.refused)
        now += int(generator.integers(0, 4))
        taken += waiting.due(now).tolist()
    taken += waiting.due(1 << 40).tolist()
    assert len(waiting) == 0
    plain.sort(key=lambda label: label[0])
    ids = hash_strings([name for _, _, name in plain], PUBLIC_KEY)[0].view(np.int64)
    assert taken == [[known, *id_, label] for (known, label, _), id_ in zip(plain, ids.tolist(), strict=True)]
    monkeypatch.setattr(pending_labels, "LABELS_PENDING_MAX", 2)
    for k in range(5):
        waiting.add(f"p{k}", fraud=True, known_at_ms=1 << 41)
    assert (len(waiting), waiting.refused) == (2, 3)


def test_a_new_label_costs_little_however_many_wait() -> None:
    """With 4 million labels waiting, one more does not sort them all again."""
    waiting = pending_labels.PendingLabels(PUBLIC_KEY)
    run = np.zeros((1_000_000, 4), dtype=np.int64)
    run[:, 0] = np.arange(len(run))
    waiting = pending_labels.PendingLabels(PUBLIC_KEY, [run + k * len(run) for k in range(4)])
    before = time.process_time()
    for k in range(100):
        waiting.add(f"p{k}", fraud=True, known_at_ms=1 << 41)
        waiting.gather()
        waiting.due(k)
    assert (time.process_time() - before) / 100 < 0.005


def test_a_row_of_the_benchmark_set_takes_at_most_64_bytes() -> None:
    """Row, label and index entry together, for four entities."""
    assert describe(FeatureSet.from_yaml(bench_set())).bytes_per_payment <= 64


def test_labels_dated_far_ahead_take_no_room_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that dates its labels 2096 neither fills the memory nor keeps out labels that are right; each
    dropped one is counted, and how labels arrived in batches changes nothing."""
    far, now = 3_999_999_999_999, 1_767_270_600_250
    monkeypatch.setattr(pending_labels, "LABELS_PENDING_MAX", 64)
    ends = []
    for gathered_every in (1, 7, 1_000):
        waiting = pending_labels.PendingLabels(PUBLIC_KEY)
        for k in range(200):
            waiting.add(f"far{k}", fraud=True, known_at_ms=far)
            if k % 10 == 0:
                waiting.add(f"p{k}", fraud=True, known_at_ms=now + k)
            if k % gathered_every == 0:
                waiting.gather()
        assert len(waiting) <= 64
        waiting.gather()
        known = waiting.due(now + 1_000)
        assert known[:, 0].tolist() == [now + k for k in range(0, 200, 10)]
        assert len(waiting) == 0, "what is dated 2096 is gone with the first payment"
        assert waiting.refused == 200
        ends.append(known.tolist())
    assert ends[0] == ends[1] == ends[2]


def test_of_too_many_labels_the_last_known_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """When there is no room the labels that become known first stay, of equal ones those that came first."""
    monkeypatch.setattr(pending_labels, "LABELS_PENDING_MAX", 16)
    generator = np.random.default_rng(5)
    waiting, plain = pending_labels.PendingLabels(PUBLIC_KEY), []
    for k, known in enumerate(generator.integers(0, 20, 200).tolist()):
        waiting.add(f"p{k}", fraud=True, known_at_ms=known)
        plain.append((known, k))
        if len(plain) > 16:
            plain = sorted(plain)[:14]
        if k % 9 == 0:
            waiting.gather()
    assert len(waiting) == len(plain)
    ids = hash_strings([f"p{k}" for _, k in sorted(plain)], PUBLIC_KEY)[0].view(np.int64).tolist()
    assert waiting.due(100)[:, 1:3].tolist() == ids
    assert waiting.refused == 200 - len(plain)
