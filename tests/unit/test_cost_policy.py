"""Policies by cost: what is flagged, by how much money, in which currency, and the same live, replayed and tried."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from features.currency_conversion import conversion_factors
from features.feature_set import FeatureSet
from schemas.payment_decoder import decode_payments
from scorer.audit.explain.explanation import Explanation, _decide, prove
from scorer.backtest import BacktestError, Decided, backtest, flagged_by_score, what_if
from scorer.backtest.shadow_trial import shadow_of
from scorer.bundle import Bundle, BundleMismatchError, Challenger
from scorer.bundle.challengers import with_challengers
from scorer.bundle.manifest import MANIFEST
from scorer.cli import app
from scorer.errors import UsageError
from scorer.files.mapping import Mapping
from scorer.model.calibration import Calibration
from scorer.pipeline import Batch, Pipeline
from scorer.policy import CostRule, FlagCost, Policy, PolicyError, expected_saving, money_saved, saving_min_for
from scorer.replay import file_batches, replay_file, training_table
from scorer.training import TrainError, TrainingRows, TrainingSettings, train

pytest.importorskip("xgboost")

DAY_MS = 86_400_000
START_MS = 1_704_067_200_000
RATES = {"KWD": 3.0, "JPY": 0.0062, "GBP": 1.16}
EXPONENTS = {"EUR": 2, "KWD": 3, "JPY": 0, "GBP": 2}
FEATURE_SET = f"""
name: shop
currency: EUR
rates: {{version: r1, per_unit: {json.dumps(RATES).replace('"', "")}}}
entities: {{customer: [customer_id]}}
features:
  - {{name: amount, payment: amount}}
  - {{name: customer_mean_7d, entity: customer, aggregate: mean, of: amount, window: 7d}}
  - {{name: amount_to_mean, ratio: [amount, customer_mean_7d]}}
"""
COST = "flag: {cost: {currency: EUR, review: 4, good_customer: 10, loss_share: 0.9%s}}"
POLICY = f"name: money\n{COST % ', reviews_a_day: 5'}\n"
SHARE_POLICY = "name: share\nflag: {share: 0.02}\n"
MAPPING = """
payment_id: id
event_time: at
amount_minor: minor
currency: currency
customer_id: customer
label: fraud
label_delay: 2d
"""
COSTS = FlagCost(currency="EUR", review=4, good_customer=10, loss_share=0.9)


def _history(payments: int = 12_000) -> pa.Table:
    """60 days, 200 customers in four currencies; one payment in forty is a fraud of about four times the usual."""
    random = np.random.default_rng(5)
    customer = random.integers(0, 200, payments)
    fraud = random.random(payments) < 0.025
    euros = 8 * (1 + customer % 20) * random.lognormal(0, 0.5, payments) * np.where(fraud, 4, 1)
    currency = np.array(list(EXPONENTS))[customer % 4]
    per_minor = np.array([RATES.get(code, 1.0) / 10 ** EXPONENTS[code] for code in currency])
    return pa.table(
        {
            "id": [f"p{i}" for i in range(payments)],
            "at": pa.array(np.sort(random.integers(0, 60 * DAY_MS, payments)) + START_MS, pa.timestamp("ms")),
            "minor": np.maximum(1, np.rint(euros / per_minor)).astype(np.int64),
            "currency": currency,
            "customer": [f"c{i}" for i in customer],
            "fraud": fraud.astype(np.int8),
        }
    )


def _rows(path: Path) -> TrainingRows:
    table = training_table(FeatureSet.from_yaml(FEATURE_SET), file_batches(path, Mapping.from_yaml(MAPPING)))
    kept = table.event_time_ms < START_MS + 40 * DAY_MS
    columns = (table.features, table.label, table.event_time_ms, table.label_known_at_ms, table.amount)
    return TrainingRows(*(column[kept] for column in columns))


def _train(rows: TrainingRows, policy: str, output: Path) -> Bundle:
    settings = TrainingSettings("money", "2025-01-01T00:00:00Z", threads=1, label_gap_ms=2 * DAY_MS, search_s_max=0)
    return Bundle.load(train(rows, FEATURE_SET, policy, output, settings).output)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a history, bundles by cost and by share, and the history as the first one decides it."""
    folder = tmp_path_factory.mktemp("cost")
    pq.write_table(_history(), folder / "history.parquet")
    rows = _rows(folder / "history.parquet")
    _train(rows, SHARE_POLICY, folder / "share")
    bundle = _train(rows, POLICY, folder / "money")
    mapping = Mapping.from_yaml(MAPPING)
    replay_file(bundle, folder / "history.parquet", mapping, folder / "decided.parquet")
    return folder


