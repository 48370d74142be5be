"""The risk team's commands, end to end on files: train, replay, backtest, what-if."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from scorer.bundle import Bundle
from scorer.cli import app
from scorer.errors import FraudScorerError, UsageError
from scorer.files.mapping import Mapping
from scorer.replay import part_files, replay_file, replay_output
from scorer.training import threshold_for_share

pytest.importorskip("xgboost")

DAY_MS = 86_400_000
START_MS = 1_704_067_200_000
FEATURE_SET = """
name: shop
currency: EUR
entities: {customer: [customer_id], terminal: [terminal_id]}
features:
  - {name: amount, payment: amount}
  - {name: customer_mean_7d, entity: customer, aggregate: mean, of: amount, window: 7d}
  - {name: amount_to_mean, ratio: [amount, customer_mean_7d]}
  - {name: terminal_rate_14d, entity: terminal, aggregate: fraud_rate, window: 14d, delay: 2d}
"""
POLICY = """
name: shop
flag: {share: 0.02}
reasons:
  - {code: AMOUNT, sentence: "Unusual amount.", features: [amount, customer_mean_7d, amount_to_mean]}
  - {code: TERMINAL, sentence: "Risky terminal.", features: [terminal_rate_14d]}
"""
OTHER_POLICY = """
name: stricter
flag: {share: 0.05}
rules:
  - {name: tiny, when: [{feature: amount, below: 3}], then: flag, reason: TINY}
lists:
  - {name: blocked, field: terminal_id, then: flag, reason: BLOCKED, values: [t7]}
"""
MAPPING = """
payment_id: id
event_time: at
amount: amount
currency: {constant: EUR}
customer_id: customer
terminal_id: terminal
channel: channel
label: fraud
label_delay: 2d
"""


def _write_history(path: Path, payments: int = 12_000) -> pa.Table:
    """60 days, 200 customers, 40 terminals; fraud: five times the usual amount, or half of a terminal for five days."""
    rng = np.random.default_rng(5)
    at = np.sort(rng.integers(0, 60 * DAY_MS, payments)) + START_MS
    customer, terminal = rng.integers(0, 200, payments), rng.integers(0, 40, payments)
    usual = 5 + 60 * np.random.default_rng(6).random(200)
    day = (at - START_MS) // DAY_MS
    stolen = rng.random(payments) < 0.02
    compromised = (terminal == day // 5) & (rng.random(payments) < 0.5)
    amount = np.round(usual[customer] * rng.lognormal(0, 0.3, payments) * np.where(stolen, 5, 1), 2)
    table = pa.table(
        {
            "id": [f"p{i}" for i in range(payments)],
            "at": pa.array(at, pa.timestamp("ms")),
            "amount": amount,
            "customer": [f"c{i}" for i in customer],
            "terminal": [f"t{i}" for i in terminal],
            "channel": np.where(terminal < 20, "pos", "ecom"),
            "fraud": (stolen | compromised).astype(np.int8),
        }
    )
    pq.write_table(table, path)
    return table


def _run(*arguments: str, refused: bool = False) -> dict[str, Any]:
    done = CliRunner().invoke(app, list(arguments))
    if refused:
        assert isinstance(done.exception, FraudScorerError), done.output
        return {"error": str(done.exception)}
    if done.exception is not None:
        raise done.exception
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("risk")
    _write_history(folder / "history.parquet")
    for name, text in (("set", FEATURE_SET), ("policy", POLICY), ("other", OTHER_POLICY), ("mapping", MAPPING)):
        (folder / f"{name}.yaml").write_text(text)
    trained = _run(
        "train", "--feature-set", f"{folder}/set.yaml", "--policy", f"{folder}/policy.yaml",
        "--input", f"{folder}/history.parquet", "--mapping", f"{folder}/mapping.yaml", "--from", "2024-01-05",
        "--threads", "1",
        "--until", "2024-02-10", "--label-gap", "2d", "--output", f"{folder}/bundle", "--report", f"{folder}/t.json",
        "--json",
    )  # fmt: skip
    assert trained["average_precision"] > 0.5
    report = json.loads((folder / "t.json").read_text())
    assert {row["name"] for row in report["features"]} == set(re.findall(r"name: (\w+),", FEATURE_SET))
    assert report["history"]["labels_unmatched"] == trained["labels_unmatched"] == 0
    assert {"labels_refused", "labels_invalid"} <= report["history"].keys() & trained.keys()
    replayed = _run(
        "replay", "--bundle", f"{folder}/bundle", "--input", f"{folder}/history.parquet", "--mapping",
        f"{folder}/mapping.yaml", "--output", f"{folder}/decided.parquet", "--json",
    )  # fmt: skip
    assert replayed["decisions"] == replayed["payments"] == 12_000
    return folder


def _backtest(place: Path, output: str, *more: str) -> dict[str, Any]:
    return _run(
        "backtest", "--bundle", f"{place}/bundle", "--input", f"{place}/history.parquet", "--mapping",
        f"{place}/mapping.yaml", "--from", "2024-02-12", "--alerts", "10", "--cards", "5", "--rounds", "50",
        "--output", f"{place}/{output}", "--json", *more,
    )  # fmt: skip


def test_backtest_counts_matured_payments_only(place: Path) -> None:
    """Figures are recounted from the replay's own output: labels known by the last event time, from --from on."""
    result = _backtest(place, "plain.html")
    rows = pq.read_table(place / "decided.parquet")
    time_ms = rows["event_time"].cast(pa.int64()).to_numpy()
    known_ms = rows["label_known_at"].cast(pa.int64()).to_numpy()
    kept = (time_ms >= 1_707_696_000_000) & (known_ms <= time_ms.max())
    fraud = rows["label"].to_numpy()[kept] == 1
    flagged = np.array(rows["decision"].to_pylist())[kept] == "flag"
    minor = rows["amount_minor"].to_numpy()[kept]
    side = result["sides"][0]
    assert result["matured"] == kept.sum() == side["payments"]
    assert result["matured"] < result["payments"]
    assert side["flagged"] == flagged.sum()
    assert side["recall"] == pytest.approx((fraud & flagged).sum() / fraud.sum())
    assert side["money_caught"] == pytest.approx(minor[fraud & flagged].sum() / 100)
    assert side["money_blocked"] == pytest.approx(minor[~fraud & flagged].sum() / 100)
    low, high = side["intervals"]["recall"]
    assert low <= side["recall"] <= high


