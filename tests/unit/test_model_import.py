"""`bundle import`: a model from elsewhere gives its own library's margins, in any order of columns, or is refused by
name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import treelite
import xgboost as xgb
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, RandomForestClassifier

from scorer.bundle import Bundle
from scorer.bundle.gate import verify
from scorer.cli import main
from scorer.model import ModelFormatError, ModelUnsupportedError
from scorer.model.model_errors import library_reason
from scorer.model_import import ImportOptions, MissingValue, ModelImportError, SourceMarginsError, import_model
from scorer.model_import import model_import as importing

NAMES = ["amount", "hour", "customer_count_1h", "customer_mean_7d"]
FEATURE_SET = """
name: cards
currency: EUR
entities: {customer: [customer_id]}
features:
  - {name: amount, payment: amount}
  - {name: hour, payment: hour_of_day}
  - {name: customer_count_1h, entity: customer, aggregate: count, window: 1h}
  - {name: customer_mean_7d, entity: customer, aggregate: mean, of: amount, window: 7d}
"""
POLICY = "name: cards\nflag: {score: 0.5}\n"
OTHER_ORDER = ["customer_mean_7d", "amount", "customer_count_1h", "hour"]
ORDER = [NAMES.index(name) for name in OTHER_ORDER]
NAN = MissingValue("nan")


def rows(count: int = 1_500, seed: int = 0, missing: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Feature rows in the feature set's order, and which are frauds."""
    rng = np.random.default_rng(seed)
    X = np.column_stack(
        [rng.lognormal(3, 1, count), rng.integers(0, 24, count), rng.integers(0, 9, count), rng.lognormal(3, 1, count)]
    ).astype(np.float32)
    fraud = (X[:, 0] > 2 * X[:, 3]) & (X[:, 2] > 1) | (rng.random(count) < 0.03)
    X[rng.random(count) < missing, 3] = np.nan
    return X, fraud.astype(int)


def booster(rounds: int = 12, *, other_order: bool = True, **parameters: Any) -> Any:
    """An xgboost model whose columns stand in another order than the feature set's."""
    X, y = rows()
    names = OTHER_ORDER if other_order else NAMES
    data = xgb.DMatrix(X[:, [NAMES.index(name) for name in names]], y, feature_names=names, nthread=1)
    parameters = {"objective": "binary:logistic", "max_depth": 4, "nthread": 1} | parameters
    return xgb.train({name: value for name, value in parameters.items() if value is not None}, data, rounds)


def golden_file(path: Path, X: np.ndarray, **more: np.ndarray) -> Path:
    """Rows as a Parquet file."""
    pq.write_table(pa.table({name: X[:, i] for i, name in enumerate(NAMES)} | more), path)
    return path


def options(**changed: Any) -> ImportOptions:
    return ImportOptions(**{"name": "cards", "created_at": "2026-01-01T00:00:00Z", "missing": NAN} | changed)


