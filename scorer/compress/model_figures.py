"""Size, speed and quality of a model on held-out rows: printed before and after each lever."""

from __future__ import annotations

import statistics
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from scorer.bundle import Calibration
from scorer.model import CompiledModel
from scorer.training import area_under_roc, average_precision

BATCH, _TURNS = 4_096, 15


@dataclass(frozen=True)
class Measure:
    """One model's figures."""

    trees: int
    nodes: int
    file_bytes: int
    deflated_bytes: int
    """The file compressed by zlib, as sent to a device."""
    table_bytes: int
    """Memory that scoring reads."""
    batch_us: float
    """A row, in batches of 4,096 on one thread."""
    single_us: float
    """A single row, including the call."""
    average_precision: float
    auc: float
    flagged: int
    """Of all payments of the time of the rows, by the policy."""

    def document(self) -> dict[str, Any]:
        """Plain numbers for people and --json."""
        return asdict(self)


def measure(
    data: bytes, model: CompiledModel, calibration: Calibration, X: np.ndarray, truth: np.ndarray, flagged: int
) -> Measure:
    """Figures on rows float32 [n, k] with truth bool [n]; speeds are medians of 15 turns."""
    margins = model.margins(X)
    scores = calibration.apply(margins, model.link)
    batch = np.ascontiguousarray(np.resize(X, (BATCH, X.shape[1])))
    one = batch[:1].copy()
    return Measure(
        trees=model.tree_count,
        nodes=model.table.node_count,
        file_bytes=len(data),
        deflated_bytes=len(zlib.compress(data, 9)),
        table_bytes=model.plan.byte_count,
        batch_us=seconds(lambda: model.margins(batch)) / BATCH * 1e6,
        single_us=seconds(lambda: [model.margins(one) for _ in range(50)]) / 50 * 1e6,
        average_precision=average_precision(truth, scores),
        auc=area_under_roc(truth, scores),
        flagged=flagged,
    )


def seconds(call: Any) -> float:
    """The median time of a call."""
    call()
    times = []
    for _ in range(_TURNS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def ratio(plain: Callable[[], Any], other: Callable[[], Any], turns: int = _TURNS) -> float:
    """The median time of `other` by that of `plain`, turn about: what else the machine does slows both alike."""
    plain()
    other()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(turns):
        for call, found in zip((plain, other), times, strict=True):
            started = time.perf_counter()
            call()
            found.append(time.perf_counter() - started)
    return statistics.median(times[1]) / statistics.median(times[0])
