"""The risk team's commands, end to end on files: train, replay, backtest, what-if."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from scorer.backtest import BacktestError
from scorer.backtest.comparison_findings import Seen
from scorer.backtest.shadow_trial import seen_of
from scorer.bundle import Bundle
from scorer.cli import app
from scorer.cli.backtest_commands import read_decided
from scorer.errors import UsageError
from scorer.files.mapping import Mapping
from scorer.replay import part_files, replay_file, replay_output
from scorer.training import threshold_for_share
from tests.command_results import ran

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


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("risk")
    _write_history(folder / "history.parquet")
    for name, text in (("set", FEATURE_SET), ("policy", POLICY), ("other", OTHER_POLICY), ("mapping", MAPPING)):
        (folder / f"{name}.yaml").write_text(text)
    trained = ran(
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
    replayed = ran(
        "replay", "--bundle", f"{folder}/bundle", "--input", f"{folder}/history.parquet", "--mapping",
        f"{folder}/mapping.yaml", "--output", f"{folder}/decided.parquet", "--json",
    )  # fmt: skip
    assert replayed["decisions"] == replayed["payments"] == 12_000
    return folder


def _backtest(place: Path, output: str, *more: str) -> dict[str, Any]:
    return ran(
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
    assert set(re.findall(r"https?://[^\"' )]+", page)) == {"https://github.com/leeoniya/uPlot"}  # in a comment
    assert not re.search(r"<(link|img|iframe|script[^>]*\ssrc)", page)
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    data = json.loads(text)
    assert {name: data[name] for name in ("payments", "matured", "summary", "effects")} == {
        name: result[name] for name in ("payments", "matured", "summary", "effects")
    }
    for shown, side in zip(data["sides"], result["sides"], strict=True):
        assert {"name": shown["name"], **shown["overall"], "intervals": shown["intervals"]} == side
    for name in ("overall", "effects", "days", "segments", "sweep", "calibration", "drift", "changes"):
        assert pq.read_table(place / "page_numbers" / f"{name}.parquet").num_rows > 0
    assert result["decided_otherwise"] == pq.read_metadata(place / "page_numbers" / "changes.parquet").num_rows


def test_a_change_is_counted_in_money_whatever_flags(place: Path) -> None:
    """Where no policy flags by cost, --cost gives what money is counted by; without it the summary names the option. A
    limit is no cost."""
    arguments = [
        "what-if", "--bundle", f"{place}/bundle", "--decided", f"{place}/decided.parquet", "--policy",
        f"{place}/other.yaml", "--from", "2024-02-12", "--rounds", "50", "--json",
    ]  # fmt: skip
    assert "--cost" in ran(*arguments)["summary"][-1]
    cost = "{currency: EUR, review: 2, good_customer: 10}"
    result = ran(*arguments, "--cost", cost)
    effects = {effect["figure"]: effect for effect in result["effects"]}
    first, second = result["sides"]
    stored = pq.read_table(place / "decided.parquet")
    day = stored["event_time"].cast(pa.int64()).to_numpy() // DAY_MS
    measured = np.unique(day[(day >= START_MS // DAY_MS + 42) & (day < day.max() - 1)])  # labels take two days
    days = len(measured)
    # Flagged a day are all payments of a measured day, those too whose label is not known by the end.
    flagged = np.isin(day, measured) & (np.array(stored["decision"].to_pylist()) == "flag")
    assert flagged.sum() / days == pytest.approx(first["flagged_a_day"]) == effects["flagged"]["before"]
    more = effects["loss_prevented"]["change"] - effects["cost_of_reviews"]["change"]
    assert effects["money_saved"]["change"] == pytest.approx(more - effects["cost_of_good_customers"]["change"])
    assert effects["money_saved"]["change"] * days == pytest.approx(second["money_saved"] - first["money_saved"])
    assert effects["cost_of_reviews"]["after"] * days == pytest.approx(2 * second["flagged"])
    assert "EUR a day" in result["summary"][0]
    assert "leave it out" in ran(*arguments, "--cost", cost[:-1] + ", reviews_a_day: 5}", refused=True)["error"]
    assert "give the costs in EUR" in ran(*arguments, "--cost", cost.replace("EUR", "USD"), refused=True)["error"]


def test_what_if_equals_deciding_again(place: Path) -> None:
    """Another policy on stored margins decides each payment by its score, features and lists, as its text says."""
    result = ran(
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


def test_what_if_counts_payments_that_nobody_reported_as_genuine(place: Path) -> None:
    """Where only frauds have a label, flagging everything is not free: refused without --genuine-after, and with it
    measured as where genuine payments have their labels."""
    stored = pq.read_table(place / "decided.parquet")
    for name in ("label", "label_known_at"):
        at, fraud = stored.schema.get_field_index(name), pc.equal(stored["label"], 1)
        missing = pa.scalar(None, stored.schema.field(name).type)
        if name == "label_known_at":
            stored = stored.set_column(at, name, pc.if_else(pc.is_valid(stored["label"]), stored[name], missing))
            continue
        stored = stored.set_column(at, name, pc.if_else(fraud, stored[name], missing))
    pq.write_table(stored, place / "reported.parquet")
    (place / "all.yaml").write_text("name: all\nflag: {score: 0.0000001}\n")
    given = [
        "what-if", "--bundle", f"{place}/bundle", "--policy", f"{place}/all.yaml", "--from", "2024-02-12", "--rounds",
        "20", "--cost", "{currency: EUR, review: 2, good_customer: 10}", "--json", "--decided",
    ]  # fmt: skip
    assert "--genuine-after" in ran(*given, f"{place}/reported.parquet", refused=True)["error"]
    reported = ran(*given, f"{place}/reported.parquet", "--genuine-after", "2d")
    known = ran(*given, f"{place}/decided.parquet")
    assert reported["matured"] == known["matured"]
    assert reported["sides"][1]["precision"] == known["sides"][1]["precision"] < 0.2
    assert reported["sides"][1]["money_saved"] == known["sides"][1]["money_saved"] < 0


def test_the_bundles_own_policy_changes_nothing(place: Path) -> None:
    """The threshold that training gave a share stays; only what differs in a policy makes a difference."""
    given = [
        "what-if", "--bundle", f"{place}/bundle", "--decided", f"{place}/decided.parquet", "--policy",
        f"{place}/policy.yaml", "--rounds", "20", "--json",
    ]  # fmt: skip
    result = ran(*given)
    assert result["decided_otherwise"] == 0
    assert result["threshold_score"] == result["threshold_score_before"]


def test_days_that_the_bundle_learned_from_are_named(place: Path) -> None:
    """`what-if` and `backtest` without --from count them in a note, with the --from that leaves them out; then there is
    none."""
    what = ["--decided", f"{place}/decided.parquet", "--policy", f"{place}/policy.yaml"]
    back = ["--input", f"{place}/history.parquet", "--mapping", f"{place}/mapping.yaml", "--output", f"{place}/n.html"]
    for given in (["what-if", *what], ["backtest", *back]):
        command = [*given, "--bundle", f"{place}/bundle", "--rounds", "0"]
        assert re.search(
            r"[\d,]+ of the 1[\d,]+ measured payments had a part in its training.*give --from 2024-02-10,",
            CliRunner().invoke(app, command).output,
        )
        later = CliRunner().invoke(app, [*command, "--from", "2024-02-10"])
        assert later.exit_code == 0, later.output
        assert "had a part" not in later.output


def test_two_bundles_are_compared_payment_by_payment(place: Path) -> None:
    """--against names every payment that the second bundle decides otherwise, with both scores and reasons."""
    ran(
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
    return [ran("bundle", "show", f"{place}/{name}", "--json")["id"] for name in ("bundle", "second")]


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
    with pytest.raises(BacktestError, match="run the replay into this folder again"):
        read_decided(bundle, folder)
    replay_file(bundle, place / "history.parquet", mapping, folder)
    assert len(read_decided(bundle, folder)) == 12_000
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
    error = ran(
        "what-if", "--bundle", f"{place}/second", "--decided", f"{place}/decided.parquet", "--policy",
        f"{place}/other.yaml", "--json", refused=True,
    )["error"]  # fmt: skip
    assert "replay with" in error
    error = ran(
        "backtest", "--bundle", f"{place}/bundle", "--input", f"{place}/history.parquet", "--mapping",
        f"{place}/mapping.yaml", "--as-of", "2024-01-01", "--output", f"{place}/x.html", refused=True,
    )["error"]  # fmt: skip
    assert "matured" in error or "known by the end" in error


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train --feature-set {place}/set.yaml --policy {place}/policy.yaml --output {place}/bundle", "overwritten"),
        (
            "train --feature-set {place}/set.yaml --policy {place}/policy.yaml --output {place}/other --report "
            "{place}/none/x.json",
            "--report .*there is no folder",
        ),
        ("train --continue {place}/bundle --output {place}/set.yaml/bundle", "no folder can be made in"),
        ("backtest --bundle {place}/bundle --output {place}/none/x.html", "there is no folder"),
        ("backtest --bundle {place}/bundle --output {place}", "is a folder; name a file in it"),
        ("backtest --bundle {place}/bundle --output {place}/taken.html", "taken_numbers, where a file is"),
        ("bundle compile {place}/bundle --prune --output {place}/bundle", "overwritten"),
    ],
)
def test_where_a_result_goes_is_checked_before_the_work(place: Path, command: str, message: str) -> None:
    """A mistyped place of an output is refused before the input is read, of which none is there."""
    (place / "taken_numbers").touch()
    given = command.format(place=place).split()
    empty = place / "empty.parquet"
    empty.touch()
    assert re.search(message, ran(*given, "--input", str(empty), refused=True)["error"])


def test_where_what_needs_no_payments_goes_is_checked_too(place: Path) -> None:
    """`what-if`, `simulate` and `bundle import` refuse a place that cannot be written before they begin."""
    decided = ["--bundle", f"{place}/bundle", "--decided", f"{place}/decided.parquet"]
    tried = ["what-if", *decided, "--policy", f"{place}/other.yaml", "--output", f"{place}/none/x.html"]
    assert "there is no folder" in ran(*tried, refused=True)["error"]
    for output in (
        ["--output", f"{place}/none/x.jsonl"],
        ["--output", f"{place}/x.jsonl", "--labels", f"{place}/no/l"],
    ):
        assert "there is no folder" in ran("simulate", "--count", "5", *output, refused=True)["error"]
    imported = [
        "--model",
        f"{place}/set.yaml",
        "--feature-set",
        f"{place}/set.yaml",
        "--policy",
        f"{place}/policy.yaml",
    ]
    refused = ran("bundle", "import", *imported, "--output", f"{place}/bundle", refused=True)
    assert "never overwritten" in refused["error"]


def test_a_bundle_learns_on_from_the_command_line(place: Path) -> None:
    """`train --continue` takes feature set and policy from the bundle, learns from the file's newer payments, and shows
    what was compared; other features are refused by name, and without a bundle the two files have to be named."""
    _write_history(place / "longer.parquet", payments=30_000)
    common = ["train", "--input", f"{place}/longer.parquet", "--mapping", f"{place}/mapping.yaml", "--label-gap", "2d"]
    common += ["--threads", "1", "--search-time", "0s", "--json", "--output", f"{place}/next"]
    other = FEATURE_SET.replace("window: 7d", "window: 3d").replace("mean_7d", "mean_3d")
    (place / "other_set.yaml").write_text(other)
    (place / "plain.yaml").write_text("name: plain\nflag: {share: 0.02}\n")
    named = ["--feature-set", f"{place}/other_set.yaml", "--policy", f"{place}/plain.yaml"]
    error = ran(*common, *named, "--continue", f"{place}/bundle", refused=True)["error"]
    assert "a model learns on with the same features only" in error
    assert "--feature-set: name the file, or --continue" in ran(*common, refused=True)["error"]
    ran(
        "bundle", "challenge", f"{place}/bundle", "--with", f"{place}/bundle", "--output", f"{place}/carrying", "--json"
    )  # fmt: skip
    shown = CliRunner().invoke(app, [*common, "--continue", f"{place}/carrying"], catch_exceptions=False)
    result = json.loads(shown.stdout)
    old, new = Bundle.load(place / "carrying"), Bundle.load(place / "next")
    assert f"no challengers and no student ({old.challengers[0].id})" in " ".join(shown.stderr.split())
    assert not new.challengers
    assert new.manifest.lineage is not None
    assert result["lineage"] == new.manifest.lineage.model_dump()
    assert result["continues"] == old.id
    assert set(result["candidates"]) == {"kept", "continued", "anew"}
    assert new.manifest.feature_fingerprint == old.manifest.feature_fingerprint
    assert (place / "next" / "policy.yaml").read_text() == POLICY
    assert "trees of it" in CliRunner().invoke(app, ["bundle", "show", f"{place}/next"]).stdout
    replayed = ran(
        "replay", "--bundle", f"{place}/next", "--input", f"{place}/longer.parquet", "--mapping",
        f"{place}/mapping.yaml", "--output", f"{place}/next.parquet", "--json",
    )  # fmt: skip
    assert replayed["decisions"] == 30_000
    rows = pq.read_table(place / "next.parquet")
    features = np.column_stack([rows[name].to_numpy() for name in new.feature_set.names]).astype(np.float32)
    assert (rows["margin"].to_numpy() == new.model.margins(features)).all()
    share = np.mean(np.array(rows["decision"].to_pylist()[-6_000:]) == "flag")
    assert 0.005 < share < 0.04  # the policy's 2 % were met on the held-back rows


def test_training_says_that_its_figures_are_without_segments(place: Path) -> None:
    """A note names the policy's segments."""
    segments = "segments: [{name: online, field: channel, values: [ecom], score: 0.2}]\n"
    (place / "segments.yaml").write_text(f"name: segments\nflag: {{share: 0.02}}\n{segments}")
    arguments = [
        "train", "--feature-set", f"{place}/set.yaml", "--policy", f"{place}/segments.yaml", "--input",
        f"{place}/history.parquet", "--mapping", f"{place}/mapping.yaml", "--until", "2024-01-25", "--label-gap", "2d",
        "--threads", "1", "--search-time", "0s", "--output", f"{place}/segments", "--json",
    ]  # fmt: skip
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "without the policy's segments (online)" in " ".join(shown.stderr.split())


