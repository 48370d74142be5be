"""From a feature matrix in time order to a bundle whose compiled model equals xgboost bit for bit.

    rows of known label ─▶ split by time ─▶ boost by several recipes, each stopped early on AP ─▶ the best of them
        its rounds, and recipe ◀─ looked at again by rows that reach into later days (scorer/training/second_fit.py)
        the best ─▶ measure, calibrate, threshold ─┐
        the same recipe on all known rows ─▶ gate ─┴▶ bundle

The figures, the calibration and the threshold come from the model that never saw the validation part. Written is the
second model, with the same recipe and as many rounds: the newest weeks are the ones most like tomorrow. Where a bundle
is continued (scorer/training/continuation.py), its model and its model with more trees are compared with that best one.
xgboost is imported when training starts, never by serving.
"""

from __future__ import annotations

import difflib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from features.feature_set import FeatureSet
from scorer.bundle import Calibration, Lineage, TrainingWindow, write_bundle
from scorer.model.calibration import calibration_error, fit_platt
from scorer.policy import CostRule, FlagCost, Policy, expected_saving, money_saved, saving_min_for, score_of_as_many
from scorer.training.boosting import STOP_FRAUDS_MIN, Boosting, Data, Progress, Recipe, boost_rounds
from scorer.training.compiled_booster import CompiledBooster
from scorer.training.continuation import Continued, Present, check_kept, check_newer, choose
from scorer.training.feature_selection import FeatureWorth, TrainingPartFigures, worth
from scorer.training.label_delays import late_confirmations, late_reports, unlabelled
from scorer.training.leakage_suspects import precision_alone, refuse_leakage
from scorer.training.ranking import summary, threshold_for_share
from scorer.training.recipe_search import Trial, TrialProgress, compare, recipes_for, search
from scorer.training.second_fit import second_fit
from scorer.training.time_split import Split, day_of_training, refuse_infinite, split_in_time
from scorer.training.training_errors import TrainError
from scorer.training.training_libraries import import_optuna, import_xgboost, versions
from scorer.training.training_settings import TrainingRows, TrainingSettings

DAY_MS = 86_400_000
UNLABELLED_MAX = 0.1  # share of the validation payments, old enough for a label, that may lack one without a note
SILENT_MAX = 0.1  # share of the time range, at its end, without a fraud
UNCALIBRATED = (
    "the scores are no probabilities: on the validation part they do not rise with the share of frauds, so nothing "
    "could be calibrated"
)


@dataclass(frozen=True)
class TrainingReport:
    """What training did, for people and for --json."""

    bundle_id: str
    output: Path
    trees: int
    threshold_score: float
    threshold_margin: float
    saving_min: float | None
    """Of a policy by cost: a payment is flagged when its expected saving is above this."""
    training: TrainingWindow
    metrics: dict[str, float]
    """On validation: average_precision, auc, recall, precision, rows, frauds, flagged, true_flagged, calibration_error
    and, of the uncalibrated score, calibration_error_before; flagged_share of all payments of those days, those without
    a known label too."""
    rows_without_label: int
    """Rows whose label is not known, or became known after the day of training, or that had too little time before it
    to count as genuine."""
    rows_in_gap: int
    """Known rows that the measured model did not see: they, or their labels, came too near the validation part."""
    empty_features: list[str]
    """Features that are NaN in every training row: the model cannot use them."""
    gain_by_feature: list[tuple[str, float]]
    """Share of the total gain, largest first; features never split on are left out."""
    recipe: Recipe
    trials: list[Trial] = field(default_factory=list)
    """The recipes compared or searched, in their order."""
    late_trials: list[Trial] = field(default_factory=list)
    """Those looked at again by rows that reach into the later days, for the model that is written."""
    features: list[FeatureWorth] = field(default_factory=list)
    """The feature selection report, of the measured model."""
    lineage: Lineage | None = None
    """Where a bundle was continued: which, and how its model became this one."""
    candidates: dict[str, float] = field(default_factory=dict)
    """Then: average precision on the held-back rows of the present model (kept), of that with new trees (continued),
    and of a new fit (anew)."""
    notes: list[str] = field(default_factory=list)
    """What of the rows makes the figures, or the model, other than they seem."""


