"""Recovery and snapshots. `python -m tests.benchmarks.recovery [--quick] [--soak SECONDS]` prints one JSON object.

Its parts can be named: `--only recovery latency first soak`.

Recovery: a worker decides a history and is killed; how long does its successor take from assignment to deciding, by its
own log, along the whole journal and from a snapshot, for histories of several lengths? Latency: percentiles at a steady
rate with snapshots off and with one every two seconds, in turn. Soak: resident memory of a worker that decides at a
steady rate, sampled; `growth` is the last quarter's median over the second quarter's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from scorer.demo import CUSTOMERS, LIVE_SEED, DecisionReader, demo_bundle, live_blocks
from scorer.local_services import local_services
from scorer.operate.record_sender import Sender
from scorer.simulate import World
from tests.benchmarks.first_decision import first_decision
from tests.benchmarks.workers import Worker, made_settings, snapshots
from tests.integration.running import metrics, wait_for

RATE = 1000.0
PARTS = ("recovery", "latency", "first", "soak")


def recovery(bootstrap: str, bundle: Path, payments: int, folder: Path) -> dict[str, Any]:
    """Seconds from assignment to deciding for a history of `payments`."""
    settings = made_settings(bootstrap, f"{payments}")
    store = folder / f"snapshots-{payments}"
    written = 'fraud_scorer_snapshots_total{shard="0"}'
    reader = DecisionReader(settings)
    with Worker(settings, bundle, folder / "first.log", **snapshots(store, payments // 4)) as first:
        blocks = live_blocks(World(LIVE_SEED, customers=CUSTOMERS * 10))
        Sender(settings).run(blocks, stop=threading.Event(), limit=payments)
        wait_for(lambda: reader.seen.decisions >= payments, 300, "the history")
        wait_for(lambda: metrics(first.port).get(written, 0) >= 1, 60, "a snapshot")
        time.sleep(2.0)
        keys = sum(v for name, v in metrics(first.port).items() if name.startswith("fraud_scorer_feature_keys{"))
    result: dict[str, Any] = {"payments": payments, "keys": int(keys)}
    for name, every in (("journal", 0), ("snapshot", payments)):
        with Worker(settings, bundle, folder / f"{name}.log", **snapshots(store, every)) as next_one:
            recovered = next_one.events()["shard.recovered"]
            result[f"{name}_s"] = recovered["seconds"]
            result[f"{name}_batches"] = recovered["batches"]
            if "snapshot.restored" in next_one.events():
                result[f"{name}_load_s"] = next_one.events()["snapshot.restored"]["seconds"]
    reader.close()
    return result


def latency(bootstrap: str, bundle: Path, name: str, seconds: float, folder: Path) -> dict[str, float]:
    """Percentiles in ms at RATE; `name` says whether snapshots are taken."""
    settings = made_settings(bootstrap, f"latency-{name}-{time.monotonic_ns()}")
    more = snapshots(folder / "latency", int(2 * RATE) if name == "on" else 0)
    with Worker(settings, bundle, folder / "latency.log", **more) as worker:
        reader = DecisionReader(settings)
        sender = Sender(settings, on_payments=reader.sending)
        blocks = live_blocks(World(LIVE_SEED, customers=CUSTOMERS))
        sender.run(blocks, stop=threading.Event(), rate=RATE, limit=int(3 * RATE))
        wait_for(lambda: reader.seen.decisions >= sender.sent.payments, 60, "the first payments")
        reader.seen.latencies_ms.clear()
        more_blocks = live_blocks(World(LIVE_SEED + 1, customers=CUSTOMERS))
        second = Sender(settings, on_payments=reader.sending)
        second.run(more_blocks, stop=threading.Event(), rate=RATE, limit=int(seconds * RATE))
        total = sender.sent.payments + second.sent.payments
        wait_for(lambda: reader.seen.decisions >= total, 60, "all payments")
        values = np.array(reader.seen.latencies_ms)
        taken = metrics(worker.port).get('fraud_scorer_snapshots_total{shard="0"}', 0.0)
        reader.close()
    found = {f"p{q:g}_ms": round(float(np.percentile(values, q)), 2) for q in (50, 99, 99.9)}
    return found | {"snapshots": taken}


def soak(bootstrap: str, bundle: Path, seconds: float, folder: Path) -> dict[str, Any]:
    """Resident memory of a worker over `seconds` at RATE, MiB."""
    settings = made_settings(bootstrap, "soak")
    with Worker(settings, bundle, folder / "soak.log", **snapshots(folder / "soak", int(20 * RATE))) as worker:
        stop = threading.Event()
        sender = Sender(settings)
        blocks = live_blocks(World(LIVE_SEED, customers=CUSTOMERS))
        sending = threading.Thread(target=lambda: sender.run(blocks, stop=stop, rate=RATE))
        sending.start()
        samples: list[float] = []
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            time.sleep(1.0)
            samples.append(worker.memory_bytes() / 2**20)
        stop.set()
        sending.join()
    quarter = max(1, len(samples) // 4)
    settled, last = statistics.median(samples[quarter : 2 * quarter]), statistics.median(samples[-quarter:])
    return {
        "seconds": seconds,
        "payments": sender.sent.payments,
        "mib_second_quarter": round(settled, 1),
        "mib_last_quarter": round(last, 1),
        "growth": round(last / settled, 3),
        "bytes_per_payment": round((last - settled) * 2**20 / (RATE * seconds / 2), 1),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter histories, one round")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument("--keys", type=int, default=1_000_000, help="live keys for the first decision")
    parser.add_argument("--soak", type=float, default=60.0, help="seconds of the soak; an hour is 3600")
    given = parser.parse_args()
    report = lambda line: print(line, file=sys.stderr)  # noqa: E731
    bundle = demo_bundle()
    lengths, rounds, seconds = ([20_000, 60_000], 1, 8.0) if given.quick else ([50_000, 200_000, 800_000], 3, 20.0)
    result: dict[str, Any] = {"rate_per_s": RATE}
    with local_services(postgres=False, report=report) as services, tempfile.TemporaryDirectory() as name:
        at, folder = services.kafka.bootstrap_servers, Path(name)
        if "recovery" in given.only:
            result["recovery"] = [recovery(at, bundle, payments, folder) for payments in lengths]
            report(str(result["recovery"]))
        if "latency" in given.only:
            runs: dict[str, list[dict[str, float]]] = {"off": [], "on": []}
            for _ in range(rounds):
                for which, found in runs.items():
                    found.append(latency(at, bundle, which, seconds, folder))
                    report(f"snapshots {which}: {found[-1]}")
            result["latency"] = {
                which: {q: statistics.median(run[q] for run in found) for q in found[0]}
                for which, found in runs.items()
            }
        if "first" in given.only:
            result["first_decision"] = {
                name: first_decision(at, bundle, given.keys, folder, warm=warm)
                for name, warm in (("standby", True), ("snapshot", False))
            }
            report(str(result["first_decision"]))
        if "soak" in given.only:
            result["soak"] = soak(at, bundle, given.soak, folder)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
