"""FAULTS.md, row 21: bursts, a hot key and keys never seen before, within a bounded memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from features.feature_description import describe
from features.feature_set import FeatureSet
from tests.faults.payments import FEATURES, START_MS, Payment, payments
from tests.faults.run import Application
from tests.faults.test_rows import decided
from tests.integration.running import metrics

Make = Callable[..., Application]
# Of the tests' feature set: a customer, and a pair of customer and terminal.
KEYS_PER_PAYMENT = 2
# Of the queues: 8,192 payments read ahead, the client's 32 MiB, two batches of 4,096 with their outcomes.
QUEUES_BYTES = 250 * 1024 * 1024
# An entry of the duplicates' table with its payment's id, and what is left over of arrays that double.
DEDUPE_BYTES = 300


def test_row_21_a_burst_with_a_hot_key_stays_in_memory(application: Make) -> None:
    """40,000 payments at once, half of them of one key: memory grows by a bounded amount, and all are decided."""
    app = application(batch_payments_max=4096, buffered_payments_max=8192)
    child = app.start("a")
    app.ready("a")
    app.pay(payments(20, 200))
    decided(app, 200)
    before = _resident_bytes(child.pid)
    burst = payments(21, 20_000)
    hot = [(b"hot", value.replace(b'"payment_id": "p', b'"payment_id": "h')) for _, value in burst]
    app.pay([each for pair in zip(burst, hot, strict=True) for each in pair])
    peak = before

    def all_decided() -> bool:
        nonlocal peak
        peak = max(peak, _resident_bytes(child.pid))
        return app.decided() >= 40_200

    app.wait(all_decided, 90, "the burst to be decided")
    assert peak - before < 300 * 1024 * 1024, f"grew by {(peak - before) / 1e6:.0f} MB"
    app.finish()
    app.check()


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_row_21_a_burst_of_new_keys_stays_in_memory(application: Make) -> None:
    """Every payment of a burst brings a customer and a pair never seen before: memory grows by what the feature set
    says a key takes and by bounded queues, and all are decided. A million keys: FAULT_KEYS=1000000."""
    count = int(os.environ.get("FAULT_KEYS", "50000")) // KEYS_PER_PAYMENT
    app = application(batch_payments_max=4096, buffered_payments_max=8192)
    child = app.start("a")
    app.ready("a")
    app.pay(payments(22, 200))
    decided(app, 200)
    before, peak = _resident_bytes(child.pid), 0
    for start in range(0, count, 20_000):  # the test's own producer has a bounded queue, too
        app.pay([_stranger(n) for n in range(start, min(start + 20_000, count))])
        app.wait(app.flushed, 60, "the burst to reach Kafka")

    def all_decided() -> bool:
        nonlocal peak
        peak = max(peak, _resident_bytes(child.pid))
        return app.decided() >= 200 + count

    app.wait(all_decided, 90 + count / 2_000, "the burst to be decided")
    live = 'fraud_scorer_feature_keys{shard="0"}'
    app.wait(lambda: metrics(child.port).get(live, 0) >= KEYS_PER_PAYMENT * count, 60, "all keys to be live")
    assert metrics(child.port)['fraud_scorer_feature_keys_refused_total{shard="0"}'] == 0
    cost = describe(FeatureSet.from_yaml(FEATURES))  # what `fraud-scorer features explain` prints of memory
    each = sum(cost.bytes_per_key.values()) + cost.bytes_per_payment + DEDUPE_BYTES
    grown = peak - before
    assert grown < QUEUES_BYTES + 2 * count * each, (
        f"grew by {grown / 1e6:.0f} MB, {each} bytes a payment are announced"
    )
    app.finish()
    app.check()


def _stranger(n: int) -> Payment:
    fields = {"payment_id": f"n{n}", "event_time": START_MS + 86_400_000 + n, "amount_minor": 100 + n % 900,
              "currency": "EUR", "customer_id": f"new{n}", "terminal_id": f"t{n % 15}"}  # fmt: skip
    return f"new{n}".encode(), json.dumps(fields).encode()