@pytest.fixture(scope="module")
def both(place: Path) -> Path:
    """The bundle with a challenger of another seed, and what it decided."""
    ran(
        "train", "--feature-set", f"{place}/set.yaml", "--policy", f"{place}/policy.yaml", "--input",
        f"{place}/history.parquet", "--mapping", f"{place}/mapping.yaml", "--until", "2024-01-25", "--label-gap", "2d",
        "--threads", "1", "--search-time", "0s", "--seed", "9", "--name", "rival", "--output", f"{place}/rival",
        "--json",
    )  # fmt: skip
    ran("bundle", "challenge", f"{place}/bundle", "--with", f"{place}/rival", "--output", f"{place}/both", "--json")
    ran(
        "replay", "--bundle", f"{place}/both", "--input", f"{place}/history.parquet", "--mapping",
        f"{place}/mapping.yaml", "--output", f"{place}/both.parquet", "--json",
    )  # fmt: skip
    return place / "both"


def _compared(place: Path, *more: str, refused: bool = False) -> dict[str, Any]:
    return ran(
        "compare", "--bundle", f"{place}/both", "--decided", f"{place}/both.parquet", "--rounds", "100", "--json",
        *more, refused=refused,
    )  # fmt: skip


def test_champion_and_challenger_are_compared_on_matured_labels(place: Path, both: Path) -> None:
    """The challenger's decisions are those that its own bundle's model gives the stored features, from the score on
    that flags as many as the champion's; each difference is recounted from the replay's own output."""
    result = _compared(place, "--from", "2024-02-12", "--output", f"{place}/compared.html")
    rows = pq.read_table(place / "both.parquet")
    bundle, rival = Bundle.load(both), Bundle.load(place / "rival")
    time_ms = rows["event_time"].cast(pa.int64()).to_numpy()
    kept = (time_ms >= 1_707_696_000_000) & (time_ms < result["until_ms"])
    assert result["payments"] == kept.sum()
    assert result["delay_ms"] == 2 * DAY_MS  # the mapping's: every label takes as long
    features = np.column_stack([rows[name].to_numpy() for name in bundle.feature_set.names]).astype(np.float32)[kept]
    margins, fraud = rival.model.margins(features), rows["label"].to_numpy()[kept] == 1
    champion = np.array(rows["decision"].to_pylist())[kept] == "flag"
    least = np.sort(margins)[-int(champion.sum())]
    challenger = margins >= least
    only, lost = challenger & ~champion, champion & ~challenger
    wanted = [(champion & challenger).sum(), only.sum(), lost.sum(), (~champion & ~challenger).sum()]
    assert [cell["payments"] for cell in result["cells"]] == wanted
    assert result["figures"]["frauds_caught"]["value"] == (fraud & only).sum() - (fraud & lost).sum()
    assert result["deciding"] == "frauds_caught"
    assert {"label delay", "selection bias", "feedback loop"} <= {one["name"] for one in result["findings"]}
    assert Bundle.load(both).challengers[0].id in (place / "compared.html").read_text()
    shown = CliRunner().invoke(
        app, ["compare", "--bundle", str(both), "--decided", f"{place}/both.parquet", "--rounds", "100"]
    )
    assert shown.exit_code == 0, shown.output
    assert "challenger alone flags" in shown.output


