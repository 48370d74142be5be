"""Loading a model: what is refused, with which words, and the calls of a loaded one."""

from __future__ import annotations

import ast
import copy
import graphlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import treelite

from scorer import model as room
from scorer.model import CompiledModel, ModelError, ModelFormatError, ModelInputError, ModelUnsupportedError

xgb = pytest.importorskip("xgboost")

Document = dict[str, Any]


def _booster(rounds: int = 3, **parameters: Any) -> Any:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(600, 5)).astype(np.float32)
    target = (rows[:, 0] + rows[:, 1] > 0.5).astype(np.float32)
    drawn = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1, "verbosity": 0} | parameters
    return xgb.train(drawn, xgb.DMatrix(rows, target, nthread=1), rounds)


@pytest.fixture(scope="module")
def booster() -> Any:
    return _booster()


@pytest.fixture(scope="module")
def document(booster: Any) -> Document:
    parsed: Document = json.loads(booster.save_raw("json"))
    return parsed


def _model(document: Document) -> Document:
    inner: Document = document["learner"]["gradient_booster"]["model"]
    return inner


def _tree(document: Document) -> Document:
    tree: Document = _model(document)["trees"][1]
    return tree


def _put(place: Callable[[Document], Any], key: Any, value: Any) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        place(document)[key] = value

    return change


def _column(name: str, index: int, value: Any) -> Callable[[Document], None]:
    return _put(lambda document: _tree(document)[name], index, value)


def _parameter(name: str, value: str) -> Callable[[Document], None]:
    return _put(lambda document: document["learner"]["learner_model_param"], name, value)


def _bare_leaf_of(value: float) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        tree = _tree(document)
        leaf = tree["left_children"].index(-1)
        tree["split_conditions"][leaf] = value

    return change


DAMAGED = {
    "cycle": (_column("left_children", 1, 0), "tree 1.*twice"),
    "node is its own child": (_column("left_children", 0, 0), "tree 1.*twice"),
    "shared child": (lambda d: _tree(d)["left_children"].__setitem__(1, _tree(d)["left_children"][2]), "tree 1.*twice"),
    "child out of range": (_column("left_children", 1, 99_999_999), "tree 1 points at node 99999999"),
    "negative child": (_column("left_children", 1, -7), "tree 1, node 1: children -7 and"),
    "one child": (_column("left_children", 0, -1), "tree 1, node 0: children -1 and"),
    "a child is a fraction": (
        _column("left_children", 0, 1.5),
        "left_children is not a list of whole numbers",
    ),
    "a threshold is text": (_column("split_conditions", 0, "half"), "split_conditions is not a list of numbers"),
    "feature out of range": (_column("split_indices", 0, 500), "tree 1, node 0 splits on feature 500, the model has 5"),
    "negative feature": (_column("split_indices", 0, -5), "tree 1, node 0 splits on feature -5"),
    "fewer features than used": (_parameter("num_feature", "1"), "the model has 1"),
    "NaN threshold": (
        _column("split_conditions", 0, float("nan")),
        "tree 1, node 0: the threshold of feature . is NaN",
    ),
    "NaN leaf": (_bare_leaf_of(float("nan")), "tree 1: the value of leaf"),
    "infinite leaf": (_bare_leaf_of(float("inf")), "tree 1: the value of leaf"),
    "sum beyond float32": (_bare_leaf_of(3e38), "beyond float32"),
    "column too short": (_put(_tree, "split_conditions", [0.0]), "tree 1: 1 values of threshold for"),
    "wrong node count": (
        _put(lambda d: _tree(d)["tree_param"], "num_nodes", "100000"),
        "tree 1: num_nodes is 100000, but",
    ),
    "no column": (lambda d: _tree(d).pop("left_children"), "lacks left_children"),
    "a tree is gone": (lambda d: _model(d)["trees"].pop(), "num_trees is 3, but 2 trees"),
    "tree_info too short": (_put(_model, "tree_info", [0]), "1 tree_info"),
    "base_score NaN": (_parameter("base_score", "nan"), "base_score is nan"),
    "base_score above 1": (_parameter("base_score", "[1.5E0]"), "base_score is 1.5"),
    "base_score is text": (_parameter("base_score", "[half]"), "base_score is not a number"),
    "feature count is text": (_parameter("num_feature", "five"), "num_feature is not a count"),
    "another document": (lambda d: d.pop("learner"), "lacks learner"),
}