@dataclass(frozen=True)
class Prepared:
    """What a run needs beside its rows: the libraries (optuna where recipes are searched), what is trained for, and the
    bundle that is continued."""

    xgboost: Any
    optuna: Any
    feature_set: FeatureSet
    policy: Policy
    before: Present | None


@dataclass(frozen=True)
class _Measured:
    """The model that never saw the validation part, and all that was measured and fitted with it there."""

    booster: CompiledBooster
    rounds: int
    gain: dict[str, float]
    calibration: Calibration
    threshold: float
    saving_min: float | None
    metrics: dict[str, float]


@dataclass(frozen=True)
class _Days:
    """All payments of the validation days, those without a known label too: a team's capacity and a share to flag are
    of all that is decided. X float32 [n, k]; `labelled` bool [n]: the validation rows, in their order; amounts float64
    [n] in major units; over how many days they spread."""

    X: np.ndarray
    labelled: np.ndarray
    amounts: np.ndarray | None
    days: float


def train(
    rows: TrainingRows,
    feature_set_yaml: str,
    policy_yaml: str,
    output: Path,
    settings: TrainingSettings,
    *,
    present: Path | None = None,
    progress: Progress | None = None,
    trial_progress: TrialProgress | None = None,
) -> TrainingReport:
    """Train on the rows and write the bundle to `output`, which must not exist.

    `present`: folder of a bundle with the same features, whose model is continued where that is better than keeping it
    or fitting anew; `rows` then go on after those that it has seen, which may be among them.
    `progress` is called after each round of boosting, `trial_progress` after each trial of the search.
    Raises TrainError (data or settings that cannot be trained with), LeakageError, GateError, BundleError,
    FeatureSetError or PolicyError.
    """
    _check_types(rows=(rows, TrainingRows))
    prepared = prepare(feature_set_yaml, policy_yaml, output, settings, present)
    xgboost, optuna, before = prepared.xgboost, prepared.optuna, prepared.before
    feature_set, policy = prepared.feature_set, prepared.policy
    names = feature_set.names
    if policy.flag.cost is not None and rows.amount is None:
        raise TrainError(f"policy {policy.name} flags by cost: the rows need the amount of each payment")
    rows.check(names)

    split = split_in_time(rows, settings, None if before is None else before.seen_until_ms)
    data = _parts(rows, split, names)
    # Of a continued bundle new models are stopped and chosen on earlier held-back rows, and compared on later ones.
    stopping, comparing = (data, data) if before is None else _apart(rows, split, data)
    newer = None if before is None else _newer(rows, split, before, stopping)
    alone = precision_alone(data.X, data.fraud, settings.seed)
    refuse_leakage(alone, names, settings.accepted)
    empty = np.isnan(data.X).all(axis=0)

    boosting = Boosting(xgboost, feature_set, settings.seed, settings.threads)
    began = time.monotonic()
    recipes = recipes_for(stopping)
    trials: list[Trial] = []
    seconds_max = settings.search_s_max
    if optuna is not None and len(recipes) > 1:  # few frauds can't choose
        trials = search(
            boosting, optuna, stopping, trials=settings.trials, seconds_max=seconds_max, progress=trial_progress
        )
        best = max(trials, key=lambda trial: trial.average_precision).recipe
        recipes = list(dict.fromkeys([recipes[0], best]))
        seconds_max, trial_progress = None, None
    fitted = compare(
        boosting, stopping, recipes, seconds_max=seconds_max, progress=progress, trial_progress=trial_progress
    )
    recipe, trials = fitted.recipe, trials or fitted.trials
    booster, chosen = fitted.booster, None
    if before is not None and newer is not None:
        chosen = choose(boosting, comparing, newer, before, fitted, progress)
        booster, recipe = chosen.booster, chosen.recipe

    refitting = settings.refit and (chosen is None or chosen.made != "kept")
    onto = before if _continued(chosen) else None
    late_trials: list[Trial] = []
    left = None if settings.search_s_max is None else settings.search_s_max - (time.monotonic() - began)
    # What was compared with a present model is written as it was compared.
    if refitting and before is None and (left is None or left > 0):
        was = recipe, _rounds(booster)
        late = second_fit(boosting, rows, split, recipe, booster, seconds_max=left, progress=progress)
        recipe, late_trials = late.recipe, late.trials
        # Calibration and threshold fit the second model only where the measured one is of its recipe and rounds.
        if (recipe, late.rounds) != was:
            booster = boost_rounds(boosting, data, recipe, late.rounds)
    measured = _measured(boosting, data, booster, policy, _days(rows, split, names))
    known = TrainingPartFigures(measured.gain, alone, empty)
    features = worth(measured.booster.model, names, known, data.held_out, data.held_out_fraud, settings.seed)
    written = measured.booster
    if refitting:
        written = _refitted(boosting, rows, split, recipe, measured.rounds, onto)
        written.proved_margins(data.held_out)
    window, lineage, metrics = _window(rows, split, settings), None, measured.metrics
    if before is not None and chosen is not None:
        window = _window_of(before, chosen, rows, split, window)
        lineage = before.lineage(chosen.made, chosen.trees_kept, chosen.before, measured.metrics["average_precision"])
        metrics = metrics | {"average_precision_before": chosen.before}
    bundle = write_bundle(
        Path(output),
        name=settings.name,
        created_at=settings.created_at,
        model=written.raw,
        feature_set_yaml=feature_set_yaml,
        policy_yaml=policy_yaml,
        threshold_score=measured.threshold,
        saving_min=measured.saving_min,
        calibration=measured.calibration,
        golden=written.golden(data.held_out),
        training=window,
        lineage=lineage,
        metrics=metrics,
        versions=versions(),
    )
    return TrainingReport(
        bundle_id=bundle.id,
        output=Path(output),
        trees=written.model.tree_count,
        threshold_score=measured.threshold,
        threshold_margin=float(bundle.threshold_margin),
        saving_min=measured.saving_min,
        training=window,
        metrics=metrics,
        rows_without_label=split.rows_without_label,
        rows_in_gap=split.rows_in_gap,
        empty_features=[column for column, none in zip(names, empty, strict=True) if none],
        gain_by_feature=_gain_shares(measured.gain),
        recipe=recipe,
        trials=trials,
        late_trials=late_trials,
        features=features,
        lineage=lineage,
        candidates={} if chosen is None else {str(name): value for name, value in chosen.candidates.items()},
        notes=_notes(rows, split, settings, measured.calibration, by_cost=policy.flag.cost is not None)
        + _of_comparison(before, stopping, comparing),
    )


