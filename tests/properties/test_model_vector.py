"""The vector kernels against the plain walk (itself compared with xgboost): each depth, layout, CPU, number of rows."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scorer.model import CompiledModel, model_plan
from scorer.model.model_plan import spans
from scorer.model.tree_table import LESS, RawTree, Table, join, lower_tree
from scorer.model.vector import jit_compiler, lane_tables
from scorer.model.vector.vector_run import DeepRun, VectorRun

ROOT = Path(__file__).resolve().parents[2]


def _tree(rng: np.random.Generator, depth: int, features: int, cuts: np.ndarray, grow: float, wide: bool) -> RawTree:
    """A random tree of exactly `depth` along its leftmost path, elsewhere stopping early with chance 1 - grow."""
    left, right, feature, threshold, value, level = [-1], [-1], [-1], [0.0], [0.0], [0]
    at = 0
    while at < len(left):
        leftmost = at == 0 or (left[parent_of(at, left)] == at and on_spine(at, left))
        if level[at] < depth and (leftmost or rng.random() < grow):
            left[at], right[at] = len(left), len(left) + 1
            feature[at] = int(rng.integers(0, features))
            threshold[at] = float(rng.choice(cuts))
            for _ in range(2):
                left.append(-1)
                right.append(-1)
                feature.append(-1)
                threshold.append(0.0)
                value.append(float(rng.normal()))
                level.append(level[at] + 1)
        at += 1
    n = len(left)
    return RawTree(
        np.array(left), np.array(right), np.array(feature, np.int32), np.array(threshold, np.float32),
        np.full(n, LESS, np.int8), rng.integers(0, 2, n).astype(np.uint8),
        np.array(value, np.float64 if wide else np.float32), 0.5 ** np.array(level),
    )  # fmt: skip


def parent_of(node: int, left: list[int]) -> int:
    return next(i for i in range(node) if left[i] in (node, node - 1) and left[i] > 0)


def on_spine(node: int, left: list[int]) -> bool:
    at = 0
    while left[at] > 0:
        at = left[at]
        if at == node:
            return True
    return False


def _table(
    seed: int, depths: list[int], *, features: int = 5, cuts: int = 300, grow: float = 0.8, wide: bool = False
) -> Table:
    rng = np.random.default_rng(seed)
    values = np.unique(np.concatenate([rng.normal(size=cuts), [0.0, -0.0]]).astype(np.float32))
    trees = [lower_tree(_tree(rng, d, features, values, grow, wide), i, features) for i, d in enumerate(depths)]
    return join(trees, features, np.float32(-0.75))


def _rows(table: Table, seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, table.feature_count)).astype(np.float32)
    cuts = table.threshold[table.feature >= 0]
    if len(cuts):
        pool = np.concatenate([cuts, np.nextafter(cuts, np.float32(9)), np.nextafter(cuts, np.float32(-9))])
        at_cut = rng.random(rows.shape) < 0.3
        rows[at_cut] = rng.choice(pool, int(at_cut.sum()))
    odd = rng.random(rows.shape) < 0.2
    rows[odd] = rng.choice(np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32), int(odd.sum()))
    return rows


def _assert_equal(
    table: Table, seed: int, counts: tuple[int, ...] = (1, 2, 3, 4, 7, 15, 16, 63, 64, 65, 200)
) -> CompiledModel:
    vector, plain = CompiledModel(table), CompiledModel(table, vector=False)
    for count in counts:
        rows = _rows(table, seed + count, count)
        ours, theirs = vector.margins(rows), plain.margins(rows)
        assert (ours.view(np.uint32) == theirs.view(np.uint32)).all(), f"{count} rows"
    return vector


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    depths=st.lists(st.integers(0, 8), min_size=1, max_size=20),
    cuts=st.sampled_from([1, 3, 40, 254, 255, 256, 700]),
    features=st.sampled_from([1, 3, 30]),
    wide=st.booleans(),
)
def test_vector_equals_walk(seed: int, depths: list[int], cuts: int, features: int, wide: bool) -> None:
    """Every number of rows, trees, cuts and features gives the walk's bits, in both precisions."""
    _assert_equal(_table(seed, depths, cuts=cuts, features=features, wide=wide), seed, (1, 5, 16, 130))


@pytest.mark.parametrize("depth", range(9))
@pytest.mark.parametrize("wide", [False, True])
def test_every_depth(depth: int, wide: bool) -> None:
    """Each depth has its own kernels; all of them give the walk's bits."""
    model = _assert_equal(_table(depth, [depth] * 11, wide=wide), depth)
    assert model.plan.vector_trees == 11


def test_more_trees_than_a_chunk_holds() -> None:
    """The kernel for few rows works in chunks of 256 trees; 256, 257 and 600 trees give the walk's bits."""
    table = _table(4, [3] * 600, features=3)
    for trees in (255, 256, 257, 600):
        cut = _first_trees(table, trees)
        _assert_equal(cut, trees, (1, 4, 5, 64))