UNSUPPORTED = {
    "objective": (_put(lambda d: d["learner"]["objective"], "name", "reg:gamma"), "objective 'reg:gamma'"),
    "multi-class": (_parameter("num_class", "3"), "num_class is 3"),
    "multi-target": (_parameter("num_target", "2"), "num_target is 2"),
    "two base scores": (_parameter("base_score", "[5E-1,5E-1]"), "base_score has 2 values"),
    "linear booster": (_put(lambda d: d["learner"]["gradient_booster"], "name", "gblinear"), "booster 'gblinear'"),
    "many features": (_parameter("num_feature", "70000"), "70000 features"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_model_is_refused_by_name(document: Document, case: str) -> None:
    """Whatever is wrong inside a model file ends in a ModelFormatError that says where."""
    change, message = DAMAGED[case]
    damaged = copy.deepcopy(document)
    change(damaged)
    with pytest.raises(ModelFormatError, match=message):
        CompiledModel.from_bytes(json.dumps(damaged).encode())


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_another_kind_of_model_is_refused_by_name(document: Document, case: str) -> None:
    """A sound model of a kind that is not served says which kind it is."""
    change, message = UNSUPPORTED[case]
    changed = copy.deepcopy(document)
    change(changed)
    with pytest.raises(ModelUnsupportedError, match=message):
        CompiledModel.from_bytes(json.dumps(changed).encode())


def test_categorical_splits_name_tree_and_feature() -> None:
    """A model with a categorical split is refused, naming the tree and the feature."""
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.normal(size=400), rng.integers(0, 6, 400)]).astype(np.float32)
    data = xgb.DMatrix(rows, np.isin(rows[:, 1], (1, 4)), feature_types=["q", "c"], enable_categorical=True, nthread=1)
    booster = xgb.train({"objective": "binary:logistic", "nthread": 1, "max_cat_to_onehot": 2}, data, 2)
    with pytest.raises(ModelUnsupportedError, match="tree 0 splits on feature 1 by category"):
        CompiledModel.from_bytes(bytes(booster.save_raw("ubj")))


@pytest.mark.parametrize("kind", ["ubj", "json"])
def test_truncated_and_flipped_files_end_in_a_model_error(booster: Any, kind: str) -> None:
    """A file cut anywhere, or with any byte changed, loads or is refused; it never crashes or hangs."""
    data = bytes(booster.save_raw(kind))
    rng = np.random.default_rng(1)
    for cut in rng.integers(0, len(data), 40):
        with pytest.raises(ModelError):
            CompiledModel.from_bytes(data[:cut])
    for place in rng.integers(0, len(data), 250):
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(0, 8))
        try:
            CompiledModel.from_bytes(bytes(changed))
        except ModelError:
            continue  # a flip inside a leaf's float is still a model; the bundle's sha256 is what catches that


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"not a model",
        b"\x80\x04\x95",
        b'{"learner": 1, "learner": 2}',
        b'{"a":' + b"[" * 100_000,
        b"{i\x01a" + b"[" * 100_000,
        b"{i\x01a[$d#L\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"{i\x01a[$Z#L\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"{i\x01a[#L\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"{L\xff\xff\xff\xff\xff\xff\xff\xff",
        b"{i\x01aSL\x7f\xff\xff\xff\xff\xff\xff\xff",
    ],
    ids=range(13),
)
def test_hostile_bytes_are_refused(data: bytes) -> None:
    """Nesting bombs, huge counts and other formats end in a ModelFormatError, not in the memory they ask for."""
    with pytest.raises(ModelFormatError):
        CompiledModel.from_bytes(data)