def prepare(
    feature_set_yaml: str, policy_yaml: str, output: Path, settings: TrainingSettings, present: Path | None = None
) -> Prepared:
    """What `train` needs but its rows, checked: to be called before hours of reading. Raises as `train` does."""
    _check_types(settings=(settings, TrainingSettings))
    _check_types(feature_set_yaml=(feature_set_yaml, str), policy_yaml=(policy_yaml, str))
    xgboost = import_xgboost()
    feature_set = FeatureSet.from_yaml(feature_set_yaml)
    policy = Policy.from_yaml(policy_yaml)
    policy.check(feature_set.names)
    if policy.flag.cost is not None:
        CostRule.of(policy.flag.cost, 0.0, feature_set)
    if os.path.lexists(output):
        raise TrainError(f"{output} exists already; bundles are never overwritten, choose another place")
    settings.check()
    for name in settings.accepted:
        if name not in feature_set.names:
            near = difflib.get_close_matches(name, feature_set.names, n=3) or feature_set.names
            raise TrainError(f"--accept {name}: {feature_set.name} has no such feature; it has {', '.join(near)}")
    optuna = import_optuna() if settings.trials else None
    before = None if present is None else Present.load(Path(present), feature_set, xgboost, settings.threads)
    return Prepared(xgboost, optuna, feature_set, policy, before)


