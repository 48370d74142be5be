"""What is traced of a batch follows from the batch, whoever decides it; how much is, from the limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scorer.bundle import Bundle
from scorer.pipeline import Outcomes, Pipeline
from scorer.runtime import settings as settings_module
from scorer.runtime.settings import Settings
from scorer.runtime.span_export import DROPPED, Span
from scorer.runtime.threads import SYSTEM
from scorer.runtime.trace_context import Carried
from scorer.worker.answers import answers_of
from scorer.worker.batch_traces import PUBLISHED, Tracer
from scorer.worker.order_log import RECORD_OVERHEAD_BYTES, fitting
from scorer.worker.ports import Ports
from tests.faults.payments import START_MS, make_bundle
from tests.unit.test_refused_answers import decide, payment

SAMPLED = Carried(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", b"bank=1")
UNSAMPLED = Carried(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")
BROKEN = Carried(b"00-4bf92f3577b34da6a3ce929d0e0e4736")


class Kept:
    """Spans that are kept."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def offer(self, spans: Sequence[Span]) -> None:
        self.spans += spans

    def close(self) -> None:
        return


class Stopped:
    """A clock of which a test says how late it is."""

    now = 1_000.0

    def monotonic(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(SYSTEM, name)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(make_bundle(tmp_path_factory.mktemp("traced") / "plain"))


def settings_with(**tracing: Any) -> Settings:
    return settings_module.load(tracing={"exporter": "otlp", **tracing})


def tracer(settings: Settings, kept: Kept | None, clock: Any = SYSTEM) -> Tracer:
    return Tracer(settings, replace(Ports.real(settings), threads=clock, spans=kept), 0)


def outcomes_of(bundle: Bundle, count: int = 6) -> Outcomes:
    """A batch of payments, one of them refused with an id and one without."""
    values = [payment(f"p{n}", n) for n in range(count)]
    return decide(Pipeline(bundle), [*values, payment("turned-down", amount_minor=-1), b"no json"])


def run(traced: Tracer, outcomes: Outcomes, carried: Mapping[int, Carried]) -> tuple[Mapping[int, Any], Any]:
    """Headers by row and of the audit record of a batch that goes through."""
    traces = traced.of(outcomes, carried, 0, 1.0)
    answers = traces.given_back(answers_of(outcomes))
    traces.reached(PUBLISHED, 2.0)
    traced.committed(0, 3.0)
    return answers.headers, answers.audit_headers


def test_a_batch_that_is_decided_again_has_the_same_spans_and_headers(bundle: Bundle) -> None:
    """An owner that takes a batch over after a kill gives each payment the ids that the one before gave, those of
    payments without a traceparent too."""
    carried = {0: SAMPLED, 1: UNSAMPLED, 2: BROKEN, 6: SAMPLED, 7: SAMPLED}
    settings, kept = settings_with(ratio=0.5), [Kept(), Kept()]
    found = [run(tracer(settings, each), outcomes_of(bundle), carried) for each in kept]
    assert found[0] == found[1]
    assert kept[0].spans == kept[1].spans
    assert len({span.span_id for span in kept[0].spans}) == len(kept[0].spans)


def test_each_payment_is_sampled_as_its_caller_says(bundle: Bundle) -> None:
    """The sampled one has our span as the parent, the other is unchanged, a broken one is as none; refused ones are
    errors with their reason; nothing personal is in a span."""
    kept = Kept()
    outcomes = outcomes_of(bundle)
    headers, audit = run(
        tracer(settings_with(), kept), outcomes, {0: SAMPLED, 1: UNSAMPLED, 2: BROKEN, 6: SAMPLED, 7: SAMPLED}
    )
    decisions = [span for span in kept.spans if span.name == "fraud_scorer.decision"]
    assert [span.attributes.get("fraud_scorer.row") for span in decisions] == [0, 6, None]
    assert [span.error for span in decisions] == [None, "REFUSED_AMOUNT_NEGATIVE", "not_json"]
    ours = SAMPLED.traceparent.replace(b"00f067aa0ba902b7", decisions[0].span_id.encode())
    assert headers[0] == [("traceparent", ours), ("tracestate", b"bank=1")]
    assert headers[1] == [("traceparent", UNSAMPLED.traceparent)]
    assert set(headers) == {0, 1, 6}
    assert len(audit[0][1].splitlines()) == 2
    assert [span.parent_id for span in decisions] == ["00f067aa0ba902b7"] * 3
    text = str(kept.spans)
    assert not any(secret in text for secret in ("'p0'", "'c1'", "'t1'", "bank=1", "turned-down", str(START_MS)))


def test_without_fast_decisions_the_commit_is_the_answer(bundle: Bundle) -> None:
    """One span up to the commit, no second one beside it."""
    kept, outcomes = Kept(), outcomes_of(bundle)
    traced = tracer(settings_with(), kept)
    traced.of(outcomes, {0: SAMPLED}, 0, 1.0).reached("decided", 2.0)
    traced.committed(0, START_MS / 1000.0 + 700.0)
    (span,) = kept.spans
    assert [event.name for event in span.events] == ["received", "decided", "committed"]
    assert (span.start_s, span.end_s) == (START_MS / 1000.0 + 600.0, START_MS / 1000.0 + 700.0)


def test_more_than_the_limit_are_counted_and_go_back_unchanged(bundle: Bundle) -> None:
    """Of a batch whose sender samples all of them two are traced, and after half a second one more."""
    kept, clock = Kept(), Stopped()
    traced = tracer(settings_with(payments_per_s_max=2), kept, clock)
    before = DROPPED.labels("limit")._value.get()  # type: ignore[attr-defined]
    outcomes, carried = outcomes_of(bundle), dict.fromkeys(range(6), SAMPLED)
    headers, _ = run(traced, outcomes, carried)
    changed = [row for row, found in headers.items() if found[0][1] != SAMPLED.traceparent]
    assert (len(headers), changed) == (6, [0, 1])
    clock.now += 0.5
    headers, _ = run(traced, outcomes, carried)
    assert [row for row, found in headers.items() if found[0][1] != SAMPLED.traceparent] == [0]
    assert DROPPED.labels("limit")._value.get() - before == 4 + 5  # type: ignore[attr-defined]


def test_the_share_of_payments_without_a_traceparent_is_about_the_ratio(bundle: Bundle) -> None:
    """Chosen by their places alone; one that its caller has not sampled never is."""
    outcomes = outcomes_of(bundle, 1)
    n = 20_000
    records = replace(
        outcomes.records, partition=np.zeros(n, np.int32), offset=np.arange(n), keys=[None] * n, values=[b""] * n,
        timestamp_ms=np.full(n, START_MS),
    )  # fmt: skip
    traced = tracer(settings_with(ratio=0.1), Kept())
    chosen = traced._by_ratio(replace(outcomes, records=records))
    assert 0.08 * n < len(chosen) < 0.12 * n
    kept = Kept()
    run(tracer(settings_with(ratio=1.0), kept), outcomes_of(bundle), {0: UNSAMPLED})
    decisions = [span for span in kept.spans if span.name == "fraud_scorer.decision"]
    assert [span.attributes["messaging.kafka.offset"] for span in decisions] == list(range(1, 8))


def test_without_an_exporter_nothing_is_traced(bundle: Bundle) -> None:
    """Off by default: whatever a payment carries, its decision has no header."""
    headers, audit = run(tracer(settings_module.load(), None), outcomes_of(bundle), {0: SAMPLED})
    assert (dict(headers), list(audit)) == ({}, [])


def test_headers_that_would_keep_a_decision_from_its_topic_are_left_out() -> None:
    """A sender who fills its headers does not make a record larger than the topic takes; others keep theirs."""
    long, short = [("tracestate", b"x" * 500)], [("traceparent", b"y" * 55)]
    sizes = np.array([300, 300, 100], dtype=np.int64)
    headers: dict[int, Any] = {0: long, 1: short, 2: long}
    assert set(fitting(headers, sizes, 300 + 100 + RECORD_OVERHEAD_BYTES)) == {1}
    assert set(fitting(headers, sizes, 700 + RECORD_OVERHEAD_BYTES)) == {1, 2}
    assert fitting(headers, sizes, None) == headers
