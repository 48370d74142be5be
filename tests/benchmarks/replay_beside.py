"""A replay beside the live worker: its latency while nothing else runs, and while a topic is replayed over and over.

    python -m tests.benchmarks.replay_beside [--payments 20000] [--rounds 3] [--seconds 10]

One real broker. The topic that is replayed was decided before and is another one than the worker's, on the same broker;
the replay is a process of its own at low priority (nice 10), under its own client id. Rounds with and without it take
turns; figures are medians, and say nothing when `payments_replayed` is 0 (a replay cut short does not count). Broker,
sender, reader, worker and replay share this machine's cores, which is harsher than a replay from another machine. The
last line is one JSON object.
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
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from scorer.demo import CUSTOMERS, LIVE_SEED, demo_bundle, live_blocks
from scorer.local_services import local_services
from scorer.operate.record_sender import Sender
from scorer.runtime.settings import PREFIX, Settings
from scorer.simulate import World
from tests.benchmarks.pipeline import _Child, _topics, latency

RATE = 200.0


def decided_topic(bootstrap: str, payments: int) -> Settings:
    """A topic of so many payments, decided and journalled."""
    settings = _topics(bootstrap, "replayed")
    Sender(settings).run(
        live_blocks(World(LIVE_SEED, customers=CUSTOMERS)), stop=threading.Event(), limit=payments, with_labels=False
    )
    with _Child("worker", bootstrap, settings.kafka.topic_prefix) as child:
        child.hear()
        child.tell("go")
        child.tell(f"await {payments}")
        child.hear()
        child.tell("stop")
        child.process.wait(90)
    return settings


@contextmanager
def replaying(settings: Settings, bundle: str, done: list[int]) -> Iterator[None]:
    """The topic is replayed again and again meanwhile; `done` counts the payments."""
    stop = threading.Event()
    environment = {
        **os.environ,
        f"{PREFIX}KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        f"{PREFIX}KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix,
        "OMP_NUM_THREADS": "1",
    }
    command = ["nice", "-n", "10", sys.executable, "-m", "scorer", "replay", "--bundle", bundle, "--input", "topic"]

    def run() -> None:
        while not stop.is_set():
            child = subprocess.Popen([*command, "--json"], env=environment, stdout=subprocess.PIPE, text=True)
            while child.poll() is None and not stop.wait(0.1):
                pass
            if child.poll() is None:
                child.kill()
            elif child.stdout is not None:
                done.append(int(json.loads(child.stdout.read().splitlines()[-1])["payments"]))
            child.wait()

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(3.0)  # past the imports
    try:
        yield
    finally:
        stop.set()
        thread.join()


def measure(payments: int, rounds: int, seconds: float) -> dict[str, Any]:
    """The whole benchmark."""
    report = lambda line: print(line, file=sys.stderr)  # noqa: E731
    bundle = demo_bundle()
    found: dict[str, list[dict[str, float]]] = {"alone": [], "replay beside": []}
    done: list[int] = []
    with local_services(postgres=False, report=report) as services:
        at = services.kafka.bootstrap_servers
        settings = decided_topic(at, payments)
        for n in range(rounds):
            found["alone"].append(latency(at, f"alone-{n}", "worker", RATE, seconds))
            with replaying(settings, str(bundle), done):
                found["replay beside"].append(latency(at, f"beside-{n}", "worker", RATE, seconds))
            report(f"round {n}: {found['alone'][-1]} alone, {found['replay beside'][-1]} beside a replay")
    medians = {
        side: {q: statistics.median(r[q] for r in results) for q in results[0]} for side, results in found.items()
    }
    return {
        "rate_per_s": RATE,
        "rounds": rounds,
        "latency": medians,
        "beside_over_alone": {q: round(medians["replay beside"][q] / v, 2) for q, v in medians["alone"].items()},
        "payments_replayed": sum(done),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--payments", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    print(json.dumps(measure(given.payments, given.rounds, given.seconds)))


if __name__ == "__main__":
    main()
