"""Families of series: fast counting equals prometheus_client's own, children are looked up once, and series leave."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families

from scorer.runtime.metric_families import Families

BOUNDS = (0.001, 0.01, 0.1, 1.0)


@given(
    st.lists(
        st.lists(st.one_of(st.floats(0, 2, width=32), st.sampled_from(BOUNDS)), max_size=50), min_size=1, max_size=5
    )
)
def test_values_counted_by_batch_equal_values_counted_one_by_one(batches: list[list[float]]) -> None:
    """Buckets, count and sum of arrays are those that prometheus_client's histogram counts of each value."""
    registry, plain = CollectorRegistry(), CollectorRegistry()
    family = Families(registry).batches("seconds", "Help.", ["shard"], BOUNDS)
    one = Histogram("seconds", "Help.", ["shard"], registry=plain, buckets=BOUNDS).labels("0")
    for batch in batches:
        family.labels("0").observe_many(np.array(batch, dtype=np.float64))
        for value in batch:
            one.observe(value)
    for bound in (*map(str, BOUNDS), "+Inf"):
        labels = {"shard": "0", "le": bound}
        assert registry.get_sample_value("seconds_bucket", labels) == plain.get_sample_value("seconds_bucket", labels)
    counted = registry.get_sample_value("seconds_sum", {"shard": "0"})
    assert counted == pytest.approx(plain.get_sample_value("seconds_sum", {"shard": "0"}))


def test_a_missing_value_is_in_no_bucket() -> None:
    """NaN is neither counted nor added."""
    registry = CollectorRegistry()
    Families(registry).batches("scores", "Help.", ["shard"], BOUNDS).labels("0").observe_many(np.array([np.nan, 0.05]))
    assert registry.get_sample_value("scores_count", {"shard": "0"}) == 1
    assert registry.get_sample_value("scores_sum", {"shard": "0"}) == 0.05


def test_a_child_is_made_once() -> None:
    """The same labels give the same child: what is called for each batch does not look labels up anew."""
    family = Families(CollectorRegistry()).counter("batches", "Help.", ["shard"])
    assert family.labels("0") is family.labels("0")


def test_the_series_of_one_shard_leave_and_those_of_others_stay() -> None:
    """After `forget` nothing of the shard is served, whatever kind of family it is of; `but` keeps one."""
    registry = CollectorRegistry()
    made = Families(registry)
    families = [
        made.counter("counted", "Help.", ["shard", "reason"]),
        made.gauge("shown", "Help.", ["shard", "reason"]),
        made.histogram("observed", "Help.", ["shard", "reason"], BOUNDS),
        made.totals("totalled", "Help.", ["shard", "reason"]),
        made.batches("batched", "Help.", ["shard", "reason"], BOUNDS),
    ]
    for family in families:
        for shard in ("0", "1"):
            for reason in ("a", "b"):
                family.labels(shard, reason)
    families[1].forget("1", but=("1", "b"))
    made.forget("0")
    text = generate_latest(registry).decode()
    assert 'shard="0"' not in text
    assert text.count('{reason="a",shard="1"}') == text.count('{reason="b",shard="1"}') - 1


def test_a_total_is_served_as_a_counter() -> None:
    """A count that is kept elsewhere has type counter and the name's `_total`, without a series `_created`."""
    registry = CollectorRegistry()
    Families(registry).totals("labels_applied", "Help.", ["shard"]).labels("0").set(7)
    text = generate_latest(registry).decode()
    assert "# TYPE labels_applied_total counter" in text
    assert 'labels_applied_total{shard="0"} 7.0' in text
    assert "_created" not in text


def test_an_example_is_shown_where_openmetrics_is_asked_for_and_nowhere_else() -> None:
    """The last sampled payment of a bucket stands at it as its trace; the plain format has no place for one."""
    registry = CollectorRegistry()
    child = Families(registry).batches("seconds", "Help.", ["shard"], BOUNDS).labels("0")
    child.observe_many(np.array([0.05, 0.06, 5.0]))
    child.show(0.05, {"trace_id": "a" * 32, "span_id": "b" * 16}, 1.0)
    child.show(0.06, {"trace_id": "c" * 32, "span_id": "d" * 16}, 2.0)
    child.show(5.0, {"trace_id": "e" * 32, "span_id": "f" * 16}, 3.0)
    (family,) = openmetrics_families(openmetrics(registry).decode())
    shown = {s.labels["le"]: s.exemplar for s in family.samples if s.exemplar is not None}
    assert {end: (e.labels["trace_id"][0], e.value) for end, e in shown.items()} == {
        "0.1": ("c", 0.06),
        "+Inf": ("e", 5.0),
    }
    assert b"trace_id" not in generate_latest(registry)