def test_file_and_bytes_are_one_model(booster: Any, tmp_path: Path) -> None:
    """A model file loads by its suffix, as .ubj and .json, to the same margins as its bytes."""
    rows = np.random.default_rng(2).normal(size=(50, 5)).astype(np.float32)
    wanted = CompiledModel.from_bytes(bytes(booster.save_raw("ubj"))).margins(rows)
    for suffix in ("ubj", "json"):
        path = tmp_path / f"model.{suffix}"
        booster.save_model(path)
        assert (CompiledModel.from_file(path).margins(rows).view(np.uint32) == wanted.view(np.uint32)).all()
    with pytest.raises(ModelFormatError, match=r"model\.pkl is none of \.ubj, \.json, \.txt, \.tl"):
        CompiledModel.from_file(tmp_path / "model.pkl")


def test_only_a_treelite_model_is_compiled_as_one(booster: Any) -> None:
    """from_treelite takes a treelite.Model; another library's object is refused with the name of its type."""
    rows = np.random.default_rng(2).normal(size=(50, 5)).astype(np.float32)
    model = treelite.frontend.from_xgboost_ubjson(bytes(booster.save_raw("ubj")))
    assert (
        CompiledModel.from_treelite(model).margins(rows)
        == CompiledModel.from_bytes(model.serialize_bytes()).margins(rows)
    ).all()
    with pytest.raises(ModelInputError, match=r"a Booster, not a treelite\.Model"):
        CompiledModel.from_treelite(booster)


def test_a_stored_base_margin_replaces_the_computed_one(booster: Any) -> None:
    """A bundle's base margin is used as stored, within 4 units in the last place; anything else is refused."""
    data = bytes(booster.save_raw("ubj"))
    own = CompiledModel.from_bytes(data).base_margin
    near = np.nextafter(own, np.float32(9))
    assert CompiledModel.from_bytes(data, base_margin=float(near)).base_margin == near
    for other in (float(own) + 0.1, float("nan")):
        with pytest.raises(ModelFormatError, match="base margin"):
            CompiledModel.from_bytes(data, base_margin=other)


def test_early_stopping_saves_what_was_sliced(booster: Any) -> None:
    """A sliced booster's file holds those trees alone, and the compiled margin equals it."""
    part = booster[:2]
    rows = np.random.default_rng(2).normal(size=(50, 5)).astype(np.float32)
    model = CompiledModel.from_bytes(bytes(part.save_raw("ubj")))
    assert model.tree_count == 2
    wanted = booster.inplace_predict(rows, predict_type="margin", iteration_range=(0, 2)).astype(np.float32)
    assert (model.margins(rows).view(np.uint32) == wanted.view(np.uint32)).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((3, 4), np.float32), r"\(3, 4\).*\(n, 5\)"),
        (np.zeros(5, np.float32), r"\(5,\)"),
        (np.zeros((3, 5), np.float64), "float64"),
    ],
    ids=["width", "one dimension", "dtype"],
)
def test_wrong_rows_are_refused(booster: Any, rows: np.ndarray, message: str) -> None:
    """Rows of another width, dimension or dtype raise ModelInputError naming both sides."""
    model = CompiledModel.from_bytes(bytes(booster.save_raw("ubj")))
    for call in (model.margins, model.scores, model.contributions):
        with pytest.raises(ModelInputError, match=message):
            call(rows)


def test_a_path_or_text_in_place_of_a_model_is_refused() -> None:
    """A path given to the constructor, or text in place of bytes, gives an error that names the way in."""
    with pytest.raises(ModelInputError, match=r"table is of type str, .* CompiledModel.from_file"):
        CompiledModel("model.ubj")  # type: ignore[arg-type]
    with pytest.raises(ModelInputError, match="the model is of type str, wanted the bytes"):
        CompiledModel.from_bytes("{}")  # type: ignore[arg-type]