def test_payments_that_a_model_learned_from_are_not_compared(place: Path, both: Path) -> None:
    """The challenger's training lasts longer than the champion's: only payments after both count, and the report says
    so. A bundle with nothing of a challenger's training keeps its id, and is warned about."""
    later, earlier = Bundle.load(place / "bundle"), Bundle.load(place / "rival")
    assert later.manifest.training is not None
    seen_ms = later.manifest.training.validation_until_ms
    ran("bundle", "challenge", f"{place}/rival", "--with", f"{place}/bundle", "--output", f"{place}/turned", "--json")
    turned = Bundle.load(place / "turned")
    ran(
        "replay", "--bundle", f"{place}/turned", "--input", f"{place}/history.parquet", "--mapping",
        f"{place}/mapping.yaml", "--output", f"{place}/turned.parquet", "--json",
    )  # fmt: skip
    assert earlier.manifest.training is not None
    assert seen_ms > earlier.manifest.training.validation_until_ms
    common = ["compare", "--rounds", "0", "--json", "--decided", f"{place}/turned.parquet", "--bundle"]
    result = ran(*common, f"{place}/turned")
    assert result["from_ms"] >= seen_ms
    (found,) = (one for one in result["findings"] if one["name"] == "training days")
    assert not found["warning"]
    error = ran(*common, f"{place}/turned", "--until", "2024-02-01", refused=True)["error"]
    assert "has learned from all of the payments" in error
    (item,) = turned.manifest.challengers
    assert item.seen_until_ms == seen_ms
    without = turned.manifest.model_copy(update={"challengers": [item.model_copy(update={"seen_until_ms": None})]})
    assert b"seen_until_ms" not in without.to_bytes()
    old = replace(turned, manifest=without)
    seen = seen_of(old, old.challengers[0])
    assert seen == Seen(earlier.manifest.training.validation_until_ms, (later.id,))


