"""The metrics that a real worker and sink serve: those of deploy/METRICS.md, each of them fed, in a bounded scrape; and
what a real Prometheus makes of them: every panel of the dashboards and every rule of the alerts has data."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from scorer import kafka
from scorer.bundle.challengers import with_challengers
from scorer.demo import CUSTOMERS, live_blocks
from scorer.demo.demo_bundle import FOLDER, LIVE_SEED
from scorer.local_services import Services, local_prometheus
from scorer.operate.activation import new_activation, send_activation
from scorer.operate.dashboards import BOARDS
from scorer.operate.dashboards.board import with_all_chosen
from scorer.operate.dashboards.picture import picture
from scorer.operate.record_sender import Sender
from scorer.operate.setup import setup
from scorer.runtime.settings import PREFIX, Settings
from scorer.simulate import World
from tests.faults.payments import make_bundle
from tests.integration.running import environment, metrics, process, test_settings, wait_for
from tests.metrics_table import ROOT, Row, documented, families, rows_of

PAYMENTS = 20_000
LINES_MAX = 600
_NAME = re.compile(r"\b(?:fraud_scorer[_:]|process_)[\w:]*\b")


@pytest.fixture
def settings(services: Services, topics_prefix: str, database: str) -> Settings:
    made = test_settings(
        services.kafka.bootstrap_servers, topics_prefix, postgres={"url": database}, worker={"batch_payments_max": 512}
    )
    setup(made)
    return made


def send_everything(settings: Settings) -> None:
    """Payments with frauds and labels, refused records with and without an id, and an activation that is refused."""
    topics = kafka.Topics.of(settings.kafka)
    producer = kafka.plain_producer(settings.kafka)
    producer.produce(topics.payments, b"no json", partition=0)
    producer.produce(topics.payments, b'{"payment_id": "refused-1", "amount_minor": -1}', partition=0)
    producer.produce(topics.labels, b'{"type": "label", "payment_id": "none", "fraud": true}', partition=0)
    assert producer.flush(30) == 0
    send_activation(settings, new_activation(settings, "demo-0123456789ab", "/srv/bundles/none", None))
    blocks = live_blocks(World(LIVE_SEED, customers=CUSTOMERS))
    Sender(settings).run(blocks, stop=threading.Event(), limit=PAYMENTS, rate=2_500)


def asked(prometheus: str, path: str, **parameters: str) -> Any:
    """What Prometheus' API answers."""
    text = urllib.parse.urlencode(parameters)
    with urllib.request.urlopen(f"{prometheus}/api/v1/{path}?{text}", timeout=10) as answer:
        return json.load(answer)["data"]


def values(prometheus: str, expression: str) -> list[float]:
    """Of each series that a query gives now."""
    expression = with_all_chosen(expression, rate_interval="5m", time_range="10m")
    return [float(found["value"][1]) for found in asked(prometheus, "query", query=expression)["result"]]


def without_data(prometheus: str) -> list[str]:
    """Queries of panels that give no number, or nothing but 0 where their panel does not say why that is right."""
    empty = []
    for board in BOARDS:
        for panel in board.panels():
            for query in panel.queries:
                found = [value for value in values(prometheus, query.expression) if math.isfinite(value)]
                if not found or (not any(found) and not panel.zero):
                    empty.append(f"{board.name}, {panel.title}: {query.expression} gives {found}")
    return empty


def every_rule_has_its_series(prometheus: str) -> None:
    """Prometheus evaluates each rule without an error, and knows each series that a rule or panel names."""
    rules = [rule for group in asked(prometheus, "rules")["groups"] for rule in group["rules"]]
    assert len(rules) > 40
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] == "err"} == {}
    panels = [query.expression for board in BOARDS for panel in board.panels() for query in panel.queries]
    named = {name for text in (*panels, *(rule["query"] for rule in rules)) for name in _NAME.findall(text)}
    recorded = {rule["name"] for rule in rules if rule["type"] == "recording"}

    def unknown() -> set[str]:
        return named - recorded - set(asked(prometheus, "label/__name__/values"))

    # What was served a moment ago comes with the next scrape.
    wait_for(lambda: not unknown(), 120, "a series of each name that a rule or panel has")


