"""Levers and exports: what is lossy says so in figures, what is exact is exact to the bit."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scorer.bundle import Bundle, Calibration, NewChallenger, write_bundle
from scorer.bundle.challengers import with_challengers
from scorer.bundle.gate import verify
from scorer.compress import levers
from scorer.compress.held_out import Payments
from scorer.compress.source_export import to_c, to_python
from scorer.compress.tree_levers import merged, quantise_leaves
from scorer.errors import PromiseBroken, UsageError
from scorer.model import CompiledModel
from scorer.model.early_exit import EarlyExit
from scorer.model.tree_table import Table
from scorer.training import average_precision
from tests.golden_rows import golden_rows
from tests.properties.test_model_vector import _rows, _table

xgb = pytest.importorskip("xgboost")

ROOT = Path(__file__).resolve().parents[2]
FEATURES = "".join(f"  - {{name: f{i}, entity: customer, aggregate: count, window: {i + 1}h}}\n" for i in range(6))
FEATURE_SET = f"name: cards\ncurrency: EUR\nentities: {{customer: [customer_id]}}\nfeatures:\n{FEATURES}"
POLICY = "name: cards\nflag: {score: 0.4}\n"


def _data(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, 6)).astype(np.float32)
    X[rng.random(X.shape) < 0.1] = np.nan
    risk = np.nan_to_num(X[:, 0]) * 1.5 + np.nan_to_num(X[:, 1] * X[:, 2]) + rng.normal(scale=0.7, size=rows)
    return X, risk > 2.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of 120 trees of depth 5, on 6,000 rows."""
    X, truth = _data(1, 6_000)
    parameters = {"objective": "binary:logistic", "max_depth": 5, "eta": 0.1, "nthread": 1}
    booster = xgb.train(parameters, xgb.DMatrix(X, truth.astype(np.float32), nthread=1), 120)
    path = tmp_path_factory.mktemp("levers") / "bundle"
    write_bundle(
        path,
        name="cards",
        created_at="2025-01-01T00:00:00Z",
        model=bytes(booster.save_raw("ubj")),
        feature_set_yaml=FEATURE_SET,
        policy_yaml=POLICY,
        threshold_score=0.4,
        calibration=Calibration(kind="platt", slope=0.9, intercept=-0.1),
        golden=(X[:50], booster.inplace_predict(X[:50], predict_type="margin").astype(np.float32)),
    )
    return path


def test_quantised_leaves_stay_on_a_grid(folder: Path, tmp_path: Path) -> None:
    """Every leaf is a multiple of one power of two within the bits asked for; the new bundle passes the gate, and
    deflates smaller.
    """
    X, truth = _data(2, 3_000)
    done = levers.quantise(folder, tmp_path / "q", X, truth, bits=8, created_at="x")
    bundle = Bundle.load(tmp_path / "q")
    leaves = bundle.model.table.value[bundle.model.table.feature < 0].astype(np.float64)
    step = 2.0 ** np.ceil(np.log2(np.abs(Bundle.load(folder).model.table.value).max() / 127))
    assert (leaves / step == np.round(leaves / step)).all()
    assert np.abs(leaves / step).max() <= 128
    assert verify(tmp_path / "q").passed
    assert done.after.deflated_bytes < done.before.deflated_bytes
    assert done.after.average_precision == pytest.approx(done.before.average_precision, abs=0.01)
    assert done.before.average_precision == pytest.approx(
        average_precision(truth, Bundle.load(folder).model.margins(X).astype(float))
    )
    assert bundle.manifest.versions["from"] == Bundle.load(folder).id


def test_sixteen_bits_change_less_than_four(folder: Path) -> None:
    """More bits are nearer to the model."""
    table = Bundle.load(folder).model.table
    rows = _data(3, 500)[0]
    wanted = CompiledModel(table).margins(rows)
    distance = [np.abs(CompiledModel(quantise_leaves(table, bits)).margins(rows) - wanted).max() for bits in (4, 8, 16)]
    assert distance[0] > distance[1] > distance[2]
    assert distance[2] < 0.01


