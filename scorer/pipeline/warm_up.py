"""Compile every kernel of the decision path before the first payment:
a first start costs half a minute, later ones read the cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from features.hash_table import grown, new_table
from features.hashing import hash_places, hash_strings
from schemas.byte_column import ByteColumn
from schemas.dead_letter import dead_letter_record
from schemas.decision_bytes import encode_decisions
from schemas.fast_decision_bytes import placed
from schemas.field_kinds import Kind
from schemas.field_table import FIELDS
from schemas.journal_record import ControlRange, InputRange
from schemas.pseudonym import PseudonymKeys
from scorer.bundle import Bundle
from scorer.errors import PromiseBroken
from scorer.pipeline.pipeline import Pipeline
from scorer.pipeline.records import Batch, ControlRecord, Records
from scorer.pipeline.state_image import ShardCapture, facts, restored

_TIME_MS = 1_577_836_800_000
# Every field of the contract but attributes, so that no feature set can refuse it for a missing one.
_PAYMENT = {field.name: field.example for field in FIELDS if field.kind != Kind.ATTRIBUTES}
# Nothing of the warm-up leaves it.
_KEYS = PseudonymKeys((b"\0" * 32,))
# One payment and several take different ways through model and memory layouts.
_SIZES = {"one payment": 1, "a repeated payment and a label": 1, "a batch of payments": 64}
_REFUSED = (b"no payment: 4111 1111 1111 1111", b'{"payment_id":"\\u0031","note":"4111-1111-1111-1111"}')
STEPS: Final = (
    *_SIZES,
    "decisions' bytes",
    "refused records",
    "growing tables",
    "a snapshot",
    "contributions",
    "the degraded model",
)


def warm_up(bundle: Bundle, begin: Callable[[str], object] = len) -> None:
    """Run small batches through a scratch pipeline. Changes no state that serves.
    Raises PromiseBroken if they are not decided.

    `begin` is called with each of STEPS as it begins; what it raises ends the warm-up.
    """
    pipeline = Pipeline(bundle, keys=_KEYS)
    label = json.dumps({"type": "label", "payment_id": "warm-up-0", "fraud": True, "known_at": _TIME_MS}).encode()
    start = 0
    for step, size in _SIZES.items():
        begin(step)
        ids = [f"warm-up-{i}" for i in range(start, start + size)]
        ids[-1] = "warm-up-0"  # a repeated payment, too
        records = _records(bundle, ids, start)
        control = [ControlRecord(0, None, label)] if start == 1 else []
        outcomes = pipeline.run(
            Batch(
                records,
                (InputRange(partition=0, start=start, end=start + size),),
                control,
                ControlRange(start=0, end=len(control)),
            )
        )
        if len(outcomes.rows) != size:
            raise PromiseBroken(f"the warm-up's own payments were refused: {outcomes.rejected[0].error}")
        start += size
    begin("decisions' bytes")
    columns = outcomes.columns
    values = encode_decisions(
        columns.payment_id, columns.decision, columns.score, columns.margin, columns.reasons, columns.mode,
        outcomes.bundles, kinds=outcomes.kinds,
    )  # fmt: skip
    placed(values, 0, 0).take(np.zeros(1, np.int64))
    # Their masks are a seventh of all kernels: compiled live, the first garbage would hold payments up for 15 s.
    begin("refused records")
    refused = pipeline.run(Batch.of_payments(ByteColumn.of(_REFUSED), first_offset=start))
    for item in refused.rejected:
        value = _REFUSED[item.index]
        dead_letter_record("payments", 0, 0, b"4111 1111 1111 1111", value, item.error, cards=refused.cards)
    begin("growing tables")
    _grow_tables(pipeline)
    # A snapshot's kernels, too: the first one must not wait for a compiler while payments wait for it.
    begin("a snapshot")
    capture = ShardCapture(pipeline)
    capture.copy()
    images = capture.finish()
    if images is not None:
        restored(bundle, facts(pipeline), images, keys=_KEYS)
    begin("contributions")
    bundle.model.contributions(_nothing(bundle)[:1])
    begin("the degraded model")
    _degrade(bundle)


def compile_beside_windows(bundle: Bundle) -> None:
    """Compile what `warm_up` compiles but for the kernels of the windows (`WindowEngine.compile`) and of masks: for a
    second process beside one that compiles those."""
    pipeline = Pipeline(bundle, keys=_KEYS)
    engine, model = pipeline.engine, bundle.model
    for size in _SIZES.values():
        records = _records(bundle, [f"warm-up-{i}" for i in range(size)], 0)
        payments = records.decode(bundle.feature_set.cards)
        records.payload(payments.index.astype(np.int64))
        ids, _ = hash_strings(payments.text("payment_id"), engine.hash_key)
        hash_places(*payments.placed("payment_id"), engine.hash_key, ids, False)
        amount, _ = engine.convert(payments)
        engine.prepare(payments, amount, ids)
        model.margins(_nothing(bundle)[:size])
    pipeline.dedupe.scan(np.zeros((0, 2), np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.int64), _TIME_MS)
    _grow_tables(pipeline)
    model.contributions(_nothing(bundle)[:1])
    _degrade(bundle)


def _nothing(bundle: Bundle) -> npt.NDArray[np.float32]:
    return np.zeros((64, bundle.model.feature_count), np.float32)


def _grow_tables(pipeline: Pipeline) -> None:
    grown(new_table(8), 0, 64)
    pipeline.dedupe.known(np.zeros((1, 2), np.uint64), 0)


def _degrade(bundle: Bundle) -> None:
    # The student is asked when time is short already.
    nothing = _nothing(bundle)
    bundle.degraded(nothing[:1])
    bundle.degraded(nothing)


def _records(bundle: Bundle, ids: list[str], start: int) -> Records:
    values = [
        json.dumps(
            _PAYMENT | {"payment_id": i, "event_time": _TIME_MS, "currency": bundle.feature_set.currency}
        ).encode()
        for i in ids
    ]
    return Records(
        partition=np.zeros(len(ids), np.int32),
        offset=np.arange(start, start + len(ids), dtype=np.int64),
        timestamp_ms=np.full(len(ids), _TIME_MS, np.int64),
        keys=[b"c"] * len(ids),
        values=values,
    )
