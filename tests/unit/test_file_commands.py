"""Commands on files: the draft of a mapping, what was refused, and when that fails a run."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from scorer.cli import app
from scorer.errors import FraudScorerError, UsageError
from scorer.files.mapping import Mapping
from tests.file_layouts import LAYOUTS

FEATURES = """
name: small
currency: EUR
entities: {customer: [customer_id]}
features:
  - {name: amount, payment: amount}
  - {name: count_1d, entity: customer, aggregate: count, window: 1d}
"""
MAPPING = "payment_id: id\nevent_time: ts\namount: amount\ncurrency: {constant: EUR}\ncustomer_id: cust\n"
CARD = "4111111111111111"


def run(*arguments: object) -> tuple[dict[str, object], str]:
    """The JSON that a command printed, and all its output. Raises the command's error."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout.splitlines()[-1]), result.output


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "set.yaml").write_text(FEATURES)
    (tmp_path / "m.yaml").write_text(MAPPING)
    return tmp_path


def rows(place: Path, bad: int, good: int) -> Path:
    path = place / "rows.csv"
    lines = [f"b{i},2024-01-01T00:00:{i % 60:02d}Z,oops {CARD},c1" for i in range(bad)]
    lines += [f"g{i},2024-01-01T01:{i // 60 % 60:02d}:{i % 60:02d}Z,1.50,c1" for i in range(good)]
    path.write_text("id,ts,amount,cust\n" + "\n".join(lines) + "\n")
    return path


def features(place: Path, *more: object) -> tuple[dict[str, object], str]:
    return run(
        "features", "--feature-set", place / "set.yaml", "--input", place / "rows.csv",
        "--mapping", place / "m.yaml", "--output", place / "out.parquet", *more,
    )  # fmt: skip


def test_what_was_refused_is_counted_named_and_written(place: Path) -> None:
    """The summary has field, reason and rows as examples; --refused has every row; no cell stands anywhere."""
    rows(place, 2, 1000)
    result, output = features(place, "--refused", place / "refused.parquet")
    assert result["rows"] == 1000
    (one,) = result["refused"]  # type: ignore[misc]
    assert (one["field"], one["reason"], one["rows"], one["examples"]) == ("amount", "invalid_value", 2, [1, 2])  # type: ignore[index]
    written = pq.read_table(place / "refused.parquet").to_pylist()
    assert [(row["row"], row["field"], row["reason"]) for row in written] == [
        (1, "amount", "invalid_value"),
        (2, "amount", "invalid_value"),
    ]
    assert CARD not in output + json.dumps(written)


def test_a_share_of_refused_rows_fails_the_run(place: Path) -> None:
    """More than 1 % refused is an error and nothing is written, but with another share; all of them always are."""
    rows(place, 3, 100)
    with pytest.raises(FraudScorerError, match=r"3 of 103 rows were refused, more than 1\.00% .*3 × amount") as caught:
        features(place)
    assert CARD not in str(caught.value)
    assert not (place / "out.parquet").exists()
    assert features(place, "--refused-max", "0.5")[0]["rows"] == 100
    rows(place, 5, 0)
    with pytest.raises(FraudScorerError, match="5 of 5 rows were refused"):
        features(place, "--refused-max", "1")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_every_layout_gets_a_draft(layout: object, tmp_path: Path) -> None:
    """A draft is written for every layout; what it could not see is a question, and no card number is shown."""
    path = layout.write(tmp_path)  # type: ignore[attr-defined]
    result, output = run("mapping", path)
    assert "payment_id:" in str(result["mapping"])
    assert CARD not in output
    assert "4111 1111 1111 1111" not in output


def test_a_draft_finds_the_fields_of_a_usual_file(tmp_path: Path) -> None:
    """Names and cells together give the fields; card numbers become tokens; the preview shows the payments."""
    path = tmp_path / "payments.csv"
    path.write_text(
        "TransactionID,TX_DATETIME,TransactionAmt,Currency,cc_num,merchant,lat,long,is_fraud,CVV,items\n"
        + "".join(
            f"{i},2024-01-0{1 + i % 9} 10:00:00,{i}.5,EUR,{card},shop {i % 3},48.2{i},16.3{i},{i % 2},123,{i}\n"
            for i, card in enumerate([CARD, "5555555555554444"] * 5)
        )
    )
    result, _ = run("mapping", path, "--rows", 3)
    mapping = Mapping.from_yaml(str(result["mapping"]))
    assert (mapping.payment_id, mapping.event_time, mapping.amount) == (
        "TransactionID",
        "TX_DATETIME",
        "TransactionAmt",
    )
    assert mapping.card_token.token == "cc_num"
    assert (mapping.currency, mapping.merchant_id, mapping.label) == ("Currency", "merchant", "is_fraud")
    assert (mapping.latitude, mapping.longitude) == ("lat", "long")
    assert list(mapping.attributes) == ["items"]
    shown = result["preview"]
    assert [row["payment_id"] for row in shown] == ["0", "9", "1"]  # type: ignore[attr-defined, index]
    assert str(shown[0]["card_token"]).startswith("tk_")  # type: ignore[index]


def test_a_draft_overwrites_nothing(tmp_path: Path) -> None:
    """A mapping that is there is not lost to a draft."""
    path = LAYOUTS[0].write(tmp_path)
    run("mapping", path, "--output", tmp_path / "m.yaml")
    assert "payment_id:" in (tmp_path / "m.yaml").read_text()
    with pytest.raises(UsageError, match="exists"):
        run("mapping", path, "--output", tmp_path / "m.yaml")