def _check_types(**arguments: tuple[object, type]) -> None:
    """Raise TrainError for the first argument, given with the type wanted, that is of another."""
    for name, (value, kind) in arguments.items():
        if not isinstance(value, kind):
            raise TrainError(f"{name} is of type {type(value).__name__}, wanted {kind.__name__}")


def _parts(rows: TrainingRows, split: Split, names: list[str]) -> Data:
    """Training and validation part. Raises TrainError for an infinite feature."""
    fraud = rows.fraud
    data = Data(rows.X[split.train], fraud[split.train], rows.X[split.validation], fraud[split.validation])
    refuse_infinite(data.X, names)
    refuse_infinite(data.held_out, names)
    return data


def _days(rows: TrainingRows, split: Split, names: list[str]) -> _Days:
    times, from_ms = rows.event_time_ms, split.validation_from_ms
    until_ms = int(times[split.validation].max()) + 1
    there = np.flatnonzero((times >= from_ms) & (times < until_ms))
    X = rows.X[there]
    refuse_infinite(X, names)
    amounts = None if rows.amount is None else rows.amount[there]
    return _Days(X, np.isin(there, split.validation), amounts, (until_ms - from_ms) / DAY_MS)


def _measured(boosting: Boosting, data: Data, booster: Any, policy: Policy, days: _Days) -> _Measured:
    """Calibrate, choose the threshold and measure a booster of the training part on the validation part."""
    compiled = CompiledBooster.of(boosting.xgboost, booster, boosting.threads)
    everything, fraud, link = compiled.proved_margins(days.X), data.held_out_fraud, compiled.model.link
    margins = everything[days.labelled]
    # Two numbers, fitted on rows that the model has not seen: the score becomes a probability, the ranking stays.
    calibration = fit_platt(margins, fraud.astype(np.float64))
    if calibration.kind == "identity" and policy.flag.cost is not None:
        raise TrainError(f"{UNCALIBRATED}; flag.cost weighs them as such: give more or other features, or flag a share")
    scores = calibration.apply(everything, link)
    threshold, saving_min, saved = policy.flag.score, None, {}
    if policy.flag.cost is not None and days.amounts is not None:
        saving_min, flagged = _by_cost(policy.flag.cost, scores, days.amounts, days.days)
        threshold = score_of_as_many(scores, int(flagged.sum()))
        amounts = days.amounts[days.labelled]
        saved = {
            name: float(money_saved(policy.flag.cost, fraud, by[days.labelled], amounts).sum())
            for name, by in (("money_saved", flagged), ("money_saved_by_score", scores >= threshold))
        }
    else:
        if threshold is None:
            threshold = threshold_for_share(scores, float(policy.flag.share or 0))
        flagged = scores >= threshold
    flagged_share, scores, flagged = float(flagged.mean()), scores[days.labelled], flagged[days.labelled]
    metrics = (
        summary(fraud, scores, flagged)
        | {"flagged_share": flagged_share}
        | saved
        | {
            "calibration_error": calibration_error(scores, fraud),
            "calibration_error_before": calibration_error(Calibration().apply(margins, link), fraud),
        }
    )
    gain: dict[str, float] = booster.get_score(importance_type="total_gain")
    return _Measured(compiled, _rounds(booster), gain, calibration, float(threshold), saving_min, metrics)


def _by_cost(cost: FlagCost, scores: np.ndarray, amounts: np.ndarray, days: float) -> tuple[float, np.ndarray]:
    """The least saving that the team's capacity allows, and the payments flagged, bool [n]. Raises TrainError."""
    savings = expected_saving(cost, scores, amounts)
    saving_min = saving_min_for(cost, savings, days)
    flagged = savings > saving_min
    if not flagged.any():
        raise TrainError(
            f"flag.cost flags none of the {len(savings)} payments of the validation days: the best one saves an "
            f"expected {savings.max():.2f} {cost.currency}, more than {saving_min:.2f} is wanted; lower review or "
            "good_customer, or raise reviews_a_day"
        )
    return saving_min, flagged