def test_pruning_keeps_its_word_on_the_rows_that_chose(folder: Path, tmp_path: Path) -> None:
    """Average precision on the choosing half falls by at most the loss stated, and the model is smaller and passes the
    gate.
    """
    X, truth = _data(4, 6_000)
    done = levers.prune(folder, tmp_path / "p", X, truth, loss=0.01, created_at="x")
    half = np.arange(len(X)) < len(X) // 2
    before, after = (
        average_precision(truth[half], Bundle.load(path).model.margins(np.ascontiguousarray(X[half])).astype(float))
        for path in (folder, tmp_path / "p")
    )
    assert after >= before - 0.01
    assert done.after.nodes < done.before.nodes
    assert done.after.file_bytes < done.before.file_bytes
    assert done.rows == 3_000
    assert verify(tmp_path / "p").passed


@pytest.mark.parametrize("tolerance", [0.0, 0.05, 1e9])
def test_merged_leaves_differ_by_the_tolerance_at_most(folder: Path, tolerance: float) -> None:
    """Merging moves a margin by no more than tolerance x depth a tree; all of it leaves one leaf a tree."""
    table = Bundle.load(folder).model.table
    small = merged(table, tolerance)
    if tolerance == 1e9:
        assert (small.depth == 0).all()
        return
    rows = _data(5, 400)[0]
    distance = np.abs(CompiledModel(small).margins(rows) - CompiledModel(table).margins(rows)).max()
    assert distance <= tolerance * int(table.depth.max()) * table.tree_count + 1e-4
    assert small.node_count <= table.node_count


def test_a_student_is_small_and_near(folder: Path, tmp_path: Path) -> None:
    """The student is a tenth of the teacher, ranks alike, and its scores mean what the teacher's mean."""
    X, truth = _data(6, 8_000)
    done = levers.student(folder, tmp_path / "s", X, truth, trees=30, depth=3, seed=1, created_at="x")
    assert done.after.nodes < done.before.nodes / 5
    assert done.detail["score_correlation"] > 0.9
    student, teacher = Bundle.load(tmp_path / "s"), Bundle.load(folder)
    later = np.ascontiguousarray(X[4_000:])
    means = [b.scores(b.model.margins(later)).mean() for b in (student, teacher)]
    assert means[0] == pytest.approx(means[1], rel=0.15)
    assert verify(tmp_path / "s").passed


