"""How often the challengers of a bundle agree with its model, counted of every payment that they score."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from schemas.audit_record import AuditColumns
from scorer.bundle import Bundle
from scorer.model.model_errors import ModelInputError
from scorer.worker import worker_metrics

# By 2 x (the model's score reaches the threshold) + (the challenger's does).
FLAGGED_BY: Final = ("neither", "challenger", "model", "both")


class ChallengerWatch:
    """Of one owned shard. All calls from its own thread."""

    def __init__(self, label: str) -> None:
        self._label, self._bundle = label, ""
        self._names: list[str] = []
        self._threshold = np.float32(0.0)
        self._thresholds: npt.NDArray[np.float32] = np.empty(0, np.float32)  # [C]

    def see(self, bundle: Bundle, columns: AuditColumns) -> None:
        """Count a batch that `bundle` decided. Lists and rules, which decide for every model alike, do not count, nor
        do thresholds of segments: every payment is compared with the common one."""
        if bundle.id != self._bundle:
            self._begin(bundle)
        if not self._names or not len(columns):
            return
        by_model = 2 * (columns.margin >= self._threshold).astype(np.intp)
        for column, name in enumerate(self._names):
            margins = columns.challenger_margins[:, column]
            kinds = (by_model + (margins >= self._thresholds[column]))[~np.isnan(margins)]
            for kind, count in enumerate(np.bincount(kinds, minlength=len(FLAGGED_BY)).tolist()):
                if count:
                    worker_metrics.CHALLENGERS.labels(self._label, name, FLAGGED_BY[kind]).inc(count)

    def _begin(self, bundle: Bundle) -> None:
        worker_metrics.CHALLENGERS.forget(self._label)
        self._bundle, self._names = bundle.id, [item.id for item in bundle.challengers]
        if not self._names:
            return
        self._threshold = bundle.threshold_margin
        self._thresholds = np.full(len(self._names), np.inf, np.float32)
        for column, item in enumerate(bundle.challengers):
            for flagged_by in FLAGGED_BY:
                worker_metrics.CHALLENGERS.labels(self._label, item.id, flagged_by)
            if item is bundle.student:
                self._thresholds[column] = bundle.student_threshold_margin
                continue
            try:
                self._thresholds[column] = item.calibration.margin_for(bundle.manifest.threshold_score, item.model.link)
            except ModelInputError:  # its scores end below the threshold: it flags nothing
                continue