def test_a_sample_to_inspect_is_drawn_and_read_again(place: Path, both: Path) -> None:
    """--inspect writes ids of payments that the challenger alone flags, and of which times; --inspected takes the file
    and compares the payments of those times alone. A file of ids without times stands for all."""
    assert both.is_dir()
    first = _compared(place, "--until", "2024-02-26", "--inspect", f"{place}/ids.txt", "--inspect-count", "3")
    head, *ids = (place / "ids.txt").read_text().splitlines()
    assert len(ids) == 3
    assert f"[{first['from_ms']}, {first['until_ms']}) ms" in head
    # Four days later: newer payments had no chance to be drawn, so the sample does not stand for them.
    again = _compared(place, "--inspected", f"{place}/ids.txt")
    assert again["cells"][1]["inspected"] == 3
    assert [cell["payments"] for cell in first["cells"]] == [cell["payments"] for cell in again["cells"]]
    (place / "own.txt").write_text("\n".join(ids))
    own = _compared(place, "--inspected", f"{place}/own.txt")
    assert own["payments"] > again["payments"]


REFUSALS = {
    "another bundle": (["--bundle", "{place}/bundle"], "has no challenger"),
    "a stranger": (["--challenger", "stranger"], "--challenger stranger: the challengers of shop-"),
    "two delays": (["--label-delay", "3d", "--genuine-after", "3d"], "not both"),
    "a count alone": (["--inspect-count", "3"], "name the file to write the ids to"),
    "no duration": (["--label-delay", "soon"], "--label-delay"),
    "other decisions": (["--decided", "{place}/decided.parquet"], "replay with shop-"),
    "too young": (["--label-delay", "300d"], "older than the 300 days that labels take"),
    "no ids": (["--inspected", "{place}/empty.txt"], "holds no payment id"),
    "not text": (["--inspected", "{place}/both.parquet"], "cannot be read as text"),
    "other ids": (["--inspected", "{place}/mapping.yaml"], "none of the 9 inspected payments"),
    "no folder": (["--output", "{place}/none/x.html"], "--output"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_compared_is_refused(place: Path, both: Path, case: str) -> None:
    """Each refusal names the option or the bundle, and the way out."""
    assert both.is_dir()
    (place / "empty.txt").write_text("\n")
    arguments, message = REFUSALS[case]
    assert message in _compared(place, *(text.format(place=place) for text in arguments), refused=True)["error"]


def test_a_smaller_model_is_measured_on_payments_that_no_model_has_seen(place: Path) -> None:
    """`bundle compile` leaves out payments of the training, those held back there included, and refuses where no other
    is there; what it makes has seen the payments that it was made of, and learned from those of the training."""
    trained = Bundle.load(place / "bundle").manifest.training
    assert trained is not None
    common = ["--input", f"{place}/history.parquet", "--mapping", f"{place}/mapping.yaml", "--json"]
    compiled = ["bundle", "compile", f"{place}/bundle", *common]
    whole = ran(*compiled, "--quantise-leaves", "--output", f"{place}/coarse")
    times = pq.read_table(place / "history.parquet", columns=["at"])["at"].cast(pa.int64()).to_numpy()
    assert whole["rows"] == (times >= trained.validation_until_ms).sum()
    early = [*compiled, "--quantise-leaves", "--output", f"{place}/none", "--until", "2024-02-01"]
    refused = ran(*early, refused=True)["error"]
    assert "nothing can be measured on them: give later payments" in refused
    assert not (place / "none").exists()
    ran(*compiled, "--prune", "--accept-loss", "--until", "2024-02-25", "--output", f"{place}/pruned")
    window = Bundle.load(place / "pruned").manifest.training
    assert window is not None
    last = times[times < START_MS + 55 * DAY_MS].max()
    assert (window.validation_until_ms, window.learned_until_ms) == (last + 1, trained.validation_until_ms)
    again = ran("bundle", "compile", f"{place}/pruned", *common, "--early-exit")
    assert again["rows"] == (times > last).sum()


def test_levers_are_reported_with_labels_and_without(place: Path) -> None:
    """`bundle compile --report` measures on the file's labelled payments; on a file without labels it says what
    changes. It writes no bundle, and takes no --output."""
    common = ["bundle", "compile", f"{place}/bundle", "--report", "--input", f"{place}/history.parquet"]
    common += ["--from", "2024-02-12"]
    found = ran(*common, "--mapping", f"{place}/mapping.yaml", "--json")
    assert found["frauds"] > 20
    assert {"leaves of 8 bits", "early exit"} <= {one["lever"] for one in found["levers"]}
    assert all(one["lost"] is not None for one in found["levers"])
    unlabelled = "".join(line for line in MAPPING.splitlines(keepends=True) if not line.startswith("label"))
    (place / "unlabelled.yaml").write_text(unlabelled)
    without = ran(*common, "--mapping", f"{place}/unlabelled.yaml", "--json")
    assert without["frauds"] is None
    assert without["rows"] == found["rows"]
    refused = ran(*common, "--mapping", f"{place}/mapping.yaml", "--output", f"{place}/small", refused=True)
    assert "--report writes no bundle" in refused["error"]
    assert not (place / "small").exists()
    shown = CliRunner().invoke(app, [*common, "--mapping", f"{place}/mapping.yaml"])
    assert shown.exit_code == 0, shown.output
    for title in ("Batch sizes", "Exports", "Degraded mode"):
        assert title in shown.output


def test_rows_that_compile_refuses_are_counted_and_fail_it(place: Path) -> None:
    """`bundle compile` names rows that it could not read, counts them, and measures nothing where more than one in a
    hundred is refused."""
    history = pq.read_table(place / "history.parquet")
    kinds = [*("EUR" for _ in range(history.num_rows - 300)), *("euros" for _ in range(300))]
    pq.write_table(history.append_column("money", pa.array(kinds)), place / "mixed.parquet")
    (place / "mixed.yaml").write_text(MAPPING.replace("{constant: EUR}", "money"))
    common = ["bundle", "compile", f"{place}/bundle", "--input", f"{place}/mixed.parquet"]
    common += ["--mapping", f"{place}/mixed.yaml", "--from", "2024-02-12", "--json"]
    for lever in ("--report", "--early-exit"):
        assert "300 of 12,000 rows were refused" in ran(*common, lever, refused=True)["error"]
        found = ran(*common, lever, "--refused-max", "0.5", "--refused", f"{place}/refused.parquet")
        assert [(one["field"], one["rows"]) for one in found["refusals"]] == [("currency", 300)]
        assert pq.read_table(place / "refused.parquet").num_rows == 300


TRAIN = "train --feature-set {place}/set.yaml --policy {place}/policy.yaml --output {place}/none"
COMPILE = "bundle compile {place}/bundle"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{TRAIN} --name Shop", "name does not match"),
        (f"{TRAIN} --accept amont", "--accept amont: shop has no such feature; it has amount"),
        (
            "train --continue {place}/bundle --feature-set {place}/wider.yaml --output {place}/none",
            "same features only",
        ),
        ("train --continue {place}/bundle --policy {place}/dollars.yaml --output {place}/none", "cost.currency is USD"),
        (f"{COMPILE} --quantise-leaves --bits 40 --output {{place}}/none", "--bits 40"),
        (f"{COMPILE} --prune --loss 2 --output {{place}}/none", "--loss 2"),
        (f"{COMPILE} --report --loss 2", "--loss 2"),
        (f"{COMPILE} --first-trees 9999 --output {{place}}/none", "--first-trees 9999: shop-"),
        (f"{COMPILE} --distil --depth 99 --output {{place}}/none", "--depth 99"),
        (f"{COMPILE} --isolation-forest --trees 0 --output {{place}}/none", "--trees 0"),
        (f"{COMPILE} --early-exit --from then", "--from: write a day"),
        (f"{COMPILE} --early-exit --until then", "--until: write a day"),
        (f"{COMPILE} --early-exit --from 2024-02-12 --until 2024-02-12", "is not before --until"),
        (f"{COMPILE} --early-exit --genuine-after soon", "--genuine-after"),
    ],
)
def test_what_needs_no_payments_is_checked_before_they_are_read(place: Path, command: str, message: str) -> None:
    """Options out of range, and bundles and policies that do not fit, are refused before the input is read, of which
    none is there."""
    wider = "  - {name: customer_count_1h, entity: customer, aggregate: count, window: 1h}\n"
    (place / "wider.yaml").write_text(FEATURE_SET + wider)
    (place / "dollars.yaml").write_text("name: shop\nflag: {cost: {currency: USD, review: 1, good_customer: 2}}\n")
    empty = place / "nothing.parquet"
    empty.touch()
    assert message in ran(*command.format(place=place).split(), "--input", str(empty), refused=True)["error"]
    assert not (place / "none").exists()


