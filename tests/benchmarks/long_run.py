"""Latency, memory and reconciliation over an hour with everything beside the worker that production has.

`python -m tests.benchmarks.long_run` prints one JSON object; `--seconds 120` is a short form, `--rate` the payments a
second (default 200).

One owner that writes snapshots, one standby that follows it, one sink that writes to Postgres, a reader of each of the
two topics and the sender share the machine with the broker. Latency runs from a payment handed to the client until its
decision has been read: on `decisions` under read_committed, on `decisions-fast` as it comes. Before it, the echo's at
the same rate, for a tenth of the time. The time is cut into twelve parts, so that a slow growth shows: each has the
percentiles of its own, the resident memory of worker, standby and sink, and how many audit rows were behind.

At the end every payment has to have one decision on both topics and one audit row, or the run fails.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from scorer.demo import CUSTOMERS, LIVE_SEED, DecisionReader, demo_bundle, free_ports, live_blocks
from scorer.demo.demo_processes import command, environment_of, own_database
from scorer.local_services import local_services
from scorer.operate.record_sender import Sender
from scorer.operate.setup import setup
from scorer.runtime.settings import load
from scorer.simulate import World
from tests.benchmarks.pipeline import latency
from tests.integration.running import is_ready, wait_for

PARTS = 12
SNAPSHOTS = 20  # in the whole run
WARM_S = 10.0


def measure(rate: float, seconds: float, folder: Path) -> dict[str, Any]:
    """The whole run."""
    report = lambda line: print(line, file=sys.stderr)  # noqa: E731
    bundle = demo_bundle()
    with ExitStack() as stack:
        services = stack.enter_context(local_services(report=report))
        at = services.kafka.bootstrap_servers
        echo = latency(at, "long-echo", "echo", rate, max(5.0, seconds / 10))
        report(f"echo: {echo}")
        name = secrets.token_hex(4)
        url = stack.enter_context(own_database(services.postgres.url, f"fraud_scorer_long_{name}"))
        ports = free_ports(3)
        environment = stack.enter_context(
            environment_of({
                "KAFKA__BOOTSTRAP_SERVERS": at,
                "KAFKA__TOPIC_PREFIX": f"long-{name}-",
                "POSTGRES__URL": url,
                "SNAPSHOTS__URL": (folder / "snapshots").as_uri(),
                "SNAPSHOTS__EVERY_PAYMENTS": str(max(1, int(rate * seconds / SNAPSHOTS))),
                "HTTP__SINK_PORT": str(ports[2]),
            })
        )  # fmt: skip
        settings = load()
        setup(settings)
        sink = stack.enter_context(command("sink", [], environment, folder / "sink.log"))
        workers = []
        for part, port in zip(("worker", "standby"), ports, strict=False):
            own = environment | {"FRAUD_SCORER_HTTP__WORKER_PORT": str(port)}
            workers.append(stack.enter_context(command("run", ["--bundle", str(bundle)], own, folder / f"{part}.log")))
            wait_for(lambda port=port: is_ready(port), 900, f"the {part} to be ready")
        readers = {"decisions": DecisionReader(settings), "decisions_fast": DecisionReader(settings, fast=True)}
        processes = dict(zip(("worker", "standby", "sink"), (*workers, sink), strict=True))

        def sending(values: list[bytes]) -> None:
            for reader in readers.values():
                reader.sending(values)

        stop = threading.Event()
        sender = Sender(settings, on_payments=sending)
        blocks = live_blocks(World(LIVE_SEED, customers=CUSTOMERS))
        thread = threading.Thread(target=lambda: sender.run(blocks, stop=stop, rate=rate), daemon=True)
        thread.start()
        time.sleep(WARM_S)
        for reader in readers.values():
            reader.seen.latencies_ms.clear()
        parts = []
        for _ in range(PARTS):
            time.sleep(seconds / PARTS)
            parts.append(_part(readers, processes, url))
            report(json.dumps(parts[-1]))
        stop.set()
        thread.join()
        payments = sender.sent.payments
        for reader in readers.values():
            wait_for(lambda reader=reader: reader.seen.decisions >= payments, 60, "all decisions")
        wait_for(lambda: _rows(url) >= payments, 60, "all audit rows")
        counts = {name: reader.seen.decisions for name, reader in readers.items()} | {"audit_rows": _rows(url)}
        repeated = readers["decisions"].seen.duplicate_decisions
        for reader in readers.values():
            reader.close()
    if set(counts.values()) != {payments} or repeated:
        raise SystemExit(f"{payments} payments, {counts}, {repeated} decided twice")
    return {"rate_per_s": rate, "seconds": seconds, "payments": payments, **counts, "echo": echo, "parts": parts}


def _part(
    readers: dict[str, DecisionReader], processes: dict[str, subprocess.Popen[bytes]], url: str
) -> dict[str, Any]:
    """What was seen since the last part."""
    found: dict[str, Any] = {}
    for name, reader in readers.items():
        reader.check()
        seen = reader.seen.latencies_ms
        values = np.array([seen.popleft() for _ in range(len(seen))])
        found[name] = {f"p{q:g}_ms": round(float(np.percentile(values, q)), 2) for q in (50, 99, 99.9)}
    for name, process in processes.items():
        if process.poll() is not None:
            raise SystemExit(f"the {name} ended with {process.returncode}")
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        found[f"{name}_mib"] = round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
    found["audit_rows_behind"] = readers["decisions"].seen.decisions - _rows(url)
    return found


def _rows(url: str) -> int:
    with psycopg.connect(url) as database:
        row = database.execute("SELECT count(*) FROM decisions").fetchone()
        return int(row[0]) if row else 0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600.0, help="how long (default an hour)")
    parser.add_argument("--rate", type=float, default=200.0, help="payments a second (default 200)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(given.rate, given.seconds, Path(folder))))


if __name__ == "__main__":
    main()