def test_no_rows_and_strided_rows(booster: Any) -> None:
    """No row gives no margin; rows in another memory layout, or read-only, give the same margins."""
    model = CompiledModel.from_bytes(bytes(booster.save_raw("ubj")))
    assert model.margins(np.zeros((0, 5), np.float32)).shape == (0,)
    assert model.contributions(np.zeros((0, 5), np.float32)).shape == (0, 6)
    rows = np.random.default_rng(2).normal(size=(40, 5)).astype(np.float32)
    wanted = model.margins(rows)
    assert (model.margins(np.asfortranarray(rows)) == wanted).all()
    rows.setflags(write=False)
    assert (model.margins(rows) == wanted).all()


def test_margins_into_refuses_a_wrong_out(booster: Any) -> None:
    """An out of another shape or dtype, or one that cannot be written, is refused before anything is written."""
    model = CompiledModel.from_bytes(bytes(booster.save_raw("ubj")))
    rows = np.zeros((4, 5), np.float32)
    frozen = np.zeros(4, np.float32)
    frozen.setflags(write=False)
    for out in (np.zeros(3, np.float32), np.zeros(4), np.zeros(8, np.float32)[::2], frozen, [0.0] * 4):
        with pytest.raises(ModelInputError):
            model.margins_into(rows, out)  # type: ignore[arg-type]


def test_threads_share_a_model(booster: Any) -> None:
    """Threads scoring with one model at once get what one thread gets."""
    model = CompiledModel.from_bytes(bytes(booster.save_raw("ubj")))
    rows = np.random.default_rng(2).normal(size=(5_000, 5)).astype(np.float32)
    wanted = model.margins(rows)
    results: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: results.append(model.margins(rows))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all((result == wanted).all() for result in results)


def test_a_model_without_cover_scores_but_does_not_explain(document: Document) -> None:
    """Without usable hessian sums margins are served, and explaining is refused, naming the tree."""
    changed = copy.deepcopy(document)
    _tree(changed)["sum_hessian"] = [0.0] * len(_tree(changed)["sum_hessian"])
    model = CompiledModel.from_bytes(json.dumps(changed).encode())
    rows = np.zeros((2, 5), np.float32)
    assert np.isfinite(model.margins(rows)).all()
    with pytest.raises(ModelUnsupportedError, match="tree 1"):
        model.contributions(rows)


def test_the_public_names_are_these() -> None:
    """What other code may import from scorer.model is a closed list, and every name of it exists."""
    names = ["CompiledModel", "ModelError", "ModelFormatError", "ModelInputError", "ModelUnsupportedError"]
    assert room.__all__ == [*names, "margin_for_score", "sigmoid"]
    assert all(hasattr(room, name) for name in room.__all__)


def test_the_model_room_imports_no_other_room_and_has_no_circle() -> None:
    """scorer/model knows scorer.errors and the folder check of schemas alone, and its modules import one way."""
    root = Path(__file__).resolve().parents[2]
    modules = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (root / "scorer" / "model").rglob("*.py")
    }
    imported: dict[str, set[str]] = {}
    for module, path in modules.items():
        found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        own = [node for node in found if (node.module or "").split(".")[0] in ("scorer", "features", "schemas")]
        full = {f"{node.module}.{name.name}": str(node.module) for node in own for name in node.names}
        imported[module] = {name if name in modules else parent for name, parent in full.items()}
    assert set().union(*imported.values()) - set(modules) == {"scorer.errors", "schemas"}
    list(graphlib.TopologicalSorter(imported).static_order())  # raises CycleError for a circle


def test_serving_does_not_import_xgboost() -> None:
    """Importing the model, the bundle and even the training module does not pull in xgboost."""
    code = "import sys, scorer.bundle, scorer.training, scorer.model; sys.exit('xgboost' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0