def _refitted(
    boosting: Boosting, rows: TrainingRows, split: Split, recipe: Recipe, rounds: int, onto: Present | None
) -> CompiledBooster:
    """The second fit: same recipe and rounds, on all known rows; after the trees of `onto`, on those that it has not
    seen. Raises TrainError for an infinite feature."""
    known = split.known if onto is None else split.known[rows.event_time_ms[split.known] >= onto.learned_until_ms]
    data = Data(rows.X[known], rows.fraud[known], rows.X[:0], rows.fraud[:0])
    refuse_infinite(data.X, boosting.feature_set.names)
    if onto is None:
        booster = boost_rounds(boosting, data, recipe, rounds)
    else:
        booster = boost_rounds(boosting, data, recipe, rounds - onto.bundle.model.tree_count, onto.booster)
        check_kept(boosting, booster, onto)
    return CompiledBooster.of(boosting.xgboost, booster, boosting.threads)


def _rounds(booster: Any) -> int:
    return int(booster.num_boosted_rounds())


def _notes(
    rows: TrainingRows, split: Split, settings: TrainingSettings, calibration: Calibration, *, by_cost: bool
) -> list[str]:
    at_ms = day_of_training(rows, settings)
    if at_ms is None:
        at_ms = max(int(rows.event_time_ms.max()), int(rows.label_known_at_ms[rows.label >= 0].max()))
    late = late_reports(rows.label, rows.event_time_ms, rows.label_known_at_ms, at_ms)
    notes = [] if late is None else [f"{late.sentence()}; leave them out: --until {late.day}"]
    if settings.genuine_after_ms is None:  # else no row so new is used
        early = late_confirmations(rows.label, rows.event_time_ms, rows.label_known_at_ms, at_ms)
        notes += [] if early is None else [early.sentence()]
    notes += _of_selection(rows, split, at_ms, by_cost=by_cost)
    if calibration.kind == "identity":
        notes.append(UNCALIBRATED)
    frauds = int(rows.fraud[split.validation].sum())
    if frauds < STOP_FRAUDS_MIN:
        notes.append(
            f"the figures are of {frauds} frauds in the later days, which chance moves far, so nothing was chosen by "
            f"them ({STOP_FRAUDS_MIN} would): give a longer time range"
        )
    times = rows.event_time_ms[split.known]
    last = int(times[rows.fraud[split.known]].max())
    silent = int(times.max()) - last
    if late is None and silent > SILENT_MAX * (int(times.max()) - int(times.min())):
        day = str(np.datetime64(last, "ms").astype("datetime64[D]"))
        notes.append(
            f"the last fraud is of {day}, and {silent / DAY_MS:.0f} days of payments follow without one: if reports "
            "stopped arriving, their frauds are learned as genuine"
        )
    return notes


def _of_selection(rows: TrainingRows, split: Split, at_ms: int, *, by_cost: bool) -> list[str]:
    """A note where many validation payments have no label though they are old enough for one: who has one was selected,
    mostly by what was investigated."""
    times = rows.event_time_ms
    days = (times >= split.validation_from_ms) & (times <= times[split.validation].max())
    known = np.isin(np.flatnonzero(days), split.known)
    without, old = unlabelled(known, times[days], rows.label_known_at_ms[days], at_ms)
    if without <= UNLABELLED_MAX * old:
        return []
    rate = float(rows.fraud[split.validation].mean())
    money = "; flag.cost weighs them as those of all payments and then flags far too much" if by_cost else ""
    return [
        f"{without:,} of {old:,} payments of the validation days have no label: scores are probabilities of fraud "
        f"among those that have one ({rate:.2%} frauds), too high if the others are mostly genuine{money}. Where "
        "every fraud is reported sooner or later, give --genuine-after 60d (as long as reports take), else labels of "
        "all payments"
    ]


def _continued(chosen: Continued | None) -> bool:
    return chosen is not None and chosen.made == "continued"