def _decided(place: Path, bundle: Bundle) -> Decided:
    feature_set = bundle.feature_set
    factors = conversion_factors(feature_set)
    return Decided.read(place / "decided.parquet", feature_set.names, feature_set.currency, factors)


def _saving(score: float, minor: int, currency: str) -> float:
    """By its definition, in plain numbers: cents are whole, as in the features."""
    factor = 1.0 if currency == "EUR" else RATES[currency] * 10.0 ** (2 - EXPONENTS[currency])
    euros = round(minor * factor) / 100
    return score * euros * 0.9 - 4 - (1 - score) * 10


@settings(deadline=None)  # the first one waits for compiled kernels
@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.integers(1, 10**9), st.sampled_from(list(EXPONENTS))), min_size=1, max_size=20
    ),
    st.sampled_from([0.0, 2.5]),
)
def test_a_payment_is_flagged_when_that_saves_more_than_is_wanted(
    payments: list[tuple[float, int, str]], least: float
) -> None:
    """Each decision equals the sum of its definition, whatever the currency's exponent and rate."""
    rule = CostRule.of(COSTS, least, FeatureSet.from_yaml(FEATURE_SET))
    raw = [
        json.dumps(
            {"payment_id": f"p{i}", "event_time": START_MS, "amount_minor": minor, "currency": currency}
        ).encode()
        for i, (_, minor, currency) in enumerate(payments)
    ]
    flags = rule.flags(np.array([score for score, _, _ in payments]), rule.amounts(decode_payments(raw)))
    for flag, (score, minor, currency) in zip(flags.tolist(), payments, strict=True):
        saving = _saving(score, minor, currency)
        if abs(saving - least) > 1e-6 * max(1.0, minor):  # the sum is written in another order
            assert flag == (saving > least)


@given(st.lists(st.sampled_from([-3.0, 0.0, 1.0, 2.0, 2.5, 7.0]), max_size=12), st.integers(1, 4), st.floats(0.1, 5))
def test_capacity_flags_as_many_as_it_may(savings: list[float], reviews: int, days: float) -> None:
    """No least saving of all possible ones flags more payments within the capacity than the one found; none exceeds."""
    cost = COSTS.model_copy(update={"reviews_a_day": reviews})
    found = saving_min_for(cost, np.array(savings), days)
    allowed = int(reviews * days)
    within = [t for t in {0.0, *savings} if t >= 0 and sum(s > t for s in savings) <= allowed]
    assert sum(s > found for s in savings) == max(sum(s > t for s in savings) for t in within)
    assert saving_min_for(COSTS, np.array(savings), days) == 0.0


def test_a_bundle_by_cost_keeps_to_the_capacity(place: Path) -> None:
    """On validation the rule flags at most the team's reviews, by the least saving that the bundle states; without a
    limit it is 0. What was saved there, by cost and by as many flags of the score alone, is stated."""
    bundle = Bundle.load(place / "money")
    training, metrics = bundle.manifest.training, bundle.manifest.metrics
    assert training is not None
    days = (training.validation_until_ms - training.validation_from_ms) / DAY_MS
    assert 0 < metrics["flagged"] <= 5 * days
    assert bundle.manifest.saving_min is not None
    assert bundle.manifest.saving_min > 0
    assert min(metrics["money_saved"], metrics["money_saved_by_score"]) > 0
    rows = _rows(place / "history.parquet")
    free = _train(rows, f"name: money\n{COST % ''}\n", place / "free")
    assert free.manifest.saving_min == 0
    assert free.manifest.metrics["flagged"] > metrics["flagged"]


