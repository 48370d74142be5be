"""CSV files in any dialect, with token fields, against the same payments as JSON on a topic: the same, bit for bit."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from schemas.pseudonym import PseudonymKeys, pseudonym
from scorer.bundle import Bundle, write_bundle
from scorer.files.file_columns import json_block
from scorer.files.mapping import Mapping
from scorer.files.payment_file import ReadOptions
from scorer.pipeline import Pipeline
from scorer.pipeline.card_keys import cards_of
from scorer.replay import LabelledBatch, chained, file_batches
from tests.golden_rows import golden_rows

xgboost = pytest.importorskip("xgboost")

EXAMPLES = int(os.environ.get("FRAUD_SCORER_EXAMPLES", "100"))
FORM: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.explicit, Phase.reuse, Phase.generate],
}
KEY = bytes(range(32))
KEYS = PseudonymKeys((KEY,))
START_MS = 1_767_225_600_000
FEATURES = """
name: csv
currency: EUR
rates: {version: v1, per_unit: {USD: 0.9, JPY: 0.006}}
entities: {customer: [customer_id], card: [card_token]}
card_numbers: {card_token: token, attributes.pan: token, account_id: opaque}
features:
  - {name: amount, payment: amount}
  - {name: basket, payment: attributes.basket}
  - {name: sum_1d, entity: customer, aggregate: sum, of: amount, window: 1d}
  - {name: cards_1d, entity: customer, aggregate: distinct, of: card_token, window: 1d}
  - {name: card_count_1d, entity: card, aggregate: count, window: 1d, include_current: true}
  - {name: frauds, entity: card, aggregate: fraud_count, window: 7d}
"""
POLICY = "name: csv\nflag: {score: 0.5}\n"
CARDS = ("4111111111111111", "4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005", "1234567890123456")
DIGITS = {"EUR": 2, "USD": 2, "JPY": 0}
NULLS = ("", "NULL", "n/a", "\\N")


@dataclass(frozen=True)
class Dialect:
    """How a CSV is written."""

    delimiter: str
    encoding: str
    decimal_mark: str
    thousands_mark: str | None
    line_end: str
    quoting: int
    null: str

    def amount(self, minor: int, digits: int) -> str:
        """Minor units as a cell."""
        whole, rest = divmod(minor, 10**digits)
        text = f"{whole:,}".replace(",", self.thousands_mark or "")
        return text + (f"{self.decimal_mark}{rest:0{digits}d}" if digits else "")


@st.composite
def dialects(draw: st.DrawFn) -> Dialect:
    decimal_mark = draw(st.sampled_from([".", ","]))
    thousands = draw(st.sampled_from([None, "'", "." if decimal_mark == "," else ",", " "]))
    return Dialect(
        delimiter=draw(st.sampled_from([",", ";", "\t", "|"])),
        encoding=draw(st.sampled_from(["utf-8", "utf-8-sig", "cp1252", "utf-16"])),
        decimal_mark=decimal_mark,
        thousands_mark=thousands,
        line_end=draw(st.sampled_from(["\n", "\r\n"])),
        quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        null=draw(st.sampled_from(NULLS)),
    )


def maybe(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(usual, usual, usual, st.none())


PAYMENTS = st.lists(
    st.fixed_dictionaries({
        "payment_id": st.integers(0, 30).map(lambda i: f"p{i}"),
        "at": st.integers(0, 3 * 86_400_000),
        "amount_minor": st.integers(0, 10**8),
        "currency": st.sampled_from(["EUR", "EUR", "USD", "JPY"]),
        "customer_id": maybe(st.sampled_from(["c1", "Müller", 'with "quotes"', "a;b,c|d", "café au lait"])),
        "account_id": maybe(st.sampled_from(["FI2112345600000785", CARDS[0], "a1"])),
        "card_token": maybe(st.sampled_from([*CARDS, "t-1", pseudonym(KEY, CARDS[0])])),
        "pan": maybe(st.sampled_from(CARDS)),
        "basket": maybe(st.sampled_from([0.25, 3.0, 12.5, -1.0])),
        "gift": maybe(st.booleans()),
        "fraud": maybe(st.integers(0, 1)),
    }),
    min_size=1,
    max_size=24,
)  # fmt: skip


def mapping_of(dialect: Dialect, *, tokens: bool) -> Mapping:
    """`tokens`: the mapping replaces the card numbers, else the feature set's declaration does."""

    def card(column: str) -> object:
        return {"token": column} if tokens else column

    amount: dict[str, Any] = {"column": "amount", "decimal_mark": dialect.decimal_mark}
    if dialect.thousands_mark is not None:
        amount["thousands_mark"] = dialect.thousands_mark
    return Mapping.model_validate(
        {
            "payment_id": "payment_id", "event_time": "at", "amount": amount, "currency": "currency",
            "customer_id": "customer_id", "account_id": "account_id", "card_token": card("card_token"),
            "attributes": {"pan": card("pan"), "basket": "basket", "gift": {"boolean": "gift"}},
            "label": "fraud", "label_delay": "6h", "order_by": "file", "nothing": list(NULLS),
            "encoding": None if dialect.encoding in ("utf-8-sig", "utf-16") else dialect.encoding,
            "csv": {"delimiter": dialect.delimiter, "quote": '"'},
        }
    )  # fmt: skip


