"""Files as columns against files as JSON: the same decisions, features, refusals and labels, bit for bit."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from schemas.card_fields import UNDECLARED, CardFields
from schemas.contract_error import ContractError
from schemas.payment_batch import PaymentBatch, PaymentRow, Reject
from schemas.payment_decoder import decode_payments
from scorer.bundle import Bundle, write_bundle
from scorer.errors import FraudScorerError
from scorer.files.file_columns import DecodedBlock, decoded_blocks
from scorer.files.file_reader import FileError, json_block, json_values, label_records, read_payments
from scorer.files.mapping import Mapping
from scorer.files.payment_file import PaymentFile, ReadOptions
from scorer.pipeline import Outcomes, Pipeline
from scorer.pipeline.records import ControlRecord, Records
from scorer.replay import LabelledBatch, chained, file_batches
from tests.golden_rows import golden_rows

xgboost = pytest.importorskip("xgboost")

# FRAUD_SCORER_EXAMPLES=5000 for a long run.
EXAMPLES = int(os.environ.get("FRAUD_SCORER_EXAMPLES", "150"))
# Tables shrink for minutes; one that fails is small enough to read.
FORM: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.explicit, Phase.reuse, Phase.generate],
}
ROWS_PER_BLOCK = 7
OPTIONS = ReadOptions(late_share_max=1.0)  # late rows are part of what is compared
START_MS = 1_767_225_600_000
FEATURES = """
name: columns
currency: EUR
dedupe_horizon: 12h
rates: {version: v1, per_unit: {USD: 0.9, JPY: 0.006}}
entities: {customer: [customer_id], pair: [customer_id, channel]}
features:
  - {name: amount, payment: amount}
  - {name: north, payment: latitude}
  - {name: basket, payment: attributes.basket}
  - {name: gift, payment: attributes.gift, categories: ["yes", "no"]}
  - {name: count_1d, entity: customer, aggregate: count, window: 1d, include_current: true}
  - {name: sum_1d, entity: pair, aggregate: sum, of: amount, window: 1d}
  - {name: shops, entity: customer, aggregate: distinct, of: merchant_id, window: 1d}
  - {name: frauds, entity: customer, aggregate: fraud_count, window: 7d}
"""
POLICY = """
name: columns
flag: {score: 0.5}
rules: [{name: large, when: [{feature: amount, at_least: 900}], then: flag, reason: LARGE}]
lists: [{name: blocked, field: ip, then: flag, reason: BLOCKED, values: ["192.0.2.7"]}]
"""
ODD_TEXTS = (
    "", " ", "c1", "c2", 'quote"', "back\\slash", "tab\tinside", "\x7f", "\x1f", "é" * 128, "é" * 129, "x" * 128,
    "x" * 129, "4111111111111111", "4111-1111 1111-1111", "4222222222222", "1234567890123", "00000000000000000000",
    "Ａ", "\U0001f600", "0", "-5", "742", "5411", "true", "1e3", "EUR", "pos", "de", "DE", "::1", "192.0.2.7",
    "256.1.1.1", "1.2.3.04",
)  # fmt: skip
WHOLE = (
    0, 1, -1, 5, 742, 5411, 99_999, 10**11, 10**12 - 1, 10**12, 4_111_111_111_111_111, 2**53 + 1, 2**63 - 1, -(2**63),
)  # fmt: skip
FRACTIONS = (
    0.0, -0.0, 57.16, 0.1, 1.005, 57.1600000001, 57.161, 1e9 + 0.01, 83_886.09, 9_999_999_999.99, 1e15, -1.5, 90.0,
    90.5, 180.0, float("nan"), float("inf"), float("-inf"), 4111111111111111.0, 5e-324,
)  # fmt: skip


@st.composite
def cells(draw: st.DrawFn, n: int, usual: st.SearchStrategy[Any], odd: st.SearchStrategy[Any]) -> list[Any]:
    """A column's values: mostly usual ones, so that rows are accepted, now and then something odd or nothing."""
    oddness = draw(st.sampled_from([0, 0, 1, 4]))
    return [
        draw(odd if draw(st.integers(0, 19)) < oddness else usual) if draw(st.integers(0, 11)) else None
        if oddness
        else draw(usual)
        for _ in range(n)
    ]  # fmt: skip


