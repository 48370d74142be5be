"""Thresholds by segment: the same live, replayed and tried, and found only where later days show them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from features.currency_conversion import conversion_factors
from features.feature_set import FeatureSet
from schemas.payment_decoder import decode_payments
from scorer.audit.explain.explanation import _decide
from scorer.backtest import BacktestError, Decided, segment_thresholds, what_if
from scorer.backtest.segment_thresholds import best_score, judged, policy_segments
from scorer.backtest.shadow_trial import shadow_of
from scorer.bundle import Bundle, Challenger
from scorer.cli import app
from scorer.compress.levers import early_exit
from scorer.compress.source_export import to_python
from scorer.errors import UsageError
from scorer.files.mapping import Mapping
from scorer.pipeline import Batch, Pipeline
from scorer.policy import FlagCost, Policy, PolicyError, PolicyRunner
from scorer.replay import file_batches, replay_file, training_table
from scorer.replay.replay_output import decision_schema
from scorer.training import TrainingRows, TrainingSettings, train

pytest.importorskip("xgboost")

DAY_MS = 86_400_000
START_MS = 1_704_067_200_000
COST = FlagCost(currency="EUR", review=4, good_customer=15)
FEATURE_SET = """
name: shop
currency: EUR
entities: {customer: [customer_id]}
features:
  - {name: amount, payment: amount}
  - {name: customer_mean_7d, entity: customer, aggregate: mean, of: amount, window: 7d}
"""
POLICY = "name: share\nflag: {share: 0.03}\n"
SEGMENTS = """
segments:
  - {name: online, field: channel, values: [ecom, moto], score: 0.05}
  - {name: abroad, field: country, values: [FR], score: 0.9}
rules:
  - {name: tiny, when: [{feature: amount, below: 6}], then: flag, reason: TINY}
"""
MAPPING = """
payment_id: id
event_time: at
amount: amount
currency: {constant: EUR}
customer_id: customer
channel: channel
country: country
label: fraud
label_delay: 1d
"""


def _history(n: int = 6_000) -> pa.Table:
    """40 days; of online payments one in twelve is a fraud, elsewhere one in fifty; frauds are of higher amounts."""
    random = np.random.default_rng(5)
    channel = np.array(["ecom", "pos", "moto", None])[random.integers(0, 4, n)]
    fraud = random.random(n) < np.where(channel == "ecom", 0.08, 0.02)
    return pa.table(
        {
            "id": [f"p{i}" for i in range(n)],
            "at": pa.array(np.sort(random.integers(0, 40 * DAY_MS, n)) + START_MS, pa.timestamp("ms")),
            "amount": np.round(random.lognormal(3.5, 0.7, n) * np.where(fraud, 2.5, 1), 2),
            "customer": [f"c{i}" for i in random.integers(0, 100, n)],
            "channel": channel.tolist(),
            "country": np.array(["DE", "FR"])[random.integers(0, 2, n)].tolist(),
            "fraud": fraud.astype(np.int8),
        }
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a history, a bundle whose policy has segments, and the history as it decides it."""
    folder = tmp_path_factory.mktemp("segments")
    pq.write_table(_history(), folder / "history.parquet")
    mapping = Mapping.from_yaml(MAPPING)
    table = training_table(FeatureSet.from_yaml(FEATURE_SET), file_batches(folder / "history.parquet", mapping))
    kept = table.event_time_ms < START_MS + 12 * DAY_MS
    columns = (table.features, table.label, table.event_time_ms, table.label_known_at_ms, table.amount)
    rows = TrainingRows(*(column[kept] for column in columns))
    options = TrainingSettings("shop", "2025-01-01T00:00:00Z", threads=1, label_gap_ms=DAY_MS, search_s_max=0)
    bundle = Bundle.load(train(rows, FEATURE_SET, POLICY + SEGMENTS, folder / "bundle", options).output)
    replay_file(bundle, folder / "history.parquet", mapping, folder / "decided.parquet")
    return folder


def _read(place: Path, bundle: Bundle) -> Decided:
    factors = conversion_factors(bundle.feature_set)
    return Decided.read(place / "decided.parquet", bundle.feature_set.names, "EUR", factors)


def _least(row: dict[str, Any], common: float) -> tuple[str | None, float]:
    """The definition: the first segment that the payment is in, and the score from which on it is flagged."""
    if row["channel"] in ("ecom", "moto"):
        return "online", 0.05
    return ("abroad", 0.9) if row["country"] == "FR" else (None, common)


