"""Early exit: a decision without the rest of the trees, where the rest cannot change it.

After some trees the margin so far is s. What the remaining trees can add lies between the sum of their least and of
their greatest leaves; float32 additions round, each by at most half a unit in the last place of the largest partial sum
there can be. Where s and these bounds stand on one side of the threshold, so does the final margin: the decision is the
one that all trees give. The margin itself is not known then, so this serves where a decision alone is wanted (degraded
mode, small devices).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from scorer.model.compiled import CompiledModel
from scorer.model.errors import ModelInputError
from scorer.model.table import Table

# After these shares of the trees it is asked who is decided.
STAGES = (0.125, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class _Stage:
    model: CompiledModel
    last: int
    most: float
    """The remaining trees add at most this, roundings included."""
    least: float


class EarlyExit:
    """Decisions at one threshold. Immutable; threads may share it."""

    def __init__(self, table: Table, threshold_margin: float, *, stages: tuple[float, ...] = STAGES) -> None:
        """Raises ModelInputError for a model whose leaves are added in double precision, or averaged."""
        if not table.finished:
            raise ModelInputError("early exit takes xgboost models: others divide or shift their sum at the end")
        self._threshold = np.float32(threshold_margin)
        self.tree_count, self._features = table.tree_count, table.feature_count
        ends = np.append(table.root[1:], len(table.left))
        leaves = [
            table.value[a:b][table.feature[a:b] < 0].astype(np.float64) for a, b in zip(table.root, ends, strict=True)
        ]
        most = np.array([part.max() for part in leaves])
        least = np.array([part.min() for part in leaves])
        # No partial sum exceeds this; an addition errs by 2^-24 of it at most, and is counted as 2^-23.
        largest = abs(float(table.base_margin)) + float(np.maximum(np.abs(most), np.abs(least)).sum())
        slack = float(np.finfo(np.float32).eps) * largest * 1.01
        borders = sorted({max(1, round(share * table.tree_count)) for share in stages} | {table.tree_count})
        self._stages = []
        first = 0
        for last in borders:
            rest = table.tree_count - last
            part = _trees(table, first, last)
            if first:
                # The next stage goes on from the sums so far: -0.0 is what adds nothing.
                part = replace(part, base_margin=np.float32(-0.0))
            self._stages.append(
                _Stage(
                    CompiledModel(part),
                    last,
                    float(most[last:].sum()) + rest * slack,
                    float(least[last:].sum()) - rest * slack,
                )
            )
            first = last

    def decide(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """flag bool [n] and trees int32 [n] that it took, of rows float32 [n, f]: `margins(X) >= threshold`, for every
        row.
        """
        if X.ndim != 2 or X.shape[1] != self._features or X.dtype != np.float32:
            raise ModelInputError(f"rows are {X.dtype} {X.shape}, wanted float32 (n, {self._features})")
        flag = np.zeros(len(X), dtype=bool)
        trees = np.zeros(len(X), dtype=np.int32)
        rows, waiting = X, np.arange(len(X))
        sums = self._stages[0].model.margins(rows)
        for number, stage in enumerate(self._stages):
            if number:
                stage.model.plan.add_into(np.ascontiguousarray(rows), sums)
            wide = sums.astype(np.float64)
            above = wide + stage.least >= self._threshold
            below = wide + stage.most < self._threshold
            done = above | below
            flag[waiting[above]] = True
            trees[waiting[done]] = stage.last
            if done.all():
                break
            keep = ~done
            rows, sums, waiting = rows[keep], sums[keep], waiting[keep]
        return flag, trees


def _trees(table: Table, first: int, last: int) -> Table:
    start = int(table.root[first])
    end = int(table.root[last]) if last < table.tree_count else len(table.left)
    span = slice(start, end)
    return replace(
        table,
        root=(table.root[first:last] - start).astype(np.int32),
        depth=table.depth[first:last],
        left=(table.left[span] - start).astype(np.int32),
        right=(table.right[span] - start).astype(np.int32),
        feature=table.feature[span],
        threshold=table.threshold[span],
        default_left=table.default_left[span],
        value=table.value[span],
        cover=table.cover[span],
    )
