"""What is known of each payment's label, from the same label records that the feature engine is given.

A payment has the label that became known last, of several known at one time the one that came last: that is what the
windows count from then on. A repeated payment's row may bring a label, or another one, for the payment that it repeats;
a row without a label says nothing about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from schemas.label_record import Label
from scorer.pipeline.records import KnownLabel


class LabelLedger:
    """Labels of fresh payments, batch by batch; `as_of_ms`: without those that became known later."""

    def __init__(self, as_of_ms: int | None = None) -> None:
        self._as_of_ms = as_of_ms
        self._place: dict[str, int] = {}
        self._label: list[int] = []
        self._known_at_ms: list[int] = []
        # Of payments that have not come, or never will: their rows were refused.
        self._waiting: dict[str, Label | KnownLabel] = {}

    def add(self, fresh: Sequence[str], labels: Iterable[Label | KnownLabel]) -> None:
        """The ids of a batch's fresh payments, and the labels that came with the batch."""
        first = len(self._label)
        self._label.extend([-1] * len(fresh))
        self._known_at_ms.extend([-1] * len(fresh))
        # An id that comes anew after the time in which repeated ones are found is another payment from here on.
        self._place.update(zip(fresh, range(first, first + len(fresh)), strict=True))
        if self._waiting:
            for payment_id in self._waiting.keys() & set(fresh):
                self._write(self._waiting.pop(payment_id))
        for label in labels:
            if self._as_of_ms is None or label.known_at_ms <= self._as_of_ms:
                self._write(label)

    def _write(self, label: Label | KnownLabel) -> None:
        place = self._place.get(label.payment_id)
        if place is None:
            before = self._waiting.get(label.payment_id)
            if before is None or label.known_at_ms >= before.known_at_ms:
                self._waiting[label.payment_id] = label
        elif label.known_at_ms >= self._known_at_ms[place]:
            self._label[place], self._known_at_ms[place] = int(label.fraud), label.known_at_ms

    def columns(self) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int64]]:
        """label int8 [n] (1 fraud, 0 genuine, -1 unknown) and label_known_at_ms int64 [n], -1 where it is unknown, of
        all fresh payments in their order."""
        return np.array(self._label, dtype=np.int8), np.array(self._known_at_ms, dtype=np.int64)