def test_an_isolation_forest_is_a_challenger_like_any_other(folder: Path, tmp_path: Path) -> None:
    """A bundle of it passes the gate, sits beside the champion and scores in shadow, bit for bit; labels give its
    scores their meaning and nothing else."""
    X, truth = _data(8, 6_000)
    done = levers.isolate(folder, tmp_path / "forest", X, truth, trees=50, seed=1, created_at="x")
    assert done.rows == 3_000
    assert done.detail == {"forest_trees": 50, "rows_a_tree": 256}
    assert verify(tmp_path / "forest").passed
    forest = Bundle.load(tmp_path / "forest")
    assert forest.scores(forest.model.margins(X)).mean() == pytest.approx(truth.mean(), rel=0.2)
    both = with_challengers(folder, [tmp_path / "forest"], tmp_path / "both", created_at="x")
    margins = forest.model.margins(X[:200])
    assert (both.shadow_margins(X[:200])[:, 0] == margins).all()
    fewer = truth & (np.arange(len(truth)) % 2 == 0)
    other = levers.isolate(folder, tmp_path / "other", X, fewer, trees=50, seed=1, created_at="x")
    assert (Bundle.load(tmp_path / "other").model.margins(X[:200]) == margins).all()
    assert other.bundle_id != done.bundle_id
    with pytest.raises(UsageError, match="frauds look no more unusual"):
        levers.isolate(folder, tmp_path / "turned", X, ~truth, trees=50, seed=1, created_at="x")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, o, X, t: levers.quantise(f, o, X, t, bits=1, created_at="x"), "--bits 1"),
        (lambda f, o, X, t: levers.prune(f, o, X, t, loss=-1, created_at="x"), "--loss -1"),
        (lambda f, o, X, t: levers.student(f, o, X, t, trees=0, depth=3, seed=1, created_at="x"), "--trees 0"),
        (lambda f, o, X, t: levers.isolate(f, o, X, t, trees=0, seed=1, created_at="x"), "--trees 0: 1 to 1,000"),
        (
            lambda f, o, X, t: levers.isolate(f, o, X, t & (np.arange(len(t)) > 500), trees=9, seed=1, created_at="x"),
            "earlier half of the rows needs 5 frauds",
        ),
        (lambda f, o, X, t: levers.quantise(f, o, X[:50], t[:50], bits=8, created_at="x"), "too few to measure"),
        (lambda f, o, X, t: levers.quantise(f, o, X[:, :5], t, bits=8, created_at="x"), "5 features"),
    ],
)
def test_a_lever_out_of_range_says_what_is_allowed(
    folder: Path, tmp_path: Path, call: Callable[..., Any], message: str
) -> None:
    """Nothing is written for a lever that cannot be pulled."""
    X, truth = _data(7, 1_000)
    with pytest.raises(UsageError, match=message):
        call(folder, tmp_path / "o", X, truth)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("vector", [True, False])
def test_early_exit_decides_as_all_trees_do(seed: int, vector: bool) -> None:
    """For every threshold, the least and greatest margins among them, each decision is the one that all trees give."""
    rng = np.random.default_rng(seed)
    table = _table(seed, rng.integers(0, 8, 90).tolist(), features=5)
    rows = _rows(table, seed, 700)
    margins = CompiledModel(table).margins(rows)
    saved = 0
    for threshold in np.concatenate([np.quantile(margins, [0, 0.3, 0.9, 1]), rng.choice(margins, 4), [-1e9, 1e9]]):
        flags, trees = EarlyExit(table, float(threshold), vector=vector).decide(rows)
        assert (flags == (margins >= np.float32(threshold))).all()
        assert ((trees > 0) & (trees <= 90)).all()
        saved += int((trees < 90).sum())
    assert saved > 0


@pytest.mark.parametrize("vector", [True, False])
def test_early_exit_holds_where_rounding_decides(vector: bool) -> None:
    """Sixty leaves of 1 to 1.5 add nothing to 100,000,000 in float32, and the decision is that of the float32 sum."""
    table = _table(3, [4] * 60, features=3)
    value = np.where(table.feature < 0, 1 + np.abs(table.value) % 0.5, 0).astype(np.float32)
    rough = Table(**{**vars(table), "value": value, "base_margin": np.float32(1e8)})
    rows = _rows(rough, 3, 500)
    margins = CompiledModel(rough).margins(rows)
    assert (margins == 1e8).all()
    for threshold in (1e8 - 8, 1e8, 1e8 + 8, 1e8 + 40):
        flags, _ = EarlyExit(rough, threshold, vector=vector).decide(rows)
        assert (flags == (margins >= np.float32(threshold))).all()


def _bundles(tmp_path: Path, folder: Path) -> dict[str, Bundle]:
    """One bundle for each curve, and an awkward model: dart, infinities, a base score."""
    X, truth = _data(1, 1_500)
    parameters = {
        "objective": "binary:logistic",
        "max_depth": 7,
        "booster": "dart",
        "rate_drop": 0.3,
        "base_score": 0.02,
        "nthread": 1,
    }
    booster = xgb.train(parameters, xgb.DMatrix(X, truth.astype(np.float32), nthread=1), 12)
    made = {"platt": Bundle.load(folder)}
    for kind, curve in (
        ("identity", Calibration()),
        ("isotonic", Calibration(kind="isotonic", margins=(-4.0, -1.5, 0.25, 2.0), scores=(0.001, 0.04, 0.3, 0.8))),
    ):
        made[kind] = write_bundle(
            tmp_path / kind, name="cards", created_at="x", model=bytes(booster.save_raw("ubj")),
            feature_set_yaml=FEATURE_SET, policy_yaml=POLICY, threshold_score=0.4, calibration=curve,
            golden=golden_rows(bytes(booster.save_raw("ubj"))),
        )  # fmt: skip
    return made