def test_a_segment_s_payments_are_flagged_from_its_own_score_on(place: Path) -> None:
    """Replayed decisions are those of the definition, a rule flags whatever the score is, and the segment's name stands
    with the payment exactly where its threshold made a difference."""
    bundle = Bundle.load(place / "bundle")
    common = bundle.manifest.threshold_score
    named = 0
    for row in _read(place, bundle).table.to_pylist():
        segment, least = _least(row, common)
        tiny = row["amount"] < 6
        assert (row["decision"] == "flag") == (row["score"] >= least or tiny), row
        differs = (row["score"] >= least) != (row["score"] >= common)
        assert row["fired"] == [*([segment] if differs else []), *(["tiny"] if tiny else [])]
        named += differs
    assert named > 20


def test_live_tried_and_explained_decisions_are_the_replayed_ones(place: Path) -> None:
    """Payments from JSON in small batches, stored rows by what-if and single rows by audit explain."""
    bundle = Bundle.load(place / "bundle")
    decided = _read(place, bundle)
    assert (what_if(decided, bundle, bundle.policy).decided.flagged == decided.flagged).all()
    rows = decided.table.to_pylist()
    pipeline, live, fired = Pipeline(bundle), [], []
    for start in range(0, 2_000, 400):
        raw = [
            json.dumps(
                {"payment_id": row["payment_id"], "event_time": row["event_time"].isoformat(), "currency": "EUR"}
                | {name: row[name] for name in ("amount_minor", "customer_id", "channel", "country") if row[name]}
            ).encode()
            for row in rows[start : start + 400]
        ]
        columns = pipeline.run(Batch.of_payments(raw)).columns
        live += ["flag" if decision else "approve" for decision in columns.decision.tolist()]
        fired += [list(names) for names in columns.fired]
    pipeline.close()
    assert live == [row["decision"] for row in rows[:2_000]]
    assert fired == [row["fired"] for row in rows[:2_000]]
    features = decided.features()
    for number in [*[number for number, row in enumerate(rows) if row["fired"]][:10], 0, 1]:
        row = rows[number]
        one = np.ascontiguousarray(features[number : number + 1])
        margin, score = decided.margin[number : number + 1], decided.score[number : number + 1]
        decision, _, names = _decide(bundle, one, margin, score, [], row)
        assert (decision, list(names)) == (row["decision"], row["fired"])


def test_another_policy_s_segments_are_tried(place: Path) -> None:
    """`what-if` adds, changes and removes segments of stored decisions."""
    bundle = Bundle.load(place / "bundle")
    decided = _read(place, bundle)
    plain = what_if(decided, bundle, Policy.from_yaml(POLICY)).decided.flagged
    assert (plain == (decided.score >= bundle.manifest.threshold_score)).all()
    other = "segments: [{name: s, field: channel, values: [pos], score: 0.2}]\n"
    tried = what_if(decided, bundle, Policy.from_yaml(POLICY + other)).decided.flagged
    pos = np.array([value == "pos" for value in decided.texts("channel")])
    assert (tried == np.where(pos, decided.score >= 0.2, plain)).all()
    assert (tried != plain).any()


def test_a_challenger_flags_as_many_in_each_segment(place: Path) -> None:
    """Beside a rule, a challenger flags in each segment, and outside them, those payments that it ranks highest, as
    many as the champion's thresholds flag there; none of them is copied from the champion."""
    bundle = Bundle.load(place / "bundle")
    decided = _read(place, bundle)
    model = SimpleNamespace(link=bundle.model.link, margins=lambda X: X[:, 1])  # another opinion: the customer's mean
    other = Challenger("other", cast(Any, model), bundle.manifest.calibration)
    counted = decided.time_ms >= START_MS + 12 * DAY_MS
    shadow = shadow_of(decided, bundle, other, counted)
    amount, ranks = decided.features().T
    rows = decided.table.to_pylist()
    segment = np.array([_least(row, 0.0)[0] or "" for row in rows])
    assert (shadow.decided.flagged[amount < 6] == decided.flagged[amount < 6]).all()
    counts = []
    for name in ("online", "abroad", ""):
        here = counted & (segment == name) & ~(amount < 6)
        flagged = np.flatnonzero(here & shadow.decided.flagged)
        scores: dict[str, float | None] = {**shadow.segment_scores, "": shadow.threshold_score}
        if count := int(decided.flagged[here].sum()):
            least = np.sort(ranks[here])[-count]
            assert flagged.tolist() == np.flatnonzero(here & (ranks >= least)).tolist()
            assert scores[name] == shadow.decided.score[flagged].min()
        else:
            assert len(flagged) == 0
            assert name not in scores
        counts.append(count)
    assert counts[0] > 0
    assert counts[2] > 0


