"""`features` as a library: its names, and one call from payments to a matrix."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import features
from features import FeatureEngine, FeatureSet, SegmentError, kernel_tables
from features.engine_state import addresses, fresh_state
from features.window_plan import lower
from schemas.payment_decoder import decode_payments
from tests.properties.engine_streams import PROOF, T0, document, run

CARDS = FeatureSet.from_yaml("""
name: cards
currency: EUR
entities: {card: [card_token]}
features:
  - {name: amount, payment: amount}
  - {name: count_1h, entity: card, aggregate: count, window: 1h, include_current: true}
  - {name: frauds, entity: card, aggregate: fraud_count, window: 1d}
""")


def record(number: int, **fields: Any) -> bytes:
    payment = {"payment_id": f"p{number}", "event_time": T0 + 1000 * number, "amount_minor": 100, "currency": "EUR"}
    return json.dumps({**payment, "card_token": "tok_a", **fields}).encode()


def test_the_public_names_are_these() -> None:
    """What a program may rely on: a name added or taken away is a decision, not an accident."""
    assert features.__all__ == ["FeatureEngine", "FeatureSet", "FeatureSetError", "SegmentError"]
    assert all(getattr(features, name).__doc__ for name in features.__all__)
    assert {name for name in vars(FeatureEngine) if not name.startswith("_")} == {
        "add_label", "apply", "close", "feature_set", "names", "stream_time_ms",
    }  # fmt: skip
    with pytest.raises(AttributeError, match="there are FeatureEngine, FeatureSet"):
        features.Engine  # noqa: B018
    assert (Path(features.__file__).parent / "py.typed").exists()


def test_one_call_gives_what_the_live_engine_computes() -> None:
    """`FeatureEngine.apply` on records or on a decoded batch gives the live engine's values, bit for bit."""
    generator = np.random.default_rng(3)
    rows = [
        {
            "payment_id": f"p{k}", "t": T0 + int(generator.integers(0, 90_000)),
            "amount": int(generator.integers(1, 9_999)),
            "currency": str(generator.choice(["EUR", "USD"])), "customer_id": f"c{generator.integers(3)}",
            "terminal_id": "t1", "channel": str(generator.choice(["pos", "ecom"])),
        }
        for k in range(200)
    ]  # fmt: skip
    values = [document(row) for row in rows]
    expected = run(rows, [], segment_shift=17)
    with FeatureEngine(PROOF) as engine:
        found = np.concatenate([engine.apply(values[:70]), engine.apply(decode_payments(values[70:]))])
        assert engine.stream_time_ms == max(row["t"] for row in rows)
    assert found.dtype == np.float32
    assert found.shape == (200, len(engine.names))
    np.testing.assert_array_equal(found, expected)


def test_a_label_is_seen_from_its_time_on() -> None:
    """A label that becomes known later changes no feature before that time."""
    engine = FeatureEngine(CARDS)
    engine.add_label("p0", fraud=True, known_at_ms=T0 + 2000)
    assert engine.apply([record(k) for k in range(3)])[:, 2].tolist() == [0.0, 0.0, 1.0]


def test_what_is_refused_is_named_and_changes_nothing() -> None:
    """A record that is no payment, or has a currency without a rate, is named with the way out and without its values;
    the windows are as before."""
    engine = FeatureEngine(CARDS)
    engine.apply([record(0)])
    with pytest.raises(
        ValueError, match=r"record 1 is not a payment \(.*amount_minor.*repair or leave them out"
    ) as bad:
        engine.apply([record(1), record(2, amount_minor=-77123)])
    assert "77123" not in str(bad.value)
    with pytest.raises(ValueError, match=r"record 1: currency: .*no exchange rate to EUR.*rates"):
        engine.apply([record(1), record(2, currency="USD")])
    assert engine.apply([record(3)])[0].tolist() == [1.0, 2.0, 0.0]


def test_files_of_the_log_are_deleted_on_close(tmp_path: Path) -> None:
    """With a folder, the payments inside the windows lie there; a second engine is refused, and close deletes them."""
    with FeatureEngine(CARDS, folder=str(tmp_path)) as engine:
        assert engine.apply([record(0), record(1)])[:, 1].tolist() == [1.0, 2.0]
        assert list(tmp_path.glob("segment-*.log"))
        with pytest.raises(SegmentError, match="in use by another engine"):
            FeatureEngine(CARDS, folder=tmp_path)
    assert not list(tmp_path.glob("segment-*.log"))


def test_an_array_that_a_kernel_would_misread_is_refused() -> None:
    """Kernels reach arrays through bare addresses: one of another type, width or with gaps never gets that far."""
    tables = lower(CARDS, segment_shift=6).tables
    state = fresh_state(tables)
    for name, wrong in (
        ("late", np.zeros((8, 3), np.int64)),
        ("keys", np.zeros((8, 3), np.int64)),
        ("pool", np.zeros(16, np.int64)[::2]),
    ):
        with pytest.raises(ValueError, match=name):
            addresses(state._replace(**{name: wrong}), tables)


def test_a_number_of_the_kernels_that_is_not_its_field_stops_the_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record's field moved without its number, or the other way, is an error before any kernel runs."""
    names = [field.name for field in fields(kernel_tables.Op)]
    kernel_tables._check("O_", names, kernel_tables.OP_WORDS)
    monkeypatch.setattr(kernel_tables, "O_SUM", kernel_tables.O_SQUARES)
    with pytest.raises(AssertionError, match="O_SUM"):
        kernel_tables._check("O_", names, kernel_tables.OP_WORDS)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([{"payment_id": "p1"}], "record 0 is of type dict, wanted bytes"),
        ([record(1), 5], "record 1 is of type int, wanted bytes"),
        (record(1), "the records are of type bytes, wanted a sequence"),
        ({"payment_id": "p1"}, "the records are of type dict, wanted a sequence"),
        ((value for value in [record(1)]), "the records are of type generator, wanted a sequence"),
        (None, "the records are of type NoneType, wanted a sequence"),
    ],
)
def test_what_is_no_list_of_records_is_refused_with_its_type(batch: Any, message: str) -> None:
    """One payment, a dict or an iterator in place of a list of bytes gives an error that names type and way out."""
    with FeatureEngine(CARDS) as engine, pytest.raises(TypeError, match=message):
        engine.apply(batch)


def test_an_engine_is_made_of_a_feature_set() -> None:
    """YAML text in place of a feature set gives an error that names the call which reads it."""
    with pytest.raises(TypeError, match=r"feature_set is of type str, wanted a FeatureSet: FeatureSet.from_yaml"):
        FeatureEngine("name: cards")  # type: ignore[arg-type]


def test_a_closed_engine_computes_no_features(tmp_path: Path) -> None:
    """After `close` the windows are gone: an engine that went on would give features of an empty history."""
    engine = FeatureEngine(CARDS, folder=tmp_path / "log")
    engine.apply([record(1)])
    engine.close()
    with pytest.raises(ValueError, match="the engine is closed"):
        engine.apply([record(2)])


def test_a_label_of_another_type_is_refused() -> None:
    """A verdict as text would count as fraud, whatever it says."""
    with FeatureEngine(CARDS) as engine, pytest.raises(TypeError, match="fraud is of type str"):
        engine.add_label("p1", fraud="no", known_at_ms=T0)  # type: ignore[arg-type]