def write(path: Path, payments: list[dict[str, Any]], dialect: Dialect) -> None:
    def cells(payment: dict[str, Any]) -> list[str]:
        row = payment | {
            "at": str(np.datetime64(START_MS + payment["at"], "ms")) + "Z",
            "amount": dialect.amount(payment["amount_minor"], DIGITS[payment["currency"]]),
            "gift": None if payment["gift"] is None else "yes" if payment["gift"] else "no",
        }
        return [dialect.null if row[name] is None else str(row[name]) for name in heads]

    heads = [name for name in sorted(payments[0]) if name != "amount_minor"] + ["amount"]
    with path.open("w", encoding=dialect.encoding, newline="") as file:
        writer = csv.writer(
            file, delimiter=dialect.delimiter, quoting=dialect.quoting, lineterminator=dialect.line_end  # type: ignore[arg-type]
        )  # fmt: skip
        writer.writerow(heads)
        writer.writerows(cells(payment) for payment in payments)


def as_topic(payments: list[dict[str, Any]]) -> LabelledBatch:
    """The same payments as records of a topic, with their labels."""
    values, labels = [], []
    for payment in payments:
        time = START_MS + payment["at"]
        names = ("payment_id", "amount_minor", "currency", "customer_id", "account_id", "card_token")
        document = {name: payment[name] for name in names} | {"event_time": time}
        attributes = {name: payment[name] for name in ("pan", "basket", "gift") if payment[name] is not None}
        document["attributes"] = attributes or None
        values.append(json.dumps({name: value for name, value in document.items() if value is not None}).encode())
        if payment["fraud"] is not None:
            label = {"type": "label", "payment_id": payment["payment_id"], "fraud": bool(payment["fraud"])}
            labels.append(json.dumps(label | {"known_at": time + 6 * 3_600_000, "event_time": time}).encode())
    keys = [None if payment["customer_id"] is None else payment["customer_id"].encode() for payment in payments]
    label = np.array([-1 if payment["fraud"] is None else payment["fraud"] for payment in payments], np.int8)
    times = np.array([START_MS + payment["at"] for payment in payments])
    block = json_block(keys, values, labels, label, np.where(label >= 0, times + 6 * 3_600_000, -1))
    (batch,) = chained([block])
    return batch


def outcome(bundle: Bundle, batch: LabelledBatch) -> list[Any]:
    found = Pipeline(bundle, keys=KEYS).run(batch.batch)
    assert not any(card.encode() in found.journal.to_bytes() for card in CARDS)
    return [
        found.journal, found.rows.tolist(), list(found.payments.rows), found.rejected, found.duplicates, found.late,
        found.columns.features.tobytes(), batch.label.tolist(), batch.label_known_at_ms.tolist(),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    rng = np.random.default_rng(3)
    X = rng.lognormal(2, 2, (500, 6)).astype(np.float32)
    y = (X[:, 0] + X[:, 4] > 15).astype(np.float32)
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 3, "nthread": 1}, xgboost.DMatrix(X, y), 8)
    folder = tmp_path_factory.mktemp("csv") / "bundle"
    write_bundle(
        folder, name="csv", created_at="2026-01-01T00:00:00Z", model=bytes(booster.save_raw("ubj")),
        feature_set_yaml=FEATURES, policy_yaml=POLICY, threshold_score=0.5,
        golden=golden_rows(bytes(booster.save_raw("ubj"))),
    )  # fmt: skip
    return Bundle.load(folder)


@settings(max_examples=EXAMPLES, **FORM)
@given(payments=PAYMENTS, dialect=dialects(), tokens=st.booleans())
def test_a_csv_with_tokens_decides_as_its_payments_on_a_topic(
    bundle: Bundle, payments: list[dict[str, Any]], dialect: Dialect, *, tokens: bool
) -> None:
    """Delimiters, encodings, decimal commas, gaps and card numbers in token fields, replaced by the mapping or by the
    feature set: the same decisions, features, pseudonyms, labels and digests as from JSON payments."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "payments.csv"
        write(path, payments, dialect)
        options = ReadOptions(late_share_max=1.0, future_gap_ms=10**12, token_key=KEY)
        (batch,) = file_batches(
            path, mapping_of(dialect, tokens=tokens), cards=cards_of(bundle.feature_set, KEYS), options=options
        )
    expected = outcome(bundle, as_topic(payments))
    assert outcome(bundle, batch) == expected