def one_of(*kinds: pa.DataType) -> st.SearchStrategy[pa.DataType]:
    return st.sampled_from(kinds)


def texts(n: int, usual: list[str]) -> st.SearchStrategy[pa.Array]:
    def typed(values: list[Any], kind: str) -> pa.Array:
        column = pa.array(values, pa.string())
        return (
            column.dictionary_encode()
            if kind == "dictionary"
            else column.cast(pa.large_string() if kind == "large" else pa.string())
        )

    odd = st.sampled_from(ODD_TEXTS)
    return st.builds(
        typed, cells(n, st.sampled_from(usual), odd), st.sampled_from(["plain", "plain", "large", "dictionary"])
    )


def whole(n: int, usual: list[int], *kinds: pa.DataType) -> st.SearchStrategy[pa.Array]:
    def typed(values: list[Any], kind: pa.DataType) -> pa.Array:
        info = np.iinfo(kind.to_pandas_dtype())
        return pa.array([v if v is None or info.min <= v <= info.max else None for v in values], kind)

    return st.builds(typed, cells(n, st.sampled_from(usual), st.sampled_from(WHOLE)), one_of(*kinds))


def fractions(n: int, usual: list[float]) -> st.SearchStrategy[pa.Array]:
    def typed(values: list[Any], kind: pa.DataType) -> pa.Array:
        with np.errstate(over="ignore"):
            return pa.array([None if v is None else kind.to_pandas_dtype()(v) for v in values], kind)

    odd = st.one_of(st.sampled_from(FRACTIONS), st.integers(0, 10**13).map(lambda cents: cents / 100))
    return st.builds(typed, cells(n, st.sampled_from(usual), odd), one_of(pa.float64(), pa.float64(), pa.float32()))


def decimals(n: int) -> st.SearchStrategy[pa.Array]:
    usual = st.integers(0, 10**6).map(lambda cents: Decimal(cents) / 100)
    odd = st.sampled_from([Decimal("0.007"), Decimal(-1), Decimal(10) ** 10, Decimal("99999999999.9999"), Decimal(0)])
    return st.builds(pa.array, cells(n, usual, odd), one_of(pa.decimal128(24, 4), pa.decimal128(30, 6)))


def numeric_texts(n: int) -> st.SearchStrategy[pa.Array]:
    usual = st.sampled_from(["57.16", "1200", "0.5", "1e2", "900.00"])
    return cells(n, usual, st.sampled_from(["", "1,5", "-3", "0.007", "1e400", "EUR"])).map(
        lambda v: pa.array(v, pa.string())
    )