def test_compile_takes_payments_without_a_label_as_genuine_after_a_time(place: Path) -> None:
    """Where frauds alone are reported nothing can be measured without --genuine-after; with it the last days, of which
    frauds alone would be known, are left out."""
    history = pq.read_table(place / "history.parquet")
    fraud = history["fraud"].to_numpy()
    frauds_alone = history.drop(["fraud"]).append_column("fraud", pa.array(fraud, mask=fraud == 0))
    pq.write_table(frauds_alone, place / "frauds.parquet")
    common = ["bundle", "compile", f"{place}/bundle", "--quantise-leaves", "--input", f"{place}/frauds.parquet"]
    common += ["--mapping", f"{place}/mapping.yaml", "--from", "2024-02-12", "--output", f"{place}/after", "--json"]
    times = history["at"].cast(pa.int64()).to_numpy()
    since = times >= 1_707_696_000_000
    error = ran(*common, refused=True)["error"]
    assert f"all {int(fraud[since].sum()):,} payments of known label are frauds" in error
    assert "--genuine-after" in error
    found = ran(*common, "--genuine-after", "3d")
    old = since & (times <= times.max() - DAY_MS)  # the last fraud is reported two days after it
    assert 0 < found["rows"] <= old.sum()
    assert found["rows"] == found["payments_decided"]
    assert found["frauds"] == fraud[since][: found["rows"]].sum()