def _first_trees(table: Table, trees: int) -> Table:
    end = int(table.root[trees]) if trees < table.tree_count else len(table.left)
    names = ("feature", "threshold", "left", "right", "default_left", "value", "cover")
    return replace(
        table,
        root=table.root[:trees],
        depth=table.depth[:trees],
        **{name: getattr(table, name)[:end] for name in names},
    )


def test_many_planes_leave_the_kernel_for_few_rows_and_then_lanes() -> None:
    """Past 256 planes few rows are walked, past 2,048 all rows; the bits stay the same."""
    some = _table(1, [8] * 40, features=200, cuts=900)
    assert 256 < lane_tables.rank_features(some).plane_count <= lane_tables.PLANES_STACK_MAX  # type: ignore[union-attr]
    assert _assert_equal(some, 1).plan.vector_trees == 40
    rng = np.random.default_rng(0)
    many = _table(2, [8] * 30, features=1_200, cuts=3_000, grow=1.0)
    assert lane_tables.rank_features(many) is None
    model = _assert_equal(many, int(rng.integers(9)), (1, 16, 70))
    assert model.plan.vector_trees == 0
    assert "more cuts" in model.plan.reason


def test_thousands_of_cuts_of_one_feature() -> None:
    """A feature of 4,000 cuts is ranked exactly: 12 levels of search, 16 planes a direction."""
    table = _table(3, [8] * 60, features=1, cuts=4_000, grow=1.0)
    assert len(np.unique(table.threshold[table.feature >= 0])) > 2_048
    assert _assert_equal(table, 3).plan.vector_trees == 60


def test_deep_trees_are_walked_between_shallow_ones() -> None:
    """A chain of depth 40 among shallow trees does not grow the padded table, and the order of additions stays."""
    table = _table(5, [4] * 70 + [40] + [6] * 70, grow=0.5)
    model = _assert_equal(table, 5)
    assert model.plan.vector_trees == 140
    assert model.plan.byte_count < 1 << 20


def test_spans_join_what_is_cheaper_joined() -> None:
    """Single trees of another depth are padded, long runs are not, and deep trees stand apart."""
    depths = np.array([6] * 50 + [5] + [6] * 50)
    assert [(s.first, s.last, s.depth) for s in spans(depths)] == [(0, 101, 6)]
    mixed = spans(np.array([8] + [1, 2] * 5_000))
    assert mixed[0].depth == 8
    assert mixed[0].last < 100
    assert {s.depth for s in mixed[1:]} == {3}
    assert [s.depth for s in spans(np.array([6, 12, 6]))] == [6, 9, 6]


def test_alternating_depths_go_through_one_kernel() -> None:
    """Dozens of runs would each rank the rows anew; the deep kernel takes trees of all depths in one run."""
    model = _assert_equal(_table(6, [3, 10] * 12 + [0, 1, 8], grow=0.3), 6, (1, 30, 600))
    assert model.plan.vector_trees == 27
    few = _assert_equal(_table(6, [10] * 4, grow=0.3), 6, (1, 30))
    assert few.plan.vector_trees == 0
    assert "4 trees deeper than 8" in few.plan.reason


# Eight rows are walked side by side, 64 are a block, and 512 pass over a tree together.
_DEEP_COUNTS = (1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 200, 511, 512, 513, 1_100)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(
    ("depths", "features", "cuts"),
    [
        ([12] * 20, 5, 300), ([9] * 16, 30, 700), ([15] * 16, 1, 255), ([25, 9, 11] * 6, 2, 3),
        ([7] * 3 + [12] * 17, 9, 40),
    ],
    ids=["twelve", "many planes", "one feature", "uneven", "after shallow ones"],
)  # fmt: skip
def test_deep_trees_equal_the_walk(depths: list[int], features: int, cuts: int, wide: bool) -> None:
    """Upper levels in lanes and the rest node by node give the walk's bits, for every number of rows."""
    table = _table(sum(depths), depths, features=features, cuts=cuts, grow=0.5, wide=wide)
    assert _assert_equal(table, 3, _DEEP_COUNTS).plan.vector_trees == len(depths)


def test_hundreds_of_planes_leave_fewer_rows_at_once_to_deep_trees() -> None:
    """With 200 features of many cuts the ranks of 512 rows would not fit the stack; fewer rows pass, the same bits."""
    table = _table(1, [9] * 40, features=200, cuts=900)
    ranks = lane_tables.rank_features(table)
    assert ranks is not None
    assert ranks.plane_count * lane_tables.ROWS_AT_ONCE > lane_tables.PLANES_STACK_MAX * 64
    assert _assert_equal(table, 1, (8, 64, 200, 700)).plan.vector_trees == 40