def test_the_capacity_is_of_all_payments_of_a_day(place: Path, tmp_path: Path) -> None:
    """The team reviews what is flagged, whether its label ever becomes known or not: with labels of every fourth
    payment alone no more are flagged than with those of all."""
    rows = _rows(place / "history.parquet")
    label = np.where(np.arange(len(rows.label)) % 4 == 0, rows.label, -1).astype(np.int8)
    settings = TrainingSettings("money", "2025-01-01T00:00:00Z", threads=1, search_s_max=0, refit=False)
    report = train(replace(rows, label=label), FEATURE_SET, POLICY, tmp_path / "few", settings)
    assert any("flag.cost weighs them as those of all payments" in note for note in report.notes)
    bundle = Bundle.load(report.output)
    window, cost, amount = bundle.manifest.training, bundle.policy.flag.cost, rows.amount
    assert window is not None
    assert cost is not None
    assert amount is not None
    times = rows.event_time_ms
    there = (times >= window.validation_from_ms) & (times < window.validation_until_ms)
    scores = bundle.scores(bundle.model.margins(rows.X[there]))
    flagged = expected_saving(cost, scores, amount[there]) > float(bundle.manifest.saving_min or 0)
    days = (window.validation_until_ms - window.validation_from_ms) / DAY_MS
    assert 4 * days < flagged.sum() <= 5 * days
    assert bundle.manifest.metrics["flagged_share"] == pytest.approx(flagged.mean())


def test_scores_that_are_no_probabilities_weigh_no_money(place: Path, tmp_path: Path) -> None:
    """Where on later days frauds score lower than other payments nothing can be calibrated: a policy by cost is
    refused, another one has a note."""
    rows = _rows(place / "history.parquet")
    later = rows.event_time_ms >= START_MS + 30 * DAY_MS
    small = np.nan_to_num(rows.X[:, 2], nan=1.0) < np.nanquantile(rows.X[:, 2], 0.03)  # against the usual amount
    turned = replace(rows, label=np.where(later, small, rows.label).astype(np.int8))
    settings = TrainingSettings("money", "2025-01-01T00:00:00Z", threads=1, search_s_max=0, refit=False)
    with pytest.raises(TrainError, match=r"the scores are no probabilities: .* flag a share"):
        train(turned, FEATURE_SET, POLICY, tmp_path / "cost", settings)
    report = train(turned, FEATURE_SET, SHARE_POLICY.replace("0.02", "0.2"), tmp_path / "share", settings)
    assert any("the scores are no probabilities" in note for note in report.notes)


def test_live_and_replayed_decisions_are_the_rule(place: Path) -> None:
    """Payments from JSON in small batches, from columns by a replay, from stored rows by what-if and one by one by
    audit explain are flagged alike: by the definition, from their score, amount and currency."""
    bundle = Bundle.load(place / "money")
    decided = _decided(place, bundle)
    least = bundle.manifest.saving_min or 0.0
    rows = decided.table.select(["payment_id", "score", "amount_minor", "currency", "decision"]).to_pylist()
    for row in rows:
        flagged = _saving(row["score"], row["amount_minor"], row["currency"]) > least
        assert (row["decision"] == "flag") == flagged, row
    assert 0 < decided.flagged.sum() < len(decided)

    assert (what_if(decided, bundle, bundle.policy).decided.flagged == decided.flagged).all()

    source = pq.read_table(place / "history.parquet").to_pylist()[:3_000]
    pipeline, live = Pipeline(bundle), []
    for start in range(0, len(source), 500):
        raw = [
            json.dumps(
                {
                    "payment_id": row["id"], "event_time": f"{row['at'].isoformat()}Z", "amount_minor": row["minor"],
                    "currency": row["currency"], "customer_id": row["customer"],
                }
            ).encode()
            for row in source[start : start + 500]
        ]  # fmt: skip
        outcomes = pipeline.run(Batch.of_payments(raw))
        live += ["flag" if decision else "approve" for decision in outcomes.columns.decision.tolist()]
    pipeline.close()
    assert "flag" in live
    # No label is known in this run: the features do not use any.
    assert live == [row["decision"] for row in rows[:3_000]]

    features = decided.features()
    for place_ in [*np.flatnonzero(decided.flagged)[:5], 0, 1]:
        one = np.ascontiguousarray(features[place_ : place_ + 1])
        row = {"mode": "normal", "reasons": []} | rows[place_]
        margin, score = decided.margin[place_ : place_ + 1], decided.score[place_ : place_ + 1]
        assert _decide(bundle, one, margin, score, [], row)[0] == row["decision"]