def test_the_page_is_one_file_that_loads_nothing(place: Path) -> None:
    """The HTML names no address and no other file; its numbers stand beside it as Parquet."""
    result = _backtest(place, "page.html", "--policy", f"{place}/other.yaml")
    page = (place / "page.html").read_text()
    addresses = set(re.findall(r"https?://[^\"' )]+", page)) - {
        "http://www.w3.org/2000/svg"
    }  # a namespace, never loaded
    assert not addresses
    assert not re.search(r"<(link|img|iframe|script[^>]*\ssrc)", page)
    for name in ("overall", "days", "segments", "sweep", "calibration", "drift", "changes"):
        assert pq.read_table(place / "page_numbers" / f"{name}.parquet").num_rows > 0
    assert result["decided_otherwise"] == pq.read_metadata(place / "page_numbers" / "changes.parquet").num_rows


def test_what_if_equals_deciding_again(place: Path) -> None:
    """Another policy on stored margins decides each payment by its score, features and lists, as its text says."""
    result = _run(
        "what-if", "--bundle", f"{place}/bundle", "--decided", f"{place}/decided.parquet", "--policy",
        f"{place}/other.yaml", "--output", f"{place}/what.html", "--rounds", "20", "--json",
    )  # fmt: skip
    changes = pq.read_table(place / "what_numbers" / "changes.parquet")
    assert result["decided_otherwise"] == changes.num_rows > 0
    stored = {row["payment_id"]: row for row in pq.read_table(place / "decided.parquet").to_pylist()}
    threshold = threshold_for_share(np.array([row["score"] for row in stored.values()]), 0.05)
    changed = {row["payment_id"]: row for row in changes.to_pylist()}
    for payment_id, row in stored.items():
        wanted = row["score"] >= threshold or row["amount"] < 3 or row["terminal_id"] == "t7"
        is_flagged = (
            changed[payment_id]["decision_after"] == "flag" if payment_id in changed else row["decision"] == "flag"
        )
        assert is_flagged == wanted
    blocked = [row for row in changed.values() if "blocked" in row["fired_after"]]
    assert blocked
    assert all("BLOCKED" in row["reasons_after"] for row in blocked)