@pytest.mark.parametrize("kind", ["ubj", "json"])
def test_a_model_without_trees_gives_its_base(kind: str) -> None:
    """No round of training leaves the base margin, for one row and for many, and no feature is a reason."""
    rows = np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32)
    parameters = {"objective": "binary:logistic", "base_score": 0.2, "nthread": 1}
    trained = xgb.train(parameters, xgb.DMatrix(rows, np.arange(100) % 2, nthread=1), 0)
    model = CompiledModel.from_bytes(bytes(trained.save_raw(kind)))
    assert model.tree_count == 0
    for count in (1, 100):
        wanted = trained.inplace_predict(rows[:count], predict_type="margin").astype(np.float32)
        assert (model.margins(rows[:count]).view(np.uint32) == wanted.view(np.uint32)).all()
    assert (model.contributions(rows)[:, :-1] == 0).all()
    assert (model.reasons(rows, 3) == -1).all()


def test_a_model_that_never_began_is_refused() -> None:
    """No tree and no base score of its own: xgboost's margin is .5 there, which is no logit of anything."""
    rows = np.zeros((10, 5), np.float32)
    trained = xgb.train({"objective": "binary:logistic", "nthread": 1}, xgb.DMatrix(rows, np.arange(10) % 2), 0)
    with pytest.raises(ModelUnsupportedError, match="no tree and no base_score of its own"):
        CompiledModel.from_bytes(bytes(trained.save_raw("ubj")))


def test_a_small_model_gives_the_reasons_it_has() -> None:
    """Without a number, reasons are four at most, or all features of a smaller model; a list of rows is refused."""
    rows = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    trained = xgb.train({"objective": "binary:logistic", "nthread": 1}, xgb.DMatrix(rows, rows[:, 0] > 0), 2)
    model = CompiledModel.from_bytes(bytes(trained.save_raw("ubj")))
    assert model.reasons(rows).shape == (100, 2)
    with pytest.raises(ModelInputError, match="rows are a list"):
        model.margins(rows.tolist())  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.5, 0.9, 1.1])
def test_covers_that_do_not_add_up_are_not_explained(document: Document, share: float) -> None:
    """A split whose cover is not its children's together: margins are given, explanations refused, by the tree."""
    document = copy.deepcopy(document)
    model = CompiledModel.from_bytes(json.dumps(document).encode())
    rows = np.zeros((1, 5), np.float32)
    wanted = model.margins(rows)
    assert model.contributions(rows).shape == (1, 6)
    tree = _model(document)["trees"][1]
    # Both children of the root, and all below them, times the share: only the root's own sum does not fit.
    tree["sum_hessian"] = [value * (share if node else 1) for node, value in enumerate(tree["sum_hessian"])]
    changed = CompiledModel.from_bytes(json.dumps(document).encode())
    assert changed.margins(rows) == wanted
    with pytest.raises(ModelUnsupportedError, match=r"tree 1 has a split without cover .* children"):
        changed.contributions(rows)


def test_reasons_are_what_raises_the_margin_most(booster: Any) -> None:
    """Reasons are features by falling contribution, only those that raise the margin; ties keep the features' order."""
    model = CompiledModel.from_bytes(bytes(booster.save_raw("ubj")))
    rows = np.random.default_rng(1).normal(size=(50, 5)).astype(np.float32)
    shares = model.contributions(rows)[:, :-1].round(9)
    for row, reasons in zip(shares, model.reasons(rows, 4), strict=True):
        wanted = sorted((f for f in range(5) if row[f] > 0), key=lambda f: (-row[f], f))[:4]
        assert reasons.tolist() == wanted + [-1] * (4 - len(wanted))
    for k in (0, 6):
        with pytest.raises(ModelInputError, match=f"{k} reasons"):
            model.reasons(rows, k)
