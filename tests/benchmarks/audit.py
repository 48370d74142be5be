"""Sink and verify against a bare COPY of the same rows in the same run: `python -m tests.benchmarks.audit`.

    sink      the whole audit sink: Kafka, decode, digest, card-number screen, COPY, batch rows, positions
    copy      the same COPY bytes, made beforehand, into the same tables with the same indexes, in transactions of the
              same size: what Postgres itself needs
    verify    every digest recomputed from the rows, every link, over one connection more than cores (the default)

`--rows`, `--rounds`, `--lanes`; figures are medians over the rounds. One core is the sink's: its process is bound to
one, Postgres and Kafka have the rest. `sink_to_copy_cpu` compares CPU, Postgres' included: it holds on a busy machine
as well.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import secrets
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psycopg
from psycopg import sql

from schemas.audit_record import AuditColumns, AuditContext, AuditHeader, decode_chunk, encode
from scorer.audit.verify.verification import verify
from scorer.local_services import local_services
from scorer.sink import AuditSink
from scorer.sink.card_screen import column_with_card_number
from scorer.trail import audit_database, copy_encode, copy_format
from tests.integration import audit_batches
from tests.integration.audit_batches import Shard, make_topic
from tests.integration.sinks import sink_settings

FEATURES, BATCH_ROWS = 44, 2048
TRANSACTION_BYTES = 8 * 1024 * 1024
CONTEXT = AuditContext(
    bundle="cards-0123456789ab",
    threshold=0.5,
    feature_fingerprint="ab" * 32,
    feature_names=tuple(f"feature_{i:02}" for i in range(FEATURES)),
    challengers=("cards-fedcba987654",),
)
CONNECTIONS = len(os.sched_getaffinity(0)) + 1
DAY = 20_454  # 2026-01-01, the stream time of audit_batches


def columns(seed: int, count: int) -> AuditColumns:
    """Rows as a card business makes them: ids of a dozen characters, 1 % flagged, some features undefined."""
    random = np.random.default_rng(seed)
    features = random.lognormal(size=(count, FEATURES)).astype(np.float32)
    features[random.random(features.shape) < 0.1] = np.nan
    flagged = random.random(count) < 0.01
    margin = random.normal(size=count).astype(np.float32)

    def ids(stem: str, high: int) -> list[str]:
        return [f"{stem}_{number:08}" for number in random.integers(0, high, count)]

    return AuditColumns(
        # A letter in the middle: 16 hexadecimal digits look like a card number one time in 80,000.
        payment_id=[f"p_{secrets.token_hex(4)}t{secrets.token_hex(4)}" for _ in range(count)],
        partition=random.integers(0, 4, count).astype(np.int32),
        offset=np.arange(seed * count, (seed + 1) * count),
        event_time_ms=1_767_225_600_000 - np.sort(random.integers(0, 1000, count))[::-1],
        amount_minor=random.integers(100, 100_000, count),
        currency=["EUR"] * count,
        customer_id=ids("c", 1_000_000),
        account_id=ids("a", 1_000_000),
        merchant_id=ids("m", 20_000),
        terminal_id=ids("t", 50_000),
        mcc=["5411"] * count,
        channel=["ecom"] * count,
        country=["FR"] * count,
        decision=flagged.astype(np.uint8),
        mode=np.zeros(count, np.uint8),
        margin=margin,
        score=1 / (1 + np.exp(-margin.astype(np.float64))),
        reasons=[["UNUSUAL_AMOUNT", "VELOCITY"] if flag else [] for flag in flagged],
        fired=[["card_testing"] if flag else [] for flag in flagged],
        features=features,
        challenger_margins=random.normal(size=(count, 1)).astype(np.float32),
    )


@contextmanager
def database(server_url: str) -> Iterator[str]:
    """A migrated database of one round."""
    name = f"bench_{secrets.token_hex(4)}"
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            url = server_url.rsplit("/", 1)[0] + f"/{name}"
            audit_database.migrate(url)
            with psycopg.connect(url) as connection:
                connection.execute("SELECT audit_day('2026-01-01')")
            yield url
        finally:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def bare_copy(url: str, transactions: list[list[memoryview]], *, indexes: bool) -> dict[str, float]:
    """Wall and CPU seconds to COPY the rows, with the table's indexes or without."""
    with psycopg.connect(audit_database.connect_text(url), autocommit=True) as connection:
        target = "decisions"
        if not indexes:
            target = "bare"
            connection.execute("CREATE TABLE bare (LIKE decisions)")
        statement = f"COPY {target} ({', '.join(copy_format.COLUMNS)}) FROM STDIN (FORMAT BINARY)"
        started, cpu = time.perf_counter(), time.process_time()
        for parts in transactions:
            with connection.transaction(), connection.cursor() as cursor, cursor.copy(statement) as copy:
                copy.write(copy_format.HEADER)
                for part in parts:
                    copy.write(part)
                copy.write(copy_format.TRAILER)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "postgres_cpu_seconds": backend_cpu_s(url) or math.nan}


def run_sink(servers: str, topic: str, url: str, batches: int, lanes: int) -> dict[str, float]:
    """Wall and CPU seconds of a sink in a process of its own, from its first read to its last commit."""
    child = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.audit", "--sink", servers, topic, url, str(batches), str(lanes)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(child.stdout.splitlines()[-1])


