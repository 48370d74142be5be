"""Traces of sampled payments: joined from payment to audit row, given back in headers, bounded, off by default."""

from __future__ import annotations

import json
import re
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from scorer import kafka
from scorer.bundle import Bundle
from scorer.local_services import Services
from scorer.operate.setup import setup
from scorer.replay import replay_topic
from scorer.runtime.settings import PREFIX, Settings
from scorer.runtime.trace_context import SAMPLED_ROWS
from tests.integration.running import TopicReader, metrics, process, test_settings, wait_for
from tests.otlp_collector import Collector, collector
from tests.record_ways import BOTH_WAYS, RECORD_ACCESS

TRACE = "4bf92f3577b34da6a3ce929d0e0e47"
CALLER = "00f067aa0ba902b7"
Headers = list[tuple[str, bytes]]


@pytest.fixture
def settings(services: Services, topics_prefix: str, database: str) -> Settings:
    made = test_settings(services.kafka.bootstrap_servers, topics_prefix, postgres={"url": database})
    setup(made)
    return made


def tracing(found: Collector, **more: str) -> dict[str, str]:
    """The settings of a process that gives its spans to `found`."""
    given = {"EXPORTER": "otlp", "ENDPOINT": found.address, **more}
    return {f"{PREFIX}TRACING__{name}": value for name, value in given.items()}


def parent(number: int, *, sampled: bool) -> bytes:
    """A caller's traceparent."""
    return f"00-{TRACE}{number:02x}-{CALLER}-{'01' if sampled else '00'}".encode()


def payment(name: str, **fields: Any) -> bytes:
    made = {
        "payment_id": name, "event_time": int(time.time() * 1000), "amount_minor": 100, "currency": "EUR",
        "customer_id": "c", "terminal_id": "t",
    }  # fmt: skip
    return json.dumps(made | fields).encode()


def send(settings: Settings, sent: dict[str, Headers], **bad: bytes) -> None:
    """A payment for each name, with its headers; the bytes in `bad` instead of those of that name."""
    producer, topic = kafka.plain_producer(settings.kafka), kafka.Topics.of(settings.kafka).payments
    for name, headers in sent.items():
        producer.produce(topic, bad.get(name, payment(name)), key=b"k", headers=headers)
    assert producer.flush(30) == 0


def headers_by_payment(reader: TopicReader) -> dict[str, Headers]:
    return {json.loads(m.value())["payment_id"]: m.headers() or [] for m in reader.messages}


@BOTH_WAYS
def test_a_sampled_payment_is_followed_to_its_audit_row_and_its_context_is_given_back(
    settings: Settings, bundle: Path, tmp_path: Path, way: str
) -> None:
    """Decision, commit and audit row are spans of the caller's trace; both decisions name ours as the parent; what was
    not sampled or is no traceparent gives no span; replay gives every digest again."""
    sent: dict[str, Headers] = {
        "sampled": [("traceparent", parent(1, sampled=True)), ("tracestate", b"bank=1")],
        "unsampled": [("traceparent", parent(2, sampled=False)), ("tracestate", b"bank=2"), ("other", b"x")],
        "plain": [],
        "broken": [("traceparent", b"00-nonsense")],
        "twice": [("traceparent", parent(3, sampled=True)), ("traceparent", parent(4, sampled=True))],
        "refused": [("traceparent", parent(5, sampled=True))],
        "nameless": [("traceparent", parent(6, sampled=True))],
    }
    topics = kafka.Topics.of(settings.kafka)
    decisions, fast = TopicReader(settings, topics.decisions), TopicReader(settings, topics.decisions_fast)
    with collector() as found:
        more = tracing(found) | {RECORD_ACCESS: way}
        with (
            process("run", ["--bundle", str(bundle)], settings, tmp_path / "worker.log", **more) as worker,
            process("sink", [], settings, tmp_path / "sink.log", **more) as sink,
        ):
            send(settings, sent, refused=payment("refused", amount_minor=-1), nameless=b"no json")
            wait_for(lambda: decisions.fill() >= 6 and fast.fill() >= 6, 60, "the decisions")
            wait_for(lambda: len(found.named("fraud_scorer.audit_row")) == 2, 60, "the audit rows' spans")
            wait_for(lambda: len(found.named("fraud_scorer.decision")) == 3, 60, "the decisions' spans")
            exemplars = open_metrics(worker.port)  # type: ignore[attr-defined]
            assert "# {" not in json.dumps(list(metrics(worker.port)))  # type: ignore[attr-defined]
            for child in (worker, sink):
                child.send_signal(signal.SIGTERM)
                assert child.wait(60) == 0
    by_trace = {span.trace_id[-2:]: span for span in found.named("fraud_scorer.decision")}
    assert set(by_trace) == {"01", "05", "06"}
    decision = by_trace["01"]
    assert (decision.trace_id, decision.parent) == (f"{TRACE}01", CALLER)
    assert decision.events == ("received", "decided", "ordered", "fast_published")
    assert decision.start_ns < decision.end_ns
    assert decision.error is None
    assert decision.attributes["fraud_scorer.decision"] == "approve"
    assert decision.attributes["fraud_scorer.row"] == 0
    assert decision.resource["service.name"] == "fraud-scorer"
    assert decision.resource["fraud_scorer.bundle"] == Bundle.load(bundle).id
    assert by_trace["05"].error
    assert by_trace["06"].error
    assert not any(word in str(found.spans) for word in ("refused@", "customer", "'c'", "payment_id"))
    (commit,) = [span for span in found.named("fraud_scorer.commit") if span.trace_id == decision.trace_id]
    (row,) = [span for span in found.named("fraud_scorer.audit_row") if span.trace_id == decision.trace_id]
    assert commit.parent == row.parent == decision.span_id
    for reader in (decisions, fast):
        back = headers_by_payment(reader)
        ours = f"00-{TRACE}01-{decision.span_id}-01".encode()
        assert back["sampled"] == [("traceparent", ours), ("tracestate", b"bank=1")]
        assert back["unsampled"] == [("traceparent", parent(2, sampled=False)), ("tracestate", b"bank=2")]
        assert back["plain"] == back["broken"] == back["twice"] == []
        assert back["refused"][0][1].startswith(f"00-{TRACE}05-{by_trace['05'].span_id}".encode())
        reader.close()
    assert re.search(r'decision_latency_seconds_bucket\{.*\} \d+.* # \{span_id="\w{16}",trace_id="\w{32}"\}', exemplars)
    report = replay_topic(Bundle.load(bundle), settings, None)
    assert (report.decisions, report.batches_checked > 0) == (6, True)


