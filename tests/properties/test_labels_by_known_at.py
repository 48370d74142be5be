"""Of several labels of a payment the one that became known last counts, in whichever order they arrive: in the windows
as in the training export. Journals and states of releases in which the one that arrived last did go on as they were."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import xgboost as xgb
from engine_oracle import Oracle
from engine_streams import T0, feed, give_labels
from hypothesis import given, settings
from hypothesis import strategies as st

from features.engine_image import Image
from features.feature_set import FeatureSet
from features.label_copy import LabelCopy
from features.log_segments import Segment
from features.window_engine import WindowEngine
from schemas.journal_record import JournalRecord
from scorer.bundle import Bundle, write_bundle
from scorer.journal.activated_bundles import Bundles
from scorer.journal.journal_reader import reread
from scorer.journal.partition_buffers import ShardInputs
from scorer.journal.rerun import rerun
from scorer.pipeline import Pipeline
from scorer.pipeline.records import Batch, ControlRecord
from scorer.pipeline.state_image import ShardCapture, facts, restored
from scorer.replay import training_table
from scorer.replay.file_batches import LabelledBatch
from tests.golden_rows import golden_rows
from tests.older_images import as_format_3

FEATURES = """
name: verdicts
currency: EUR
allowed_lateness: 20s
label_horizon: 1d
entities: {customer: [customer_id], terminal: [terminal_id]}
features:
  - {name: frauds, entity: terminal, aggregate: fraud_count, window: 1d}
  - {name: rate, entity: terminal, aggregate: fraud_rate, window: 2m, delay: 10s}
  - {name: since, entity: customer, aggregate: since_fraud}
  - {name: first, entity: customer, aggregate: since_first_fraud}
  - {name: newest, entity: customer, aggregate: last_label}
  - {name: tills, entity: customer, aggregate: neighbour_frauds, of: terminal, window: 1d}
"""
SET = FeatureSet.from_yaml(FEATURES)
Row = dict[str, Any]
Verdict = tuple[str, int, bool]  # payment, known, fraud
Part = tuple[list[Row], list[Verdict]]

_payment = st.tuples(
    st.sampled_from([0, 1_000, 5_000, 15_000, -15_000]), st.sampled_from(["c1", "c2"]), st.sampled_from(["t1", "t2"])
)
# Of few payments, at few times: several of one payment, many of them at one time, before and after it comes.
_verdict = st.tuples(st.integers(0, 7), st.integers(-2, 12), st.booleans())


@st.composite
def parts(draw: st.DrawFn) -> list[Part]:
    """Batches of payments, each with the labels that arrive with it."""
    made: list[Part] = []
    now, count = T0, 0
    for _ in range(draw(st.integers(3, 8))):
        rows = []
        for step, customer, terminal in draw(st.lists(_payment, min_size=1, max_size=4)):
            at, now = now + step, max(now, now + step)
            ids = {"payment_id": f"p{count}", "customer_id": customer, "terminal_id": terminal}
            rows.append({**ids, "t": at, "amount": 100, "currency": "EUR"})
            count += 1
        verdicts = draw(st.lists(_verdict, max_size=5))
        made.append((rows, [(f"p{k}", T0 + 5_000 * known, fraud) for k, known, fraud in verdicts]))
    return made


class ByArrival(Oracle):
    """As in releases before 0.2: a label replaces the one before it at the payment from which on it is known."""

    def __init__(self, *arguments: Any) -> None:
        self.applied: dict[str, bool] = {}
        self.waiting: list[Verdict] = []
        super().__init__(*arguments)

    def learn(self, labels: Iterable[Verdict]) -> None:
        self.waiting = sorted([*self.waiting, *labels], key=lambda label: label[1])

    def features(self, payment: Row) -> list[float]:
        now = max(self.now, payment["t"])
        self.applied |= {payment_id: fraud for payment_id, known, fraud in self.waiting if known <= now}
        self.waiting = [label for label in self.waiting if label[1] > now]
        return super().features(payment)

    def known(self, row: Row) -> bool | None:
        return self.applied.get(row["payment_id"])


def rescanned(made: list[Part], *, by_arrival: bool) -> np.ndarray:
    oracle = (ByArrival if by_arrival else Oracle)(SET, [], {"EUR": 1.0})
    found = []
    for rows, labels in made:
        oracle.learn(labels)
        found += [oracle.features(row) for row in rows]
    return np.array(found, dtype=np.float32)


def document(row: Row) -> bytes:
    fields = {name: row[name] for name in ("payment_id", "customer_id", "terminal_id", "currency")}
    return json.dumps(fields | {"event_time": row["t"], "amount_minor": row["amount"]}).encode()


def batches(made: list[Part]) -> list[Batch]:
    found, offset = [], 0
    for rows, labels in made:
        control = [
            ControlRecord(k, None, json.dumps({"type": "label", "payment_id": i, "fraud": f, "known_at": at}).encode())
            for k, (i, at, f) in enumerate(labels)
        ]
        found.append(replace(Batch.of_payments([document(row) for row in rows], first_offset=offset), control=control))
        offset += len(rows)
    return found


def labelled(batch: Batch) -> LabelledBatch:
    """As of a file without a label column."""
    n = len(batch.records)
    return LabelledBatch(batch, np.full(n, -1, np.int8), np.full(n, -1, np.int64), np.arange(n))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    X = np.random.default_rng(1).normal(size=(200, len(SET.features))).astype(np.float32)
    booster = xgb.train({"objective": "binary:logistic", "nthread": 1}, xgb.DMatrix(X, X[:, 0] > 1, nthread=1), 2)
    model = bytes(booster.save_raw("ubj"))
    policy = "name: verdicts\nflag: {score: 0.5}\n"
    folder = tmp_path_factory.mktemp("verdicts") / "b"
    return write_bundle(
        folder, name="verdicts", created_at="x", model=model, feature_set_yaml=FEATURES, policy_yaml=policy,
        threshold_score=0.5, golden=golden_rows(model),
    )  # fmt: skip


@settings(deadline=None)
@given(parts(), st.sets(st.integers(0, 7)))
def test_windows_hold_the_label_known_last(made: list[Part], stops: set[int]) -> None:
    """The windows equal a rescan of all payments and labels that have arrived, also beyond snapshots that were taken
    while payments and labels went on."""
    engine = WindowEngine(SET, segment_shift=6)
    found = []
    for k, (rows, labels) in enumerate(made):
        capture = engine.capture()
        capture.copy()
        give_labels(engine, labels)
        found.append(feed(engine, rows))
        if k in stops:
            image = capture.finish()
            while image is None:  # the arrays have grown: begin again
                capture = engine.capture()
                capture.copy()
                image = capture.finish()
            frozen = Image(image.meta, {name: array.copy() for name, array in image.arrays.items()})
            engine = WindowEngine.restore(SET, frozen)
    np.testing.assert_allclose(np.concatenate(found), rescanned(made, by_arrival=False), rtol=1e-6)


@settings(deadline=None)
@given(parts())
def test_windows_decisions_and_export_hold_the_same_labels(bundle: Bundle, made: list[Part]) -> None:
    """The live pipeline's features are those of the training export, and what the windows count in the end is what the
    export calls fraud."""
    end = max(row["t"] for rows, _ in made for row in rows) + 60_000
    ids = {"c1": "t1", "c2": "t2"}
    last = [
        {"payment_id": f"end-{t}", "customer_id": c, "terminal_id": t, "t": end, "amount": 1, "currency": "EUR"}
        for c, t in ids.items()
    ]
    given_ = batches([*made, (last, [])])
    table = training_table(SET, [labelled(batch) for batch in given_])
    pipeline = Pipeline(bundle)
    live = [pipeline.run(batch).columns.features for batch in given_]
    np.testing.assert_array_equal(np.concatenate(live), table.features)
    terminals = np.array([row["terminal_id"] for rows, _ in [*made, (last, [])] for row in rows])
    for k, terminal in enumerate(ids.values()):
        assert table.features[k - 2, 0] == np.count_nonzero((table.label == 1) & (terminals == terminal))


class _Log:
    """The log of a journal's batches, as they were read."""

    sources = None

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.buffers = {r.partition: SimpleNamespace(position=r.start) for r in batch.inputs}

    def holds(self, _record: JournalRecord) -> bool:
        return True

    def batch_again(self, _record: JournalRecord) -> Batch:
        return self._batch


