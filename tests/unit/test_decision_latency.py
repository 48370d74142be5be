"""What the latency histograms count: from the broker's timestamp to the event itself, not to when it was noticed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from scorer.worker import worker_metrics
from scorer.worker.shard import Shard

SHARD = "777"


class Records:
    """One record, with the broker's timestamp."""

    timestamp_ms = np.array([1_000_000])

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(("ago_s", "slow"), [(0.0, 1), (0.1, 0)])
def test_a_commit_that_is_noticed_late_is_not_a_slow_decision(ago_s: float, slow: int) -> None:
    """A payment of 110 ms ago whose commit ended 100 ms ago, before the wait for the next payment, took 10 ms."""
    shard = object.__new__(Shard)
    threads = SimpleNamespace(epoch_s=lambda: 1_000.110, monotonic=lambda: 50.0)
    shard._label, shard._threads = SHARD, threads  # type: ignore[assignment]
    outcomes = SimpleNamespace(records=Records(), rows=np.array([0]))
    family = worker_metrics.LATENCY
    try:
        shard._observe_latency(outcomes, family, shard._epoch_s(50.0 - ago_s))  # type: ignore[arg-type]
        assert family.labels(SHARD).counts.sum() == 1
        assert int(family.labels(SHARD).counts[list(worker_metrics._FAST_S).index(0.05) + 1 :].sum()) == slow
    finally:
        worker_metrics.forget(int(SHARD))


def test_what_alerts_count_begins_at_0() -> None:
    """A first increase is seen only after a 0: an order log that was lost once, a payment that was decided."""
    worker_metrics.begin(int(SHARD))
    try:
        served = {
            (sample.name, *sample.labels.values())
            for family in (worker_metrics.ORDER_LOST, worker_metrics.DECISIONS)
            for metric in family.collect()
            for sample in metric.samples
        }
        assert ("fraud_scorer_order_lost_total", SHARD) in served
        assert ("fraud_scorer_decisions_total", SHARD, "approve", "normal") in served
        assert ("fraud_scorer_decisions_total", SHARD, "flag", "normal") in served
    finally:
        worker_metrics.forget(int(SHARD))
