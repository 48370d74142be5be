"""The student: a small challenger that decides when a deadline leaves no time for the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xgboost as xgb

from schemas import audit_record, row_set
from schemas.decision import DUPLICATE
from schemas.journal_record import ControlRange, InputRange, JournalRecord
from scorer.bundle import Bundle, BundleManifestError, write_bundle
from scorer.bundle.challengers import with_challengers
from scorer.bundle.gate import verify
from scorer.model.calibration import Calibration
from scorer.pipeline import DEGRADED, NORMAL, Outcomes, Pipeline
from scorer.pipeline.records import Batch, Records
from scorer.pipeline.state_image import ShardCapture, facts, restored
from scorer.policy import FLAG
from tests.faults.payments import FEATURES, POLICY, make_bundle, payments


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two shallow trees that flag large amounts, with a curve of its own."""
    folder = tmp_path_factory.mktemp("student") / "small"
    rows = np.random.default_rng(6).uniform(0, 500, (2000, 5)).astype(np.float32)
    data = xgb.DMatrix(rows, (rows[:, 0] > 300).astype(np.float32), nthread=1)
    booster = xgb.train({"objective": "binary:logistic", "max_depth": 2, "nthread": 1}, data, 2)
    few = rows[:50]
    write_bundle(
        folder, name="small", created_at="2026-01-01T00:00:00Z", model=bytes(booster.save_raw("ubj")),
        feature_set_yaml=FEATURES, policy_yaml=POLICY, threshold_score=0.6,
        calibration=Calibration(kind="platt", slope=2.0, intercept=0.25),
        golden=(few, booster.inplace_predict(few, predict_type="margin").astype(np.float32)),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def bundle(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("both")
    return with_challengers(
        make_bundle(folder / "alone"), [], folder / "both", created_at="2026-01-01T00:00:00Z", student=student
    )


def decide(
    pipeline: Pipeline, given: Sequence[tuple[bytes, bytes]], start: int, *, degraded: bool | np.ndarray
) -> Outcomes:
    return pipeline.run(batch_of(given, start, degraded=degraded))


def batch_of(given: Sequence[tuple[bytes, bytes]], start: int, *, degraded: bool | np.ndarray = False) -> Batch:
    n = len(given)
    which = np.full(n, degraded) if isinstance(degraded, bool) else degraded
    records = Records(
        partition=np.zeros(n, np.int32),
        offset=np.arange(start, start + n, dtype=np.int64),
        timestamp_ms=np.full(n, 1 << 62, np.int64),
        keys=[key for key, _ in given],
        values=[value for _, value in given],
    )
    ranges = (InputRange(partition=0, start=start, end=start + n),)
    return Batch(records, ranges, [], ControlRange(start=0, end=0), degraded=which)


def test_a_payment_without_time_takes_the_model_from_no_other(bundle: Bundle) -> None:
    """Of a batch with some deadlines past, those payments alone have the student's decision; each row is as in a batch
    that is wholly in time, or wholly without; the journal names the rows, and they decide the same again."""
    given = payments(5, 400)
    which = np.random.default_rng(1).random(len(given)) < 0.3
    mixed = decide(Pipeline(bundle), given, 0, degraded=which)
    in_time, without = (decide(Pipeline(bundle), given, 0, degraded=all_) for all_ in (False, True))
    for i, row in enumerate(mixed.rows.tolist()):
        if mixed.columns.mode[i] == DUPLICATE:
            continue
        other = (without if which[row] else in_time).columns
        for name in ("margin", "score", "mode", "decision", "reasons", "fired"):
            assert getattr(mixed.columns, name)[i] == getattr(other, name)[i], (i, name)
    assert {DEGRADED, NORMAL} <= set(mixed.columns.mode.tolist())
    record = JournalRecord.from_bytes(mixed.journal.to_bytes())
    assert record.degraded_rows is not None
    again = row_set.from_text(record.degraded_rows, len(given))
    assert (again == which).all()
    assert decide(Pipeline(bundle), given, 0, degraded=again).journal.head == record.head
    assert without.journal.degraded_rows is None


def test_a_degraded_batch_is_decided_by_the_student(bundle: Bundle) -> None:
    """Margins, scores and threshold are the student's, lists and rules still come first, and each row says so; the next
    batch in time is the model's again."""
    pipeline = Pipeline(bundle)
    outcomes = decide(pipeline, payments(1, 800), 0, degraded=True)
    columns, mode = outcomes.columns, outcomes.columns.mode
    fresh = np.flatnonzero(mode == DEGRADED)
    assert bundle.student is not None
    margins = bundle.student.model.margins(columns.features[fresh])
    assert (columns.margin[fresh].view(np.uint32) == margins.view(np.uint32)).all()
    scores = bundle.student.calibration.apply(margins, "logistic")
    assert (columns.score[fresh] == scores).all()
    large = columns.features[fresh, 0] >= 480
    by_student = scores >= bundle.manifest.threshold_score
    assert ((columns.decision[fresh] == FLAG) == (by_student | large)).all()
    reasons = [columns.reasons[i] for i in fresh.tolist()]
    only_student, only_rule = by_student & ~large, large & ~by_student
    assert only_student.any()
    for i in np.flatnonzero(only_student).tolist():
        assert set(reasons[i]) - {"LATE"} == {"MODEL_SCORE", "DEGRADED"}
    for i in np.flatnonzero(only_rule).tolist():
        assert set(reasons[i]) - {"LATE"} == {"LARGE_AMOUNT"}
    assert outcomes.journal.degraded
    after = decide(pipeline, payments(2, 100), 800, degraded=False)
    normal = np.flatnonzero(after.columns.mode == NORMAL)
    assert (after.columns.margin[normal] == bundle.model.margins(after.columns.features[normal])).all()


SHARE = POLICY.replace("flag: {score: 0.6}", "flag: {share: 0.05}")


def _flagging(source: Path, folder: Path, policy: str, threshold: float) -> Path:
    """The bundle with another policy and threshold."""
    bundle = Bundle.load(source)
    assert bundle.golden is not None
    write_bundle(
        folder, name=bundle.manifest.name, created_at="2026-01-01T00:00:00Z",
        model=(source / bundle.manifest.model_file).read_bytes(), feature_set_yaml=FEATURES, policy_yaml=policy,
        threshold_score=threshold, calibration=bundle.manifest.calibration,
        golden=(np.ascontiguousarray(bundle.golden[:, :-1]), bundle.golden[:, -1].copy()),
    )  # fmt: skip
    return folder


def test_a_student_keeps_to_the_share(student: Path, tmp_path: Path) -> None:
    """Where both flag one share, a student flags from the score that meets it on its own scores, however many of them
    reach the champion's; with another policy the champion's threshold stands."""
    make_bundle(tmp_path / "alone")
    champion = _flagging(tmp_path / "alone", tmp_path / "champion", SHARE, 0.2)
    rows = np.random.default_rng(8).uniform(0, 500, (4000, 5)).astype(np.float32)
    small = Bundle.load(student)
    own = float(np.unique(small.scores(small.model.margins(rows)))[-1])
    poor = _flagging(student, tmp_path / "poor", SHARE, own)
    both = with_challengers(champion, [], tmp_path / "both", created_at="2026-01-01T00:00:00Z", student=poor)
    assert (both.student_threshold_score, both.manifest.threshold_score) == (own, 0.2)
    assert verify(tmp_path / "both").passed
    _, scores, flags = both.degraded(rows)
    assert flags is not None
    assert (flags == (scores >= own)).all()
    assert flags.sum() < (scores >= 0.2).sum()
    columns = decide(Pipeline(both), payments(1, 400), 0, degraded=True).columns
    fresh = np.flatnonzero(columns.mode == DEGRADED)
    wanted = (columns.score[fresh] >= own) | (columns.features[fresh, 0] >= 480)
    assert ((columns.decision[fresh] == FLAG) == wanted).all()
    other = _flagging(student, tmp_path / "other", SHARE.replace("0.05", "0.1"), own)
    mixed = with_challengers(champion, [], tmp_path / "mixed", created_at="2026-01-01T00:00:00Z", student=other)
    assert mixed.student_threshold_score == 0.2


def test_the_journal_says_which_batches_were_the_students(bundle: Bundle) -> None:
    """Run again along the journal, from the beginning or from a snapshot, every digest is the same; that of a batch
    which the model decided is another one."""
    given = payments(3, 600)
    pipeline, heads, image = Pipeline(bundle), [], None
    for start, degraded in ((0, False), (200, True), (400, True)):
        heads.append(decide(pipeline, given[start : start + 200], start, degraded=degraded).journal.head)
        if start == 200:
            capture = ShardCapture(pipeline)
            capture.copy()
            image = facts(pipeline), capture.finish()
    again = Pipeline(bundle)
    for n, degraded in enumerate((False, True, True)):
        assert decide(again, given[200 * n : 200 * n + 200], 200 * n, degraded=degraded).journal.head == heads[n]
    assert image is not None
    assert image[1] is not None
    resumed = restored(bundle, image[0], image[1])
    assert decide(resumed, given[400:], 400, degraded=True).journal.head == heads[2]
    other = decide(Pipeline(bundle), given[:200], 0, degraded=True).journal.digest
    assert other != decide(Pipeline(bundle), given[:200], 0, degraded=False).journal.digest


def test_a_salted_batch_is_decided_again_without_its_salt(bundle: Bundle) -> None:
    """Recovery, which has the journal alone, comes to the same records; what names a person is under the salt, and a
    batch that decides anything else has another `decided`, whatever digest the journal has."""
    given, salt = payments(5, 200), bytes(range(32))
    live = Pipeline(bundle).run(replace(batch_of(given, 0), salt=salt))
    record = live.journal
    assert audit_record.digests(live.columns, live.context, salt) == (record.digest, record.decided)
    assert live.salt == salt
    assert salt.hex() not in record.to_bytes().decode()
    again = Pipeline(bundle).run(replace(batch_of(given, 0), digest=record.digest))
    assert (again.journal, again.salt) == (record, None)
    other = Pipeline(bundle).run(replace(batch_of(given, 0, degraded=True), digest=record.digest)).journal
    assert other.decided != record.decided
    assert other.head != record.head
    assert "decided" not in Pipeline(bundle).run(batch_of(given, 0)).journal.to_bytes().decode(), "as before"


def test_the_gate_holds_the_student_to_its_threshold(bundle: Bundle, student: Path, tmp_path: Path) -> None:
    """A bundle with a student passes the gate, which checks the student's curve and threshold, too; a manifest that
    names a student it does not carry is refused; one without a student is written as it always was."""
    made = with_challengers(
        make_bundle(tmp_path / "alone"), [], tmp_path / "both", created_at="2026-01-01T00:00:00Z", student=student
    )
    assert made.id == bundle.id
    verdict = verify(tmp_path / "both")
    named = [check for check in verdict.checks if check.name == f"challenger {made.manifest.student}: calibration"]
    assert len(named) == 1
    assert named[0].passed
    assert "score >= 0.6 where margin >=" in named[0].detail
    path = tmp_path / "both" / "manifest.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"student": "stranger"}))
    with pytest.raises(BundleManifestError, match="the student stranger is none of the challengers"):
        Bundle.load(tmp_path / "both")
    assert "student" not in (tmp_path / "alone" / "manifest.json").read_text()
