"""Worker against echo: CPU per payment, payments/s, latency.
`python -m tests.benchmarks.pipeline [--quick]` prints one JSON object; `--rates 0.2,1,10 --no-backlog` measures latency
at these rates alone.

`floor` is an echo by the client library's C interface, `without_fast` the worker without topic decisions-fast
(`cpu_worker_over_without_fast`: what that topic costs), and
`stages` the worker's CPU by stage, in a run of its own. With `--partitions 1` the payments topic has one partition
instead of four.

All get the same simulated payments on topics of their own, on one real broker, one after the other, several times in
turn; a figure is the median of its rounds. CPU is user and system time of the whole process (the client's threads
included) over a backlog in batches of 4,096, kernels compiled before, without the first tenth of it: `start_cpu_s` is
what that tenth and the start took. Latency runs from a payment handed to the client until its decision has been read
under read_committed (`fast`: on topic decisions-fast), at a steady rate, from one payment in five seconds on; broker,
sender and readers share the machine with what is measured. A rate is measured for `--seconds`, a slow one for longer,
so that a percentile is of some payments (`payments` says how many), but for no more than a minute. `cpu_us` is the CPU
a payment meanwhile, from 100 payments/s on of the worker without topic decisions-fast as well.

`refused` is the worker over a backlog in which nothing can be decided: CPU µs for each kind of refusal, dead letters
committed, over that of a decided payment.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from scorer import kafka
from scorer.bundle import Bundle
from scorer.demo import CUSTOMERS, LIVE_SEED, DecisionReader, demo_bundle, live_blocks
from scorer.local_services import local_services
from scorer.operate.record_sender import Sender
from scorer.operate.setup import create_topics
from scorer.runtime.logs import configure
from scorer.runtime.settings import Settings, load
from scorer.simulate import World
from tests.benchmarks.echo import Echo, FlatEcho
from tests.benchmarks.stages import Stages

BATCH = 4096
RATES = (0.2, 1.0, 10.0, 100.0, 200.0, 2000.0, 10_000.0)
SLOW_SECONDS_MAX = 60.0  # how long a slow rate is measured
WITHOUT_FAST_RATE_MIN = 100.0  # below it a process that waits takes more CPU than its payments
SLOW_PAYMENTS = 30  # how many payments it should have by then
WARM_RATE_MIN = 20.0
DRAIN_S = 120.0
PARTITIONS = "FRAUD_SCORER_TOPICS__PAYMENTS_PARTITIONS"

REFUSED = {
    "text": b"garbage %d",
    "not_a_payment": b'{"order": %d, "state": "shipped", "lines": [1, 2, 3]}',
    "wrong_amount": b'{"payment_id": "p%d", "event_time": "2026-01-01T00:00:00Z", "amount_minor": -5, '
    b'"currency": "EUR", "customer_id": "c_000042", "terminal_id": "t_3311"}',
}


def _settings(bootstrap: str, prefix: str) -> Settings:
    return load(kafka={"bootstrap_servers": bootstrap, "topic_prefix": prefix}, worker={"batch_payments_max": BATCH})


def _partitions(count: int) -> None:
    """Make the payments topics with so many partitions, here and in the children."""
    os.environ[PARTITIONS] = str(count)


class _Child:
    """The part that is measured, in a process of its own:
    it answers `ready`, then `done JSON` for `await N`."""

    def __init__(self, part: str, bootstrap: str, prefix: str) -> None:
        # One thread a pool: the machine is shared, and both parts must be given the same.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.benchmarks.pipeline", "--part", part, bootstrap, prefix]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def cpu_s(self) -> float:
        """User and system time of the process so far."""
        self.tell("cpu")
        return float(self.hear()[1])

    def hear(self) -> list[str]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the measured part ended with {self.process.wait()}")
        return line.split(maxsplit=1)

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def _part(part: str, bootstrap: str, prefix: str) -> None:
    """Child: waits for `go`, runs worker or echo, and answers when the number of payments on the topic has been
    committed."""
    configure("error")
    settings = _settings(bootstrap, prefix)
    stop = threading.Event()
    gather_ms = 4.0
    measured = None
    if part in ("worker", "stages", "without_fast"):
        from scorer.pipeline.warm_up import warm_up  # noqa: PLC0415 - the echo must not carry the worker's memory
        from scorer.worker.worker import Worker  # noqa: PLC0415
        from tests.benchmarks import stages  # noqa: PLC0415

        measured = stages.of_worker() if part == "stages" else None
        bundle = Bundle.load(demo_bundle())
        warm_up(bundle)
        settings.worker.fast_decisions = part != "without_fast"
        worker = Worker(settings, bundle)
        run = threading.Thread(target=worker.run, args=(stop,), daemon=True)
        decided = _committed
    else:
        echo = (Echo if part == "echo" else FlatEcho)(settings, batch_max=BATCH, gather_ms=gather_ms)
        run = threading.Thread(target=echo.run, args=(stop,), daemon=True)
        decided = lambda: echo.echoed  # noqa: E731
    print("ready", flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "go":
            cpu, wall = time.process_time(), time.perf_counter()
            run.start()
        elif word == "await":
            due = int(rest[0])
            first = _reached(decided, due // 10, run)
            started = time.process_time() - cpu, time.perf_counter() - wall, measured and measured.seconds()
            last = _reached(decided, due, run)
            used = time.process_time() - cpu - started[0]
            found = {
                "payments": last - first,
                "start_cpu_s": started[0],
                "cpu_s": used,
                "wall_s": time.perf_counter() - wall - started[1],
                "stages": _by_stage(measured, started[2] or {}, used),
            }
            print("done", json.dumps(found), flush=True)
        elif word == "cpu":
            print("cpu", time.process_time(), flush=True)
        elif word == "stop":
            stop.set()
            run.join(60)
            return


def _reached(decided: Callable[[], int], count: int, run: threading.Thread) -> int:
    """Wait until so many payments are decided; how many there are by then."""
    while (now := decided()) < count:
        if not run.is_alive():
            raise SystemExit("the measured part stopped")
        time.sleep(0.02)
    return now


def _by_stage(measured: Stages | None, before: dict[str, float], used: float) -> dict[str, float]:
    """CPU seconds by stage since `before`, what is in none of them included."""
    if measured is None:
        return {}
    found = {stage: seconds - before.get(stage, 0.0) for stage, seconds in measured.seconds().items()}
    return found | {"other": used - sum(found.values())}


def _committed() -> int:
    """Payments answered, and dead letters without an answer, of committed batches, by the worker's own metrics."""
    from scorer.worker import worker_metrics  # noqa: PLC0415

    counters = (worker_metrics.DECISIONS, worker_metrics.UNANSWERED)
    return int(sum(s.value for c in counters for m in c.collect() for s in m.samples if s.name.endswith("_total")))


