"""Replay: payments a second from Parquet to decisions, against the same features in DuckDB and plain xgboost, one run.

    python -m tests.benchmarks.replay [--payments 400000] [--growth 10]

In CPU time of one core: 44 features (4 entities, windows of an hour to 30 days), 300 trees of depth 6, generated
payments. Each side runs in a process of its own, which also says how much memory it took at its peak. Replayed once
more with the decisions and features written as Parquet, from a CSV of the same payments, and from a file --growth times
as long, to see whether memory grows with it; that one too with entities that have the customer in common, by one
process and by two. The figure of two processes is half of all CPU, the parent's reading among it, without their start.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
ENTITIES = {"customer": "customer_id", "terminal": "terminal_id", "merchant": "merchant_id", "device": "device_id"}
WINDOWS = {"1h": 3_600_000, "1d": 86_400_000, "7d": 7 * 86_400_000, "30d": 30 * 86_400_000}
SECONDS_APART = 2
MAPPING = """
payment_id: id
event_time: event_time
amount: amount
currency: {constant: EUR}
customer_id: customer_id
terminal_id: terminal_id
merchant_id: merchant_id
device_id: device_id
"""


def feature_set() -> str:
    """44 features: amount, hour, count and mean of 16 windows; ratio to the mean of 10."""
    lines = ["  - {name: amount, payment: amount}", "  - {name: hour, payment: hour_of_day}"]
    for entity in ENTITIES:
        for window in WINDOWS:
            head = f"entity: {entity}, window: {window}, include_current: true"
            lines.append(f"  - {{name: {entity}_count_{window}, aggregate: count, {head}}}")
            lines.append(f"  - {{name: {entity}_mean_{window}, aggregate: mean, of: amount, {head}}}")
    ratios = [f"{entity}_mean_{window}" for entity in ENTITIES for window in WINDOWS][:10]
    lines += [f"  - {{name: to_{name}, ratio: [amount, {name}]}}" for name in ratios]
    entities = ", ".join(f"{entity}: [{field}]" for entity, field in ENTITIES.items())
    return f"name: bench\ncurrency: EUR\nentities: {{{entities}}}\nfeatures:\n" + "\n".join(lines) + "\n"


def write_payments(path: Path, count: int) -> None:
    """Payments in blocks, so that writing a long file takes no memory either."""
    rng = np.random.default_rng(1)
    writer = None
    for start in range(0, count, 100_000):
        n = min(100_000, count - start)
        ids = np.arange(start, start + n)
        table = pa.table(
            {
                "id": [f"p{i}" for i in ids],
                "event_time": pa.array(1_704_067_200_000 + ids * SECONDS_APART * 1000, pa.timestamp("ms")),
                "amount": np.round(rng.lognormal(3.5, 1, n), 2),
                "customer_id": [f"c{i}" for i in rng.integers(0, 10_000, n)],
                "terminal_id": [f"t{i}" for i in rng.integers(0, 2_000, n)],
                "merchant_id": [f"m{i}" for i in rng.integers(0, 500, n)],
                "device_id": [f"d{i}" for i in rng.integers(0, 12_000, n)],
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def keyed(text: str) -> str:
    """The same set with entities that all have the customer in their key."""
    for field in ("terminal_id", "merchant_id", "device_id"):
        text = text.replace(f"[{field}]", f"[customer_id, {field}]")
    return text


def write_bench_bundle(folder: Path, declared: str) -> None:
    import xgboost  # noqa: PLC0415 - not in the processes that are measured

    from scorer.bundle import write_bundle  # noqa: PLC0415

    rng = np.random.default_rng(2)
    X = rng.lognormal(2, 1, (20_000, 44)).astype(np.float32)
    y = (np.log(X[:, 0]) + np.log(X[:, 3]) + rng.normal(0, 1, len(X)) > 7).astype(np.float32)
    parameters = {"objective": "binary:logistic", "max_depth": 6, "eta": 0.1, "nthread": 1}
    booster = xgboost.train(parameters, xgboost.DMatrix(X, y), 300)
    write_bundle(
        folder, name="bench", created_at="2024-01-01T00:00:00Z", model=bytes(booster.save_raw("ubj")),
        feature_set_yaml=declared, policy_yaml="name: bench\nflag: {score: 0.999}\n", threshold_score=0.999,
        golden=(X[:64], booster.inplace_predict(X[:64], predict_type="margin")),
    )  # fmt: skip


def peak_memory_mib() -> float:
    """Of this process alone: ru_maxrss would begin with what the parent held at the fork."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def replay_ours(
    folder: Path, file: Path, output: Path | None = None, bundle_name: str = "bundle", warm: str = "warm.parquet"
) -> dict[str, float]:
    from scorer.bundle import Bundle  # noqa: PLC0415 - one side a process
    from scorer.files.mapping import Mapping  # noqa: PLC0415
    from scorer.replay import replay_file  # noqa: PLC0415

    bundle, mapping = Bundle.load(folder / bundle_name), Mapping.from_yaml(MAPPING)
    replay_file(bundle, folder / warm, mapping, output)  # compiled code is loaded before the clock starts
    began, cpu = time.perf_counter(), time.process_time()
    report = replay_file(bundle, file, mapping, output)
    return {
        "payments": report.decisions,
        "flagged": report.flagged,
        "wall_s": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
        "memory_mib": peak_memory_mib(),
    }


def write_csv(folder: Path) -> None:
    """The short files once more, as CSV."""
    for name in ("warm", "short"):
        pa_csv.write_csv(pq.read_table(folder / f"{name}.parquet"), folder / f"{name}.csv")


