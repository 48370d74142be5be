"""What `backtest` and `what-if` do with lists, and what they refuse before anything is replayed; on a tiny bundle."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scorer.backtest import Decided, what_if
from scorer.bundle import Bundle, write_bundle
from scorer.cli.backtest_commands import read_decided
from scorer.files.mapping import Mapping
from scorer.policy import Policy
from scorer.replay import replay_file
from tests.command_results import ran

xgb = pytest.importorskip("xgboost")

DAY_MS = 86_400_000
START_MS = 1_767_225_600_000
FEATURE_SET = """
name: tiny
currency: EUR
entities: {terminal: [terminal_id]}
features:
  - {name: amount, payment: amount}
  - {name: terminal_count_7d, entity: terminal, aggregate: count, window: 7d}
"""
BY_COST = "flag: {cost: {currency: EUR, review: 4, good_customer: 15}}"
LISTS = """
lists:
  - {name: devices, field: device_id, then: flag, reason: DEVICE, values: [d1, d2]}
  - {name: terminals, field: terminal_id, then: flag, reason: TERMINAL, values: [t1, t2]}
"""
POLICY = f"name: tiny\n{BY_COST}{LISTS}"
MAPPING = """
payment_id: id
event_time: at
amount: paid
currency: {constant: EUR}
terminal_id: terminal
device_id: device
label: fraud
label_delay: 1d
"""


def _bundle(folder: Path, feature_set: str = FEATURE_SET, policy: str = POLICY) -> Bundle:
    """A model to which a high amount looks like fraud."""
    X = np.random.default_rng(1).uniform(0, 100, (400, 2)).astype(np.float32)
    booster = xgb.train({"objective": "binary:logistic", "nthread": 1}, xgb.DMatrix(X, X[:, 0] > 80, nthread=1), 8)
    return write_bundle(
        folder, name="tiny", created_at="x", model=bytes(booster.save_raw("ubj")), feature_set_yaml=feature_set,
        policy_yaml=policy, threshold_score=0.5, saving_min=0.0 if "cost" in policy else None,
        golden=(X[:20], booster.inplace_predict(X[:20], predict_type="margin")),
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a history of 30 days, a bundle by cost with two lists, and the history as it decides it."""
    folder, n, rng = tmp_path_factory.mktemp("lists"), 900, np.random.default_rng(3)
    paid = np.round(rng.uniform(1, 100, n), 2)
    table = {
        "id": [f"p{i}" for i in range(n)],
        "at": pa.array(np.sort(rng.integers(0, 30 * DAY_MS, n)) + START_MS, pa.timestamp("ms")),
        "paid": paid,
        "terminal": [None if i == 7 else f"t{i % 9}" for i in range(n)],
        "device": [f"d{i % 20}" for i in range(n)],
        "fraud": (rng.random(n) < np.where(paid > 80, 0.7, 0.02)).astype(np.int8),
    }
    pq.write_table(pa.table(table), folder / "history.parquet")
    (folder / "mapping.yaml").write_text(MAPPING)
    (folder / "empty.parquet").touch()
    bundle = _bundle(folder / "bundle")
    replay_file(bundle, folder / "history.parquet", Mapping.from_yaml(MAPPING), folder / "decided.parquet")
    return folder


def _backtest(place: Path, *more: str, file: str = "history.parquet", refused: bool = False) -> dict[str, Any]:
    return ran(
        "backtest", "--bundle", f"{place}/bundle", "--input", f"{place}/{file}", "--mapping", f"{place}/mapping.yaml",
        "--output", f"{place}/page.html", "--rounds", "20", "--json", *more, refused=refused,
    )  # fmt: skip


def _policy(place: Path, text: str) -> list[str]:
    (place / "policy.yaml").write_text(text)
    return ["--policy", f"{place}/policy.yaml"]


def _read(place: Path) -> tuple[Bundle, Decided]:
    bundle = Bundle.load(place / "bundle")
    return bundle, read_decided(bundle, place / "decided.parquet")


def test_a_list_on_a_field_that_is_not_stored_decides_as_it_did(place: Path) -> None:
    """A bundle by cost with a list on device_id is measured, and what the score alone would flag is known, too; another
    threshold leaves the list as it is."""
    bundle, decided = _read(place)
    listed = np.array([int(one[1:]) % 20 in (1, 2) for one in decided.texts("payment_id") if one is not None])
    assert (decided.fired("devices") == listed).all()
    assert _backtest(place)["sides"][0]["money_saved_by_score"] != 0
    assert (what_if(decided, bundle, bundle.policy).decided.flagged == decided.flagged).all()
    tried = what_if(decided, bundle, Policy.from_yaml("name: other\nflag: {score: 0.999}" + LISTS)).decided
    assert (tried.flagged == (decided.fired("devices") | decided.fired("terminals"))).all()
    result = _backtest(place, *_policy(place, "name: other\nflag: {score: 0.999}" + LISTS))
    assert result["sides"][1]["flagged"] > 0


