"""Hostile model files: whatever the bytes, loading ends in a model or a ModelError, soon, and a model scores without a
crash.

    python -m tests.properties.test_model_fuzz 20000        for hours rather than seconds: that many mutations of every
    kind
"""

from __future__ import annotations

import json
import struct
import sys
import time
from typing import Any

import numpy as np
import pytest
import treelite

from scorer.model import CompiledModel, ModelError

xgb = pytest.importorskip("xgboost")
lgb = pytest.importorskip("lightgbm")
ensemble = pytest.importorskip("sklearn.ensemble")

MUTATIONS = 250
SECONDS_MAX = 5.0  # one load of a file of some 20 KB; a healthy one takes milliseconds


def sources() -> dict[str, bytes]:
    """A small healthy model of every format."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 4)).astype(np.float32)
    target = (X[:, 0] + X[:, 1] > 0.5).astype(int)
    booster = xgb.train(
        {"objective": "binary:logistic", "max_depth": 3, "nthread": 1}, xgb.DMatrix(X, target, nthread=1), 4
    )
    dart = xgb.train(
        {"objective": "binary:logistic", "max_depth": 2, "nthread": 1, "booster": "dart", "rate_drop": 0.5},
        xgb.DMatrix(X, target, nthread=1), 4,
    )  # fmt: skip
    light = lgb.train(
        {"objective": "binary", "verbose": -1, "num_leaves": 6, "num_threads": 1}, lgb.Dataset(X, target), 4
    )
    forest = ensemble.RandomForestClassifier(3, max_depth=3, random_state=0).fit(X, target)
    boosting = ensemble.GradientBoostingClassifier(n_estimators=3, random_state=0).fit(X, target)
    return {
        "ubj": bytes(booster.save_raw("ubj")),
        "json": bytes(booster.save_raw("json")),
        "dart": bytes(dart.save_raw("json")),
        "lightgbm": light.model_to_string().encode(),
        "forest": bytes(treelite.sklearn.import_model(forest).serialize_bytes()),
        "boosting": bytes(treelite.sklearn.import_model(boosting).serialize_bytes()),
    }


@pytest.fixture(scope="module")
def healthy() -> dict[str, bytes]:
    return sources()


NUMBERS = [
    b"-1",
    b"0",
    b"1",
    b"99999999999",
    b"-99999999999",
    b"nan",
    b"inf",
    b"-inf",
    b"1e400",
    b"2147483648",
    b"9" * 400,
    b"",
]


def mutate(data: bytes, rng: np.random.Generator, text: bool) -> bytes:
    """Bits flipped, bytes cut, doubled or moved, numbers replaced by awkward ones, integers by huge ones."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(0, max(1, len(changed))))
        kind = int(rng.integers(0, 7))
        if kind == 0 and changed:
            changed[at % len(changed)] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            del changed[at : at + int(rng.integers(1, 40))]
        elif kind == 2:
            part = changed[at : at + int(rng.integers(1, 60))]
            changed[at:at] = part
        elif kind == 3:
            changed = changed[:at]
        elif kind == 4 and text:
            digits = [i for i in range(at, min(at + 400, len(changed))) if chr(changed[i]).isdigit()]
            if digits:
                start = end = digits[0]
                while end < len(changed) and chr(changed[end]) in "0123456789.eE+-":
                    end += 1
                changed[start:end] = NUMBERS[int(rng.integers(0, len(NUMBERS)))]
        elif kind == 4 and len(changed) > 16:
            value = [0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1][int(rng.integers(0, 6))]
            changed[at : at + 8] = struct.pack("<Q", value)
        elif kind == 5 and text:
            lines = bytes(changed).split(b"\n")
            if len(lines) > 2:
                i, j = rng.integers(0, len(lines), 2)
                lines[i] = lines[j]
                changed = bytearray(b"\n".join(lines))
        else:
            changed[at:at] = rng.integers(0, 256, int(rng.integers(1, 9))).astype(np.uint8).tobytes()
    return bytes(changed)


def attempt(data: bytes) -> bool:
    """Whether the bytes are a model after all; then it scores and explains, or refuses in words."""
    started = time.process_time()
    try:
        model = CompiledModel.from_bytes(data)
        rows = np.zeros((20, model.feature_count), dtype=np.float32)
        rows[3:6] = np.nan
        rows[6:9] = np.float32(np.inf)
        margins = model.margins(rows)
        assert np.isfinite(margins).all()
        assert (model.margins(rows[:1]) == margins[:1]).all()
        model.contributions(rows)
        return True
    except ModelError:
        return False
    finally:
        assert time.process_time() - started < SECONDS_MAX