def _odd_rows(bundle: Bundle, count: int) -> np.ndarray:
    return _rows(bundle.model.table, 8, count)


def test_exported_c_has_the_same_bits(folder: Path, tmp_path: Path) -> None:
    """The C file compiles without a warning as C99, and gives the margins, scores and decisions of the bundle, bit for
    bit.
    """
    compiler = shutil.which("cc")
    assert compiler, "this test needs a C compiler; install gcc or clang"
    for name, bundle in _bundles(tmp_path, folder).items():
        source, library = tmp_path / f"{name}.c", tmp_path / f"{name}.so"
        source.write_text(to_c(bundle))
        flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O2", "-ffp-contract=off"]
        subprocess.run([compiler, *flags, "-shared", "-fPIC", "-o", library, source, "-lm"], check=True)
        c = ctypes.CDLL(str(library))
        c.fraud_margin.restype, c.fraud_score.restype = ctypes.c_float, ctypes.c_double
        c.fraud_score.argtypes = [ctypes.c_float]
        rows = _odd_rows(bundle, 500)
        margins = np.array([c.fraud_margin(row.ctypes.data_as(ctypes.c_void_p)) for row in rows], dtype=np.float32)
        wanted = bundle.model.margins(rows)
        assert (margins.view(np.uint32) == wanted.view(np.uint32)).all()
        assert [c.fraud_score(ctypes.c_float(m)) for m in wanted] == bundle.scores(wanted).tolist()
        flagged = [c.fraud_flag(row.ctypes.data_as(ctypes.c_void_p)) for row in rows]
        assert flagged == (wanted >= bundle.threshold_margin).astype(int).tolist()


def test_exported_python_has_the_same_bits(folder: Path, tmp_path: Path) -> None:
    """The Python module imports nothing but math and struct, and gives the bundle's margins, scores and decisions."""
    for name, bundle in _bundles(tmp_path, folder).items():
        (tmp_path / f"{name}.py").write_text(to_python(bundle))
        rows = _odd_rows(bundle, 60)
        np.save(tmp_path / "rows.npy", rows.astype(np.float64))
        text = json.dumps([[None if np.isnan(v) else float(v) for v in row] for row in rows])
        program = (
            "import json, sys\nfrom importlib.util import module_from_spec, spec_from_file_location as of\n"
            f"spec = of('m', {str(tmp_path / f'{name}.py')!r})\n"
            "m = module_from_spec(spec)\nspec.loader.exec_module(m)\n"
            "rows = [[float('nan') if v is None else v for v in row] for row in json.load(sys.stdin)]\n"
            "margins = [m.margin(row) for row in rows]\n"
            "scores, flags = [m.score(v).hex() for v in margins], [m.flag(r) for r in rows]\n"
            "print(json.dumps([[v.hex() for v in margins], scores, flags]))"
        )
        # -S and -I: without site-packages.
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", program], input=text, check=True, capture_output=True, text=True
        )
        margins, scores, flags = json.loads(done.stdout)
        wanted = bundle.model.margins(rows)
        assert margins == [float(v).hex() for v in wanted]
        assert scores == [float(v).hex() for v in bundle.scores(wanted)]
        assert flags == (wanted >= bundle.threshold_margin).tolist()


