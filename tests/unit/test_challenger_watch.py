"""Challengers counted against the model that decides: by scores and the bundle's threshold, payment by payment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import REGISTRY

from schemas.audit_record import NULLABLE, AuditColumns
from scorer.bundle import Bundle, Challenger
from scorer.demo import demo_bundle
from scorer.model.calibration import Calibration
from scorer.worker import worker_metrics
from scorer.worker.challenger_watch import FLAGGED_BY, ChallengerWatch

SHARD = "challenged"


@pytest.fixture(scope="module")
def champion() -> Bundle:
    """The demo's, with three challengers: itself, one that doubts more, one whose scores end below the threshold."""
    bundle = Bundle.load(demo_bundle())
    low = Calibration(kind="isotonic", margins=(-50.0, 50.0), scores=(0.0, bundle.manifest.threshold_score / 2))
    doubt = Calibration(kind="platt", slope=0.5, intercept=1.0)
    made = (("itself", bundle.manifest.calibration), ("doubt", doubt), ("silent", low))
    return replace(bundle, challengers=tuple(Challenger(name, bundle.model, by) for name, by in made))


@pytest.fixture(autouse=True)
def _no_series_stay() -> Iterator[None]:
    yield
    worker_metrics.CHALLENGERS.forget(SHARD)


def columns(margins: np.ndarray, shadows: np.ndarray) -> AuditColumns:
    n = len(margins)
    return AuditColumns(
        payment_id=[f"p{i}" for i in range(n)],
        partition=np.zeros(n, np.int32),
        offset=np.arange(n, dtype=np.int64),
        event_time_ms=np.zeros(n, np.int64),
        amount_minor=np.ones(n, np.int64),
        currency=["EUR"] * n,
        **{name: [None] * n for name in NULLABLE},
        decision=np.zeros(n, np.uint8),
        mode=np.zeros(n, np.uint8),
        margin=margins,
        score=np.zeros(n),
        reasons=[()] * n,
        fired=[()] * n,
        features=np.zeros((n, 1), np.float32),
        challenger_margins=shadows,
    )


def counted(challenger: str) -> dict[str, float]:
    labels = {"shard": SHARD, "challenger": challenger}
    name = "fraud_scorer_challenger_payments_total"
    found = {kind: REGISTRY.get_sample_value(name, labels | {"flagged_by": kind}) for kind in FLAGGED_BY}
    return {kind: value for kind, value in found.items() if value}


def test_every_payment_counts_by_whose_score_reaches_the_threshold(champion: Bundle) -> None:
    """Two batches of margins around the threshold: the counts equal those of scores compared one by one, and a payment
    that a challenger did not score (no time) does not count for it."""
    rng = np.random.default_rng(3)
    watch, expected = ChallengerWatch(SHARD), {item.id: Counter[str]() for item in champion.challengers}
    threshold = champion.manifest.threshold_score
    for _ in range(2):
        margins = rng.normal(float(champion.threshold_margin), 2, 500).astype(np.float32)
        shadows = np.repeat(margins[:, None], 3, axis=1)
        shadows[::7] = np.nan
        watch.see(champion, columns(margins, shadows))
        model = champion.scores(margins) >= threshold
        for item in champion.challengers:
            theirs = item.calibration.apply(margins, item.model.link) >= threshold
            for i in np.flatnonzero(~np.isnan(shadows[:, 0])).tolist():
                expected[item.id][FLAGGED_BY[2 * model[i] + theirs[i]]] += 1
    assert {name: counted(name) for name in expected} == expected
    assert set(expected["itself"]) == {"both", "neither"}
    assert set(expected["doubt"]) > {"both", "neither"}
    assert set(expected["silent"]) == {"model", "neither"}


def test_the_series_leave_with_the_bundle(champion: Bundle) -> None:
    """Another bundle without challengers decides: nothing is shown of those of the one before."""
    watch = ChallengerWatch(SHARD)
    margins = np.full(4, champion.threshold_margin)
    watch.see(champion, columns(margins, np.repeat(margins[:, None], 3, axis=1)))
    assert counted("itself") == {"both": 4}
    watch.see(replace(champion, id="next", challengers=()), columns(margins, np.empty((4, 0), np.float32)))
    assert counted("itself") == {}