def test_every_documented_metric_is_served_and_fed_and_no_other(settings: Settings, tmp_path: Path) -> None:
    """A worker with the demo's bundle and a sink have decided and written 20,000 payments, labels, refusals: each
    metric of the page has a series, with the page's type, labels and meaning; none is missing in the page; a scrape has
    at most 600 lines. A Prometheus that scrapes both has data for every panel and rule, and the alerts fire whose cause
    was made (it is left out only where none is installed; `.ci/run` installs it)."""
    more = {f"{PREFIX}SNAPSHOTS__EVERY_S": "1", f"{PREFIX}SNAPSHOTS__URL": (tmp_path / "snapshots").as_uri()}
    demo = ROOT / FOLDER / "bundle"
    bundle = str(tmp_path / "bundle")
    with_challengers(demo, [demo], Path(bundle), created_at="2026-01-01T00:00:00Z")
    with (
        process("run", ["--bundle", bundle], settings, tmp_path / "worker.log", **more) as worker,
        process("sink", [], settings, tmp_path / "sink.log", **{f"{PREFIX}AUDIT__QUALITY_EVERY_S": "1"}) as sink,
        local_prometheus(tmp_path, [worker.port, sink.port]) as prometheus,  # type: ignore[attr-defined]
    ):
        ports = {"Worker": worker.port, "Sink": sink.port}  # type: ignore[attr-defined]
        if prometheus is not None:  # an increase is seen from the first scrape on
            wait_for(lambda: values(prometheus, "fraud_scorer_unanswered_total") == [0], 120, "the first scrape")
        send_everything(settings)

        def decided() -> float:
            now = metrics(ports["Worker"])
            return sum(value for name, value in now.items() if name.startswith("fraud_scorer_decisions_total"))

        wait_for(lambda: decided() >= PAYMENTS, 120, "the decisions")
        wait_for(lambda: metrics(ports["Sink"])["fraud_scorer_sink_rows_total"] >= PAYMENTS, 120, "the rows")
        written = 'fraud_scorer_snapshots_total{shard="0"}'
        wait_for(lambda: metrics(ports["Worker"]).get(written, 0) > 0, 60, "a snapshot")
        wait_for(
            lambda: (
                metrics(ports["Worker"]).get('fraud_scorer_bundles_refused_total{reason="unsigned",shard="0"}', 0)
                + metrics(ports["Worker"]).get('fraud_scorer_bundles_refused_total{reason="untrusted",shard="0"}', 0)
                > 0
            ),
            60,
            "the refused activation",
        )
        ratios = re.compile(r"fraud_scorer_(?:precision|recall)_ratio{")
        wait_for(
            lambda: len({found[0] for name in metrics(ports["Sink"]) if (found := ratios.match(name))}) == 2,
            60,
            "labels of flagged payments and of frauds",
        )
        for part, port in ports.items():
            served = families(f"http://127.0.0.1:{port}")
            assert [family.name for family in served if not family.samples] == [], f"{part}: nothing feeds these"
            table = "\n".join(row.line for row in rows_of(served))
            wanted = sorted(_sorted_labels(row) for row in (*documented(part), *documented("Both")))
            assert rows_of(served) == wanted, f"the table of {part} should be\n{table}"
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
            assert len(lines) <= LINES_MAX, f"{part}: {len(lines)}"
        now = metrics(ports["Worker"])
        # Each payment has its own latency and score.
        latencies = now['fraud_scorer_decision_latency_seconds_count{shard="0"}']
        assert latencies == now['fraud_scorer_scores_count{shard="0"}'] == decided()
        infinite = now['fraud_scorer_decision_latency_seconds_bucket{le="+Inf",shard="0"}']
        assert infinite == latencies
        assert now['fraud_scorer_lag_payments{shard="0"}'] >= 0
        # A model agrees with itself.
        assert {kind for name, value in now.items() if value and (kind := _flagged_by(name))} == {"both", "neither"}
        if prometheus is not None:
            for _ in range(20):  # a scrape may be missed on a busy machine
                if not (empty := without_data(prometheus)):
                    break
                time.sleep(1)
            assert empty == [], "\n".join(empty)
            every_rule_has_its_series(prometheus)
            for board in BOARDS:  # each panel is drawn for the documents
                drawn = "".join(ElementTree.fromstring(picture(board, prometheus, 60)).itertext())
                assert [panel.title for panel in board.panels() if panel.title not in drawn] == []
            wait_for(lambda: {"RecordsUnanswered", "ActivationRefused"} <= _firing(prometheus), 60, "both alerts")


