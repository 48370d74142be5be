"""How long decisions pause when a shard changes hands. `python -m tests.benchmarks.hand_over` prints one JSON object.

Two workers, payments at a steady rate, then the owner is ended by SIGTERM or SIGKILL while the other one stands by,
warm or (for comparison) without a standby's state. The pause is the longest time between two decisions by the broker's
timestamps, around the hand-over; a killed member is noticed only after the group's session timeout, which is taken off
in `after_session_s`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from scorer import kafka
from scorer.demo import CUSTOMERS, LIVE_SEED, demo_bundle, free_ports, live_blocks
from scorer.local_services import local_services
from scorer.operate.record_sender import Sender
from scorer.operate.setup import create_topics
from scorer.runtime.settings import load
from scorer.simulate import World
from tests.integration.running import TopicReader, environment, is_ready, wait_for

RATE = 500.0


def _worker(settings: object, bundle: Path, log: Path, **more: str) -> tuple[subprocess.Popen[bytes], int]:
    (port,) = free_ports(1)
    env = environment(settings, FRAUD_SCORER_HTTP__WORKER_PORT=str(port), **more)  # type: ignore[arg-type]
    with log.open("ab") as out:
        command = [sys.executable, "-m", "scorer", "run", "--bundle", str(bundle)]
        child = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    wait_for(lambda: is_ready(port), 120, "a worker to be ready")
    return child, port


def hand_over(bootstrap: str, bundle: Path, *, how: signal.Signals, warm: bool, history: int, folder: Path) -> float:
    """The longest pause in seconds, with `history` payments decided before."""
    name = f"hand-{how.name.lower()}-{'warm' if warm else 'cold'}-{os.getpid()}-"
    settings = load(kafka={"bootstrap_servers": bootstrap, "topic_prefix": name})
    create_topics(settings)
    decisions = TopicReader(settings, kafka.Topics.of(settings.kafka).decisions)
    blocks = live_blocks(World(LIVE_SEED, customers=CUSTOMERS))
    first, _ = _worker(settings, bundle, folder / "first.log")
    Sender(settings).run(blocks, stop=threading.Event(), limit=history)
    wait_for(lambda: decisions.fill() >= history, 120, "the history")
    standby = {"FRAUD_SCORER_WORKER__STANDBY_SHARDS_MAX": "1" if warm else "0"}
    second, _ = _worker(settings, bundle, folder / "second.log", **standby)
    time.sleep(3.0)  # for a standby to follow up to now
    stop = threading.Event()
    more = Sender(settings)
    rest = live_blocks(World(LIVE_SEED + 1, customers=CUSTOMERS))
    sending = threading.Thread(target=lambda: more.run(rest, stop=stop, rate=RATE))
    sending.start()
    ends_at = time.monotonic() + 20.0
    killed = False
    while time.monotonic() < ends_at:
        decisions.fill()
        if not killed and time.monotonic() > ends_at - 16.0:
            first.send_signal(how)
            killed = True
    stop.set()
    sending.join()
    wait_for(lambda: decisions.fill() >= history + more.sent.payments, 60, "all decisions")
    second.send_signal(signal.SIGTERM)
    second.wait(60)
    first.wait(60)
    stamps = np.sort([m.timestamp()[1] for m in decisions.messages])[history:]
    decisions.close()
    return float(np.max(np.diff(stamps)) / 1000.0)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--history", type=int, default=100_000, help="payments decided before the hand-over")
    given = parser.parse_args()
    report = lambda line: print(line, file=sys.stderr)  # noqa: E731
    bundle = demo_bundle(load().cache.expanduser(), report)
    result: dict[str, float] = {}
    with local_services(postgres=False, report=report) as services, tempfile.TemporaryDirectory() as folder:
        for how, warm in itertools.product((signal.SIGTERM, signal.SIGKILL), (True, False)):
            pause = hand_over(
                services.kafka.bootstrap_servers, bundle, how=how, warm=warm, history=given.history, folder=Path(folder)
            )
            key = f"{how.name.lower()}_{'warm' if warm else 'cold'}"
            result[f"{key}_pause_s"] = round(pause, 3)
            if how == signal.SIGKILL:
                result[f"{key}_after_session_s"] = round(pause - load().worker.session_timeout_ms / 1000.0, 3)
            report(f"{key}: {pause:.3f} s")
    print(json.dumps({"history": given.history, "rate_per_s": RATE, **result}))


if __name__ == "__main__":
    main()
