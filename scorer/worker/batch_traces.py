"""Traces of sampled payments through a shard: which ones of a batch, what their records carry back, and their spans.

    traces = tracer.of(decided, carried, sequence, closed_at)     before the batch is published
    answers._replace(headers=traces.headers, …)
    traces.reached("decided", at) …                               as it goes on
    tracer.committed(sequence, at)                                gives the spans to the exporter

A payment is sampled as its traceparent says; without one, by its place on the topic, for a share of them. More than a
limit are not traced: their header goes back unchanged. Ids follow from trace, shard, sequence and row, so a batch that
is decided again by another owner gives the same spans. The pure core knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.decision import DECISIONS, MODES, REFUSED
from scorer.kafka import Topics
from scorer.pipeline import Decided
from scorer.runtime import trace_context
from scorer.runtime.metric_families import Buckets
from scorer.runtime.settings import Settings
from scorer.runtime.span_export import DROPPED, Attribute, Event, Span
from scorer.runtime.trace_context import NO_HEADERS, Carried, Headers, HeadersOfRows, SampledRow, TraceParent
from scorer.worker.answers import Answers
from scorer.worker.ports import Ports

DECISION_SPAN: Final = "fraud_scorer.decision"
COMMIT_SPAN: Final = "fraud_scorer.commit"
PUBLISHED: Final = "fast_published"  # a stage
_UNANSWERED: Final = -1  # the row of a refused record that names no payment
# Odd constants of splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
_GAMMA, _MIX_1, _MIX_2 = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class _Traced(NamedTuple):
    """A sampled payment of a batch: its row, its place among the records, ids in hex digits."""

    row: int
    place: int
    trace_id: str
    span_id: str
    parent_id: str | None


@dataclass
class BatchTraces:
    """What is traced of batch `sequence`. `headers`: by row, to be given back."""

    decided: Decided
    sequence: int
    headers: HeadersOfRows = field(default_factory=lambda: NO_HEADERS)
    sampled: Sequence[_Traced] = ()
    stages: list[Event] = field(default_factory=list)

    def reached(self, stage: str, at_s: float) -> None:
        """The batch has reached a stage, at `at_s` (epoch)."""
        if self.sampled:
            self.stages.append(Event(stage, at_s))

    def given_back(self, answers: Answers) -> Answers:
        """The answers with their headers, and with that of the audit record."""
        if not self.headers and not self.sampled:
            return answers
        rows = [SampledRow(t.row, t.trace_id, t.span_id) for t in self.sampled if t.row != _UNANSWERED]
        audit = [trace_context.sampled_rows_header(rows)] if rows else []
        return answers._replace(headers=self.headers, audit_headers=audit)

    def show(self, latency: Buckets, at_s: float) -> None:
        """Show the sampled payments as examples of a latency that ends at `at_s` (epoch)."""
        for traced in self.sampled:
            since_s = at_s - int(self.decided.records.timestamp_ms[traced.place]) / 1000.0
            if traced.row != _UNANSWERED:
                latency.show(max(0.0, since_s), {"trace_id": traced.trace_id, "span_id": traced.span_id}, at_s)


class Tracer:
    """One shard's, as long as it is owned; where no spans go anywhere, nothing is traced."""

    def __init__(self, settings: Settings, ports: Ports, shard: int) -> None:
        tracing = settings.tracing
        self._spans, self._threads = ports.spans, ports.threads
        self._shard, self._topic = shard, Topics.of(settings.kafka).payments
        self._service, self._ratio, self._limit = tracing.service_name, tracing.ratio, tracing.payments_per_s_max
        self._room, self._room_at = float(self._limit), ports.threads.monotonic()
        self._open: dict[int, BatchTraces] = {}  # by sequence, as many as batches are on their way

    def of(self, decided: Decided, carried: Mapping[int, Carried], sequence: int, closed_s: float) -> BatchTraces:
        """What is traced of batch `sequence`. `carried`: trace contexts by the place of the record; `closed_s`: when it
        was closed, epoch."""
        traces = BatchTraces(decided, sequence)
        if self._spans is None or not (carried or self._ratio):
            return traces
        rows = np.full(len(decided.records), _UNANSWERED, dtype=np.int64)
        rows[decided.rows] = np.arange(len(decided.rows))
        headers: dict[int, Headers] = {}
        chosen: list[tuple[int, Carried | None, TraceParent | None]] = []
        known = {place: trace_context.parse(each.traceparent) for place, each in carried.items()}
        for place, parent in known.items():
            if parent is not None and parent.sampled:
                chosen.append((place, carried[place], parent))
            elif parent is not None and rows[place] != _UNANSWERED:
                headers[int(rows[place])] = trace_context.headers_back(carried[place], parent, None)
        chosen += [(place, None, None) for place in self._by_ratio(decided) if known.get(place) is None]
        chosen.sort(key=lambda one: one[0])
        taken = self._taken(len(chosen))
        sampled = []
        for number, (place, its, parent) in enumerate(chosen):
            row = int(rows[place])
            traced = self._traced(decided, place, row, parent, sequence) if number < taken else None
            if traced is not None:
                sampled.append(traced)
            if its is not None and parent is not None and row != _UNANSWERED:
                span_id = None if traced is None else traced.span_id
                headers[row] = trace_context.headers_back(its, parent, span_id)
        traces.headers, traces.sampled = headers, sampled
        traces.reached("received", closed_s)
        if sampled:
            self._open[sequence] = traces
        return traces

    def committed(self, sequence: int, at_s: float, latency: Buckets | None = None) -> None:
        """Batch `sequence` was committed at `at_s` (epoch): its spans go to the exporter, its payments are shown as
        examples of `latency`."""
        traces = self._open.pop(sequence, None)
        if traces is None or self._spans is None:
            return
        if latency is not None:
            traces.show(latency, at_s)
        self._spans.offer([span for traced in traces.sampled for span in self._of_one(traces, traced, at_s)])

    def _traced(self, decided: Decided, place: int, row: int, parent: TraceParent | None, sequence: int) -> _Traced:
        records = decided.records
        partition, offset = int(records.partition[place]), int(records.offset[place])
        if parent is None:
            at_ms = int(records.timestamp_ms[place])
            trace_id = trace_context.trace_id(self._service, self._topic, partition, offset, at_ms)
        else:
            trace_id = parent.trace_id
        kind = DECISION_SPAN if row != _UNANSWERED else f"{DECISION_SPAN} {partition} {offset}"
        span_id = trace_context.span_id(kind, trace_id, self._shard, sequence, row)
        return _Traced(row, place, trace_id, span_id, None if parent is None else parent.parent_id)

    def _taken(self, wanted: int) -> int:
        """How many of so many sampled payments are traced; the others are counted."""
        if not wanted:
            return 0
        now = self._threads.monotonic()
        self._room = min(float(self._limit), self._room + (now - self._room_at) * self._limit)
        self._room_at = now
        taken = min(wanted, int(self._room))
        self._room -= taken
        if taken < wanted:
            DROPPED.labels("limit").inc(wanted - taken)
        return taken

    def _by_ratio(self, decided: Decided) -> Sequence[int]:
        """The places of the records that are sampled whatever they carry: a hash of where and when each came is below
        the ratio."""
        records = decided.records
        if not self._ratio or not len(records):
            return ()
        if self._ratio >= 1.0:
            return range(len(records))
        below = np.uint64(int(self._ratio * 2**64))
        places: list[int] = np.flatnonzero(
            _hashed(records.partition, records.offset, records.timestamp_ms) < below
        ).tolist()
        return places

    def _of_one(self, traces: BatchTraces, traced: _Traced, committed_s: float) -> list[Span]:
        """Its decision, up to the answer, and the commit behind it; the decision alone where the commit answers."""
        decided, stages = traces.decided, traces.stages
        records, row = decided.records, traced.row
        bundle = decided.context.bundle if row == _UNANSWERED else decided.bundles[row]
        resource = {"fraud_scorer.shard": str(self._shard), "fraud_scorer.bundle": bundle}
        attributes: dict[str, Attribute] = {
            "messaging.system": "kafka",
            "messaging.operation.type": "process",
            "messaging.destination.name": self._topic,
            "messaging.destination.partition.id": str(records.partition[traced.place]),
            "messaging.kafka.offset": int(records.offset[traced.place]),
            "fraud_scorer.shard": self._shard,
            "fraud_scorer.sequence": traces.sequence,
            "fraud_scorer.bundle": bundle,
        }
        error = None
        if row == _UNANSWERED:
            error = next((r.error.reason.value for r in decided.rejected if r.index == traced.place), "refused")
        else:
            columns = decided.columns
            mode, reasons = int(columns.mode[row]), tuple(columns.reasons[row])
            attributes |= {
                "fraud_scorer.row": row,
                "fraud_scorer.decision": DECISIONS[columns.decision[row]],
                "fraud_scorer.mode": MODES[mode],
                "fraud_scorer.reasons": reasons,
            }
            error = ",".join(reasons) if mode == REFUSED else None
        answered = stages[-1].name == PUBLISHED
        decision = Span(
            DECISION_SPAN,
            traced.trace_id,
            traced.span_id,
            traced.parent_id,
            start_s=int(records.timestamp_ms[traced.place]) / 1000.0,
            end_s=stages[-1].at_s if answered else committed_s,
            kind="consumer",
            attributes=attributes,
            events=stages if answered else [*stages, Event("committed", committed_s)],
            error=error,
            resource=resource,
        )
        if not answered:
            return [decision]
        commit_id = trace_context.span_id(COMMIT_SPAN, traced.span_id, self._shard, traces.sequence, row)
        commit = Span(
            COMMIT_SPAN,
            traced.trace_id,
            commit_id,
            traced.span_id,
            start_s=stages[-1].at_s,
            end_s=committed_s,
            attributes={"fraud_scorer.shard": self._shard, "fraud_scorer.sequence": traces.sequence},
            resource=resource,
        )
        return [decision, commit]


def _hashed(
    partition: npt.NDArray[np.int32], offset: npt.NDArray[np.int64], timestamp_ms: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    """One of where and when each record came, uint64 [n], evenly spread (splitmix64)."""
    found = np.zeros(len(offset), dtype=np.uint64)
    for column in (partition, offset, timestamp_ms):
        found = (found ^ column.astype(np.uint64)) + _GAMMA
        found = (found ^ (found >> np.uint64(30))) * _MIX_1
        found = (found ^ (found >> np.uint64(27))) * _MIX_2
        found ^= found >> np.uint64(31)
    return found