def _firing(prometheus: str) -> set[str]:
    """Names of the alerts that are pending or fire."""
    return {alert["labels"]["alertname"] for alert in asked(prometheus, "alerts")["alerts"]}


def _flagged_by(name: str) -> str | None:
    found = re.search(r'^fraud_scorer_challenger_payments_total{.*flagged_by="(\w+)"', name)
    return found and found[1]


def _sorted_labels(row: Row) -> Row:
    return row._replace(labels=tuple(sorted(row.labels)))


def test_the_series_of_a_shard_leave_with_the_shard(settings: Settings, tmp_path: Path) -> None:
    """A second worker takes one of two shards: the first serves no series of that shard any more."""
    bundle = make_bundle(tmp_path / "bundle")
    two = settings.model_copy(
        update={
            "kafka": settings.kafka.model_copy(update={"topic_prefix": f"{settings.kafka.topic_prefix}two-"}),
            "worker": settings.worker.model_copy(update={"shards": 2}),
        }
    )
    setup(two, postgres=False)
    more = {
        f"{PREFIX}WORKER__SHARDS": "2",
        f"{PREFIX}WORKER__SHARD_KEY": '["customer_id"]',
        f"{PREFIX}WORKER__STANDBY_SHARDS_MAX": "0",
    }

    def shards(port: int) -> set[str]:
        return {
            sample.labels["shard"]
            for family in families(f"http://127.0.0.1:{port}")
            for sample in family.samples
            if "shard" in sample.labels
        }

    with process("run", ["--bundle", str(bundle)], two, tmp_path / "first.log", **more) as first:
        port = first.port  # type: ignore[attr-defined]
        wait_for(lambda: metrics(port)["fraud_scorer_owned_shards"] == 2, 60, "both shards")
        assert shards(port) == {"0", "1"}
        with process("run", ["--bundle", str(bundle)], two, tmp_path / "second.log", **more) as second:
            other = second.port  # type: ignore[attr-defined]
            wait_for(lambda: metrics(other)["fraud_scorer_owned_shards"] == 1, 60, "a shard for the second")
            wait_for(lambda: len(shards(port)) == 1, 60, "the series to leave")
            assert shards(port) | shards(other) == {"0", "1"}


def test_a_second_worker_and_sink_with_default_settings_take_free_ports(settings: Settings, tmp_path: Path) -> None:
    """Two workers on one machine, no port chosen: both serve, and the second one's log says where."""

    bundle = make_bundle(tmp_path / "bundle")
    env = {name: value for name, value in environment(settings).items() if not name.startswith(f"{PREFIX}HTTP")}
    assert os.environ.get(f"{PREFIX}HTTP__WORKER_PORT") is None
    logs = [tmp_path / f"{number}.log" for number in range(2)]
    children = []

    def addresses(log: Path) -> list[str]:
        events = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        return [event["metrics"] for event in events if event["event"] == "worker.start"]

    try:
        for log in logs:
            with log.open("wb") as out:
                arguments = [sys.executable, "-m", "scorer", "run", "--bundle", str(bundle)]
                children.append(subprocess.Popen(arguments, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out))
            wait_for(lambda log=log: bool(addresses(log)), 120, f"{log.name} to serve")  # type: ignore[misc]
        found = [addresses(log)[0] for log in logs]
        assert len(set(found)) == 2
        for address in found:
            with urllib.request.urlopen(address, timeout=10) as answer:
                assert b"fraud_scorer_owned_shards" in answer.read()
        events = [json.loads(line) for line in logs[1].read_text().splitlines() if line.startswith("{")]
        (taken,) = [event for event in events if event["event"] == "health.port_taken"]
        assert found[1].endswith(f":{taken['instead']}/metrics")
        assert taken["wanted"] == 9464
    finally:
        for child in children:
            child.kill()
            child.wait()