@pytest.mark.parametrize("kind", ["ubj", "json", "dart", "lightgbm", "forest", "boosting"])
def test_mutated_files_end_in_a_model_or_an_error(healthy: dict[str, bytes], kind: str) -> None:
    """No mutation of a model file crashes, hangs, or gives a margin that is not a number."""
    rng = np.random.default_rng(len(kind))
    text = kind in ("json", "dart", "lightgbm")
    assert attempt(healthy[kind])
    loaded = sum(attempt(mutate(healthy[kind], rng, text)) for _ in range(MUTATIONS))
    assert loaded < MUTATIONS


LIGHTGBM = {
    "cycle": ("left_child=", "left_child=0 ", r"twice|points at"),
    "child out of range": ("right_child=", "right_child=77 ", "points at a node"),
    "feature out of range": ("split_feature=", "split_feature=900 ", "splits on feature 900, the model has 4"),
    "NaN threshold": ("threshold=", "threshold=nan ", "threshold of feature . is NaN"),
    "infinite leaf": ("leaf_value=", "leaf_value=inf ", "value of leaf"),
    "no number": ("threshold=", "threshold=os.system ", "threshold holds something that is no number"),
    "huge number": ("num_leaves=", "num_leaves=9999999999 ", "num_leaves is|has 9999999999 leaves"),
}


@pytest.mark.parametrize("case", LIGHTGBM)
def test_a_damaged_lightgbm_text_is_refused_by_name(healthy: dict[str, bytes], case: str) -> None:
    """The error for a damaged LightGBM text names the tree."""
    name, value, message = LIGHTGBM[case]
    lines = healthy["lightgbm"].decode().split("\n")
    at = next(i for i, line in enumerate(lines) if line.startswith(name))
    rest = lines[at].split("=", 1)[1].split(" ")[1:]
    lines[at] = (value + " ".join(rest)).strip()
    with pytest.raises(ModelError, match=f"(?i)tree 0.*({message})"):
        CompiledModel.from_bytes("\n".join(lines).encode())


def _checkpoint(healthy: dict[str, bytes], **fields: Any) -> bytes:
    data = bytearray(healthy["boosting"])
    for offset, value in fields.values():
        data[offset : offset + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, struct.pack("<i", 3), "neither JSON nor UBJ|version 3"),
        (14, struct.pack("<Q", 2**60), "trees; 1 to"),
        (14, struct.pack("<Q", 0), "0 trees"),
        (22, struct.pack("<i", -5), "-5 features"),
        (22, struct.pack("<i", 2**30), "features; 1 to"),
        (26, b"\x04", "task 4"),
        (28, struct.pack("<i", 3), "num_target is 3"),
        (32, struct.pack("<Q", 2**63), "truncated"),
    ],
)
def test_a_hostile_checkpoint_is_refused(healthy: dict[str, bytes], offset: int, value: bytes, message: str) -> None:
    """Huge counts in a checkpoint's header are refused before anything is allocated for them."""
    with pytest.raises(ModelError, match=message):
        CompiledModel.from_bytes(_checkpoint(healthy, field=(offset, value)))


def test_a_checkpoint_with_a_cycle_is_refused(healthy: dict[str, bytes]) -> None:
    """A child that is its own ancestor ends in an error that names tree and node."""
    model = json.loads(treelite.Model.deserialize_bytes(healthy["boosting"]).dump_as_json())
    left = [node.get("left_child", -1) for node in model["trees"][0]["nodes"]]
    packed = struct.pack(f"<{len(left)}i", *left)
    at = healthy["boosting"].index(packed)
    broken = bytearray(healthy["boosting"])
    broken[at : at + 4] = struct.pack("<i", 0)
    with pytest.raises(ModelError, match="tree 0 reaches node 0 twice"):
        CompiledModel.from_bytes(bytes(broken))


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    for name, data in sources().items():
        generator = np.random.default_rng(int(time.time()))
        good = sum(attempt(mutate(data, generator, name in ("json", "dart", "lightgbm"))) for _ in range(count))
        print(f"{name}: {count} mutations, {good} still a model")
