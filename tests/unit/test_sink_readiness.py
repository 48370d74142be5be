"""What a sink shows of itself while it waits: readiness and lag."""

from __future__ import annotations

import time

import pytest
from prometheus_client import CollectorRegistry

from scorer.runtime.settings import Settings
from scorer.sink.readiness import Readiness
from scorer.sink.sink_metrics import SinkMetrics
from scorer.sink.sink_process import SinkProcess
from scorer.sink.topic_lag import TopicLag


def test_readiness_names_what_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not ready before the first round, with a reason given, while Kafka is silent, and when a round does not end."""
    readiness = Readiness()
    assert readiness.now(0.0) == (False, "starting")
    readiness.works()
    assert readiness.now(0.0) == (True, "writing")
    assert readiness.now(4.0) == (False, "Kafka has not answered for 4 s")
    readiness.waits("waiting for Postgres: no room")
    assert readiness.now(0.0) == (False, "waiting for Postgres: no room")
    readiness.works()
    monkeypatch.setattr("scorer.sink.readiness._ROUND_S", -1.0)
    assert readiness.now(0.0) == (False, "Postgres has not answered for 0 s")


def test_lag_is_the_oldest_record_that_is_not_written() -> None:
    """Records are counted to the broker's end, seconds from the oldest record read and not written; both reach 0 when
    the position reaches the end, and a partition that another sink took over is not shown any more."""
    registry = CollectorRegistry()
    lag = TopicLag("audit", SinkMetrics(registry))

    def shown(partition: int) -> tuple[float | None, float | None]:
        labels = {"topic": "audit", "partition": str(partition)}
        return tuple(
            registry.get_sample_value(f"fraud_scorer_sink_lag_{unit}", labels) for unit in ("records", "seconds")
        )  # type: ignore[return-value]

    lag.begin({0: 10, 1: 5})
    lag.show({0: 20, 1: 5})
    assert lag.records() == {0: 10, 1: 0}
    now_ms = int(time.time() * 1000)
    lag.read(0, 10, now_ms - 60_000)
    lag.read(0, 11, now_ms - 1_000)
    lag.show({})
    records, seconds = shown(0)
    assert records == 10
    assert seconds == pytest.approx(60, abs=5)
    assert shown(1) == (0, 0)
    lag.written(0, 20)  # markers stood at the end
    lag.show({})
    assert shown(0) == (0, 0)
    lag.begin({1: 5})
    assert shown(0) == (None, None)
    assert lag.records() == {1: 0}


@pytest.mark.parametrize(("days", "shown"), [(30, "0.0"), (0, "nan")])
def test_counting_that_is_off_does_not_look_like_counting_that_fails(days: int, shown: str) -> None:
    """LabelCountTooOld compares the time of the last count: 0 is old, NaN is not."""
    registry = CollectorRegistry()
    SinkProcess(Settings(kafka={"bootstrap_servers": "127.0.0.1:1"}, audit={"quality_days": days}), registry)
    assert str(registry.get_sample_value("fraud_scorer_labelled_timestamp_seconds")) == shown