_SET = FeatureSet.from_yaml(FEATURE_SET)


_CHANNELS = st.sampled_from(["ecom", "pos", "in_app"])
_MARGINS = st.floats(-2, 2, width=32)


@settings(deadline=None)  # the first one waits for compiled kernels
@given(
    st.lists(st.tuples(st.none() | _CHANNELS, _MARGINS), min_size=1),
    st.lists(st.tuples(st.lists(_CHANNELS, min_size=1), _MARGINS), max_size=3),
)
def test_the_first_segment_that_applies_counts(
    payments: list[tuple[str | None, float]], segments: list[tuple[list[str], float]]
) -> None:
    """Whatever overlaps, and whatever margins tie, each payment is compared with the first of its segments."""
    items = [
        {"name": f"s{number}", "field": "channel", "values": values, "score": 0.5}
        for number, (values, _) in enumerate(segments)
    ]
    policy = Policy.model_validate({"name": "p", "flag": {"score": 0.5}, "segments": items})
    runner = PolicyRunner(policy, _SET.names, 0.0, None, [margin for _, margin in segments])
    raw = [
        {"payment_id": f"p{i}", "event_time": START_MS, "amount_minor": 1, "currency": "EUR"}
        | ({} if channel is None else {"channel": channel})
        for i, (channel, _) in enumerate(payments)
    ]
    margins = np.array([margin for _, margin in payments], np.float32)
    features = np.zeros((len(payments), len(_SET.names)), np.float32)
    batch = decode_payments([json.dumps(payment).encode() for payment in raw])
    verdicts = runner.decide(batch, features, margins, np.zeros(len(payments)), {})
    for number, (channel, margin) in enumerate(payments):
        least = next((own for values, own in segments if channel in values), 0.0)
        assert verdicts.decision[number] == (margin >= least)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("segments: [{name: a, field: customer_id, values: [x], score: 0.5}]", "field"),
        ("segments: [{name: a, field: channel, values: [], score: 0.5}]", "values"),
        ("segments: [{name: a, field: channel, values: [x], score: 1.5}]", "score"),
        ("segments: [{name: a, field: channel, values: [x], score: 0.5}]\n"
         "rules: [{name: a, when: [{feature: amount, above: 1}], reason: R}]", "used twice"),
    ],
)  # fmt: skip
def test_segments_that_make_no_sense_are_refused(more: str, message: str) -> None:
    """The message names the field and the way out."""
    with pytest.raises(PolicyError, match=message):
        Policy.from_yaml(f"{POLICY}{more}\n")


def test_what_knows_one_threshold_alone_refuses_segments(place: Path, tmp_path: Path) -> None:
    """Costs decide by money, early exit and exported code by one threshold: each refusal says
    what to give."""
    segments = "segments: [{name: a, field: channel, values: [x], score: 0.5}]\n"
    with pytest.raises(PolicyError, match=r"flag\.cost decides by money"):
        Policy.from_yaml(f"name: p\nflag: {{cost: {{currency: EUR, review: 4, good_customer: 1}}}}\n{segments}")
    bundle = Bundle.load(place / "bundle")
    with pytest.raises(UsageError, match="has no segments"):
        to_python(bundle)
    with pytest.raises(UsageError, match="has no segments"):
        early_exit(place / "bundle", np.zeros((400, 2), np.float32), np.arange(400) < 50)


def _made(days: int, seed: int, lower: float = 0.0) -> Decided:
    """60 payments a day in two channels and a rare third; scores are the probability of fraud, but those of `online`
    are too low by `lower` in log odds."""
    random, n = np.random.default_rng(seed), days * 60
    channel = np.array(["online", "shop", "rare"])[random.choice(3, n, p=[0.49, 0.49, 0.02])]
    odds = random.normal(-3.5, 2.0, n)
    fraud = random.random(n) < 1 / (1 + np.exp(-odds))
    margin = odds - np.where(channel == "online", lower, 0.0)
    at = np.sort(random.integers(0, days * DAY_MS, n)) + START_MS
    columns: dict[str, Any] = {
        "payment_id": [f"p{i}" for i in range(n)],
        "event_time": at,
        "currency": ["EUR"] * n,
        "amount_minor": [4_000] * n,
        "customer_id": [f"c{i % 50}" for i in range(n)],
        "channel": channel.tolist(),
        "decision": ["approve"] * n,
        "mode": ["normal"] * n,
        "margin": margin,
        "score": 1 / (1 + np.exp(-margin)),
        "label": fraud.astype(np.int8),
        "label_known_at": at,
    }
    schema = decision_schema([])
    table = pa.Table.from_arrays(
        [pa.array(columns[f.name]).cast(f.type) if f.name in columns else pa.nulls(n, f.type) for f in schema],
        schema=schema,
    )
    return Decided(table, [], "EUR", {"EUR": 1.0})