def test_a_forest_exports_too(tmp_path: Path) -> None:
    """An averaging forest in double precision keeps its bits in both languages."""
    treelite = pytest.importorskip("treelite")
    ensemble = pytest.importorskip("sklearn.ensemble")
    X, truth = _data(3, 1_000)
    model = treelite.sklearn.import_model(
        ensemble.RandomForestClassifier(9, max_depth=6, random_state=0).fit(np.nan_to_num(X), truth.astype(int))
    )
    bundle = write_bundle(
        tmp_path / "forest", name="forest", created_at="x", model=bytes(model.serialize_bytes()), model_file="model.tl",
        feature_set_yaml=FEATURE_SET, policy_yaml=POLICY, threshold_score=0.4,
        golden=golden_rows(bytes(model.serialize_bytes())),
        challengers=[NewChallenger("same", bytes(model.serialize_bytes()), suffix=".tl")],
    )  # fmt: skip
    rows = np.nan_to_num(_odd_rows(bundle, 80), posinf=9, neginf=-9)
    wanted = bundle.model.margins(rows)
    assert (bundle.shadow_margins(rows)[:, 0] == wanted).all()
    names: dict[str, Any] = {}
    exec(to_python(bundle), names)
    assert [names["margin"](row.tolist()) for row in rows] == wanted.tolist()
    (tmp_path / "m.c").write_text(to_c(bundle))
    subprocess.run(
        [
            "cc",
            "-std=c99",
            "-Wall",
            "-Werror",
            "-O1",
            "-ffp-contract=off",
            "-shared",
            "-fPIC",
            "-o",
            "m.so",
            "m.c",
            "-lm",
        ],
        check=True,
        cwd=tmp_path,
    )
    c = ctypes.CDLL(str(tmp_path / "m.so"))
    c.fraud_margin.restype = ctypes.c_float
    assert [c.fraud_margin(row.ctypes.data_as(ctypes.c_void_p)) for row in rows] == wanted.tolist()


@pytest.mark.parametrize("curve", [Calibration(), Calibration(kind="platt", slope=0.9, intercept=-0.1)])
def test_a_model_without_trees_exports_and_nan_stays_nan(tmp_path: Path, curve: Calibration) -> None:
    """Zero trees make C99 that compiles under -pedantic-errors, and both languages give the package's scores."""
    X, truth = _data(3, 100)
    parameters = {"objective": "binary:logistic", "base_score": 0.2, "nthread": 1}
    booster = xgb.train(parameters, xgb.DMatrix(X, truth.astype(np.float32), nthread=1), 0)
    bundle = write_bundle(
        tmp_path / "bare", name="bare", created_at="x", model=bytes(booster.save_raw("ubj")),
        feature_set_yaml=FEATURE_SET, policy_yaml=POLICY, threshold_score=0.4, calibration=curve,
            golden=golden_rows(bytes(booster.save_raw("ubj"))),
    )  # fmt: skip
    (tmp_path / "m.c").write_text(to_c(bundle))
    flags = ["-std=c99", "-Wall", "-Werror", "-pedantic-errors", "-O1", "-ffp-contract=off", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, "-o", tmp_path / "m.so", tmp_path / "m.c", "-lm"], check=True)
    library = ctypes.CDLL(str(tmp_path / "m.so"))
    library.fraud_margin.restype, library.fraud_margin.argtypes = ctypes.c_float, [ctypes.c_void_p]
    library.fraud_score.restype, library.fraud_score.argtypes = ctypes.c_double, [ctypes.c_float]
    names: dict[str, Any] = {}
    exec(to_python(bundle), names)
    margin = float(bundle.model.margins(X[:1])[0])
    assert library.fraud_margin(X[:1].ctypes.data) == margin == names["margin"](X[0].tolist())
    for value in (margin, float("nan")):
        wanted = bundle.scores(np.array([value], np.float32))
        for score in (names["score"](value), library.fraud_score(value)):
            assert np.array_equal(wanted, [score], equal_nan=True)


