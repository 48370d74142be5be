"""Worker processes and their settings, for the benchmarks of delivery."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from scorer.demo import free_ports
from scorer.operate.setup import create_topics
from scorer.runtime.settings import Settings, load
from tests.integration.running import environment, is_ready, metrics, wait_for


def made_settings(bootstrap: str, name: str) -> Settings:
    """Settings with topics of their own, made."""
    made = load(kafka={"bootstrap_servers": bootstrap, "topic_prefix": f"recovery-{name}-"})
    create_topics(made)
    return made


class Worker:
    """A worker process, ready; killed at the end."""

    def __init__(self, settings: Settings, bundle: Path, log: Path, **more: str) -> None:
        (self.port,) = free_ports(1)
        env = environment(settings, FRAUD_SCORER_HTTP__WORKER_PORT=str(self.port), **more)
        command = [sys.executable, "-m", "scorer", "run", "--bundle", str(bundle)]
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        wait_for(lambda: is_ready(self.port), 300, "the worker to be ready")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def events(self) -> dict[str, dict[str, Any]]:
        """The last log record of each event."""
        found = (json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{"))
        return {record["event"]: record for record in found}

    def metrics(self) -> dict[str, float]:
        """Its metrics, by their full name with labels."""
        return metrics(self.port)

    def total(self, name: str) -> float:
        """The sum of a metric over its labels."""
        return sum(value for full, value in self.metrics().items() if full.startswith(name + "{"))

    def memory_bytes(self) -> float:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


def snapshots(folder: Path, every: int) -> dict[str, str]:
    """Environment of a worker that snapshots to `folder` every so many payments, and follows no other."""
    return {
        "FRAUD_SCORER_SNAPSHOTS__URL": folder.as_uri(),
        "FRAUD_SCORER_SNAPSHOTS__EVERY_PAYMENTS": str(every),
        "FRAUD_SCORER_SNAPSHOTS__EVERY_S": "0",
        "FRAUD_SCORER_WORKER__STANDBY_SHARDS_MAX": "0",
    }