def times(n: int) -> st.SearchStrategy[pa.Array]:
    ms = st.integers(0, 3 * 86_400_000).map(lambda t: START_MS + t)
    odd = st.sampled_from(
        [0, -5, 946_684_799_999, 3_999_999_999_999, 4_000_000_000_000, START_MS // 1000, START_MS * 1000]
    )
    zones = one_of(
        *(pa.timestamp(unit, tz) for unit in ("s", "ms", "us", "ns") for tz in (None, "UTC", "Europe/Berlin"))
    )

    def stamped(values: list[Any], kind: pa.DataType) -> pa.Array:
        per_ms = {"s": 1 / 1000, "ms": 1, "us": 1_000, "ns": 1_000_000}[kind.unit]
        ticks = [None if v is None or abs(v) > 5e12 else int(v * per_ms) for v in values]
        return pa.array(ticks, pa.int64()).cast(kind)

    numbers = cells(n, ms, odd)
    written = cells(
        n,
        ms.map(lambda t: str(np.datetime64(t, "ms")) + "Z"),
        st.sampled_from(["2026-01-01", "2026-01-01 10:00:00+01:00", "1767225600", "1767225600123.7", "", "1999-12-31"]),
    )
    return st.one_of(
        st.builds(stamped, numbers, zones),
        numbers.map(lambda v: pa.array(v, pa.int64())),
        written.map(lambda v: pa.array(v, pa.string())),
    )


@st.composite
def tables(draw: st.DrawFn) -> tuple[pa.Table, Mapping]:
    """A table of payments with columns of any type that could hold their fields, and the mapping for it."""
    n = draw(st.integers(1, 24))
    usual_ids = [f"p{i}" for i in range(40)]
    columns: dict[str, pa.Array] = {}
    mapping: dict[str, Any] = {}

    def use(name: str, strategy: st.SearchStrategy[pa.Array]) -> None:
        columns[name], mapping[name] = draw(strategy), name

    use(
        "payment_id",
        st.one_of(texts(n, usual_ids), texts(n, usual_ids), whole(n, list(range(30)), pa.int64(), pa.int32())),
    )
    use("event_time", times(n))
    if draw(st.booleans()):
        mapping["currency"] = {"constant": draw(st.sampled_from(["EUR", "EUR", "JPY", "GBP", "eur"]))}
    else:
        use("currency", texts(n, ["EUR", "EUR", "USD", "JPY", "KWD"]))
    money = fractions(n, [57.16, 12.0, 900.0, 0.01, 1234.5])
    if draw(st.integers(0, 3)):
        use(
            "amount",
            st.one_of(money, money, decimals(n), whole(n, [5, 12, 1200], pa.int64(), pa.int16()), numeric_texts(n)),
        )
    else:
        use(
            "amount_minor",
            st.one_of(whole(n, [5716, 1, 99_999], pa.int64(), pa.uint64()), fractions(n, [5716.0, 12.0])),
        )
    use(
        "customer_id",
        st.one_of(texts(n, ["c1", "c2", "c3"]), whole(n, [1, 2, 3], pa.int64(), pa.uint32()), fractions(n, [1.0, 2.0])),
    )
    for name, strategy in (
        ("merchant_id", texts(n, ["m1", "m2"])),
        ("channel", texts(n, ["pos", "ecom"])),
        ("ip", texts(n, ["192.0.2.7", "2001:db8::17"])),
        ("mcc", st.one_of(texts(n, ["5411"]), whole(n, [742, 5411], pa.int16(), pa.int64()))),
        ("country", texts(n, ["DE", "FR"])),
        ("latitude", st.one_of(fractions(n, [48.25, -3.5]), whole(n, [48, 90], pa.int32()))),
    ):
        if draw(st.booleans()):
            use(name, strategy)
    attributes: dict[str, Any] = {}
    anything = st.one_of(
        fractions(n, [3.0, 0.25]), whole(n, [3, 0], pa.int64(), pa.uint64()), texts(n, ["yes", "no"]),
        cells(n, st.booleans(), st.booleans()).map(lambda v: pa.array(v, pa.bool_())), times(n),
    )  # fmt: skip
    for name in ("basket", "gift"):
        if draw(st.booleans()):
            columns[f"of_{name}"] = draw(anything)
            attributes[name] = f"of_{name}"
    if draw(st.booleans()):
        columns["fraud"] = draw(
            st.one_of(
                whole(n, [0, 1], pa.int8()),
                cells(n, st.booleans(), st.booleans()).map(lambda v: pa.array(v, pa.bool_())),
                cells(n, st.sampled_from(["0", "1", "true"]), st.sampled_from(["", "maybe"])).map(
                    lambda v: pa.array(v, pa.string())
                ),
            )
        )
        mapping |= {"label": "fraud", "label_delay": draw(st.sampled_from(["0s", "6h", "30000d"]))}
    mapping["order_by"] = draw(st.sampled_from(["event_time", "file"]))
    return pa.table(columns), Mapping.model_validate(mapping | ({"attributes": attributes} if attributes else {}))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    rng = np.random.default_rng(3)
    X = rng.lognormal(2, 2, (500, 8)).astype(np.float32)
    X[rng.random(X.shape) < 0.2] = np.nan
    y = (np.nan_to_num(X[:, 0]) + np.nan_to_num(X[:, 4]) > 15).astype(np.float32)
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 3, "nthread": 1}, xgboost.DMatrix(X, y), 8)
    folder = tmp_path_factory.mktemp("columns") / "bundle"
    write_bundle(
        folder, name="columns", created_at="2026-01-01T00:00:00Z", model=bytes(booster.save_raw("ubj")),
        feature_set_yaml=FEATURES, policy_yaml=POLICY, threshold_score=0.5,
        golden=golden_rows(bytes(booster.save_raw("ubj"))),
    )  # fmt: skip
    return Bundle.load(folder)