def test_the_bundles_own_policy_changes_nothing(place: Path) -> None:
    """The threshold that training gave a share stays; only what differs in a policy makes a difference."""
    result = _run(
        "what-if", "--bundle", f"{place}/bundle", "--decided", f"{place}/decided.parquet", "--policy",
        f"{place}/policy.yaml", "--rounds", "20", "--json",
    )  # fmt: skip
    assert result["decided_otherwise"] == 0
    assert result["threshold_score"] == result["threshold_score_before"]


def test_two_bundles_are_compared_payment_by_payment(place: Path) -> None:
    """--against names every payment that the second bundle decides otherwise, with both scores and reasons."""
    _run(
        "train", "--feature-set", f"{place}/set.yaml", "--policy", f"{place}/policy.yaml", "--input",
        f"{place}/history.parquet", "--mapping", f"{place}/mapping.yaml", "--until", "2024-01-25", "--label-gap", "2d",
        "--seed", "9", "--threads", "1", "--output", f"{place}/second", "--json",
    )  # fmt: skip
    result = _backtest(place, "two.html", "--against", f"{place}/second")
    assert [side["name"] for side in result["sides"]] == [p.split()[0] for p in _names(place)]
    changes = pq.read_table(place / "two_numbers" / "changes.parquet").to_pylist()
    assert len(changes) == result["decided_otherwise"]
    assert all(row["decision_before"] != row["decision_after"] for row in changes)


def _names(place: Path) -> list[str]:
    return [_run("bundle", "show", f"{place}/{name}", "--json")["id"] for name in ("bundle", "second")]


def test_a_replay_into_a_folder_goes_on_where_it_was_interrupted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that are complete are kept; the rest is written; all together equal an uninterrupted replay."""
    monkeypatch.setattr(replay_output, "PART_PAYMENTS", 5_000)
    bundle, mapping = Bundle.load(place / "bundle"), Mapping.from_yaml(place / "mapping.yaml")
    folder = place / "parts"

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay_file(bundle, place / "history.parquet", mapping, folder, progress=stop)
    first = {path: path.stat().st_mtime_ns for path in part_files(folder)}
    assert {path.name for path in first} == {"part-00000.parquet", "part-00001.parquet"}
    assert not list(folder.glob("day=*/.*partial"))
    # What a process that was killed leaves behind: a part cut short, and a finished one that is not yet recorded.
    (folder / "day=2024-02-20" / ".part-00002.partial").parent.mkdir(exist_ok=True)
    (folder / "day=2024-02-20" / ".part-00002.partial").write_bytes(b"PAR1")
    (folder / "day=2024-02-20" / "part-00002.parquet").write_bytes(b"PAR1")
    replay_file(bundle, place / "history.parquet", mapping, folder)
    parts = part_files(folder)
    assert {path: path.stat().st_mtime_ns for path in parts if path in first} == first
    by_day = pads.dataset(folder, partitioning="hive", exclude_invalid_files=False, ignore_prefixes=[".", "_"])
    days = by_day.to_table(columns=["day", "event_time"]).to_pylist()
    assert all(str(row["event_time"].date()) == row["day"] for row in days)
    together = pa.concat_tables([pq.ParquetFile(path).read() for path in parts])
    whole = pq.read_table(place / "decided.parquet")
    assert together.num_rows == whole.num_rows
    for name in whole.column_names:  # NaN is not equal to itself: bits are compared
        assert str(together[name].to_pylist()) == str(whole[name].to_pylist())
    later = mapping.model_copy(update={"label_delay": mapping.label_delay + 1})
    with pytest.raises(UsageError, match="holds another replay"):
        replay_file(bundle, place / "history.parquet", later, folder)


def test_what_does_not_fit_is_refused(place: Path) -> None:
    """Another bundle's decisions, a folder of another replay, and no matured label each get their reason."""
    error = _run(
        "what-if", "--bundle", f"{place}/second", "--decided", f"{place}/decided.parquet", "--policy",
        f"{place}/other.yaml", "--json", refused=True,
    )["error"]  # fmt: skip
    assert "replay with" in error
    error = _run(
        "backtest", "--bundle", f"{place}/bundle", "--input", f"{place}/history.parquet", "--mapping",
        f"{place}/mapping.yaml", "--as-of", "2024-01-01", "--output", f"{place}/x.html", refused=True,
    )["error"]  # fmt: skip
    assert "matured" in error or "known by the end" in error
