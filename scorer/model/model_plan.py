"""Which trees are scored by which evaluator: perfect trees in byte lanes where padding pays, deeper ones in lanes for
their upper levels and walked from there, the plain walk for a few trees or rows.

Trees must be added in their order, so a plan is a list of runs of consecutive trees. A perfect tree of depth d costs
2^d nodes whatever it holds; a run costs one more pass over the rows (their ranks are made anew). Neighbouring runs are
joined where padding the shallower one is cheaper than that pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numba import types

from scorer.model import scalar_kernels
from scorer.model.tree_table import Table
from scorer.model.vector import lane_tables
from scorer.model.vector.jit_compiler import Host, JitUnavailableError
from scorer.model.vector.jit_compiler import host as this_host
from scorer.model.vector.kernel_layout import DEEP_TOP, DEPTH_MAX, DEPTH_MIN
from scorer.model.vector.vector_run import DeepRun, VectorRun, run

# Ranks of 64 rows x 44 features take about as long as 64 trees of depth 6.
_PASS_NODES = 4_096
# A lossguide model may alternate deep and shallow trees: past this many runs the deep kernel takes all of them.
_RUNS_MAX = 16
# A walk of one row costs about as much as a fifth of a block of 64 rows in lanes, the bit kernel a sixteenth.
_WALK_BELOW, _FEW_BELOW = 5, 16
# Fewer deep trees are walked: ranking the rows for them would cost more than it saves. Fewer rows too.
_DEEP_TREES_MIN, _DEEP_FROM = 16, 8
_DEEP_TREES_MAX = lane_tables.PADDED_NODES_MAX >> DEEP_TOP
_ADD = float("nan")  # for `run`: go on from what out holds
# Below this many rows interleaving trees is quicker than interleaving rows.
_BATCH_FROM = 8


@numba.njit(
    [
        types.void(types.Array(real, 1, "C"), types.float64, types.float64, types.Array(types.float32, 1, "C"))
        for real in (types.float32, types.float64)
    ],
    cache=True,
    nogil=True,
    error_model="numpy",
)
def _finish(sums, divisor, offset, out):  # type: ignore[no-untyped-def]
    """out = sums / divisor + offset, with a rounding to the type of sums after each, as treelite's interpreter does."""
    for row in range(sums.shape[0]):
        sums[row] = sums[row] / sums.dtype.type(divisor)
        sums[row] = np.float64(sums[row]) + offset
        out[row] = sums[row]


@dataclass(frozen=True)
class Span:
    """Trees first … last - 1, padded to `depth`; deep when that is more than can be padded."""

    first: int
    last: int
    depth: int

    @property
    def nodes(self) -> int:
        return (self.last - self.first) << min(self.depth, 40)