def imported(model: Path, folder: Path, **changed: Any) -> Bundle:
    """The bundle, which passes the whole gate."""
    output = folder / f"bundle-{len(list(folder.iterdir()))}"
    made = import_model(model, FEATURE_SET, POLICY, output, options(**changed))
    verdict = verify(output)
    assert verdict.passed, [check for check in verdict.checks if not check.passed]
    return made.bundle


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["fraud-scorer", "bundle", "import", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("suffix", ["ubj", "json"])
@pytest.mark.parametrize("kind", ["gbtree", "dart"])
def test_an_xgboost_model_in_another_column_order_gives_its_own_margins(tmp_path: Path, suffix: str, kind: str) -> None:
    """Columns are matched by name: a payment's margin is what xgboost computes with them in the model's order."""
    source = booster(booster=kind, rate_drop=0.3) if kind == "dart" else booster()
    source.save_model(tmp_path / f"model.{suffix}")
    bundle = imported(tmp_path / f"model.{suffix}", tmp_path)
    X, _ = rows(seed=7)
    theirs = source.inplace_predict(np.ascontiguousarray(X[:, ORDER]), predict_type="margin")
    assert (bundle.model.margins(X) == theirs).all()
    assert bundle.golden is not None
    assert len(bundle.golden) == 256


def test_only_the_rounds_up_to_the_best_iteration_are_kept(tmp_path: Path) -> None:
    """best_iteration is honoured, parallel trees included, as XGBClassifier does; --all-rounds keeps the rest."""
    X, y = rows()
    train, watched = (
        xgb.DMatrix(X[part], y[part], feature_names=NAMES, nthread=1) for part in (slice(0, 900), slice(900, None))
    )
    parameters = {"objective": "binary:logistic", "eta": 0.8, "num_parallel_tree": 2, "nthread": 1, "max_depth": 5}
    source = xgb.train(parameters, train, 60, evals=[(watched, "later")], early_stopping_rounds=6, verbose_eval=False)
    assert source.best_iteration + 1 < source.num_boosted_rounds()
    source.save_model(tmp_path / "model.ubj")
    bundle = imported(tmp_path / "model.ubj", tmp_path)
    best = (0, source.best_iteration + 1)
    assert bundle.model.tree_count == 2 * best[1]
    assert (bundle.model.margins(X) == source.inplace_predict(X, iteration_range=best, predict_type="margin")).all()
    whole = imported(tmp_path / "model.ubj", tmp_path, all_rounds=True)
    assert (whole.model.margins(X) == source.inplace_predict(X, predict_type="margin")).all()
    # The file in the bundle is one that xgboost reads, names and order included.
    again = xgb.Booster({"nthread": 1})
    name = bundle.manifest.model_file
    again.load_model(next(tmp_path.glob("bundle-1")) / name)
    assert again.feature_names == NAMES
    assert (again.inplace_predict(X, predict_type="margin") == bundle.model.margins(X)).all()


@pytest.mark.parametrize("text", ["²", "9" * 5000])
def test_a_best_iteration_that_is_no_number_is_refused(tmp_path: Path, text: str) -> None:
    """Digits that Python's int does not take are an error about the model, not a traceback."""
    X, y = rows()
    data = xgb.DMatrix(X, y, feature_names=NAMES, nthread=1)
    source = xgb.train({"objective": "binary:logistic", "nthread": 1}, data, 2)
    source.set_attr(best_iteration=text)
    source.save_model(tmp_path / "model.json")
    with pytest.raises(ModelFormatError, match="best_iteration is"):
        imported(tmp_path / "model.json", tmp_path)


def _lightgbm(y: np.ndarray, X: np.ndarray, *, categories: str = "auto", **parameters: Any) -> Any:
    data = lgb.Dataset(X[:, ORDER], y, feature_name=OTHER_ORDER, categorical_feature=categories)
    common = {"objective": "binary", "num_leaves": 15, "verbose": -1, "num_threads": 1}
    return lgb.train(common | parameters, data, 12)


@pytest.mark.parametrize(
    "parameters",
    [{}, {"sigmoid": 2.5}, {"boosting": "rf", "bagging_fraction": 0.6, "bagging_freq": 1}, {"boosting": "dart"}],
    ids=["plain", "sigmoid", "forest", "dart"],
)
def test_a_lightgbm_model_gives_its_own_margins_and_scores(tmp_path: Path, parameters: dict[str, Any]) -> None:
    """Thresholds are doubles, compared by <=: every float32 beside each of them goes LightGBM's way; its sigmoid's
    slope and the mean of a forest reach the score."""
    X, y = rows()
    source = _lightgbm(y, X, **parameters)
    source.save_model(tmp_path / "model.txt")
    bundle = imported(tmp_path / "model.txt", tmp_path, missing=None)
    cuts = bundle.model.table.threshold[np.isfinite(bundle.model.table.threshold)]
    around = np.concatenate([cuts, np.nextafter(cuts, np.float32(np.inf)), np.nextafter(cuts, np.float32(-np.inf))])
    tried = np.random.default_rng(1).choice(around, size=(3_000, 4)).astype(np.float32)
    tried[::9, 3] = np.nan
    theirs = source.predict(tried[:, ORDER].astype(np.float64), num_threads=1)
    margins = bundle.model.margins(tried)
    assert np.abs(bundle.scores(margins) - theirs).max() < 2e-7
    raw = source.predict(tried[:, ORDER].astype(np.float64), raw_score=True, num_threads=1)
    assert (margins == (raw / (12 if parameters.get("boosting") == "rf" else 1)).astype(np.float32)).all()
    # LightGBM itself reads the bundle's file, and finds its columns by the feature set's names.
    written = lgb.Booster(model_file=next(tmp_path.glob("bundle-*")) / "model.txt")
    assert written.feature_name() == NAMES
    assert (written.predict(tried.astype(np.float64), raw_score=True, num_threads=1) == raw).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomForestClassifier(15, max_depth=7, random_state=1),
        lambda: GradientBoostingClassifier(n_estimators=15, random_state=1),
        lambda: HistGradientBoostingClassifier(max_iter=15, random_state=1),
    ],
    ids=["forest", "gradient boosting", "histogram boosting"],
)
def test_a_scikit_learn_model_comes_as_a_checkpoint_without_a_pickle(tmp_path: Path, make: Callable[[], Any]) -> None:
    """The documented three lines export it with its names; its scores are predict_proba's, prior and mean included."""
    X, y = rows(missing=0)
    model = make().fit(X[:, ORDER], y)
    exported = treelite.sklearn.import_model(model)
    exported.get_header_accessor().set_field("attributes", json.dumps({"feature_names": OTHER_ORDER}))
    exported.serialize(tmp_path / "model.tl")
    tried, _ = rows(seed=3, missing=0)
    theirs = model.predict_proba(tried[:, ORDER])[:, 1]
    golden = golden_file(tmp_path / "golden.parquet", tried, score=theirs)
    bundle = imported(tmp_path / "model.tl", tmp_path, golden=golden)
    assert np.abs(bundle.scores(bundle.model.margins(tried)) - theirs).max() < 2e-6
    with pytest.raises(SourceMarginsError, match=r"score differs on \d+ of 1500 rows, first on row \d+"):
        imported(tmp_path / "model.tl", tmp_path, golden=golden_file(golden, tried, score=theirs[::-1]))
    with pytest.raises(ModelImportError, match=r"give --golden ROWS with a column score"):
        imported(tmp_path / "model.tl", tmp_path)
    # Rows alone, or with margins, would compare treelite with itself.
    for more in ({}, {"margin": bundle.model.margins(tried).astype(np.float64)}):
        with pytest.raises(ModelImportError, match=r"give --golden ROWS with a column score"):
            imported(tmp_path / "model.tl", tmp_path, golden=golden_file(golden, tried, **more))