def test_a_challenger_by_cost_keeps_to_the_champion_s_work(place: Path) -> None:
    """A challenger whose scores are far higher flags as many payments as the champion's rule, those whose expected
    saving by its own scores is highest; where the capacity does not bind the champion, as many as that allows."""
    bundle = Bundle.load(place / "money")
    decided = _decided(place, bundle)
    curve = bundle.manifest.calibration
    raised = curve.model_copy(update={"intercept": curve.intercept + 2})
    other = Challenger("raised", bundle.model, raised)
    counted = decided.time_ms >= START_MS + 40 * DAY_MS
    currencies, minor = map(str, decided.texts("currency")), decided.numbers("amount_minor").tolist()
    paid = list(zip(minor, currencies, strict=True))

    def savings(scores: np.ndarray) -> np.ndarray:
        return np.array([_saving(score, *one) for score, one in zip(scores.tolist(), paid, strict=True)])

    shadow = shadow_of(decided, bundle, other, counted)
    own, work = savings(shadow.decided.score), int(decided.flagged[counted].sum())
    assert bundle.manifest.saving_min is not None
    assert (counted & (own > bundle.manifest.saving_min)).sum() > 1.5 * work  # by the champion's least saving
    assert shadow.saving_min is not None
    assert shadow.decided.flagged[counted].sum() == work
    assert own[counted & shadow.decided.flagged].min() >= np.sort(own[counted])[-work] - 1e-6
    unbound = replace(bundle, manifest=bundle.manifest.model_copy(update={"saving_min": 0.0}))
    few = np.flatnonzero(decided.flagged)[::4]
    decision = np.full(len(decided), "approve", object)
    decision[few] = "flag"
    table = decided.table
    place_of = table.schema.get_field_index("decision")
    spared = replace(decided, table=table.set_column(place_of, "decision", pa.array(decision.tolist())))
    at = decided.time_ms[counted]
    allowed = int(5 * (int(at.max()) + 1 - int(at.min())) / DAY_MS)
    assert spared.flagged[counted].sum() < allowed
    assert shadow_of(spared, unbound, other, counted).decided.flagged[counted].sum() == allowed


@pytest.mark.parametrize("student", [True, False])
def test_what_was_decided_without_the_model_is_tried_without_it(place: Path, tmp_path: Path, *, student: bool) -> None:
    """Payments whose deadline left no time keep to the student, or to the policy's word for them, under the policy that
    decided and under another one; a limit is found on the other payments alone."""
    policy = POLICY + "degraded: {otherwise: flag}\n"
    bundle = replace(Bundle.load(place / "money"), policy=Policy.from_yaml(policy))
    if student:
        small, curve = place / "share", {"kind": "platt", "slope": 0.6, "intercept": -3.0}
        share = Bundle.load(small)
        margin = float(Calibration(**curve).margin_for(share.manifest.threshold_score, share.model.link))
        small = _changed(small, tmp_path / "small", calibration=curve, threshold_margin=margin)
        made = with_challengers(place / "money", [], tmp_path / "both", created_at="x", student=small)
        bundle = replace(made, policy=bundle.policy)
    decided = _decided(place, bundle)
    degraded = np.arange(len(decided)) % 3 == 0
    margins, scores, by_student = bundle.degraded(decided.features())
    live = bundle.policy_runner()
    rule = live.cost
    assert rule is not None
    by_money = np.array(
        [
            _saving(score, row["amount_minor"], row["currency"]) > rule.saving_min
            for score, row in zip(scores, decided.table.select(["amount_minor", "currency"]).to_pylist(), strict=True)
        ]
    )
    flagged = np.where(degraded, by_money if student else True, decided.flagged)
    columns = {
        "mode": np.where(degraded, "degraded", "normal").tolist(),
        "margin": np.where(degraded, margins, decided.margin).astype(np.float32),
        "score": np.where(degraded, scores, decided.score),
        "decision": np.where(flagged, "flag", "approve").tolist(),
        "bundle": [bundle.id] * len(decided),
    }
    table = decided.table
    for name, values in columns.items():
        column = pa.array(values).cast(table.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), name, column)
    decided = replace(decided, table=table)
    assert (what_if(decided, bundle, bundle.policy).decided.flagged == flagged).all()
    alone = flagged_by_score(decided, bundle, bundle.policy)
    assert (alone[degraded] == (by_student[degraded] if by_student is not None else True)).all()
    for other in ("name: o\nflag: {share: 0.05}\n", policy.replace("a_day: 5", "a_day: 2")):
        tried = Policy.from_yaml(other)
        in_time = decided.take(~degraded)
        both, without = what_if(decided, bundle, tried), what_if(in_time, bundle, tried)
        assert both.threshold_score == without.threshold_score
        assert (both.decided.flagged[~degraded] == without.decided.flagged).all()
    row = next(row for row in table.to_pylist() if row["mode"] == "degraded")
    at = table["payment_id"].to_pylist().index(row["payment_id"])
    row |= {
        "features": decided.features()[at], "threshold": bundle.manifest.threshold_score, "challengers": [],
        "reasons": [], "fired": [], "margin": margins[at], "score": scores[at],
    }  # fmt: skip
    explanation = Explanation(row, [], "", [])
    prove(explanation, bundle)
    assert any("weighs money" in note for note in explanation.notes) == student
    with pytest.raises(BacktestError, match=r"none of the .* was decided by the model"):
        what_if(decided.take(degraded), bundle, Policy.from_yaml("name: o\nflag: {share: 0.05}\n"))