def test_compile_flags_its_share_of_all_payments(place: Path) -> None:
    """Labels of frauds and of few genuine payments measure, but the share is of all payments of those days."""
    history = pq.read_table(place / "history.parquet")
    fraud = history["fraud"].to_numpy()
    unknown = (fraud == 0) & (np.arange(len(fraud)) % 20 != 0)
    pq.write_table(history.drop(["fraud"]).append_column("fraud", pa.array(fraud, mask=unknown)), place / "few.parquet")
    found = ran(
        "bundle", "compile", f"{place}/bundle", "--quantise-leaves", "--input", f"{place}/few.parquet", "--mapping",
        f"{place}/mapping.yaml", "--output", f"{place}/share", "--json",
    )  # fmt: skip
    made = Bundle.load(place / "share").manifest.training
    seen = Bundle.load(place / "bundle").manifest.training
    assert made is not None
    assert seen is not None
    times = history["at"].cast(pa.int64()).to_numpy()
    there = (times >= seen.validation_until_ms) & (times < made.validation_until_ms)
    assert found["rows"] == (there & ~unknown).sum()
    first = times[there & ~unknown].min()
    assert found["payments_decided"] == (there & (times >= first)).sum()
    assert 0.015 < found["after"]["flagged"] / found["payments_decided"] <= 0.02
    assert any("have no known label" in note for note in found["notes"])
