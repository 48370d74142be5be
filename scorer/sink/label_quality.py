"""Precision and recall on payments whose label is known, counted by Postgres every few minutes for the metrics.

Over the last days of stream time, by bundle: a payment counts by each decision on it that is no repetition and no
answer to a refused record, once its label has become known within those days (label_quality in migrations/).

    precision = flagged and fraud / flagged      recall = flagged and fraud / fraud

A payment without a label counts nowhere: where labels come for frauds alone, precision is 1 and means nothing; labels
of what was found genuine make it mean something. Frauds of the last days are reported late, so the days should be
several times what reports take.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import sqlalchemy as sa
import structlog
from prometheus_client import Gauge

from scorer.runtime.settings import Settings
from scorer.sink.postgres_errors import postgres_errors, postgres_url_now
from scorer.sink.sink_errors import StoreRefused, StoreUnavailable
from scorer.sink.sink_metrics import SinkMetrics
from scorer.trail import audit_database

# The server ends a count that takes longer: the metrics then keep the last one, whose time they show.
_STATEMENT_S = 60
# Counting takes at most a twentieth of the time, however long one takes.
_REST = 19
_RETRY_S = 30.0
# Bundles shown, those with the most labelled payments: 6 series each.
BUNDLES_MAX = 20


@dataclass(frozen=True)
class LabelledPayments:
    """Of one bundle: payments with a known label, by decision and verdict."""

    flagged_fraud: int = 0
    flagged_genuine: int = 0
    approved_fraud: int = 0
    approved_genuine: int = 0

    @property
    def precision(self) -> float | None:
        """Of those flagged, the share that is fraud; None where none was flagged."""
        flagged = self.flagged_fraud + self.flagged_genuine
        return self.flagged_fraud / flagged if flagged else None

    @property
    def recall(self) -> float | None:
        """Of the frauds, the share that was flagged; None where there is none."""
        frauds = self.flagged_fraud + self.approved_fraud
        return self.flagged_fraud / frauds if frauds else None

    @property
    def payments(self) -> int:
        """All of them."""
        return self.flagged_fraud + self.flagged_genuine + self.approved_fraud + self.approved_genuine


def labelled_payments(connection: sa.Connection, days: int) -> dict[str, LabelledPayments]:
    """By bundle, over the last `days` days of stream time, this one included. Raises what SQLAlchemy raises."""
    rows = connection.execute(sa.text("SELECT * FROM label_quality(:days)"), {"days": days}).all()
    counts: dict[str, dict[str, int]] = {}
    for bundle, decision, fraud, payments in rows:
        name = f"{'flagged' if decision == 'flag' else 'approved'}_{'fraud' if fraud else 'genuine'}"
        counts.setdefault(bundle, {})[name] = payments
    return {bundle: LabelledPayments(**found) for bundle, found in counts.items()}


class LabelQuality:
    """Counts and shows until it is stopped. One thread runs it; a Postgres that is away is waited for."""

    def __init__(self, settings: Settings, metrics: SinkMetrics) -> None:
        """Connects to nothing yet."""
        self._settings, self._metrics = settings, metrics
        self._log = structlog.get_logger().bind(part="label-quality")
        self._shown: set[str] = set()
        self._reason = ""

    def run(self, stop: threading.Event) -> None:
        """Works until `stop` is set. Fails on nothing that concerns Postgres: the audit trail does not need it."""
        audit = self._settings.audit
        while not stop.is_set():
            began_s = time.monotonic()
            try:
                self.show(self._count(audit.quality_days))
            except (StoreUnavailable, StoreRefused) as exc:
                self._refused(str(exc))
                pause_s = max(_RETRY_S, audit.quality_every_s)
            else:
                self._reason = ""
                pause_s = audit.quality_every_s
            stop.wait(max(pause_s, _REST * (time.monotonic() - began_s)))

    def show(self, found: dict[str, LabelledPayments]) -> None:
        """Set the metrics to these counts; bundles without a labelled payment leave."""
        shown = dict(sorted(found.items(), key=lambda item: -item[1].payments)[:BUNDLES_MAX])
        for bundle in self._shown - shown.keys():
            self._forget(bundle)
        for bundle, counts in shown.items():
            for decision, fraud, payments in (
                ("flag", "true", counts.flagged_fraud),
                ("flag", "false", counts.flagged_genuine),
                ("approve", "true", counts.approved_fraud),
                ("approve", "false", counts.approved_genuine),
            ):
                self._metrics.labelled.labels(bundle, decision, fraud).set(payments)
            for gauge, share in (
                (self._metrics.precision, counts.precision),
                (self._metrics.recall, counts.recall),
            ):
                if share is None:
                    _remove(gauge, [(bundle,)])
                else:
                    gauge.labels(bundle).set(share)
        self._shown = set(shown)
        self._metrics.labelled_at.set_to_current_time()

    def _count(self, days: int) -> dict[str, LabelledPayments]:
        with postgres_errors(), audit_database.engine(postgres_url_now(self._settings)).begin() as connection:
            connection.execute(sa.text(f"SET LOCAL statement_timeout = '{_STATEMENT_S}s'"))
            connection.execute(sa.text("SET LOCAL max_parallel_workers_per_gather = 0"))
            return labelled_payments(connection, days)

    def _refused(self, reason: str) -> None:
        if reason != self._reason:
            self._log.warning("labels.not_counted", reason=reason)
        self._reason = reason

    def _forget(self, bundle: str) -> None:
        both = [(bundle, decision, fraud) for decision in ("flag", "approve") for fraud in ("true", "false")]
        _remove(self._metrics.labelled, both)
        _remove(self._metrics.precision, [(bundle,)])
        _remove(self._metrics.recall, [(bundle,)])


def _remove(gauge: Gauge, series: Iterable[tuple[str, ...]]) -> None:
    for values in series:
        with suppress(KeyError):  # never shown
            gauge.remove(*values)
