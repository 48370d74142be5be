"""How far the live payments of a shard are from those that the bundle was measured on: features and margins.

The reference is what the bundle carries: its golden rows, spread over the days held out from training, with their
margins. They are some 256, so without any drift the index is about 0.04 (9 degrees of freedom times 1/256); 0.1 is
worth a look, 0.25 is drift. A bundle with fewer than `REFERENCE_ROWS_MIN` gives no index. Live rows are sampled, at
most `SAMPLE` each `EVERY_S`, and older ones count half as much each time that `ROWS_KEPT` were seen.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from schemas.audit_record import AuditColumns
from schemas.decision import NORMAL
from scorer.bundle import Bundle
from scorer.runtime.threads import Threads
from scorer.worker import worker_metrics

BINS: Final = 10
REFERENCE_ROWS_MIN: Final = 100
ROWS_MIN: Final = 500  # fewer live rows say nothing
ROWS_KEPT: Final = 20_000
SAMPLE: Final = 32
EVERY_S: Final = 0.1
SHOWN_EVERY_S: Final = 5.0


class Histograms:
    """Counts by column and bin, bins by the reference's quantiles; the last bin is of missing values.

    edges float32 [k, BINS - 1], repeated ones where many values are equal · counts float64 [k, BINS + 1]
    """

    def __init__(self, reference: npt.NDArray[np.float32]) -> None:
        """`reference` float32 [n, k]."""
        width = reference.shape[1]
        places = np.linspace(0, 1, BINS + 1)[1:-1]
        self._edges = np.full((width, BINS - 1), np.inf, np.float32)
        for column in range(width):
            present = reference[:, column][~np.isnan(reference[:, column])]
            if len(present):
                self._edges[column] = np.quantile(present, places, method="inverted_cdf")
        self._reference = self._binned(reference)
        self.counts = np.zeros_like(self._reference)

    def add(self, rows: npt.NDArray[np.float32]) -> None:
        """Count live rows float32 [n, k]."""
        self.counts += self._binned(rows)
        if self.rows > ROWS_KEPT:
            self.counts /= 2

    @property
    def rows(self) -> float:
        """Live rows counted, older ones as less."""
        return float(self.counts[0].sum()) if len(self.counts) else 0.0

    def stability(self) -> npt.NDArray[np.float64]:
        """The population stability index of each column, float64 [k]. Half a row is added to each bin, so that an
        empty one gives no infinity."""
        live, known = self.counts + 0.5, self._reference + 0.5
        live, known = live / live.sum(axis=1, keepdims=True), known / known.sum(axis=1, keepdims=True)
        # A bin that equal edges leave empty is so in both, and adds next to nothing.
        index: npt.NDArray[np.float64] = ((live - known) * np.log(live / known)).sum(axis=1)
        return index

    def missing(self) -> npt.NDArray[np.float64]:
        """The share of missing values of each column, float64 [k]."""
        share: npt.NDArray[np.float64] = self.counts[:, -1] / np.maximum(1.0, self.counts.sum(axis=1))
        return share

    def _binned(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            bins = (rows[:, :, None] > self._edges[None]).sum(axis=2)
        bins[np.isnan(rows)] = BINS
        counts = np.zeros((rows.shape[1], BINS + 1))
        np.add.at(counts, (np.broadcast_to(np.arange(rows.shape[1]), bins.shape), bins), 1.0)
        return counts


class DriftWatch:
    """Of one owned shard. All calls from its own thread."""

    def __init__(self, label: str, threads: Threads) -> None:
        self._label, self._threads = label, threads
        self._bundle = ""
        self._columns: Histograms | None = None  # features, and the margin behind them
        self._names: list[str] = []
        self._seen_at = self._shown_at = float("-inf")

    def see(self, bundle: Bundle, columns: AuditColumns) -> None:
        """Sample a batch that `bundle` decided, and show the indices from time to time."""
        if bundle.id != self._bundle:
            self._begin(bundle)
        now = self._threads.monotonic()
        if self._columns is None or now - self._seen_at < EVERY_S:
            return
        rows = np.flatnonzero(columns.mode == NORMAL)  # others have no features, or no margin of the model
        if not len(rows):
            return
        self._seen_at = now
        rows = rows[:: -(-len(rows) // SAMPLE)]
        self._columns.add(np.column_stack([columns.features[rows], columns.margin[rows]]))
        if now - self._shown_at >= SHOWN_EVERY_S and self._columns.rows >= ROWS_MIN:
            self._shown_at = now
            self._show(self._columns)

    def _begin(self, bundle: Bundle) -> None:
        self._bundle, self._names = bundle.id, bundle.feature_set.names
        golden = bundle.golden
        self._columns = None if golden is None or len(golden) < REFERENCE_ROWS_MIN else Histograms(golden)
        for family in (worker_metrics.FEATURE_PSI, worker_metrics.FEATURE_MISSING, worker_metrics.SCORE_PSI):
            family.forget(self._label)

    def _show(self, columns: Histograms) -> None:
        index, missing = columns.stability().tolist(), columns.missing().tolist()
        for name, drift, share in zip(self._names, index, missing, strict=False):
            worker_metrics.FEATURE_PSI.labels(self._label, name).set(drift)
            worker_metrics.FEATURE_MISSING.labels(self._label, name).set(share)
        worker_metrics.SCORE_PSI.labels(self._label).set(index[-1])
