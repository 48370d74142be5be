"""Labels of repeated payments, corrected labels and rows without one mean the same in features, target and backtest."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st

from features.feature_set import FeatureSet
from scorer.backtest.decided_payments import Decided
from scorer.bundle import Bundle, write_bundle
from scorer.cli import label_commands
from scorer.errors import UsageError
from scorer.files.mapping import Mapping
from scorer.files.payment_file import ReadOptions
from scorer.pipeline.card_keys import PseudonymKeys, cards_of
from scorer.replay import TrainingTable, file_batches, replay_file, training_table
from scorer.runtime.assets import path

FEATURE_SET = """
name: cards
currency: EUR
entities: {terminal: [terminal_id]}
features:
  - {name: amount, payment: amount}
  - {name: terminal_frauds_30d, entity: terminal, aggregate: fraud_count, window: 30d}
"""
MAPPING = Mapping.from_yaml("""
payment_id: id
event_time: at
amount: paid
currency: {constant: EUR}
terminal_id: terminal
label: fraud
label_delay: 1d
""")
DAY_MS = 86_400_000
RATES = """rates:
  version: test-1
  per_unit: {GBP: 1.16, CHF: 1.05, SEK: 0.088, PLN: 0.235, USD: 0.92, TRY: 0.024, THB: 0.026, JPY: 0.0061}"""
# payment, day, label; one terminal. The last row looks at what is known by then.
HISTORY: dict[str, tuple[list[tuple[str, int, int | None]], dict[str, int], int]] = {
    "a repeated row brings the label": ([("p", 0, None), ("p", 2, 1), ("q", 5, 0)], {"p": 1, "q": 0}, 1),
    "a repeated row corrects the label": ([("p", 0, 0), ("p", 2, 1), ("q", 5, 0)], {"p": 1, "q": 0}, 1),
    "a correction takes a fraud back": ([("p", 0, 1), ("p", 2, 0), ("q", 5, 0)], {"p": 0, "q": 0}, 0),
    "a repeated row without a label changes nothing": ([("p", 0, 1), ("p", 2, None), ("q", 5, 0)], {"p": 1, "q": 0}, 1),
    "of one time the later row counts": ([("p", 0, 0), ("p", 0, 1), ("q", 5, 0)], {"p": 1, "q": 0}, 1),
    "without a label a payment is neither": ([("p", 0, None), ("r", 1, 1), ("q", 5, 0)], {"p": -1, "r": 1, "q": 0}, 1),
}


def _file(folder: Path, history: list[tuple[str, int, int | None]]) -> Path:
    ids, days, labels = zip(*history, strict=True)
    times = pa.array([1_767_225_600_000 + day * DAY_MS for day in days], pa.timestamp("ms", tz="UTC"))
    table = {"id": ids, "at": times, "paid": [5.0] * len(ids), "terminal": ["t"] * len(ids)}
    pq.write_table(pa.table(table | {"fraud": pa.array(labels, pa.int8())}), folder / "history.parquet")
    return folder / "history.parquet"


def _table(file: Path, rows: int = 16_384, as_of_ms: int | None = None) -> TrainingTable:
    return training_table(FeatureSet.from_yaml(FEATURE_SET), file_batches(file, MAPPING, rows=rows), as_of_ms=as_of_ms)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    X = np.random.default_rng(1).normal(size=(200, 2)).astype(np.float32)
    booster = xgb.train({"objective": "binary:logistic", "nthread": 1}, xgb.DMatrix(X, X[:, 0] > 1, nthread=1), 2)
    return write_bundle(
        tmp_path_factory.mktemp("labels") / "b", name="cards", created_at="x", model=bytes(booster.save_raw("ubj")),
        feature_set_yaml=FEATURE_SET, policy_yaml="name: cards\nflag: {score: 0.5}\n", threshold_score=0.5,
        golden=(X[:20], booster.inplace_predict(X[:20], predict_type="margin")),
    )  # fmt: skip


@pytest.mark.parametrize("batch_rows", [1, 16_384])
@pytest.mark.parametrize("case", HISTORY)
def test_features_target_and_backtest_agree_on_a_label(
    case: str, batch_rows: int, tmp_path: Path, bundle: Bundle
) -> None:
    """What the windows count as fraud is what the model learns as fraud and what the backtest counts as fraud, whatever
    the file says in however many rows."""
    history, wanted, counted = HISTORY[case]
    file = _file(tmp_path, history)
    table = _table(file, batch_rows)
    assert dict(zip(table.payment_id, table.label.tolist(), strict=True)) == wanted
    assert table.features[-1, 1] == counted
    replay_file(bundle, file, MAPPING, tmp_path / "decided.parquet")
    decided = Decided.read(tmp_path / "decided.parquet", bundle.feature_set.names, "EUR", {"EUR": 1.0})
    assert dict(zip(decided.texts("payment_id"), decided.label.tolist(), strict=True)) == wanted
    assert decided.numbers("label_known_at").tolist() == table.label_known_at_ms.tolist()


def test_a_correction_counts_from_the_time_it_is_known(tmp_path: Path, bundle: Bundle) -> None:
    """Trained or measured as of a day before the correction, a payment has the label of that day."""
    file = _file(tmp_path, [("p", 0, 0), ("p", 2, 1), ("q", 5, 0)])
    replay_file(bundle, file, MAPPING, tmp_path / "decided.parquet")
    decided = Decided.read(tmp_path / "decided.parquet", bundle.feature_set.names, "EUR", {"EUR": 1.0})
    start = int(decided.time_ms[0])
    for as_of, wanted in ((2 * DAY_MS, {"p": 0}), (4 * DAY_MS, {"p": 1}), (6 * DAY_MS, {"p": 1, "q": 0})):
        matured = decided.matured(start + as_of)
        assert dict(zip(matured.texts("payment_id"), matured.label.tolist(), strict=True)) == wanted
        table = _table(file, as_of_ms=start + as_of)
        known = {name: label for name, label in zip(table.payment_id, table.label.tolist(), strict=True) if label >= 0}
        assert known == wanted


@settings(max_examples=15, deadline=None)
@given(
    st.permutations([(p, day, day % 3 == 0) for p in range(4) for day in range(1 + p, 9 + p, 2)]), st.integers(0, 12)
)
def test_labels_of_a_file_count_in_order_of_known_at(labels: list[tuple[int, int, bool]], count: int) -> None:
    """Whatever order a label file has, windows and target hold what became known last, in batches of any size."""
    holds = {
        p: max(known)[1] for p in range(4) if (known := [(day, fraud) for q, day, fraud in labels[:count] if q == p])
    }
    start = 1_767_225_600_000
    payment = {"amount_minor": 500, "currency": "EUR", "terminal_id": "t"}
    lines = [
        payment | {"payment_id": f"p{n}", "event_time": start + day * DAY_MS} for n, day in enumerate([0, 1, 2, 3, 20])
    ]
    known = [
        {"type": "label", "payment_id": f"p{p}", "fraud": fraud, "known_at": start + day * DAY_MS}
        for p, day, fraud in labels[:count]
    ]
    known.append({"type": "label", "payment_id": "p4", "fraud": False, "known_at": start + 21 * DAY_MS})
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name) / each for each in ("payments.jsonl", "labels.jsonl")]
        for file, records in zip(files, (lines, known), strict=True):
            file.write_text("".join(json.dumps(record) + "\n" for record in records))
        for rows in (1, 3, 16_384):
            batches = file_batches(files[0], None, labels=files[1], rows=rows)
            table = training_table(FeatureSet.from_yaml(FEATURE_SET), batches)
            assert table.label[:4].tolist() == [int(holds.get(p, -1)) for p in range(4)]
            assert table.features[-1, 1] == sum(holds.values())


def _simulated(tmp_path: Path, *more: str) -> None:
    world = ["--customers", "200", "--count", "4000", "--from", "2025-01-01"]
    command = [sys.executable, "-m", "scorer", "simulate", *world, *more]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_what_simulate_writes_can_be_trained_on(tmp_path: Path) -> None:
    """A table fits the demo's mapping, column for column; label records beside JSON lines give the same frauds."""
    _simulated(tmp_path, "--output", "h.parquet")
    _simulated(tmp_path, "--output", "h.jsonl", "--labels", "l.jsonl")
    declared = FeatureSet.from_yaml(FEATURE_SET.replace("currency: EUR", f"currency: EUR\n{RATES}"))
    mapping = Mapping.from_yaml(Path(path("deploy/examples/demo/mapping.yaml")))
    table = training_table(declared, file_batches(tmp_path / "h.parquet", mapping))
    lines = training_table(declared, file_batches(tmp_path / "h.jsonl", None, labels=tmp_path / "l.jsonl"))
    assert table.payment_id == lines.payment_id
    assert table.report.payments == 4_000
    assert not table.report.dead_letters
    assert (lines.label < 0).any()
    everything = lines.genuine_after(7 * DAY_MS)
    assert ((everything.label == 1) == (table.label == 1)).all()
    assert (table.label == 1).sum() > 5
    (tmp_path / "none.jsonl").write_text('{"type":"label","payment_id":"x","fraud":true,"known_at":1767225600000}\n')
    with pytest.raises(UsageError, match="none of the 1 payments there is one of the payments read"):
        training_table(declared, file_batches(tmp_path / "h.jsonl", None, labels=tmp_path / "none.jsonl"))
    (tmp_path / "bad.jsonl").write_text('\n{"type":"label","payment_id":"x"}\n')
    with pytest.raises(UsageError, match=r"bad\.jsonl:2: "):
        training_table(declared, file_batches(tmp_path / "h.jsonl", None, labels=tmp_path / "bad.jsonl"))
    with pytest.raises(UsageError, match="the mapping names a label too"):
        training_table(declared, file_batches(tmp_path / "h.parquet", mapping, labels=tmp_path / "l.jsonl"))