def sink_child(servers: str, topic: str, url: str, batches: int, lanes: int) -> None:
    """What `run_sink` starts; on one core."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    header = AuditHeader(**CONTEXT.model_dump(), shard=0, sequence=0, journal="")
    (chunk,) = encode(columns(0, 8), header)
    copy_encode.rows_bytes(*decode_chunk(chunk), DAY)  # kernels from the cache: a long-running process has them
    column_with_card_number(*decode_chunk(chunk))
    stop = threading.Event()
    settings = sink_settings(servers, topic, url)
    sink = AuditSink(settings, partitions=[0], transaction_bytes_max=TRANSACTION_BYTES, lanes=lanes)
    thread = threading.Thread(target=sink.run, args=(stop,))
    thread.start()
    while not sink.ready():
        time.sleep(0.001)
    started, cpu = time.perf_counter(), time.process_time()
    while sink._metrics.batches._value.get() < batches:
        time.sleep(0.002)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    postgres_s = backend_cpu_s(url)
    stop.set()
    thread.join()
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "postgres_cpu_seconds": postgres_s}))


def backend_cpu_s(url: str) -> float | None:
    """CPU seconds of Postgres' processes that serve this database; None where they are on another machine."""
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'fraud-scorer'"
        ).fetchall()
    try:
        stats = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for (pid,) in found]
    except OSError:
        return None
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")


def measure(rows: int, rounds: int, lanes: int) -> dict[str, object]:
    """All figures."""
    audit_batches.CONTEXT = CONTEXT
    count = max(1, rows // BATCH_ROWS)
    result: dict[str, list[float]] = {}
    with local_services(fsync=False, report=lambda line: print(line, file=sys.stderr)) as services:
        servers, topic = services.kafka.bootstrap_servers, f"bench-{secrets.token_hex(4)}-audit"
        make_topic(servers, topic)
        shard = Shard(servers, topic)
        transactions: list[list[memoryview]] = [[]]
        size = 0
        for number in range(count):
            given = columns(number, BATCH_ROWS)
            chunks, record = shard.chunks(given)
            shard.send(chunks)
            shard.sequence, shard.head = record.sequence, record.head
            for chunk in chunks:
                transactions[-1].append(copy_encode.rows_bytes(*decode_chunk(chunk), DAY).data)
                size += len(chunk)
            if size >= TRANSACTION_BYTES:
                transactions.append([])
                size = 0
        total = count * BATCH_ROWS
        for _ in range(rounds):
            with database(services.postgres.url) as url:
                copy = bare_copy(url, transactions, indexes=True)
                result.setdefault("copy_s", []).append(copy["seconds"])
                result.setdefault("copy_cpu_s", []).append(copy["cpu_seconds"] + copy["postgres_cpu_seconds"])
                result.setdefault("copy_postgres_cpu_s", []).append(copy["postgres_cpu_seconds"])
                copy = bare_copy(url, transactions, indexes=False)
                result.setdefault("copy_without_indexes_s", []).append(copy["seconds"])
            with database(services.postgres.url) as url:
                sink = run_sink(servers, topic, url, count, lanes)
                result.setdefault("sink_s", []).append(sink["seconds"])
                result.setdefault("sink_cpu_s", []).append(sink["cpu_seconds"])
                result.setdefault("sink_postgres_cpu_s", []).append(sink["postgres_cpu_seconds"] or math.nan)
                for name, parallel in (("verify_s", CONNECTIONS), ("verify_one_connection_s", 1)):
                    started, cpu = time.perf_counter(), time.process_time()
                    report = verify(url, parallel=parallel)
                    result.setdefault(name, []).append(time.perf_counter() - started)
                    result.setdefault(f"{name}_cpu", []).append(time.process_time() - cpu)
                    if not report.good or report.decisions != total:
                        raise SystemExit(f"verify: {report}")
    median = {name: statistics.median(values) for name, values in result.items()}
    return {
        "rows": total,
        "features": FEATURES,
        "rounds": rounds,
        "sink_rows_per_s": round(total / median["sink_s"]),
        "sink_own_cpu_us_per_row": round(median["sink_cpu_s"] / total * 1e6, 2),
        "sink_postgres_cpu_us_per_row": round(median["sink_postgres_cpu_s"] / total * 1e6, 2),
        "copy_rows_per_s": round(total / median["copy_s"]),
        "copy_without_indexes_rows_per_s": round(total / median["copy_without_indexes_s"]),
        "copy_postgres_cpu_us_per_row": round(median["copy_postgres_cpu_s"] / total * 1e6, 2),
        "verify_rows_per_s": round(total / median["verify_s"]),
        "verify_one_connection_rows_per_s": round(total / median["verify_one_connection_s"]),
        "verify_own_cpu_us_per_row": round(median["verify_one_connection_s_cpu"] / total * 1e6, 2),
        "load": os.getloadavg()[0],
        "sink_to_copy": round(median["sink_s"] / median["copy_s"], 2),
        "sink_to_copy_in_each_round": [
            round(a / b, 2) for a, b in zip(result["sink_s"], result["copy_s"], strict=True)
        ],
        "sink_to_copy_cpu": round((median["sink_cpu_s"] + median["sink_postgres_cpu_s"]) / median["copy_cpu_s"], 2),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lanes", type=int, default=2, help="transactions of the sink at once (default: %(default)s)")
    parser.add_argument("--sink", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sink:
        servers, topic, url, batches, lanes = options.sink
        sink_child(servers, topic, url, int(batches), int(lanes))
        return
    print(json.dumps(measure(options.rows, options.rounds, options.lanes)))


if __name__ == "__main__":
    main()