def decided_again(bundle: Bundle, records: list[JournalRecord], given_: list[Batch]) -> str:
    """Head of the journal, decided again from its bytes and the log; every digest is compared."""
    pipeline = Pipeline(bundle)
    for record, batch in zip(records, given_, strict=True):
        parsed = JournalRecord.from_bytes(record.to_bytes())
        again = reread(parsed, cast("ShardInputs", _Log(batch)), no_progress_s=1)
        rerun(pipeline, parsed, again, cast("Bundles", None))
    return pipeline.head


@settings(deadline=None)
@given(parts(), st.integers(0, 8))
def test_what_an_earlier_release_decided_is_decided_so_again(bundle: Bundle, made: list[Part], upgrade: int) -> None:
    """Batches before the upgrade, whose records do not say which label counts, come out as that release decided them;
    after it a worker that goes on from its snapshot decides as one that reads the journal from the beginning."""
    given_ = batches(made)
    old, pipeline, records = min(upgrade, len(made)), Pipeline(bundle), []
    features = []
    for batch in given_[:old]:
        outcomes = pipeline.run(replace(batch, labels_by_arrival=True))
        assert b"labels_by" not in outcomes.journal.to_bytes()
        records.append(outcomes.journal)
        features.append(outcomes.columns.features)
    if old:
        np.testing.assert_allclose(np.concatenate(features), rescanned(made[:old], by_arrival=True), rtol=1e-6)
    capture = ShardCapture(pipeline)
    capture.copy()
    image = capture.finish()
    assert image is not None
    upgraded = restored(bundle, facts(pipeline), image | {"engine": as_format_3(image["engine"])})
    for batch in given_[old:]:
        outcomes = upgraded.run(batch)
        assert outcomes.journal.labels_by == "known_at"
        records.append(outcomes.journal)
    assert decided_again(bundle, records, given_) == upgraded.head


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3 * 4_096 - 1), st.integers(1, 1 << 47)), min_size=9), st.integers(3, 8))
def test_a_copy_of_labels_is_renewed_where_they_were_written(written: list[tuple[int, int]], before: int) -> None:
    """The times in a snapshot are those of its labels, whichever pages were written after the bulk was copied."""
    rows = 3 * 4_096
    segment = Segment(*(np.zeros(size, np.uint8) for size in (0, 0, rows, 6 * rows)))

    def write(some: list[tuple[int, int]]) -> None:
        for row, known in some:
            segment.labels[row] = 1 + known % 2
            segment.known[6 * row : 6 * row + 6] = np.frombuffer(known.to_bytes(6, "little"), np.uint8)

    write(written[:before])
    copy = LabelCopy(segment)
    write(written[before:])
    dirty = np.zeros(3, np.uint8)
    dirty[[row // 4_096 for row, _ in written[before:]]] = 1
    copy.renew(dirty)
    np.testing.assert_array_equal(copy.labels, segment.labels)
    np.testing.assert_array_equal(copy.known, segment.known.reshape(-1, 6)[segment.labels != 0])