def spans(depths: np.ndarray) -> list[Span]:
    """Consecutive runs of trees, neighbours joined where that costs no more than another pass."""
    # All walked trees are alike.
    kinds = np.clip(depths, DEPTH_MIN, DEPTH_MAX + 1)
    borders = np.flatnonzero(np.diff(kinds)) + 1
    starts, ends = np.append(0, borders), np.append(borders, len(kinds))
    found = [Span(a, b, int(kinds[a])) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
    # In rounds of disjoint pairs: one run that swallowed the next, and the next, would never pay for what it padded.
    while True:
        before, found = found, _joined(found)
        if len(found) == len(before):
            return found


def _walked(span: Span) -> bool:
    return span.depth > DEPTH_MAX and not _DEEP_TREES_MIN <= span.last - span.first <= _DEEP_TREES_MAX


def _joined(found: list[Span]) -> list[Span]:
    kept: list[Span] = []
    at = 0
    while at < len(found):
        span = found[at]
        at += 1
        if at < len(found):
            other = found[at]
            joined = Span(span.first, other.last, max(span.depth, other.depth))
            walked = joined.depth > DEPTH_MAX
            if not walked and joined.nodes <= span.nodes + other.nodes + _PASS_NODES:
                span = joined
                at += 1
        kept.append(span)
    return kept


class Plan:
    """A model's trees, ready to score rows. Immutable; any number of threads may share it."""

    def __init__(self, table: Table, *, vector: bool) -> None:
        """`vector` false walks every tree; true uses byte lanes where they pay and this machine can."""
        self._base = float(table.base_margin)
        self._finished, self._divisor, self._offset = table.finished, table.divisor, table.offset
        self._packed = scalar_kernels.pack(table)
        self.reason = "asked for" if not vector else "" if table.tree_count else "the model has no tree"
        """Why all trees are walked; empty when some run in byte lanes."""
        self._runs: list[VectorRun | DeepRun | tuple[np.ndarray, ...]] = []
        if vector and table.tree_count:
            self._runs = self._vector_runs(table)
        if not any(isinstance(item, VectorRun | DeepRun) for item in self._runs):
            self._runs = [self._packed]
        self.vector_trees = sum(item.trees for item in self._runs if isinstance(item, VectorRun | DeepRun))
        """Trees whose levels, or upper levels, are decided in byte lanes."""
        self._only = self._runs[0] if len(self._runs) == 1 and isinstance(self._runs[0], VectorRun) else None

    def _vector_runs(self, table: Table) -> list[VectorRun | DeepRun | tuple[np.ndarray, ...]]:
        try:
            host: Host = this_host()
            found = spans(table.depth)
            padded = sum(span.nodes for span in found if span.depth <= DEPTH_MAX)
            if len(found) > _RUNS_MAX or padded > lane_tables.PADDED_NODES_MAX:
                found = [Span(0, table.tree_count, DEPTH_MAX + 1)]
            if all(_walked(span) for span in found):
                self.reason = f"{table.tree_count} trees deeper than {DEPTH_MAX}, or of depths that differ too much"
                return []
            ranks = lane_tables.rank_features(table)
            if ranks is None:
                self.reason = "the features have more cuts than byte lanes take"
                return []
            return [self._run(table, ranks, span, host) for span in found]
        except JitUnavailableError as error:
            self.reason = str(error)
            return []

    def _run(
        self, table: Table, ranks: lane_tables.Ranks, span: Span, host: Host
    ) -> VectorRun | DeepRun | tuple[np.ndarray, ...]:
        if span.depth <= DEPTH_MAX:
            return VectorRun(table, ranks, span.first, span.last, host)
        if not _walked(span):
            return DeepRun(table, ranks, span.first, span.last, host)
        return self._walk(span.first, span.last)

    @property
    def only_run(self) -> VectorRun | None:
        """The run of all trees, where one takes them all."""
        return self._only

    @property
    def byte_count(self) -> int:
        """Bytes of the tables that are read while scoring."""
        vector = sum(item.byte_count for item in self._runs if isinstance(item, VectorRun | DeepRun))
        walked = sum(array.nbytes for array in self._packed)
        return vector + (walked if self.vector_trees < len(self._packed[0]) else 0)

    def margins_into(self, rows: np.ndarray, out: np.ndarray) -> None:
        """out float32 [n], contiguous = margins of rows float32 [n, f], C-contiguous; neither is checked here."""
        if self._finished:
            self._sum_into(rows, out)
            return
        sums = np.empty(len(rows), dtype=self._packed[4].dtype)
        self._sum_into(rows, sums)
        _finish(sums, self._divisor, self._offset, out)

    def add_into(self, rows: np.ndarray, out: np.ndarray) -> None:
        """As `margins_into`, but the leaves are added to what `out` holds: for models cut in stages."""
        self._add(rows, out, len(rows))

    def _sum_into(self, rows: np.ndarray, out: np.ndarray) -> None:
        count = len(rows)
        only = self._only
        if only is not None:
            if count >= (_FEW_BELOW if only.few else _WALK_BELOW):
                run(rows, out, self._base, only.batch, only.descriptor)
                return
            if only.few:
                run(rows, out, self._base, only.few, only.descriptor)
                return
        out[:] = self._base
        self._add(rows, out, count)

    def _add(self, rows: np.ndarray, out: np.ndarray, count: int) -> None:
        for item in self._runs:
            if isinstance(item, VectorRun) and (count >= _WALK_BELOW or item.few):
                kernel = item.few if item.few and count < _FEW_BELOW else item.batch
                run(rows, out, _ADD, kernel, item.descriptor)
            elif isinstance(item, DeepRun) and count >= _DEEP_FROM:
                run(rows, out, _ADD, item.kernel, item.descriptor)
            elif isinstance(item, VectorRun | DeepRun):
                walk = self._walk(item.first, item.first + item.trees)
                scalar_kernels.margins_single(rows, *walk, out)  # type: ignore[call-arg]
            elif count >= _BATCH_FROM:
                scalar_kernels.margins_batch(rows, *item, out)  # type: ignore[call-arg]
            else:
                scalar_kernels.margins_single(rows, *item, out)  # type: ignore[call-arg]

    def _walk(self, first: int, last: int) -> tuple[np.ndarray, ...]:
        """The plain walk's arrays for trees first … last - 1."""
        return (self._packed[0][first:last], self._packed[1][first:last], *self._packed[2:])
