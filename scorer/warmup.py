"""Compile every kernel of the decision path before the first payment: a first start costs seconds, later ones read the cache."""

from __future__ import annotations

import numpy as np

from schemas.journal import ControlRange, InputRange
from scorer.bundle import Bundle
from scorer.enrich import Batch, ControlRecord, Records
from scorer.pipeline import Pipeline

_PAYMENT = b'{"payment_id":"warm-up-%d","event_time":1577836800000,"amount_minor":100,"currency":"%s"}'


def warm_up(bundle: Bundle) -> None:
    """Run two small batches through a scratch pipeline. Changes no state that serves."""
    pipeline = Pipeline(bundle)
    currency = bundle.feature_set.currency.encode()
    label = b'{"type":"label","payment_id":"warm-up-0","fraud":true,"known_at":1577836800000}'
    for start in (0, 8):
        values: list[bytes | None] = [_PAYMENT % (i, currency) for i in range(start, start + 8)]
        records = Records(
            partition=np.zeros(8, np.int32),
            offset=np.arange(start, start + 8, dtype=np.int64),
            timestamp_ms=np.full(8, 1_577_836_800_000, np.int64),
            keys=[None] * 8,
            values=values,
        )
        control = [ControlRecord(0, None, label)] if start else []
        pipeline.run(Batch(records, (InputRange(partition=0, start=start, end=start + 8),), control, ControlRange(start=0, end=len(control))))
    bundle.model.contributions(np.zeros((1, bundle.model.feature_count), np.float32))