def _topics(bootstrap: str, name: str) -> Settings:
    settings = _settings(bootstrap, f"bench-{name}-")
    create_topics(settings)
    return settings


def backlog(bootstrap: str, name: str, part: str, payments: int) -> dict[str, Any]:
    """CPU µs and wall of one part over a backlog of `payments`."""
    settings = _topics(bootstrap, name)
    blocks = live_blocks(World(LIVE_SEED, customers=CUSTOMERS))
    # Without labels: an echo has nothing to do with them.
    Sender(settings).run(blocks, stop=threading.Event(), limit=payments, with_labels=False)
    return _drained(settings, bootstrap, part, payments)


def refusals(bootstrap: str, kind: str, records: int) -> dict[str, Any]:
    """CPU µs and wall of the worker over a backlog of records that it refuses."""
    settings = _topics(bootstrap, f"refused-{kind}")
    producer = kafka.plain_producer(settings.kafka)
    topic = kafka.Topics.of(settings.kafka).payments
    for i in range(records):
        producer.produce(topic, REFUSED[kind] % i)
        if i % 10_000 == 0:
            producer.flush(30)
    producer.flush(30)
    return _drained(settings, bootstrap, "worker", records)


def _drained(settings: Settings, bootstrap: str, part: str, payments: int) -> dict[str, Any]:
    with _Child(part, bootstrap, settings.kafka.topic_prefix) as child:
        child.hear()
        child.tell("go")
        child.tell(f"await {payments}")
        found = json.loads(child.hear()[1])
        child.tell("stop")
        child.process.wait(90)
    _delete(settings)
    counted = max(1, found["payments"])  # all may come with the first tenth
    return {
        "cpu_us": found["cpu_s"] / counted * 1e6,
        "payments_per_s": counted / found["wall_s"],
        "start_cpu_s": found["start_cpu_s"],
        "stages": {stage: round(seconds / counted * 1e6, 3) for stage, seconds in found["stages"].items()},
    }