def test_backtest_counts_the_money_saved(place: Path) -> None:
    """Money saved, by cost and by the score alone, is the sum over payments; the difference has an interval over days
    that holds it, and comes with the flags of the score's threshold."""
    bundle = Bundle.load(place / "money")
    decided = _decided(place, bundle)
    alone = flagged_by_score(decided, bundle, bundle.policy)
    assert (alone == (decided.score >= bundle.manifest.threshold_score)).all()
    from_ms = START_MS + 42 * DAY_MS
    result = backtest(decided.beside(alone), from_ms=from_ms, rounds=100, cost=bundle.policy.flag.cost)
    side = result.sides[0]

    def total(flagged: np.ndarray) -> float:
        kept = (decided.time_ms >= from_ms) & (decided.numbers("label_known_at") <= decided.time_ms.max())
        rows = zip(decided.money[kept], decided.fraud[kept], flagged[kept], strict=True)
        return sum((0.9 * money - 4 if fraud else -14) for money, fraud, flag in rows if flag)

    assert side.overall["money_saved"] == pytest.approx(total(decided.flagged))
    assert side.overall["money_saved_by_score"] == pytest.approx(total(alone))
    more = side.overall["money_saved"] - side.overall["money_saved_by_score"]
    assert side.overall["money_saved_more"] == pytest.approx(more)
    low, high = side.intervals["money_saved_more"]
    assert low <= more <= high


def test_what_if_weighs_a_policy_by_cost_against_a_share(place: Path) -> None:
    """A bundle by share and a policy by cost on its decisions: both sides count the money by the policy's costs."""
    (place / "mapping.yaml").write_text(MAPPING)
    (place / "cost.yaml").write_text(POLICY)
    arguments = [
        "backtest", "--bundle", f"{place}/share", "--policy", f"{place}/cost.yaml", "--input",
        f"{place}/history.parquet", "--mapping", f"{place}/mapping.yaml", "--from", "2024-02-12", "--rounds", "50",
        "--output", f"{place}/report.html", "--json",
    ]  # fmt: skip
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    first, second = json.loads(done.stdout.splitlines()[-1])["sides"]
    assert first["money_saved_by_score"] is None
    assert second["money_saved_more_than_first"] == pytest.approx(second["money_saved"] - first["money_saved"])
    low, high = second["intervals"]["money_saved_more_than_first"]
    assert low <= second["money_saved_more_than_first"] <= high


def test_a_limit_is_found_on_days_that_are_neither_trained_on_nor_measured(place: Path) -> None:
    """Where such days are stored, what is measured has no part in it; else the measured days give it, and a note says
    so."""
    bundle, policy = Bundle.load(place / "share"), Policy.from_yaml(POLICY)
    decided = _decided(place, Bundle.load(place / "money"))
    column = pa.array([bundle.id] * len(decided), decided.table.schema.field("bundle").type)
    table = decided.table.set_column(decided.table.column_names.index("bundle"), "bundle", column)
    decided, from_ms = replace(decided, table=table), START_MS + 50 * DAY_MS
    assert bundle.manifest.training is not None
    until_ms, at = bundle.manifest.training.validation_until_ms, decided.time_ms
    between = (at >= until_ms) & (at < from_ms)
    tried = what_if(decided, bundle, policy, from_ms)
    assert 0 < tried.decided.flagged[between].sum() <= 5 * (from_ms - until_ms) / DAY_MS
    assert "between" in tried.notes[0]
    fewer = decided.take((at < from_ms) | (decided.score < np.median(decided.score)))
    assert what_if(fewer, bundle, policy, from_ms).threshold_score == tried.threshold_score
    alone = decided.take(at >= from_ms)
    measured = what_if(alone, bundle, policy, from_ms)
    assert measured.decided.flagged.sum() <= 5 * 10
    assert "fits them better" in measured.notes[0]
    assert what_if(decided.take(~between), bundle, policy, from_ms).threshold_score == measured.threshold_score


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("{cost: {currency: EUR, review: 4}}", "good_customer"),
        ("{cost: {review: 4, good_customer: 1}}", "currency"),
        ("{cost: {currency: EUR, review: -4, good_customer: 1}}", "review"),
        ("{cost: {currency: EUR, review: .inf, good_customer: 1}}", "review"),
        ("{cost: {currency: EUR, review: 4, good_customer: 1, loss_share: 1.5}}", "loss_share"),
        ("{cost: {currency: EUR, review: 4, good_customer: 1, reviews_a_day: 0}}", "reviews_a_day"),
        ("{cost: {currency: EUR, review: 0, good_customer: 0}}", "are both 0"),
        ("{share: 0.1, cost: {currency: EUR, review: 4, good_customer: 1}}", "give one of score"),
        ("{}", "give one of score"),
    ],
)
def test_costs_that_make_no_sense_are_refused(flag: str, message: str) -> None:
    """A policy by cost with a value that cannot be meant is refused, and the message names the field."""
    with pytest.raises(PolicyError, match=message):
        Policy.from_yaml(f"name: p\nflag: {flag}")