def test_a_segment_whose_scores_are_too_low_gets_its_own_threshold() -> None:
    """It is lower than the common one, the interval of what it saves is above 0, and the policy has it; the rare one
    keeps the common one, with the reason."""
    found = segment_thresholds(_made(120, 1, lower=2.5), "channel", COST, START_MS + 60 * DAY_MS)
    by_value = {finding.value: finding for finding in found.findings}
    online, rare = by_value["online"], by_value["rare"]
    assert online.own
    assert online.score < found.score
    assert online.low is not None
    assert 0 < online.low <= online.saved_more
    assert not rare.own
    assert "are needed" in rare.reason
    assert rare.score == found.score
    segments = policy_segments("channel", found)
    policy = Policy.model_validate({"name": "p", "flag": {"score": found.score}, "segments": segments})
    assert [segment.values for segment in policy.segments] == [[finding.value] for finding in found.own]


def test_chance_gives_no_segment_a_threshold() -> None:
    """Where scores mean the same everywhere, segments get their own in at most one of twenty sets or so."""
    sets = 20
    own = [
        bool(segment_thresholds(_made(60, seed), "channel", COST, START_MS + 30 * DAY_MS).own) for seed in range(sets)
    ]
    assert sum(own) <= 3


def test_a_higher_threshold_is_not_believed_on_days_without_fraud() -> None:
    """Where no fraud of a segment is known on the later days, flagging less saves its reviews on each of them, and
    shows nothing: the common threshold holds, with the reason."""
    decided, from_ms = _made(120, 2, lower=2.5), START_MS + 60 * DAY_MS
    shop = np.array(decided.texts("channel")) == "shop"
    label = np.where(shop & (decided.time_ms >= from_ms), 0, decided.label).astype(np.int8)
    place = decided.table.schema.get_field_index("label")
    unknown = replace(decided, table=decided.table.set_column(place, "label", pa.array(label)))
    found = segment_thresholds(unknown, "channel", COST, from_ms)
    (finding,) = (finding for finding in found.findings if finding.value == "shop")
    assert finding.score > found.score
    assert finding.saved_more > 0
    assert (finding.own, finding.reason) == (False, "0 frauds on the later days, 10 are needed")


def test_days_that_measure_have_no_part_in_the_threshold() -> None:
    """With the later days' labels turned round the thresholds stay, and no segment is believed."""
    decided, from_ms = _made(120, 1, lower=2.5), START_MS + 60 * DAY_MS
    label = np.where(decided.time_ms >= from_ms, 1 - decided.label, decided.label).astype(np.int8)
    place = decided.table.schema.get_field_index("label")
    turned = replace(decided, table=decided.table.set_column(place, "label", pa.array(label)))
    plain = segment_thresholds(decided, "channel", COST, from_ms)
    found = segment_thresholds(turned, "channel", COST, from_ms)
    assert (found.score, [f.score for f in found.findings]) == (plain.score, [f.score for f in plain.findings])
    shop = next(finding for finding in found.findings if finding.value == "shop")
    assert not shop.own


def test_too_little_is_refused() -> None:
    """Days on both sides and values of the field are needed; the message says which."""
    with pytest.raises(BacktestError, match=r"5 days .* lie from --from on"):
        segment_thresholds(_made(30, 1), "channel", COST, START_MS + 25 * DAY_MS)
    with pytest.raises(BacktestError, match="no payment has a mcc"):
        segment_thresholds(_made(30, 1), "mcc", COST, START_MS + 15 * DAY_MS)


def _labelled(decided: Decided, who: np.ndarray, **columns: pa.Array) -> Decided:
    """The payments where `who`, bool [n], have a label and no other; more `columns` by name."""
    table = decided.table
    columns["label"] = pa.array(decided.label, mask=~who)
    for name, values in columns.items():
        column = table.schema.get_field_index(name)
        table = table.set_column(column, name, values.cast(table.schema.field(name).type))
    return replace(decided, table=table)