def test_a_missing_or_extra_name_shows_both_lists(tmp_path: Path) -> None:
    """Names that differ are an error with both lists; --columns names the model's columns anew."""
    source = booster()
    source.feature_names = ["avg", "amount", "customer_count_1h", "hour"]
    source.save_model(tmp_path / "model.json")
    with pytest.raises(ModelImportError) as refused:
        imported(tmp_path / "model.json", tmp_path)
    for part in (
        "the model lacks 'customer_mean_7d'; the feature set lacks 'avg'",
        "The model's columns: avg, amount, customer_count_1h, hour.",
        "The feature set's: amount, hour, customer_count_1h, customer_mean_7d.",
    ):
        assert part in str(refused.value)
    X, _ = rows(seed=7)
    bundle = imported(tmp_path / "model.json", tmp_path, columns=OTHER_ORDER)
    theirs = source.inplace_predict(np.ascontiguousarray(X[:, ORDER]), predict_type="margin")
    assert (bundle.model.margins(X) == theirs).all()


def test_a_model_without_names_is_asked_for_them(tmp_path: Path) -> None:
    """A model trained on a bare array has no names: they are asked for, never guessed."""
    X, y = rows()
    source = xgb.train({"objective": "binary:logistic", "nthread": 1}, xgb.DMatrix(X, y, nthread=1), 5)
    source.save_model(tmp_path / "model.ubj")
    with pytest.raises(ModelImportError, match=r"does not name the model's 4 columns\. Give --columns .* --same-order"):
        imported(tmp_path / "model.ubj", tmp_path)
    bundle = imported(tmp_path / "model.ubj", tmp_path, same_order=True)
    assert (bundle.model.margins(X) == source.inplace_predict(X, predict_type="margin")).all()