def outcome_of(outcomes: Outcomes) -> tuple[Any, ...]:
    """Everything that came of a batch, comparable; the journal's digest covers every bit of the audit columns."""
    return (
        outcomes.journal, outcomes.rows.tolist(), list(outcomes.payments.rows), outcomes.bundles, outcomes.rejected,
        outcomes.rejected_control, outcomes.duplicates, outcomes.conflicts, outcomes.late,
        outcomes.columns.features.tobytes(),
    )  # fmt: skip


def either(bundle: Bundle, batches: Callable[[], Iterator[LabelledBatch]]) -> list[Any]:
    """What comes of the batches, or the error at opening the file."""
    try:
        return decided(bundle, batches())
    except FraudScorerError as exc:
        return [type(exc), str(exc)]


def decided(bundle: Bundle, batches: Iterator[LabelledBatch]) -> list[Any]:
    """What comes of each batch; at the end perhaps the error that reading ended with."""
    pipeline, found = Pipeline(bundle), []
    try:
        for batch in batches:
            outcomes = pipeline.run(batch.batch)
            found.append((outcome_of(outcomes), batch.label.tolist(), batch.label_known_at_ms.tolist()))
    except FraudScorerError as exc:
        found.append((type(exc), str(exc)))
    return [*found, pipeline.engine.counts()]


class AsJson(Records):
    """Rows as JSON, decoded as those of a topic; without those that the mapping refuses."""

    def decode(self, cards: CardFields = UNDECLARED) -> PaymentBatch:
        found = decode_payments(self.values, self.keys, cards=cards)
        refused = REFUSED.get(id(self.values), {})
        found.rejects = [Reject(i, refused.get(i, error)) for i, error in found.rejects]
        return found


# By the list of a block's values: the rows that the mapping refuses, and why.
REFUSED: dict[int, dict[int, ContractError]] = {}
KEPT: list[list[bytes | None]] = []


def as_json(path: Path, mapping: Mapping) -> Iterator[LabelledBatch]:
    file = PaymentFile(path, mapping, OPTIONS)

    def blocks() -> Iterator[DecodedBlock]:
        for batch in file.batches(ROWS_PER_BLOCK):
            codes = batch.column("refused").to_pylist()
            values = [
                None if code else value for code, value in zip(codes, json_values(file.facts, batch), strict=True)
            ]
            KEPT.append(values)
            REFUSED[id(values)] = {i: file.facts.refusal(code) for i, code in enumerate(codes) if code}
            block = json_block(file.facts, batch)
            customers = batch.column("customer_id").to_pylist()
            nothing = np.zeros(len(values), np.int64)
            keys = [None if customer is None else customer.encode() for customer in customers]
            records = AsJson(nothing.astype(np.int32), nothing, nothing, keys, values)
            control = [ControlRecord(i, None, value) for i, value in enumerate(label_records(block))]
            label = np.full(len(values), -1, np.int8)
            known_at = np.full(len(values), -1, np.int64)
            good = np.array(codes) == 0
            label[good], known_at[good] = block.label, block.label_known_at_ms
            yield DecodedBlock(records, control, label, known_at, batch.column("row").to_numpy())

    return chained(blocks())


