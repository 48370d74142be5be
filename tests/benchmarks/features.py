"""The feature engine, on one thread: `python -m tests.benchmarks.features [--quick]` prints one JSON object.

Times are CPU time of this process; a figure is the median over pieces of a run, ratios compare figures of one run.
`python -m tests.benchmarks.features --log-rows 100000000 --folder DIR` fills the log on disk and prints resident memory
on the way."""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("POLARS_MAX_THREADS", "1")

import numpy as np

from features import kernel_tables as kt
from features.feature_description import describe
from features.feature_set import FeatureSet
from features.hash_table import get, grown, new_table, put
from features.hashing import PUBLIC_KEY, HashKey, hash_strings
from features.raw_memory import kernel
from features.snapshot_store import SnapshotStore
from features.window_engine import WindowEngine
from schemas.payment_batch import PaymentBatch
from schemas.payment_decoder import decode_payments
from tests.benchmarks.streams import ENTITIES, WINDOWS, bench_set, prepared

T = TypeVar("T")
DEMO_SET = Path(__file__).resolve().parents[2] / "deploy" / "examples" / "demo" / "feature_set.yaml"
BATCH = 4_096
DAY_MS = 86_400_000
SPAN_MS = 45 * DAY_MS
CHUNK = 1 << 18


def filled(feature_set: FeatureSet, payments: int, keys: int, **options: Any) -> tuple[WindowEngine, np.ndarray]:
    """An engine that has seen `payments` over 45 days, so that rows pass every edge, and some more payments for it."""
    engine = WindowEngine(feature_set, **options)
    start_ms, seed, step = 1_700_000_000_000, 0, max(1, SPAN_MS // payments)
    out = np.empty((BATCH, len(feature_set.features)), dtype=np.float32)
    rows = np.empty((0, 0))
    for _ in range(0, payments + CHUNK, CHUNK):
        rows = prepared(feature_set, CHUNK, keys=keys, span_ms=step * CHUNK, seed=seed, start_ms=start_ms)
        rows[:, kt.B_WHERE] = (1 << len(engine.plan.wheres)) - 1  # every filter holds: the most work
        start_ms, seed = int(rows[-1, kt.B_TIME]), seed + 1
        if seed * CHUNK >= payments:
            break
        for at in range(0, CHUNK, BATCH):
            engine.apply_prepared(rows[at : at + BATCH], out)
    return engine, rows


def us_per_payment(engine: WindowEngine, rows: np.ndarray, batch: int = BATCH) -> float:
    """Median CPU time over pieces of about 16,000 payments."""
    out = np.empty((batch, len(engine.feature_set.features)), dtype=np.float32)
    times = []
    piece = max(batch, 16_384 // batch * batch)
    for start in range(0, len(rows) - piece + 1, piece):
        before = time.process_time_ns()
        for at in range(start, start + piece, batch):
            engine.apply_prepared(rows[at : at + batch], out)
        times.append((time.process_time_ns() - before) / piece / 1000)
    return statistics.median(times)


def by_keys(counts: list[int]) -> dict[str, Any]:
    feature_set = FeatureSet.from_yaml(bench_set())
    result: dict[str, Any] = {}
    for keys in counts:
        engine, rows = filled(feature_set, max(1_000_000, int(keys * 1.1)), keys)
        s = engine.state
        table = engine.counts()
        result[f"{keys:.0e}".replace("e+0", "e")] = {
            "us_per_payment": round(us_per_payment(engine, rows), 3),
            "live_keys": table.keys,
            "bytes_per_live_key": round((table.arena_bytes) / table.keys, 1),
            "key_table_load": round(table.keys / len(s.keys), 2),
        }
        del engine, rows
    first, last = result[next(iter(result))], result[list(result)[-1]]
    result["last_to_first"] = round(last["us_per_payment"] / first["us_per_payment"], 2)
    return result


def of_the_demo() -> dict[str, Any]:
    """The demo's own feature set at 10^5 keys, every filter true."""
    feature_set = FeatureSet.from_yaml(DEMO_SET)
    engine, rows = filled(feature_set, 1_000_000, 100_000)
    return {"features": len(feature_set.features), "us_per_payment": round(us_per_payment(engine, rows), 3)}


def by_window() -> dict[str, Any]:
    """Eight windows of nearly the same length, each length in a stream of 45 days."""
    result: dict[str, Any] = {}
    for length, ms in (("1m", 60_000), ("1h", 3_600_000), ("1d", DAY_MS), ("30d", 30 * DAY_MS)):
        feature_set = FeatureSet.from_yaml(bench_set([f"{ms + k}ms" for k in range(8)]))
        engine, rows = filled(feature_set, 800_000, 100_000)
        result[length] = round(us_per_payment(engine, rows), 3)
    values = list(result.values())
    result["largest_to_smallest"] = round(max(values) / min(values), 2)
    return result


# One line more for the benchmark set, by kind; its own columns first, as an aggregate of the same key to compare with.
KIND_LINES = {
    "count": "entity: card, aggregate: count, window: 30d, where: {amount: {above: 1}}",
    "std": "entity: card, aggregate: std, of: amount, window: 30d",
    "max": "entity: card, aggregate: max, of: amount, window: 30d",
    "median": "entity: card, aggregate: median, of: amount, window: 30d",
    "distinct": "entity: card, aggregate: distinct, of: mcc, window: 30d",
    "share": "entity: card, aggregate: share, of: mcc, window: 30d",
    "fraud_rate": "entity: card, aggregate: fraud_rate, window: 30d",
    "fraud_rate with prior": "entity: card, aggregate: fraud_rate, window: 30d, prior: {rate: 0.01, weight: 20}",
    "circular_dispersion": "entity: card, aggregate: circular_dispersion, of: hour_of_day, window: 30d",
    "circular_variance": "entity: card, aggregate: circular_variance, of: hour_of_day, window: 30d",
    "mean, latest: 10": "entity: card, aggregate: mean, of: amount, window: 30d, latest: 10",
    "mean_gap, latest: 10": "entity: card, aggregate: mean_gap, window: 30d, latest: 10",
    "neighbour_frauds": "entity: card, aggregate: neighbour_frauds, of: terminal, window: 14d",
    "nearest_km": "entity: card, aggregate: nearest_km, window: 30d",
    "decayed_sum": "entity: card, aggregate: decayed_sum, of: amount, half_life: 7d",
    "decayed_mean": "entity: card, aggregate: decayed_mean, of: amount, half_life: 7d",
    "decayed_std": "entity: card, aggregate: decayed_std, of: amount, half_life: 7d",
}


def by_kind() -> dict[str, Any]:
    """What one more feature of each kind costs at 10^5 keys, in µs a payment: the same payments with and without it, in
    turns, so that a busy machine slows both."""
    made = {"nothing": bench_set()}
    made |= {kind: bench_set() + f"  - {{name: more, {line}}}\n" for kind, line in KIND_LINES.items()}
    result: dict[str, Any] = {}
    plain, rows = filled(FeatureSet.from_yaml(made["nothing"]), 1_000_000, 100_000)
    for kind, text in made.items():
        more, more_rows = filled(FeatureSet.from_yaml(text), 1_000_000, 100_000)
        pieces = [slice(at, at + 32_768) for at in range(0, CHUNK, 32_768)]
        pairs = [(us_per_payment(plain, rows[p]), us_per_payment(more, more_rows[p])) for p in pieces]
        for engine, again in ((plain, rows), (more, more_rows)):  # the next payments come later
            again[:, kt.B_TIME] += np.uint64(int(again[-1, kt.B_TIME] - again[0, kt.B_TIME]) + 1)
            assert int(again[0, kt.B_TIME]) > int(engine.stream_time_ms or 0)
        result[kind] = {
            "us_more": round(statistics.median(b - a for a, b in pairs), 3),
            "ratio": round(statistics.median(b / a for a, b in pairs), 3),
        }
        print(f"{kind:24} {result[kind]['us_more']:+.3f} µs   x {result[kind]['ratio']:.3f}", flush=True)
    return result


def decoded(count: int) -> PaymentBatch:
    rng = np.random.default_rng(5)
    values = []
    for i in range(count):
        keys = {field: f"{field[:4]}{rng.integers(0, 25_000):07d}" for field in ENTITIES.values()}
        document = {
            "payment_id": f"pay-{i:09d}",
            "event_time": 1_700_000_000_000 + 500 * i,
            "amount_minor": int(rng.integers(1, 10**6)),
            "currency": "EUR",
            **keys,
        }
        values.append(json.dumps(document, separators=(",", ":")).encode())
    return decode_payments(values)


def whole_apply() -> dict[str, Any]:
    """`WindowEngine.apply` on decoded payments: hashing and Python included, in batches of 4,096 and one by one."""
    feature_set = FeatureSet.from_yaml(bench_set())
    engine, _ = filled(feature_set, 600_000, 100_000)
    batch = decoded(5 * BATCH + 2_000)
    batch.event_time_ms[:] += int(engine.stream_time_ms or 0) - 1_700_000_000_000
    ids, _ = hash_strings(batch.column("payment_id"), engine.hash_key)
    times, single = [], []
    for start in range(0, 5 * BATCH, BATCH):
        part = batch.take(np.arange(start, start + BATCH))
        before = time.process_time_ns()
        amount, _ = engine.convert(part)
        engine.apply(part, amount, ids[start : start + BATCH])
        times.append((time.process_time_ns() - before) / BATCH / 1000)
    for i in range(5 * BATCH, 5 * BATCH + 2_000):
        part = batch.take(np.arange(i, i + 1))
        amount, one = part.amount_minor, ids[i : i + 1]
        before = time.perf_counter_ns()
        engine.apply(part, amount, one)
        single.append((time.perf_counter_ns() - before) / 1000)
    return {
        "batch_us_per_payment": round(statistics.median(times), 3),
        "single_us": round(statistics.median(single[200:]), 1),
    }


def against_sql(rows_count: int) -> dict[str, Any]:
    """DuckDB and Polars compute the same 43 windows over the same history, in batch, on one thread."""
    import duckdb  # noqa: PLC0415
    import polars as pl  # noqa: PLC0415
    import pyarrow as pa  # noqa: PLC0415

    feature_set = FeatureSet.from_yaml(bench_set())
    rows = prepared(feature_set, rows_count, keys=100_000, span_ms=SPAN_MS, seed=9)
    rows[:, kt.B_TIME] = np.maximum.accumulate(rows[:, kt.B_TIME]) + np.arange(rows_count, dtype=np.uint64)
    columns = {"t": rows[:, kt.B_TIME].astype(np.int64), "amount": rows[:, kt.B_AMOUNT].astype(np.int64)}
    columns |= {e: rows[:, kt.B_KEYS + 2 * k].astype(np.int64) for k, e in enumerate(ENTITIES)}
    table = pa.table(columns)
    aggregates = [f for f in feature_set.features if f.kind == "aggregate"]
    engine = WindowEngine(feature_set)
    out = np.empty((rows_count, len(feature_set.features)), dtype=np.float32)
    before = time.process_time()
    for at in range(0, rows_count, BATCH):
        engine.apply_prepared(rows[at : at + BATCH], out[at : at + BATCH])
    ours = time.process_time() - before

    calls = {
        "count": "count(*)",
        "sum": "sum(amount)",
        "mean": "avg(amount)",
        "std": "stddev_pop(amount)",
        "max": "max(amount)",
        "fraud_rate": "count(*)",
    }
    selected = ", ".join(
        f"{calls[f.aggregate]} OVER (PARTITION BY {f.entity} ORDER BY t RANGE BETWEEN {f.delay + f.window - 1} "
        f"PRECEDING AND "
        f"{max(f.delay, 1)} PRECEDING) AS {f.name}"
        for f in aggregates
    )
    with duckdb.connect(config={"threads": 1}) as sql:
        sql.register("h", table)
        before = time.process_time()
        found = sql.sql(f"SELECT t, {selected} FROM h ORDER BY t").to_arrow_table()
        duck = time.process_time() - before
    for f in aggregates:  # both have computed the same
        if f.aggregate == "count":
            np.testing.assert_array_equal(found[f.name].to_numpy(), out[:, feature_set.names.index(f.name)])

    frame = pl.from_arrow(table).with_columns(pl.col("t").cast(pl.Datetime("ms")))  # type: ignore[union-attr]
    rolling = []
    for f in aggregates:
        column = pl.col("amount")
        window = {"window_size": f"{f.window}ms", "closed": "left", "min_samples": 1}
        made = {
            "count": lambda c, w: c.is_not_null().cast(pl.Int64).rolling_sum_by("t", **w),
            "fraud_rate": lambda c, w: c.is_not_null().cast(pl.Int64).rolling_sum_by("t", **w),
            "sum": lambda c, w: c.rolling_sum_by("t", **w),
            "mean": lambda c, w: c.rolling_mean_by("t", **w),
            "std": lambda c, w: c.rolling_std_by("t", **w),
            "max": lambda c, w: c.rolling_max_by("t", **w),
        }[f.aggregate or ""](column, window)  # fmt: skip
        rolling.append(made.over(f.entity).alias(f.name))
    before = time.process_time()
    frame.select(rolling)
    polars = time.process_time() - before
    return {
        "payments": rows_count, "engine_cpu_s": round(ours, 3), "duckdb_cpu_s": round(duck, 3),
        "polars_cpu_s": round(polars, 3),
        "duckdb_to_engine": round(duck / ours, 1), "polars_to_engine": round(polars / ours, 1),
    }  # fmt: skip


def chosen_ids() -> dict[str, Any]:
    """ns of a lookup among 12,000 payment ids that share one place of the table under a key that everyone knows, under
    that key and under a state's own; and among other ids. The ratio is what an attacker gains by choosing."""
    count, places = 12_000, 1 << 15
    found: list[str] = []
    for first in range(0, 1 << 40, 1 << 22):
        names = [f"p{n}" for n in range(first, first + (1 << 22))]
        place = hash_strings(names, PUBLIC_KEY)[0][:, 0] % np.uint64(places)
        found += [names[n] for n in np.flatnonzero(place == 0).tolist()]
        if len(found) >= count:
            break
    result: dict[str, Any] = {"ids": count}
    for name, ids, key in (
        ("other_ids", names[:count], HashKey.new()),
        ("chosen_ids", found[:count], HashKey.new()),
        ("chosen_ids_public_key", found[:count], PUBLIC_KEY),
    ):
        table = grown(new_table(), 0, count)
        before = time.process_time_ns()
        hashes = hash_strings(ids, key)[0]
        result[f"{name}_hash_ns"] = round((time.process_time_ns() - before) / count, 1)
        for n, (low, high) in enumerate(hashes):
            put(table, low, high, n)
        times = []
        for _ in range(5):
            before = time.process_time_ns()
            assert _look_up(table, hashes) == count * (count - 1) // 2
            times.append((time.process_time_ns() - before) / count)
        result[f"{name}_ns"] = round(statistics.median(times[1:]), 1)
    result["chosen_to_other"] = round(result["chosen_ids_ns"] / result["other_ids_ns"], 2)
    result["public_key_chosen_to_other"] = round(result["chosen_ids_public_key_ns"] / result["other_ids_ns"])
    return result


@kernel
def _look_up(table: Any, hashes: Any) -> int:
    total = 0
    for i in range(len(hashes)):
        total += get(table, hashes[i, 0], hashes[i, 1])
    return total


def snapshots(keys: int) -> dict[str, Any]:
    """A snapshot of `keys` live keys while batches run: the longest wait of a payment for it, and loading it again."""
    feature_set = FeatureSet.from_yaml(bench_set())
    engine, rows = filled(feature_set, max(1_000_000, int(keys * 1.1)), keys)
    small = np.empty((256, len(feature_set.features)), dtype=np.float32)
    result: dict[str, Any] = {"live_keys": engine.counts().keys}
    for name, batch, every_s in (("at_2000_per_s", 64, 0.032), ("at_full_speed", 256, 0.0)):
        waits: list[tuple[float, float]] = []

        def timed(step: Callable[[], T], waits: list[tuple[float, float]] = waits) -> T:
            wall, cpu = time.perf_counter(), time.thread_time()
            found = step()
            waits.append(((time.perf_counter() - wall) * 1000, (time.thread_time() - cpu) * 1000))
            return found

        at = 0
        for _ in range(3):
            capture = timed(engine.capture)
            ready = False
            while not ready:
                copier = threading.Thread(target=capture.copy)
                if not capture.copies_between_batches:
                    copier.start()
                while True:
                    engine.apply_prepared(rows[at : at + batch], small[:batch])
                    at = (at + batch) % (len(rows) - batch)
                    time.sleep(every_s)
                    if not copier.is_alive():
                        break
                ready = timed(capture.next_round)
            timed(capture.finish)
        result[name] = {
            "longest_wait_ms": round(max(wall for wall, _ in waits), 2),
            "longest_wait_cpu_ms": round(max(cpu for _, cpu in waits), 2),
            "waits": len(waits),
        }
    capture = engine.capture()
    capture.copy()
    image = capture.finish()
    assert image is not None
    WindowEngine.restore(feature_set, image)  # compiles
    with tempfile.TemporaryDirectory() as folder:
        store = SnapshotStore(folder)
        before = time.perf_counter()
        written = store.write(1, {}, {"engine": image})
        result["write_s"] = round(time.perf_counter() - before, 2)
        result["megabytes"] = round(written.bytes / 1e6, 1)
        loads = []
        for _ in range(5):
            before, cpu = time.perf_counter(), time.process_time()
            restored = WindowEngine.restore(feature_set, store.read(1)[1]["engine"])
            loads.append((time.perf_counter() - before, time.process_time() - cpu))
            loaded = restored.counts().keys
            restored.close()
        seconds, cpu = (statistics.median(load[k] for load in loads) for k in (0, 1))
    result["load_s"] = round(seconds, 2)
    result["load_cpu_s"] = round(cpu, 2)
    result["keys_loaded_per_s"] = round(loaded / seconds)
    result["keys_loaded_per_cpu_s"] = round(loaded / cpu)
    return result


def second_start() -> dict[str, float]:
    """Seconds that a new process needs to import the engine and give the first feature, its kernels compiled before."""
    code = (
        "import time; t = time.perf_counter()\n"
        "import numpy as np\n"
        "from features.window_engine import WindowEngine; from features.feature_set import FeatureSet\n"
        "from tests.benchmarks.streams import bench_set, prepared\n"
        "s = FeatureSet.from_yaml(bench_set()); e = WindowEngine(s)\n"
        "e.apply_prepared(prepared(s, 8, keys=8, span_ms=1000, seed=1), np.empty((8, 44), np.float32))\n"
        "print(time.perf_counter() - t, time.process_time())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    wall, cpu = map(float, done.stdout.split())
    return {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2)}


def resident_mb() -> float:
    pages = (
        int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) if Path("/proc/self/statm").exists() else 0
    )
    return pages * resource.getpagesize() / 1e6


def log_on_disk(payments: int, folder: Path | None) -> dict[str, Any]:
    """The log grows in mapped segments while resident memory stays at aggregates and window edges."""
    feature_set = FeatureSet.from_yaml(bench_set())
    with tempfile.TemporaryDirectory() as scratch:
        engine = WindowEngine(feature_set, folder=folder or Path(scratch))
        out = np.empty((BATCH, len(feature_set.features)), dtype=np.float32)
        start_ms, resident = 1_700_000_000_000, []
        # All of them inside 29 days: nothing leaves the log.
        step_ms = max(1, 29 * DAY_MS // payments)
        before = time.process_time()
        for seed in range(-(-payments // CHUNK)):
            rows = prepared(feature_set, CHUNK, keys=100_000, span_ms=step_ms * CHUNK, seed=seed, start_ms=start_ms)
            start_ms = int(rows[-1, kt.B_TIME])
            for at in range(0, CHUNK, BATCH):
                engine.apply_prepared(rows[at : at + BATCH], out)
            resident.append(resident_mb())
        counts = engine.counts()
        result = {
            "payments": counts.log_rows, "log_mb": round(counts.log_bytes / 1e6),
            "cpu_s_with_generator": round(time.process_time() - before, 1),
            "resident_mb_at": {
                f"{share}%": round(resident[min(len(resident) - 1, len(resident) * share // 100)])
                for share in (10, 25, 50, 75, 100)
            },
        }  # fmt: skip
        engine.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute: up to 10^6 keys, a short history")
    parser.add_argument("--log-rows", type=int, help="only the log on disk, with so many payments")
    parser.add_argument("--only", help="one part: snapshot, keys, windows, demo, kinds, apply, chosen, batch, start")
    parser.add_argument("--folder", type=Path, help="where the log on disk goes")
    options = parser.parse_args()
    if options.log_rows:
        print(json.dumps({"log_on_disk": log_on_disk(options.log_rows, options.folder)}))
        return
    by_keys([10_000])  # compiles
    if options.only:
        parts = {
            "snapshot": lambda: snapshots(10**6), "keys": lambda: by_keys([10**4, 10**5, 10**6]), "windows": by_window,
            "demo": of_the_demo,
            "kinds": by_kind,
            "apply": whole_apply, "chosen": chosen_ids,
            "batch": lambda: against_sql(100_000), "start": second_start,
        }  # fmt: skip
        print(json.dumps({options.only: parts[options.only]()}))
        return
    cost = describe(FeatureSet.from_yaml(bench_set()))
    counts = [10**4, 10**5, 10**6] + ([] if options.quick else [10**7])
    result = {
        "features": 44, "windows": len(WINDOWS), "entities": len(ENTITIES), "batch": BATCH,
        "keys": by_keys(counts),
        "windows_us_per_payment": by_window(),
        "demo_set": of_the_demo(),
        "kinds": by_kind(),
        "apply": whole_apply(),
        "chosen_ids": chosen_ids(),
        "bytes_per_payment_in_log": cost.bytes_per_payment,
        "bytes_per_key": dict(cost.bytes_per_key),
        "batch_engines": against_sql(100_000 if options.quick else 500_000),
        "snapshot": snapshots(10**6),
        "log_on_disk": log_on_disk(2_000_000 if options.quick else 10_000_000, options.folder),
        "second_process_start": second_start(),
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