@pytest.mark.parametrize("kind", ["xgboost", "LightGBM", "treelite"])
def test_a_missing_value_that_was_filled_is_decided_as_its_number(tmp_path: Path, kind: str) -> None:
    """fillna(-1) before training: a payment without a value is decided as one with -1, by the model's own library."""
    X, y = rows()
    filled = np.where(np.isnan(X), np.float32(-1), X)
    missing = MissingValue.parse("fill:-1")
    more: dict[str, Any] = {}
    if kind == "xgboost":
        source = xgb.train(
            {"objective": "binary:logistic", "nthread": 1},
            xgb.DMatrix(filled[:, ORDER], y, feature_names=OTHER_ORDER, nthread=1), 12,
        )  # fmt: skip
        source.save_model(tmp_path / "model.ubj")
        theirs = source.inplace_predict(np.ascontiguousarray(filled[:, ORDER]))
    elif kind == "LightGBM":
        source = _lightgbm(y, filled)
        source.save_model(tmp_path / "model.txt")
        theirs = source.predict(filled[:, ORDER].astype(np.float64))
    else:
        source = RandomForestClassifier(15, max_depth=7, random_state=1).fit(filled[:, ORDER], y)
        exported = treelite.sklearn.import_model(source)
        exported.get_header_accessor().set_field("attributes", json.dumps({"feature_names": OTHER_ORDER}))
        exported.serialize(tmp_path / "model.tl")
        theirs = source.predict_proba(filled[:, ORDER])[:, 1]
        more["golden"] = golden_file(tmp_path / "golden.parquet", X, score=theirs)
    file = next(tmp_path.glob("model.*"))
    with pytest.raises(ModelImportError, match=r"does not tell what stood for a missing value .* --missing nan"):
        imported(file, tmp_path, missing=None, **more)
    bundle = imported(file, tmp_path, missing=missing, **more)
    assert np.isnan(X).any()
    assert np.abs(bundle.scores(bundle.model.margins(X)) - theirs).max() < 2e-6


def test_a_declared_missing_value_must_be_no_value_of_a_feature(tmp_path: Path) -> None:
    """DMatrix(missing=0) takes a count of zero as missing, which real rows show, and is refused; -999 is served."""
    booster().save_model(tmp_path / "model.ubj")
    X, _ = rows(seed=2)
    golden = golden_file(tmp_path / "golden.parquet", X)
    with pytest.raises(ModelImportError, match=r"feature hour is 0 on \d+ of 1500 rows"):
        imported(tmp_path / "model.ubj", tmp_path, missing=MissingValue.parse("declared:0"), golden=golden)
    with pytest.raises(ModelImportError, match=r"give --golden ROWS too"):
        imported(tmp_path / "model.ubj", tmp_path, missing=MissingValue.parse("declared:-999"))
    imported(tmp_path / "model.ubj", tmp_path, missing=MissingValue.parse("declared:-999"), golden=golden)
    for text in ("-999", "fill:", "fill:nan", "zero:0", "fill:1e300", ""):
        with pytest.raises(ModelImportError, match=r"--missing"):
            MissingValue.parse(text)


def test_a_policy_that_flags_a_share_takes_its_score_from_the_rows(tmp_path: Path) -> None:
    """One payment in a hundred of the golden rows is flagged; without enough of them the import asks for them."""
    booster(40).save_model(tmp_path / "model.ubj")
    policy = POLICY.replace("{score: 0.5}", "{share: 0.01}")
    X, _ = rows(4_000, seed=8)
    with pytest.raises(ModelImportError, match=r"flags a share of payments, 0\.01: give --golden with 1,000 rows"):
        import_model(tmp_path / "model.ubj", FEATURE_SET, policy, tmp_path / "no", options())
    golden = golden_file(tmp_path / "golden.parquet", X)
    made = import_model(tmp_path / "model.ubj", FEATURE_SET, policy, tmp_path / "b", options(golden=golden))
    flagged = (made.bundle.model.margins(X) >= made.bundle.threshold_margin).mean()
    assert 0.005 < flagged <= 0.01
    assert not (tmp_path / "no").exists()