def latency(bootstrap: str, name: str, part: str, rate: float, seconds: float) -> dict[str, Any]:
    """Percentiles in ms at a steady rate, without the payments that warm up; of the worker on topic decisions-fast as
    well (`fast`), read in the same run."""
    settings = _topics(bootstrap, name)
    with _Child(part, bootstrap, settings.kafka.topic_prefix) as child:
        child.hear()
        child.tell("go")
        readers = [DecisionReader(settings)]
        if part == "worker" and settings.worker.fast_decisions:
            readers.append(DecisionReader(settings, fast=True))

        def sending(values: list[bytes]) -> None:
            for reader in readers:
                reader.sending(values)

        sender = Sender(settings, on_payments=sending)
        stop = threading.Event()
        # Warm: broker, group and connections; not counted.
        warm = max(WARM_RATE_MIN, rate)
        sender.run(live_blocks(World(LIVE_SEED, customers=CUSTOMERS)), stop=stop, rate=warm, limit=int(2 * warm))
        for reader in readers:
            _wait_decided(reader, sender.sent.payments)
            reader.seen.latencies_ms.clear()
        before_s = child.cpu_s()
        more = Sender(settings, on_payments=sending)
        lasting = max(seconds, min(SLOW_SECONDS_MAX, SLOW_PAYMENTS / rate))
        more.run(
            live_blocks(World(LIVE_SEED + 1, customers=CUSTOMERS)), stop=stop, rate=rate, limit=int(lasting * rate)
        )
        for reader in readers:
            _wait_decided(reader, sender.sent.payments + more.sent.payments)
            reader.close()
        cpu_us = (child.cpu_s() - before_s) / more.sent.payments * 1e6
        child.tell("stop")
        child.process.wait(90)
    _delete(settings)
    found = _percentiles(readers[0]) | {"cpu_us": round(cpu_us, 1)}
    return {**found, "fast": _percentiles(readers[1])} if len(readers) > 1 else found


def _percentiles(reader: DecisionReader) -> dict[str, Any]:
    values = np.array(reader.seen.latencies_ms)
    return {"payments": len(values)} | {f"p{q:g}_ms": round(float(np.percentile(values, q)), 2) for q in (50, 99, 99.9)}


def _wait_decided(reader: DecisionReader, count: int) -> None:
    deadline = time.monotonic() + DRAIN_S
    while reader.seen.decisions + reader.seen.dead_letters < count:
        reader.check()
        if time.monotonic() > deadline:
            raise RuntimeError(f"{reader.seen.decisions} of {count} payments were decided within {DRAIN_S:.0f} s")
        time.sleep(0.02)


def _delete(settings: Settings) -> None:
    names = vars(kafka.Topics.of(settings.kafka)).values()
    for future in kafka.admin(settings.kafka).delete_topics(list(names), operation_timeout=5).values():
        future.exception(10)