def open_metrics(port: int) -> str:
    """What is served to who asks for OpenMetrics, as Prometheus does."""
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        assert "openmetrics" in answer.headers["Content-Type"]
        return str(answer.read().decode())


def test_off_by_default_no_record_has_a_header(settings: Settings, bundle: Path, tmp_path: Path) -> None:
    """Without the setting neither decision nor audit record carries anything of a payment's trace."""
    topics = kafka.Topics.of(settings.kafka)
    readers = [TopicReader(settings, t) for t in (topics.decisions, topics.decisions_fast, topics.audit)]
    with process("run", ["--bundle", str(bundle)], settings, tmp_path / "worker.log"):
        send(settings, {"one": [("traceparent", parent(1, sampled=True))], "two": []})
        wait_for(lambda: all(reader.fill() for reader in readers) and len(readers[0].messages) == 2, 60, "records")
    for reader in readers:
        assert not any(message.headers() for message in reader.messages)
        reader.close()


def test_a_flood_of_sampled_payments_is_bounded_and_a_collector_that_is_away_holds_nothing_up(
    settings: Settings, bundle: Path, tmp_path: Path
) -> None:
    """Of payments that all ask to be sampled only so many are; the others keep their header. A collector that refuses
    costs spans, which are counted, and no decision; the worker ends within its time."""
    topics = kafka.Topics.of(settings.kafka)
    decisions, audit = TopicReader(settings, topics.decisions), TopicReader(settings, topics.audit)
    with collector() as found:
        found.status = 400
        more = tracing(found, PAYMENTS_PER_S_MAX="5", FLUSH_S="1")
        with process("run", ["--bundle", str(bundle)], settings, tmp_path / "worker.log", **more) as worker:
            carried = [("traceparent", parent(7, sampled=True))]
            began = time.monotonic()
            send(settings, {f"p{n}": carried for n in range(2_000)})
            wait_for(lambda: decisions.fill() >= 2_000, 180, "the decisions")
            taken_s = time.monotonic() - began
            back = [dict(message.headers()) for message in decisions.messages]
            ours = sum(headers["traceparent"] != carried[0][1] for headers in back)
            # Five at once, and five a second from then on, for as long as this machine took to decide.
            assert 0 < ours <= 5 * (taken_s + 2)
            port = worker.port  # type: ignore[attr-defined]
            name = "fraud_scorer_trace_spans_dropped_total"
            wait_for(lambda: metrics(port)[f'{name}{{reason="limit"}}'] >= 2_000 - ours, 60, "the limit's count")
            wait_for(lambda: metrics(port)[f'{name}{{reason="export"}}'] > 0, 60, "the collector's count")
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(60) == 0
    audit.read_to_end()
    named = [value for message in audit.messages for name, value in message.headers() or [] if name == SAMPLED_ROWS]
    assert sum(len(value.split(b"\n")) for value in named) == ours
    decisions.close()
    audit.close()