def test_labels_that_depend_on_what_was_flagged_are_refused() -> None:
    """Flagged payments investigated, missed frauds reported, the rest without a label: nearly everything would look
    worth a flag, so that is refused. With genuine_ms the thresholds are those of all labels; where flagged payments
    alone have labels they are refused still."""
    made, from_ms = _made(120, 1, lower=2.5), START_MS + 60 * DAY_MS
    flagged = made.score >= 0.3
    decision = pa.array(np.where(flagged, "flag", "approve").tolist())
    policy = Policy.model_validate({"name": "p", "flag": {"score": 0.3}})
    full = _labelled(made, np.ones(len(made), bool), decision=decision)
    asked = _labelled(made, flagged | made.fraud, decision=decision)
    biased = segment_thresholds(asked.matured(None), "channel", COST, from_ms)
    assert (made.score >= biased.score).mean() > 3 * flagged.mean()
    with pytest.raises(
        BacktestError, match=r"100\.0% of the flagged payments before --from have a label, .* --genuine-after"
    ):
        judged(asked, policy, from_ms)
    found, wanted = (
        segment_thresholds(judged(one, policy, from_ms, genuine_ms=10 * DAY_MS), "channel", COST, from_ms)
        for one in (asked, full)
    )
    assert found == wanted
    with pytest.raises(BacktestError, match=r"all \d+ known frauds were flagged"):
        judged(_labelled(made, flagged, decision=decision), policy, from_ms, genuine_ms=10 * DAY_MS)
    late = _labelled(made, (made.time_ms < from_ms) | flagged | made.fraud, decision=decision)
    with pytest.raises(BacktestError, match="flagged payments from --from on have"):
        judged(late, policy, from_ms)


def test_what_lists_and_rules_decided_has_no_part_in_a_threshold() -> None:
    """Payments of a rule are left out, those of a segment stay: there the score decided."""
    made = _made(60, 1)
    names = [["tiny"] if i % 3 == 0 else ["online"] if i % 3 == 1 else [] for i in range(len(made))]
    fired = _labelled(made, np.ones(len(made), bool), fired=pa.array(names))
    segment = {"name": "online", "field": "channel", "values": ["online"], "score": 0.2}
    policy = Policy.model_validate({"name": "p", "flag": {"score": 0.3}, "segments": [segment]})
    kept = judged(fired, policy, START_MS + 30 * DAY_MS)
    assert kept.texts("payment_id") == [f"p{i}" for i in range(len(made)) if i % 3]


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.integers(-5, 5)), min_size=1, max_size=30))
def test_the_best_threshold_is_the_best_of_all(payments: list[tuple[float, int]]) -> None:
    """No other threshold saves more, flagging nothing included."""
    scores, worth = np.array([score for score, _ in payments]), np.array([float(value) for _, value in payments])
    found = best_score(scores, worth)
    assert 0 < found < 1
    assert worth[scores >= found].sum() == max([0.0, *(worth[scores >= score].sum() for score in scores)])


def test_the_command_prints_a_policy_s_segments(place: Path) -> None:
    """Its output is part of a policy that `what-if` takes; without costs it asks for them."""
    arguments = [
        "segments", "--bundle", f"{place}/bundle", "--decided", f"{place}/decided.parquet", "--by", "channel", "--from",
        "2024-01-26",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="--cost"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    arguments += ["--cost", "{currency: EUR, review: 1, good_customer: 2}"]
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert {finding["value"] for finding in found["findings"]} == {"ecom", "moto", "pos", "(none)"}
    assert all(finding["own"] or finding["reason"] for finding in found["findings"])
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    reported = pq.read_table(place / "decided.parquet")
    label = reported["label"].to_pylist()
    decision = reported["decision"].to_pylist()
    none = [one == 0 and what == "approve" for one, what in zip(label, decision, strict=True)]
    column = pa.array(label, reported.schema.field("label").type, mask=np.array(none))
    pq.write_table(
        reported.set_column(reported.schema.get_field_index("label"), "label", column), place / "few.parquet"
    )
    arguments[arguments.index(f"{place}/decided.parquet")] = f"{place}/few.parquet"
    with pytest.raises(BacktestError, match="--genuine-after"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert CliRunner().invoke(app, [*arguments, "--genuine-after", "2d"], catch_exceptions=False).exit_code == 0
    if found["segments"]:
        printed = yaml.safe_load(shown[shown.index("flag:") :])
        assert printed == {"flag": {"score": found["score"]}, "segments": found["segments"]}
    else:
        assert "No segment gets" in shown