@settings(max_examples=EXAMPLES, **FORM)
@given(table_and_mapping=tables(), form=st.sampled_from(["parquet", "parquet", "csv"]))
def test_columns_decide_as_json_does(bundle: Bundle, table_and_mapping: tuple[pa.Table, Mapping], form: str) -> None:
    """A file read as columns gives the same decisions, features, refusals, labels and errors as its rows in JSON."""
    table, mapping = table_and_mapping
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / f"payments.{form}"
        if form == "parquet":
            pq.write_table(table, path)
        else:
            pa_csv.write_csv(
                pa.table(
                    {
                        k: v.combine_chunks().dictionary_decode() if pa.types.is_dictionary(v.type) else v
                        for k, v in zip(table.column_names, table.columns, strict=True)
                    }
                ),
                path,
            )
        expected = either(bundle, lambda: as_json(path, mapping))
        assert either(bundle, lambda: file_batches(path, mapping, rows=ROWS_PER_BLOCK, options=OPTIONS)) == expected
        KEPT.clear()
        REFUSED.clear()


@settings(max_examples=EXAMPLES // 3, **FORM)
@given(table_and_mapping=tables())
def test_records_of_columns_can_still_be_had_as_bytes(table_and_mapping: tuple[pa.Table, Mapping]) -> None:
    """Keys, values and label records of a block of columns are those that the file's rows have as JSON."""
    table, mapping = table_and_mapping
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "payments.parquet"
        pq.write_table(table, path)
        try:
            plain = list(read_payments(path, mapping, ROWS_PER_BLOCK, OPTIONS))
        except FraudScorerError:
            return
        blocks = decoded_blocks(path, mapping, ROWS_PER_BLOCK, options=OPTIONS)
        for block, found in zip(plain, blocks, strict=True):
            good = np.flatnonzero(np.isin(found.row, block.row)).tolist()
            assert [found.records.values[i] for i in good] == block.values
            assert [found.records.keys[i] for i in good] == block.keys
            assert [record.value for record in found.labels] == label_records(block)


def test_most_rows_need_no_json(tmp_path: Path) -> None:
    """A usual file with a few odd rows makes JSON of those alone, and none is made for its labels."""
    n = 1000
    ids = [f"p{i}" for i in range(n)]
    ids[3], ids[500] = 'quote"d', "x" * 1_000
    table = pa.table(
        {
            "id": ids,
            "at": pa.array(START_MS + np.arange(n), pa.timestamp("ms")),
            "paid": np.full(n, 9.99),
            "fraud": np.zeros(n, np.int8),
        }
    )
    pq.write_table(table, tmp_path / "usual.parquet")
    mapping = Mapping.from_yaml(
        "payment_id: id\nevent_time: at\namount: paid\ncurrency: {constant: EUR}\nlabel: fraud\n"
    )
    (batch,) = file_batches(tmp_path / "usual.parquet", mapping)
    payments = batch.batch.records.decode()
    assert [r.index for r in payments.rejects] == [500]
    assert payments.index.tolist() == [i for i in range(n) if i != 500]
    assert payments.rows[3] == PaymentRow('quote"d', START_MS + 3, 999, "EUR")
    assert sum(label is not None for label in batch.batch.known_labels) == n - 2


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    """A Parquet text that is not UTF-8 is an error that names the file."""
    raw = pa.array([b"p1", b"\xff\xfe"], pa.binary())
    table = pa.table(
        {"id": raw.view(pa.string()), "at": pa.array([START_MS] * 2, pa.timestamp("ms")), "paid": [1.0, 2.0]}
    )
    pq.write_table(table, tmp_path / "bad.parquet")
    mapping = Mapping.from_yaml("payment_id: id\nevent_time: at\namount: paid\ncurrency: {constant: EUR}\n")
    for read in (read_payments, file_batches):
        with pytest.raises(FileError, match=r"bad\.parquet: .*not UTF-8"):
            list(read(tmp_path / "bad.parquet", mapping))  # type: ignore[operator]