def test_what_does_not_fit_is_refused(place: Path, tmp_path: Path) -> None:
    """Costs in another currency, rows without amounts, costs that flag nothing, and a bundle whose manifest and policy
    disagree are refused with the way out; nothing is written."""
    rows = _rows(place / "history.parquet")
    with pytest.raises(UsageError, match=r"costs in EUR"):
        _train(rows, POLICY.replace("EUR", "USD"), tmp_path / "currency")
    with pytest.raises(TrainError, match="amount of each payment"):
        _train(replace(rows, amount=None), POLICY, tmp_path / "amount")
    with pytest.raises(TrainError, match="amount holds values below 0"):
        _train(replace(rows, amount=-np.ones(len(rows.label))), POLICY, tmp_path / "amount")
    with pytest.raises(TrainError, match=r"flags none of the .* lower review"):
        _train(rows, POLICY.replace("review: 4", "review: 1000000"), tmp_path / "nothing")
    assert not list(tmp_path.iterdir())
    bundle = place / "money"
    manifest = json.loads((bundle / MANIFEST).read_text())
    broken: dict[str, Any] = {key: value for key, value in manifest.items() if key != "saving_min"}
    for file in bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / MANIFEST).write_text(json.dumps(broken))
    with pytest.raises(BundleMismatchError, match="flags by cost"):
        Bundle.load(tmp_path)


def _changed(source: Path, folder: Path, policy: str | None = None, **fields: object) -> Path:
    """A copy of a bundle with another policy or other fields of the manifest, its hashes right."""
    shutil.copytree(source, folder)
    manifest = json.loads((folder / MANIFEST).read_text()) | fields
    if policy is not None:
        (folder / "policy.yaml").write_text(policy)
        manifest["files"]["policy.yaml"] = hashlib.sha256(policy.encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def test_a_manifest_that_contradicts_its_policy_is_refused(place: Path, tmp_path: Path) -> None:
    """A least saving without a capacity and a student's own threshold without a share are no bundle's of this program:
    the message names the field and the way out. Of a bundle by cost `bundle show` prints no score for the student."""
    with pytest.raises(BundleMismatchError, match=r"saving_min: .* no flag.cost.reviews_a_day.* train"):
        Bundle.load(_changed(place / "money", tmp_path / "limit", f"name: money\n{COST % ''}\n"))
    with_challengers(place / "money", [], tmp_path / "both", created_at="x", student=place / "share")
    with pytest.raises(BundleMismatchError, match=r"student_threshold_score: .* no flag.share.*`bundle challenge"):
        Bundle.load(_changed(tmp_path / "both", tmp_path / "own", student_threshold_score=0.3))
    shown = CliRunner().invoke(app, ["bundle", "show", str(tmp_path / "both")], catch_exceptions=False).output
    assert "by cost" in shown
    assert "from a score" not in shown


def test_money_saved_by_hand() -> None:
    """A stopped fraud saves its amount's share less a review, a stopped good customer costs both, others are 0."""
    flagged, fraud = np.array([True, True, False, False]), np.array([True, False, True, False])
    saved = money_saved(COSTS, fraud, flagged, np.array([100.0, 100.0, 100.0, 100.0]))
    assert saved.tolist() == [86.0, -14.0, 0.0, 0.0]
