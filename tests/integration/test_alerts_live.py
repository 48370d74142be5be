"""Alerts that fire where a real Prometheus sees a real cause, and end with it."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from scorer import kafka
from scorer.local_services import Services, local_prometheus
from scorer.operate.setup import setup
from scorer.runtime import fault_points
from scorer.runtime.settings import Settings
from tests.faults.payments import make_bundle, payments
from tests.integration.running import metrics, process, test_settings, wait_for
from tests.metrics_table import ROOT
from tests.ports import free_ports

# Minutes are waited for as 2.5 s. The shortest range of a rule, 1 m, still holds two scrapes, one each second.
FASTER = 24
_DURATION = re.compile(r"\b(\d+)([smhd])\b")
_UNIT_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def faster(text: str) -> str:
    """Every duration of a rule as a part of it."""
    return _DURATION.sub(lambda found: f"{max(1, int(found[1]) * _UNIT_MS[found[2]] // FASTER)}ms", text)


def faster_rules(target: Path) -> Path:
    """The rules that ship, with every duration shortened alike."""
    rules: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())
    for group in rules["groups"]:
        group.pop("interval", None)  # each second, as the others
        for rule in group["rules"]:
            rule["expr"] = faster(rule["expr"])
            if "for" in rule:
                rule["for"] = faster(rule["for"])
    target.write_text(yaml.safe_dump(rules))
    return target


def firing(prometheus: str) -> set[str]:
    """Names of the alerts that fire now."""
    with urllib.request.urlopen(f"{prometheus}/api/v1/alerts", timeout=10) as answer:
        alerts = json.load(answer)["data"]["alerts"]
    return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


@contextlib.contextmanager
def a_payment_now_and_then(settings: Settings) -> Iterator[None]:
    """Twenty a second, each on its own, until the block is left."""
    stop = threading.Event()
    topic = kafka.Topics.of(settings.kafka).payments
    producer = kafka.plain_producer(settings.kafka)

    def send() -> None:
        for key, value in payments(7, 100_000):
            if stop.wait(0.05):
                break
            producer.produce(topic, value, key=key, partition=0)
            producer.poll(0)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        producer.flush(10)


def test_a_commit_that_hangs_and_a_worker_that_is_gone_are_seen_and_their_end_is(
    services: Services, topics_prefix: str, tmp_path: Path
) -> None:
    """A worker's third commit never returns: ShardStuck fires. The worker is killed: WorkersGone fires. Another one
    starts: it decides what was left, and neither fires any more. Rules as they ship, all durations divided by 24."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed: apt-get install prometheus")
    settings = test_settings(services.kafka.bootstrap_servers, topics_prefix)
    setup(settings, postgres=False)
    bundle = ["--bundle", str(make_bundle(tmp_path / "bundle"))]
    (port,) = free_ports(1)
    with (
        a_payment_now_and_then(settings),
        local_prometheus(tmp_path, [port], rules=faster_rules(tmp_path / "rules.yaml")) as prometheus,
    ):
        assert prometheus is not None

        def becomes(name: str, *, fires: bool) -> None:
            wait_for(lambda: (name in firing(prometheus)) is fires, 120, f"{name} to {'fire' if fires else 'end'}")

        hanging = {fault_points.SETTING: "before_commit:3:sleep=3600"}
        with process("run", bundle, settings, tmp_path / "first.log", port=port, **hanging) as worker:
            becomes("ShardStuck", fires=True)
            assert metrics(port)['fraud_scorer_batches_in_flight{shard="0"}'] > 0
            becomes("WorkersGone", fires=False)
            worker.kill()
            worker.wait()
            becomes("WorkersGone", fires=True)
        with process("run", bundle, settings, tmp_path / "second.log", port=port):
            wait_for(lambda: metrics(port).get('fraud_scorer_batches_total{shard="0"}', 0) > 0, 60, "a batch")
            becomes("WorkersGone", fires=False)
            becomes("ShardStuck", fires=False)