def test_pruning_that_loses_more_where_it_is_measured_writes_nothing(folder: Path, tmp_path: Path) -> None:
    """The rows that did not choose lose more than stated: nothing is written, unless the loss is accepted."""
    X, truth = _data(5, 1_000)
    chosen = np.arange(len(X)) < len(X) // 2
    # The half that chooses has frauds by chance: no tree is worth anything there, and all of them where it is measured.
    truth = np.where(chosen, np.random.default_rng(0).random(len(X)) < 0.2, truth)
    with pytest.raises(PromiseBroken, match=r"fell by .*, more than the 0\.2 of --loss .* nothing was written"):
        levers.prune(folder, tmp_path / "p", X, truth, loss=0.2, created_at="x")
    assert not (tmp_path / "p").exists()
    done = levers.prune(folder, tmp_path / "p", X, truth, loss=0.2, created_at="x", accept=True)
    assert done.before.average_precision - done.after.average_precision > 0.2


def test_a_share_is_of_all_payments_and_not_of_those_with_a_label(folder: Path, tmp_path: Path) -> None:
    """Labels are mostly of payments that were flagged: the threshold of a share is found on all payments of the days,
    average precision measured on the labelled ones, and the first trees mean what the whole model does on all."""
    source = Bundle.load(folder)
    policy = tmp_path / "policy"
    write_bundle(
        policy, name="cards", created_at="x", model=(folder / "model.ubj").read_bytes(), feature_set_yaml=FEATURE_SET,
        policy_yaml="name: cards\nflag: {share: 0.02}\n", threshold_score=0.4, calibration=source.manifest.calibration,
        golden=golden_rows((folder / "model.ubj").read_bytes()),
    )  # fmt: skip
    X, truth = _data(7, 6_000)
    scores = source.scores(source.model.margins(X))
    labelled = (scores >= np.quantile(scores, 0.9)) | (np.arange(6_000) % 50 == 0)
    payments = Payments(X, labelled)
    rows, known = np.ascontiguousarray(X[labelled]), truth[labelled]
    border = np.flatnonzero(labelled)[len(rows) // 2]
    done = levers.quantise(policy, tmp_path / "q", rows, known, bits=8, created_at="x", payments=payments)
    assert (done.rows, done.payments_decided) == (len(rows), 6_000)
    assert any("have no known label" in note for note in done.notes)
    levers.shorten(policy, tmp_path / "f", rows, known, trees=40, created_at="x", payments=payments)
    levers.student(policy, tmp_path / "s", rows, known, trees=30, depth=3, seed=1, created_at="x", payments=payments)
    for name, there in (("q", X), ("f", X[border:]), ("s", X[border:])):
        made = Bundle.load(tmp_path / name)
        flagged = (made.model.margins(np.ascontiguousarray(there)) >= made.threshold_margin).mean()
        assert 0.015 < flagged <= 0.02
    (without,) = levers.notes_of(source, payments)
    assert without.startswith(f"{int((~labelled).sum()):,} of 6,000 payments have no known label")
    assert levers.notes_of(source, Payments.all_of(X)) == []


def test_rows_of_frauds_alone_measure_nothing(folder: Path, tmp_path: Path) -> None:
    """Without a genuine payment, in all rows or in the half that measures, the refusal comes before the work."""
    X, truth = _data(2, 3_000)
    with pytest.raises(UsageError, match="no genuine payment in the rows, 3,000 frauds alone"):
        levers.quantise(folder, tmp_path / "n", X, np.ones(3_000, bool), bits=8, created_at="x")
    with pytest.raises(
        UsageError, match="no genuine payment in the later half of the rows, which measures, 1,500 frauds"
    ):
        levers.student(
            folder, tmp_path / "n", X, truth | (np.arange(3_000) >= 1_500), trees=9, depth=2, seed=1, created_at="x"
        )
    assert not (tmp_path / "n").exists()