def test_without_the_library_the_file_must_bring_its_margins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where xgboost is not installed, margins come with the golden rows, and are compared bit for bit."""
    source = booster()
    source.save_model(tmp_path / "model.ubj")
    X, _ = rows(seed=4)
    margins = source.inplace_predict(np.ascontiguousarray(X[:, ORDER]), predict_type="margin")
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(ModelImportError, match=r"xgboost is not installed here.*--golden ROWS with a column margin"):
        imported(tmp_path / "model.ubj", tmp_path)
    golden = golden_file(tmp_path / "golden.parquet", X, margin=margins.astype(np.float64))
    assert (imported(tmp_path / "model.ubj", tmp_path, golden=golden).model.margins(X) == margins).all()
    wrong = np.where(np.arange(len(X)) == 31, np.nextafter(margins, np.float32(9)), margins)
    golden_file(golden, X, margin=wrong.astype(np.float64))
    with pytest.raises(
        SourceMarginsError, match=r"differs from xgboost on 1 of 1500 rows, first on row 31 of the golden"
    ):
        imported(tmp_path / "model.ubj", tmp_path, golden=golden)


def _changed(change: Callable[[dict[str, Any]], None]) -> bytes:
    document = json.loads(bytes(booster().save_raw("json")))
    change(document["learner"])
    return json.dumps(document).encode()


def _text(X: np.ndarray, y: np.ndarray, **parameters: Any) -> bytes:
    return _lightgbm(y, X, **parameters).model_to_string().encode()


UNSUPPORTED: dict[str, tuple[Callable[[], bytes], str]] = {
    "gblinear": (
        lambda: bytes(booster(booster="gblinear", max_depth=None).save_raw("json")),
        r"booster 'gblinear' is not served",
    ),
    "regression": (
        lambda: bytes(booster(objective="reg:squarederror").save_raw("ubj")), r"objective 'reg:squarederror'",
    ),
    "several classes": (
        lambda: bytes(booster(objective="multi:softprob", num_class=3).save_raw("ubj")), r"objective 'multi:softprob'",
    ),
    "categorical": (
        lambda: _changed(lambda learner: learner.update(feature_types=["float", "c", "int", "int"])),
        r"feature amount is categorical",
    ),
    "linear leaves": (
        lambda: _text(*rows(), linear_tree=True), r"tree 0 has linear leaves \(linear_tree\), which are not served",
    ),
    "zero as missing": (lambda: _text(*rows(), zero_as_missing=True), r"takes 0 as missing \(zero_as_missing\)"),
    "regression of LightGBM": (
        lambda: _text(*rows(), objective="regression"), r"objective 'regression' gives no probability of fraud",
    ),
    "several classes of LightGBM": (
        lambda: _text(rows()[0], np.arange(1_500) % 3, objective="multiclass", num_class=3),
        r"num_class is 3: multi-class models are not served",
    ),
    "categories of LightGBM": (
        lambda: _text(*rows(missing=0), categories=["customer_count_1h"], min_data_per_group=1, cat_smooth=1),
        r"splits on feature 2 by category",
    ),
    "a forest of several classes": (
        lambda: bytes(
            treelite.sklearn.import_model(
                RandomForestClassifier(3, max_depth=3).fit(rows(missing=0)[0], np.arange(1_500) % 3)
            ).serialize_bytes()
        ),
        r"3 classes: one probability is served",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_kinds_that_are_not_served_are_refused_by_name(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each unsupported kind is named in one line, without a place in somebody's C++; nothing is written."""
    make, reason = UNSUPPORTED[kind]
    (tmp_path / "model").write_bytes(make())
    capfd.readouterr()
    with pytest.raises(ModelUnsupportedError, match=reason) as refused:
        imported(tmp_path / "model", tmp_path)
    printed = capfd.readouterr()
    for text in (str(refused.value), printed.out, printed.err):
        assert ".cc" not in text
        assert "/src/" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("head", [b"\x80\x04\x95", b"PK\x03\x04", b"\x78\x9c", b'{"learner": 3}', b"nonsense", b""])