@pytest.mark.parametrize("rule", ["opaque", "token"])
def test_a_label_file_finds_the_payments_that_the_declared_fields_let_in(tmp_path: Path, rule: str) -> None:
    """A customer's id that could be a card number is declared: the payment is taken, and so are its labels. Labels of
    payments that are not there are counted."""
    declared = FeatureSet.from_yaml(FEATURE_SET + f"card_numbers: {{customer_id: {rule}}}\n")
    payments = [
        {"payment_id": f"4{n:03d}000000000000", "event_time": 1_767_225_600_000 + n * DAY_MS, "amount_minor": 500,
         "currency": "EUR", "terminal_id": "t", "customer_id": "4111111111111111"}
        for n in range(3)
    ]  # fmt: skip
    (tmp_path / "payments.jsonl").write_text("".join(json.dumps(payment) + "\n" for payment in payments))
    label = {"type": "label", "fraud": True, "known_at": 1_767_225_600_000 + DAY_MS}
    named = [payments[0]["payment_id"], "no-payment"]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(label | {"payment_id": each}) + "\n" for each in named))
    unmatched: list[int] = []
    batches = file_batches(
        tmp_path / "payments.jsonl",
        None,
        cards=cards_of(declared, PseudonymKeys((b"k" * 32,))),
        labels=tmp_path / "labels.jsonl",
        options=ReadOptions(labels_unmatched=unmatched.append),
    )
    table = training_table(declared, batches, source=tmp_path / "payments.jsonl", keys=PseudonymKeys((b"k" * 32,)))
    assert (table.label.tolist(), table.features[:, 1].tolist()) == ([1, -1, -1], [0.0, 1.0, 1.0])
    assert unmatched == [1]


def test_a_file_of_labels_is_read_whatever_a_spreadsheet_writes_before_it(tmp_path: Path) -> None:
    """The byte-order mark of a spreadsheet is no part of a name; what is not UTF-8 is refused with the way out."""
    text = "payment_id,fraud,analyst\np1,fraud,Müller\n"
    for name in ("labels.csv", "labels.jsonl"):
        line = '{"payment_id": "p1", "fraud": true, "analyst": "Müller"}\n' if name.endswith("l") else text
        (tmp_path / name).write_text(line, encoding="utf-8-sig")
        ((_, found),) = label_commands._lines(tmp_path / name)
        assert found == {"payment_id": "p1", "fraud": True, "analyst": "Müller"}
        (tmp_path / name).write_text(line, encoding="cp1252")
        with pytest.raises(UsageError, match=r"not UTF-8 .* iconv -f cp1252"):
            list(label_commands._lines(tmp_path / name))
