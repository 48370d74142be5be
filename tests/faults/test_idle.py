"""FAULTS.md, row 38: a payment after an idle time, on a broker that closes idle connections."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from scorer.runtime.settings import PREFIX
from tests.faults.broker import OwnBroker
from tests.faults.nursery import Nursery
from tests.faults.payments import payments
from tests.faults.run import Application
from tests.faults.test_rows import decided

BROKER_IDLE_MS = 4_000
CLIENT_IDLE_S = 2
QUIET_S = 7.0  # the broker closes at the idle time or up to one more second after it
LATENCY_S_MAX = 4.0  # where a closed connection was used it took 5 to 10 s, each time


def test_row_38_the_first_payment_after_an_idle_time_is_decided_at_once(
    nursery: Nursery, bundle: Path, tmp_path: Path
) -> None:
    """The broker closes idle connections. A payment after a longer silence is decided as quickly as any other, because
    the client has closed its own connections before (FRAUD_SCORER_KAFKA__CONNECTION_IDLE_S)."""
    environment = {f"{PREFIX}KAFKA__CONNECTION_IDLE_S": str(CLIENT_IDLE_S)}
    with OwnBroker({"connections.max.idle.ms": str(BROKER_IDLE_MS)}) as broker:
        app = Application(
            broker, nursery, tmp_path, bundle, workers_environment=environment,
        )  # fmt: skip
        try:
            app.start("a")
            app.ready("a")
            given, latencies_s = payments(38, 4), []
            for n in range(len(given)):
                sent_at = time.monotonic()
                app.pay(given[n : n + 1])
                app.flushed()
                decided(app, n + 1)
                latencies_s.append(round(time.monotonic() - sent_at, 2))
                if n < len(given) - 1:
                    time.sleep(QUIET_S)
            # Not the longest: this machine may stand still once.
            assert statistics.median(latencies_s[1:]) < LATENCY_S_MAX, latencies_s
            app.finish(supervised=False)
            app.check()
        finally:
            app.close()