def test_a_file_that_is_no_model_is_refused_without_being_run(
    head: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A pickle, an archive or garbage is refused in a line that says how to export."""
    (tmp_path / "model.pkl").write_bytes(head + bytes(64) if head else b"")
    with pytest.raises((ModelImportError, ModelFormatError)) as refused:
        imported(tmp_path / "model.pkl", tmp_path)
    assert "/src/" not in str(refused.value) + "".join(capfd.readouterr())


def test_a_cut_or_changed_checkpoint_never_reaches_the_reader_in_cpp(tmp_path: Path) -> None:
    """Lengths and indices of a checkpoint are checked before treelite sees a byte: 400 damaged files, 400 refusals or
    the same number of trees."""
    X, y = rows(missing=0)
    data = bytes(treelite.sklearn.import_model(RandomForestClassifier(4, max_depth=4).fit(X, y)).serialize_bytes())
    rng = np.random.default_rng(3)
    for turn in range(400):
        broken = bytearray(data[: int(rng.integers(1, len(data)))] if turn % 2 else data)
        for place in rng.integers(0, len(broken), 1 + turn % 5):
            broken[place] = int(rng.integers(0, 256))
        try:
            assert importing.read_checkpoint(bytes(broken)).rounds == 4
        except (ModelFormatError, ModelUnsupportedError):
            continue


def test_an_error_of_a_library_is_shown_without_its_place() -> None:
    """The first line of a foreign error, without clock and source file."""
    text = (
        "[12:57:56] /project/src/model_loader/xgboost_json.cc:135: Provided JSON is none.\nStack trace:\n  (0) lib.so"
    )
    assert library_reason(RuntimeError(text)) == "Provided JSON is none."


def test_the_command_imports_and_prints_what_it_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`bundle import` gives one JSON object; a mistake in the policy names file and line, and exits with 2."""
    booster().save_model(tmp_path / "model.ubj")
    (tmp_path / "set.yaml").write_text(FEATURE_SET)
    (tmp_path / "policy.yaml").write_text(POLICY)
    X, _ = rows(seed=4)
    golden = golden_file(tmp_path / "golden.parquet", X)
    common = ["--model", tmp_path / "model.ubj", "--feature-set", tmp_path / "set.yaml", "--policy"]
    common += [tmp_path / "policy.yaml", "--output", tmp_path / "b", "--golden", golden, "--json"]
    monkeypatch.setattr(sys, "argv", ["fraud-scorer", "bundle", "import", *map(str, common), "--missing", "nan"])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code in (0, None)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["kind"], result["columns_reordered"], result["rows_compared"]) == ("xgboost", True, 3_500)
    assert result["bundle"] == Bundle.load(tmp_path / "b").id
    common[common.index(tmp_path / "b")] = tmp_path / "c"
    assert command(monkeypatch, *common) == 2
    assert "does not tell what stood for a missing value" in capsys.readouterr().err
    (tmp_path / "policy.yaml").write_text("name: cards\nflag: {score: 0.5, shaer: 0.1}\n")
    assert command(monkeypatch, *common, "--missing", "nan") == 2
    assert f"{tmp_path / 'policy.yaml'}:2: flag.shaer: " in capsys.readouterr().err
    (tmp_path / "policy.yaml").write_text(POLICY + "reasons: [{code: A, sentence: a, features: [amuont]}]\n")
    assert command(monkeypatch, *common, "--missing", "nan") == 2
    assert f"{tmp_path / 'policy.yaml'}: policy cards: reason A names the unknown feature 'amuont'" in (
        capsys.readouterr().err
    )