def replay_csv(folder: Path, file: Path) -> dict[str, float]:
    return replay_ours(folder, file, warm="warm.csv")


def replay_written(folder: Path, file: Path) -> dict[str, float]:
    return replay_ours(folder, file, folder / "decided.parquet")


def replay_keyed(folder: Path, file: Path) -> dict[str, float]:
    return replay_ours(folder, file, bundle_name="keyed")


def replay_two(folder: Path, file: Path) -> dict[str, float]:
    from scorer.files.mapping import Mapping  # noqa: PLC0415
    from scorer.replay import replay_shares  # noqa: PLC0415

    def cpu_s() -> float:
        # The parent parses the file, so its CPU counts too.
        both = (resource.getrusage(resource.RUSAGE_CHILDREN), resource.getrusage(resource.RUSAGE_SELF))
        return sum(used.ru_utime + used.ru_stime for used in both)

    mapping, began = Mapping.from_yaml(MAPPING), cpu_s()
    replay_shares(folder / "keyed", folder / "warm.parquet", mapping, None, processes=2)
    start, wall = cpu_s() - began, time.perf_counter()
    report = replay_shares(folder / "keyed", file, mapping, None, processes=2)
    return {
        "payments": report.decisions,
        "flagged": report.flagged,
        "wall_s": time.perf_counter() - wall,
        "cpu_s": (cpu_s() - began - 2 * start) / 2,
        "start_cpu_s": start / 2,
        "memory_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }


def replay_sql(folder: Path, file: Path) -> dict[str, float]:
    import duckdb  # noqa: PLC0415
    import xgboost  # noqa: PLC0415

    booster = xgboost.Booster({"nthread": 1})
    booster.load_model(folder / "bundle" / "model.ubj")
    columns = ["amount", "extract(hour from event_time)"]
    for field in ENTITIES.values():
        for ms in WINDOWS.values():
            over = (
                f"(partition by {field} order by epoch_ms(event_time) range between {ms - 1} preceding and current row)"
            )
            columns += [f"count(*) over {over}", f"avg(amount) over {over}"]
    means = [column for column in columns if column.startswith("avg")][:10]
    columns += [f"amount / {mean}" for mean in means]
    selected = ", ".join(f"({column})::float as f{i}" for i, column in enumerate(columns))
    connection = duckdb.connect(config={"threads": 1})
    began, cpu = time.perf_counter(), time.process_time()
    found = connection.execute(f"select {selected} from read_parquet('{file}') order by event_time, id").fetchnumpy()
    X = np.column_stack([found[f"f{i}"] for i in range(44)])
    scores = booster.inplace_predict(X)
    flagged = int((scores >= 0.999).sum())
    return {
        "payments": len(X),
        "wall_s": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
        "memory_mib": peak_memory_mib(),
        "flagged": flagged,
    }


SIDES = {
    "ours": replay_ours,
    "written": replay_written,
    "csv": replay_csv,
    "keyed": replay_keyed,
    "two": replay_two,
    "sql": replay_sql,
}


def in_own_process(side: str, folder: Path, file: Path) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.replay",
        "--side",
        side,
        "--folder",
        str(folder),
        "--file",
        str(file),
    ]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | threads)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--payments", type=int, default=400_000)
    parser.add_argument("--growth", type=int, default=10)
    parser.add_argument("--side", choices=tuple(SIDES))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--file", type=Path)
    arguments = parser.parse_args()
    if arguments.side is not None:
        print(json.dumps(SIDES[arguments.side](arguments.folder, arguments.file)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_bench_bundle(folder / "bundle", feature_set())
        write_bench_bundle(folder / "keyed", keyed(feature_set()))
        write_payments(folder / "warm.parquet", 5_000)
        write_payments(folder / "short.parquet", arguments.payments)
        write_payments(folder / "long.parquet", arguments.payments * arguments.growth)
        write_csv(folder)
        ours = in_own_process("ours", folder, folder / "short.parquet")
        of_csv = in_own_process("csv", folder, folder / "short.csv")
        written = in_own_process("written", folder, folder / "short.parquet")
        sql = in_own_process("sql", folder, folder / "short.parquet")
        long = in_own_process("ours", folder, folder / "long.parquet")
        one = in_own_process("keyed", folder, folder / "long.parquet")
        two = in_own_process("two", folder, folder / "long.parquet")
    rows = {
        "replay": ours,
        "replay, decisions written": written,
        "replay of a CSV": of_csv,
        "DuckDB and xgboost": sql,
        f"replay, {arguments.growth} times the payments": long,
        "the same, customer in each key": one,
        "the same by two processes": two,
    }
    for title, row in rows.items():
        rate = row["payments"] / row["cpu_s"]
        print(f"{title:36} {rate:12,.0f} payments a CPU second {row['memory_mib']:8,.0f} MiB")
    print(
        json.dumps(
            {
                "payments_per_cpu_s": ours["payments"] / ours["cpu_s"],
                "payments_per_wall_s": ours["payments"] / ours["wall_s"],
                "written_payments_per_cpu_s": written["payments"] / written["cpu_s"],
                "csv_payments_per_cpu_s": of_csv["payments"] / of_csv["cpu_s"],
                "two_processes_over_one": one["cpu_s"] / two["cpu_s"],
                "cpu_against_duckdb_xgboost": sql["cpu_s"] / ours["cpu_s"],
                "memory_growth": long["memory_mib"] / ours["memory_mib"],
                "growth": arguments.growth,
                "sides": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
