"""Early exit: a decision without the rest of the trees, where the rest cannot change it.

After some trees the margin so far is s. What the remaining trees can add lies between the sum of their least and of
their greatest leaves; float32 additions round, each by at most half a unit in the last place of the largest partial sum
there can be. Where s and these bounds stand on one side of the threshold, so does the final margin: the decision is the
one that all trees give. The margin itself is not known then, so this serves where a decision alone is wanted (degraded
mode, small devices).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from scorer.model.model_errors import ModelInputError
from scorer.model.model_plan import Plan
from scorer.model.tree_table import Table
from scorer.model.vector.jit_compiler import JitUnavailableError, host
from scorer.model.vector.vector_run import EarlyRun, run

# After these shares of the trees the sums are compared with the bounds.
STAGES = tuple(share / 16 for share in range(1, 17))
# Without byte lanes every stage is a pass of its own over the rows that are left.
_STAGES_WALKED = (0.125, 0.25, 0.5, 0.75, 1.0)


class EarlyExit:
    """Decisions at one threshold. Immutable; threads may share it."""

    def __init__(self, table: Table, threshold_margin: float, *, vector: bool = True) -> None:
        """Raises ModelInputError for a model without trees, or whose sum is divided or shifted at the end."""
        if not table.finished or not table.tree_count:
            raise ModelInputError("early exit takes xgboost models with trees: others divide or shift their sum")
        self.tree_count, self._features = table.tree_count, table.feature_count
        self._base, self._threshold = float(table.base_margin), np.float32(threshold_margin)
        self._lanes: EarlyRun | None = None
        self._stages: list[tuple[Plan, int, float, float]] = []
        whole = Plan(table, vector=vector)
        if whole.only_run is not None:
            ends = self._ends(STAGES)
            try:
                self._whole = whole  # its arrays are the kernel's
                self._lanes = EarlyRun(whole.only_run, ends, np.stack(self._bounds(table, ends), axis=1), host())
                return
            except JitUnavailableError:
                pass
        ends = self._ends(_STAGES_WALKED)
        first = 0
        for last, below, above in zip(ends.tolist(), *self._bounds(table, ends), strict=True):
            self._stages.append((Plan(_trees(table, first, last), vector=vector), last, below, above))
            first = last

    def _ends(self, shares: tuple[float, ...]) -> np.ndarray:
        return np.unique([max(1, round(share * self.tree_count)) for share in shares]).astype(np.int32)

    def _bounds(self, table: Table, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 [stages] each: after that many trees a sum below the first, or not below the second, is decided."""
        borders = np.append(table.root, len(table.left))
        leaf = table.feature < 0
        parts = [table.value[a:b][leaf[a:b]].astype(np.float64) for a, b in pairwise(borders.tolist())]
        most, least = np.array([part.max() for part in parts]), np.array([part.min() for part in parts])
        # No partial sum exceeds this; an addition errs by 2^-24 of it at most, and is counted as twice that.
        largest = abs(self._base) + float(np.maximum(np.abs(most), np.abs(least)).sum())
        slack = float(np.finfo(np.float32).eps) * largest
        below, above = [], []
        for end in ends:
            rest = self.tree_count - int(end)
            below.append(float(self._threshold) - float(most[end:].sum()) - rest * slack)
            above.append(float(self._threshold) - float(least[end:].sum()) + rest * slack)
        # To float32, each to its safe side; the last stage compares with the threshold itself, which is a float32.
        low, high = np.array(below), np.array(above)
        limit = float(np.finfo(np.float32).max)
        near = [np.clip(side, -limit, limit).astype(np.float32) for side in (low, high)]
        with np.errstate(over="ignore"):
            down = np.where(near[0] > low, np.nextafter(near[0], np.float32(-np.inf)), near[0])
            up = np.where(near[1] < high, np.nextafter(near[1], np.float32(np.inf)), near[1])
        return down.astype(np.float32), up.astype(np.float32)

    def decide(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """flag bool [n], and trees int32 [n] that it took, of rows float32 [n, f]: `margins(X) >= threshold` for each.

        In byte lanes 64 rows go together: they are done when all of them are decided.
        """
        if X.ndim != 2 or X.shape[1] != self._features or X.dtype != np.float32:
            raise ModelInputError(f"rows are {X.dtype} {X.shape}, wanted float32 (n, {self._features})")
        rows = np.ascontiguousarray(X)
        if self._lanes is not None:
            out = np.empty(len(rows), dtype=np.float32)
            run(rows, out, self._base, self._lanes.kernel, self._lanes.descriptor)
            return out > 0, np.abs(out).astype(np.int32)
        flag = np.zeros(len(rows), dtype=bool)
        trees = np.zeros(len(rows), dtype=np.int32)
        waiting = np.arange(len(rows))
        sums = np.full(len(rows), self._base, dtype=np.float32)
        for plan, last, below, above in self._stages:
            plan.add_into(rows, sums)
            flag[waiting[sums >= above]] = True
            done = (sums >= above) | (sums < below)
            trees[waiting[done]] = last
            rows, sums, waiting = rows[~done], sums[~done], waiting[~done]
            if not len(rows):
                break
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