def measure(payments: int, rounds: int, rates: Sequence[float], seconds: float) -> dict[str, Any]:
    """The whole benchmark; without rounds only the latencies."""
    report = lambda line: print(line, file=sys.stderr)  # noqa: E731
    demo_bundle()
    with local_services(postgres=False, report=report) as services:
        at = services.kafka.bootstrap_servers
        found: dict[str, Any] = {"broker": services.kafka.kind}
        if rounds:
            found |= _throughput(at, payments, rounds, report)
        found["latency"] = {}
        for rate in rates:
            parts = ("echo", "worker", *(("without_fast",) if rate >= WITHOUT_FAST_RATE_MIN else ()))
            measured = {part: latency(at, f"{rate:g}-{part}", part, rate, seconds) for part in parts}
            report(f"{rate:g}/s: {measured}")
            echo, worker = measured["echo"], measured["worker"]
            ratio = {q: round(worker[q] / echo[q], 2) for q in echo if q != "payments"}
            found["latency"][f"{rate:g}_per_s"] = {**measured, "worker_over_echo": ratio}
    return found


def _throughput(at: str, payments: int, rounds: int, report: Callable[[str], None]) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {"worker": [], "without_fast": [], "echo": [], "floor": []}
    for n in range(rounds):
        for part, results in runs.items():
            results.append(backlog(at, f"{n}-{part}", part, payments))
            report(f"{part}: {results[-1]}")
    cpu = {part: statistics.median(r["cpu_us"] for r in results) for part, results in runs.items()}
    speed = {part: statistics.median(r["payments_per_s"] for r in results) for part, results in runs.items()}
    by_stage = backlog(at, "stages", "stages", payments)["stages"]
    refused = {}
    for kind in REFUSED:
        result = refusals(at, kind, payments // 4)
        report(f"{kind}: {result}")
        refused[kind] = {
            "cpu_us": round(result["cpu_us"], 2),
            "records_per_s": round(result["payments_per_s"]),
            "over_decided": round(result["cpu_us"] / cpu["worker"], 2),
        }
    return {
        "payments": payments,
        "batch": BATCH,
        "rounds": rounds,
        "cpu_us_per_payment": {part: round(value, 2) for part, value in cpu.items()},
        "cpu_worker_over_echo": round(cpu["worker"] / cpu["echo"], 2),
        "cpu_worker_over_without_fast": round(cpu["worker"] / cpu["without_fast"], 2),
        "cpu_worker_over_floor": round(cpu["worker"] / cpu["floor"], 2),
        "start_cpu_s": {part: round(statistics.median(r["start_cpu_s"] for r in runs[part]), 2) for part in runs},
        "cpu_us_by_stage": by_stage,
        "payments_per_s": {part: round(value) for part, value in speed.items()},
        "refused": refused,
    }


def _rates(text: str) -> list[float]:
    rates = [float(rate) for rate in text.split(",") if rate]
    if not all(rate > 0 for rate in rates):
        raise argparse.ArgumentTypeError("rates are above zero")
    return rates


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, fewer payments, shorter rates")
    parser.add_argument(
        "--rates",
        type=_rates,
        help=f"payments a second at which latency is measured, comma separated (default {RATES}; 200 with --quick)",
    )
    parser.add_argument("--seconds", type=float, help="how long each rate is measured (default 15; 5 with --quick)")
    parser.add_argument("--no-backlog", action="store_true", help="only latency")
    parser.add_argument("--part", nargs=3, metavar=("PART", "BOOTSTRAP", "PREFIX"), help=argparse.SUPPRESS)
    parser.add_argument("--partitions", type=int, help="of the payments topic (default: the setting's, 4)")
    given = parser.parse_args()
    if given.partitions:
        _partitions(given.partitions)
    if given.part:
        _part(*given.part)
        return
    payments, rounds, rates, seconds = (60_000, 1, [200.0], 5.0) if given.quick else (200_000, 3, RATES, 15.0)
    rates = rates if given.rates is None else given.rates
    print(json.dumps(measure(payments, 0 if given.no_backlog else rounds, rates, given.seconds or seconds)))


if __name__ == "__main__":
    main()