@pytest.mark.parametrize("cpu", ["x86-64", "x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("depth", [3, 6, 8, 12])
def test_other_cpus_give_the_same_bits(cpu: str, depth: int) -> None:
    """Kernels compiled for an older CPU of this family (SSE2, AVX2, AVX-512 without VBMI) give the same bits."""
    here = jit_compiler.host()
    needed = {"x86-64": "+sse2", "x86-64-v3": "+avx2", "x86-64-v4": "+avx512bw"}[cpu]
    if not here.triple.startswith("x86_64"):
        assert here.triple  # another family: its own kernels are what all other tests run
        return
    features = "+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512cd" if cpu == "x86-64-v4" else ""
    if needed not in here.features.split(","):
        return
    table = _table(depth, [depth] * 9, grow=0.8 if depth <= 8 else 0.5)
    older, ranks = jit_compiler.Host(here.triple, cpu, features), lane_tables.rank_features(table)
    assert ranks is not None
    rows = _rows(table, 1, 150)
    out = np.empty(150, np.float32)
    run: VectorRun | DeepRun
    if depth <= 8:
        run = VectorRun(table, ranks, 0, 9, older)
        assert run.few == 0
        kernel = run.batch
    else:
        run = DeepRun(table, ranks, 0, 9, older)
        kernel = run.kernel
    model_plan.run(rows, out, float(table.base_margin), kernel, run.descriptor)
    assert (out.view(np.uint32) == CompiledModel(table, vector=False).margins(rows).view(np.uint32)).all()


def test_without_a_compiler_the_walk_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where LLVM cannot compile, the model says why and gives the same margins by the plain walk."""

    def none() -> jit_compiler.Host:
        raise jit_compiler.JitUnavailableError("no target for this machine")

    monkeypatch.setattr(model_plan, "this_host", none)
    table = _table(7, [5] * 10)
    model = _assert_equal(table, 7, (1, 40))
    assert model.plan.vector_trees == 0
    assert model.plan.reason == "no target for this machine"


def _cached(folder: Path, code: str = "") -> str:
    program = (
        "import numpy as np, sys; sys.path.insert(0, '.')\n"
        f"{code}\n"
        "from tests.properties.test_model_vector import _table, _rows\nfrom scorer.model import CompiledModel\n"
        "table = _table(1, [4] * 9)\nmodel = CompiledModel(table)\n"
        "print(model.margins(_rows(table, 1, 70)).tobytes().hex(), model.plan.vector_trees)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {jit_compiler.CACHE_VARIABLE: str(folder)},
    )  # fmt: skip
    return done.stdout


def test_kernels_are_cached_and_a_torn_file_is_made_again(tmp_path: Path) -> None:
    """The second process compiles nothing; a damaged cache file is replaced."""
    folder = tmp_path / "kernels"
    wanted = _cached(folder)
    files = sorted(folder.iterdir())
    assert files
    assert all(file.suffix == ".o" for file in files)
    refuse = (
        "from scorer.model.vector import jit_compiler\n"
        "def no(*a): raise RuntimeError('compiled')\n"
        "jit_compiler._compile = no"
    )
    assert _cached(folder, refuse) == wanted
    before = files[0].read_bytes()
    for file in files:
        file.write_bytes(file.read_bytes()[:-20])
    assert _cached(folder) == wanted
    assert len(files[0].read_bytes()) == len(before)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_cache_that_others_may_write_to_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    """Object code is only taken from a folder that no other user may write to; an empty variable: no cache."""
    monkeypatch.setenv(jit_compiler.CACHE_VARIABLE, str(tmp_path / "own"))
    assert jit_compiler._folder() == tmp_path / "own"
    (tmp_path / "own").chmod(mode)
    assert jit_compiler._folder() is None
    monkeypatch.setenv(jit_compiler.CACHE_VARIABLE, "")
    assert jit_compiler._folder() is None


def test_explaining_agrees_with_the_classic_algorithm() -> None:
    """Quadrature and the path algorithm give the same contributions, on deep trees that meet features again."""
    table = _table(9, [12, 7, 3, 0, 9], features=4, grow=0.9)
    rng = np.random.default_rng(1)
    cover = np.ones(len(table.left))
    for node in range(len(table.left) - 1, -1, -1):
        if table.feature[node] >= 0:
            cover[node] = cover[table.left[node]] + cover[table.left[node] + 1]
        else:
            cover[node] = rng.integers(1, 50)
    table = replace(table, cover=cover)
    rows = _rows(table, 4, 21)
    fast, classic = CompiledModel(table), CompiledModel(table, vector=False)
    assert np.allclose(fast.contributions(rows), classic.contributions(rows), atol=1e-9)


@pytest.mark.parametrize("call", ["margins", "contributions"])
def test_kernels_hold_no_lock_of_the_interpreter(call: str) -> None:
    """While one thread scores or explains a large batch in one call, another goes on running Python."""
    model = CompiledModel(_table(8, [6] * 60))
    rows = _rows(model.table, 8, 1_000)
    many = np.tile(rows, (1_500 if call == "margins" else 20, 1))
    done = threading.Event()

    def work() -> None:
        getattr(model, call)(many)
        done.set()

    getattr(model, call)(rows)
    thread = threading.Thread(target=work)
    turns = 0
    thread.start()
    while not done.is_set():
        turns += 1
        time.sleep(0.001)
    thread.join()
    # The call takes some 100 ms; with the lock held there would be a turn before it and one after.
    assert turns > 5