@pytest.mark.parametrize("values", ["[d1, d2, d3]", "[d1]"])
def test_a_list_that_cannot_be_tried_is_refused_before_the_replay(place: Path, values: str) -> None:
    """Other values of a field that stored decisions lack: `backtest` does not read its input, which is no Parquet."""
    given = _policy(place, POLICY.replace("[d1, d2]", values))
    what = ["what-if", "--bundle", f"{place}/bundle", "--decided", f"{place}/decided.parquet", *given]
    for refused in (_backtest(place, *given, file="empty.parquet", refused=True), ran(*what, refused=True)):
        assert re.search("list devices is on device_id, .*leave the list as the bundle has it", refused["error"])


def _as_live(decided: Decided, bundle: Bundle) -> Decided:
    """The payments as decided while t5 was added to list terminals, and t2 removed."""
    terminal = decided.texts("terminal_id")
    live = [value in ("t1", "t5") for value in terminal]
    fired = [
        [*(["devices"] if device else []), *(["terminals"] if there else [])]
        for device, there in zip(decided.fired("devices"), live, strict=True)
    ]
    table = decided.table.set_column(
        decided.table.schema.get_field_index("fired"), "fired", pa.array(fired, pa.list_(pa.string()))
    )
    again = what_if(replace(decided, table=table), bundle, bundle.policy).decided
    assert (again.fired("terminals") == live).all()
    return again


@pytest.mark.parametrize(
    ("values", "then", "wanted"),
    [
        ("[t1, t2]", "flag", "t1 t5"),
        ("[t2, t3]", "flag", "t3 t5"),
        ("[t1, t2]", "approve", "t1 t5"),
        ("[]", "flag", "t5"),
    ],
)
def test_values_added_while_workers_ran_stay_on_their_list(place: Path, values: str, then: str, wanted: str) -> None:
    """A list of the bundle is tried as it was live; what the policy's text adds and leaves out is added and taken."""
    bundle, decided = _read(place)
    decided = _as_live(decided, bundle)
    text = f"name: other\nflag: {{score: 0.9}}{LISTS}".replace("[t1, t2]", values)
    text = text.replace("terminal_id, then: flag", f"terminal_id, then: {then}")
    tried = what_if(decided, bundle, Policy.from_yaml(text)).decided
    on = np.array([value in wanted.split() for value in decided.texts("terminal_id")])
    assert (tried.fired("terminals") == on).all()
    by_score = (decided.score >= 0.9) & (np.array(then == "flag") | ~on)
    assert (tried.flagged == (by_score | (on & np.array(then == "flag")) | decided.fired("devices"))).all()


def test_a_list_that_is_moved_to_another_field_is_noted(place: Path) -> None:
    """Nothing that it had while workers ran is of the new field: the note counts the payments. A field that no payment
    has is noted as well."""
    bundle, decided = _read(place)
    moved = POLICY.replace("{name: terminals, field: terminal_id", "{name: terminals, field: merchant_id")
    notes = what_if(decided, bundle, Policy.from_yaml(moved)).notes
    count = int(decided.fired("terminals").sum())
    assert any(f"the {count} payments on which it fired" in note for note in notes)
    assert any("on merchant_id, which none of the stored payments has" in note for note in notes)
    assert not what_if(decided, bundle, bundle.policy).notes


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--as-of", "yesterday"], "--as-of"),
        (["--as-of", "2026-01-05", "--from", "2026-01-10"], "--as-of 2026-01-05 is before --from"),
        (["--from", "2026-01-10", "--until", "2026-01-10"], "no payment lies between"),
        (["--cost", "{currency: USD, review: 4, good_customer: 15}"], "give the costs in EUR"),
        (["--against", "{place}/yen"], "count in EUR and JPY"),
        (["--policy", "{place}/dollars.yaml"], "give the costs in EUR"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_replay(place: Path, more: list[str], message: str) -> None:
    """The input, which is no Parquet, is not read."""
    if not (place / "yen").exists():
        yen = (FEATURE_SET.replace("EUR", "JPY"), POLICY.replace("EUR", "JPY"))
        _bundle(place / "yen", *yen)
        (place / "dollars.yaml").write_text(POLICY.replace("EUR", "USD"))
    given = [item.format(place=place) if "{place}" in item else item for item in more]
    assert message in _backtest(place, *given, file="empty.parquet", refused=True)["error"]


def test_payments_that_one_bundle_refuses_are_left_out(place: Path) -> None:
    """A second bundle that requires a terminal decides one payment fewer: both are measured without it."""
    required = FEATURE_SET + "required: [terminal_id]\n"
    _bundle(place / "stricter", required)
    result = _backtest(place, "--against", f"{place}/stricter")
    assert result["payments"] == 899
    assert result["sides"][0]["payments"] == result["sides"][1]["payments"]
    assert "1 payments are left out: one of the bundles refuses them" in result["output"]


def test_what_flags_nothing_has_no_interval_of_its_precision(place: Path) -> None:
    """Figures that are not defined are null in JSON, and have no interval; nothing warns."""
    text = "name: none\nflag: {score: 0.99999}\n"
    result = ran(
        "what-if", "--bundle", f"{place}/bundle", "--decided", f"{place}/decided.parquet", *_policy(place, text),
        "--rounds", "20", "--json",
    )  # fmt: skip
    first, second = result["sides"]
    assert second["flagged"] == 0
    assert second["precision"] is None
    assert "precision" not in second["intervals"]
    assert {"precision", "recall", "auc"} <= first["intervals"].keys()
    assert "Warning" not in result["output"]