def _apart(rows: TrainingRows, split: Split, data: Data) -> tuple[Data, Data]:
    """The data with the earlier held-back rows, and with the later ones: up to the middle fraud, and from there on.
    With too few frauds for both, the same twice: all of them."""
    times = rows.event_time_ms[split.validation]
    middle = int(np.sort(times[data.held_out_fraud])[data.held_out_fraud.sum() // 2])
    parts = times < middle, times >= middle
    if min(int(data.held_out_fraud[part].sum()) for part in parts) < STOP_FRAUDS_MIN:
        return data, data
    earlier, later = (
        Data(data.X, data.fraud, np.ascontiguousarray(data.held_out[part]), data.held_out_fraud[part]) for part in parts
    )
    return earlier, later


def _of_comparison(before: Present | None, stopping: Data, comparing: Data) -> list[str]:
    if before is None or stopping is not comparing:
        return []
    return [
        f"the new models were stopped on the payments that they were compared on with {before.bundle.id}, which "
        f"favours them a little: {int(comparing.held_out_fraud.sum())} frauds held back are too few to do both apart, "
        f"{2 * STOP_FRAUDS_MIN} are enough"
    ]


def _newer(rows: TrainingRows, split: Split, before: Present, stopping: Data) -> Data:
    """Training rows that the present model has not learned from, and those of `stopping` held back. Raises TrainError
    for too few."""
    train = split.train[rows.event_time_ms[split.train] >= before.learned_until_ms]
    fraud = rows.fraud[train]
    seen_until = str(np.datetime64(before.learned_until_ms, "ms").astype("datetime64[s]"))
    check_newer(fraud, rows.fraud[split.validation], seen_until)
    return Data(rows.X[train], fraud, stopping.held_out, stopping.held_out_fraud)


def _window_of(
    before: Present, chosen: Continued, rows: TrainingRows, split: Split, window: TrainingWindow
) -> TrainingWindow:
    """The account of the rows that the chosen model's own trees learned from: of a kept model those of the present one,
    of a continued one the newer rows alone; what came before is in the bundle that the lineage names."""
    if chosen.made == "anew":
        return window
    if chosen.made == "kept":
        learned = before.bundle.manifest.training
        assert learned is not None
        names = ("train_from_ms", "train_until_ms", "train_rows", "train_frauds", "refit_rows", "refit_frauds")
        kept = {name: getattr(learned, name) for name in names}
        return window.model_copy(update=kept | {"learned_until_ms": before.learned_until_ms})
    times, fraud = rows.event_time_ms, rows.fraud
    train, known = (part[times[part] >= before.learned_until_ms] for part in (split.train, split.known))
    refit = window.refit_rows > 0
    return window.model_copy(
        update={
            "train_from_ms": int(times[train].min()),
            "train_rows": len(train),
            "train_frauds": int(fraud[train].sum()),
            "refit_rows": len(known) if refit else 0,
            "refit_frauds": int(fraud[known].sum()) if refit else 0,
        }
    )


def _window(rows: TrainingRows, split: Split, settings: TrainingSettings) -> TrainingWindow:
    """The manifest's account of the rows used."""
    times, fraud = rows.event_time_ms, rows.fraud
    return TrainingWindow(
        train_from_ms=int(times[split.train].min()),
        train_until_ms=int(times[split.train].max()) + 1,
        train_rows=len(split.train),
        train_frauds=int(fraud[split.train].sum()),
        validation_from_ms=split.validation_from_ms,
        validation_until_ms=int(times[split.validation].max()) + 1,
        validation_rows=len(split.validation),
        validation_frauds=int(fraud[split.validation].sum()),
        label_gap_ms=settings.label_gap_ms,
        seed=settings.seed,
        refit_rows=len(split.known) if settings.refit else 0,
        refit_frauds=int(fraud[split.known].sum()) if settings.refit else 0,
    )


def _gain_shares(gain: dict[str, float]) -> list[tuple[str, float]]:
    """Each feature's share of the gain, largest first, then by name."""
    total = sum(gain.values()) or 1.0  # a compressed model keeps none
    return sorted(((name, value / total) for name, value in gain.items()), key=lambda item: (-item[1], item[0]))
