"""Proof of a file: its payments decided again, each compared with the live decision, which is found by payment id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from schemas.pseudonym import PseudonymKeys
from scorer.bundle import Bundle
from scorer.files.mapping import Mapping
from scorer.files.payment_file import ReadOptions
from scorer.files.refusals import Refusals
from scorer.pipeline import DUPLICATE, REFUSED, Outcomes, Pipeline
from scorer.pipeline.card_keys import NO_KEYS, cards_of
from scorer.proof import comparison as compare
from scorer.proof.differences import Cause, Difference, Differences
from scorer.proof.live_trail import Int64s, LiveBatch, Trail
from scorer.replay.file_batches import file_batches
from scorer.replay.replay_report import Report

_IDS_PER_QUERY = 4096
_PAYMENT = tuple(name for name in compare.PAYMENT if name != "payment_id")
Progress = Callable[[int], None]
_DEFAULTS = ReadOptions()


def prove_file(
    bundle: Bundle,
    path: str | Path,
    mapping: Mapping | None,
    url: str,
    found: Differences,
    *,
    begin_ms: int | None = None,
    until_ms: int | None = None,
    keys: PseudonymKeys = NO_KEYS,
    progress: Progress = lambda _: None,
    expect: Progress = lambda _: None,
    options: ReadOptions = _DEFAULTS,
    refusals: Refusals | None = None,
) -> Report:
    """Decide a file's payments and compare those of [begin_ms, until_ms), epoch ms, with the trail at `url`. Repeated
    and refused rows are counted and not compared; `refusals` takes the refused ones, and is closed.

    The file must reach back as far as the longest window. Raises FileError and MappingError.
    """
    pipeline, cards = Pipeline(bundle, keys=keys), cards_of(bundle.feature_set, keys)
    report = Report(refusals=refusals or Refusals())
    options = replace(options, lateness_ms=bundle.feature_set.allowed_lateness)
    batches = file_batches(path, mapping, until_ms=until_ms, cards=cards, options=options, expect=expect)
    with Trail(url) as trail:
        proof = _File(trail, bundle, found)
        for labelled in batches:
            outcomes = pipeline.run(labelled.batch)
            report.add(outcomes, labelled.row)
            times, modes = outcomes.columns.event_time_ms, outcomes.columns.mode
            inside = (modes != DUPLICATE) & (modes != REFUSED)
            if begin_ms is not None:
                inside &= times >= begin_ms
            if until_ms is not None:
                inside &= times < until_ms
            rows = np.flatnonzero(inside)
            for start in range(0, len(rows), _IDS_PER_QUERY):
                proof.compare(outcomes, rows[start : start + _IDS_PER_QUERY].tolist())
            progress(report.payments)
    report.refusals.close()
    report.count_labels(pipeline.engine.counts())
    return report


class _File:
    def __init__(self, trail: Trail, bundle: Bundle, found: Differences) -> None:
        self._trail, self._bundle, self._found = trail, bundle, found
        self._of_labels = label_names = compare.label_features(bundle.feature_set)
        self._names = bundle.feature_set.names
        self._rest = frozenset(self._names) - label_names
        self._batches: dict[tuple[int, int], LiveBatch | None] = {}

    @cached_property
    def _labels(self) -> dict[str, tuple[Int64s, Int64s]]:
        """By topic: offsets of the labels, rising, and of each the earliest time known among it and those after it.
        Both int64 [labels]: 16 bytes a label."""
        result: dict[str, tuple[Int64s, Int64s]] = {}
        topics: tuple[Literal["labels", "control"], ...] = ("labels", "control")
        for topic in topics:
            offsets, known = self._trail.label_times(topic)
            np.minimum.accumulate(known[::-1], out=known[::-1])
            result[topic] = offsets, known
        return result

    def compare(self, outcomes: Outcomes, numbers: Sequence[int]) -> None:
        """Compare some rows of a batch of the file."""
        proof = self._found.proof
        payment_ids = outcomes.columns.record_batch.column("payment_id")
        live = self._trail.of_payments([payment_ids[i].as_py() for i in numbers])
        for number in numbers:
            proof.compared += 1
            again = compare.as_live(outcomes.columns.row(number))
            rows = live.get(again["payment_id"])
            if not rows:
                self._add(
                    Cause.MISSING,
                    None,
                    again,
                    (),
                    "no decision on this payment id is in the trail: never decided, deleted or erased",
                )
                continue
            # An id used again after the dedupe horizon has several decisions: the one of this event time counts.
            row = next((r for r in rows if r["event_time"] == again["event_time"]), rows[0])
            self._row(row, again)

    def _row(self, row: dict[str, Any], again: dict[str, Any]) -> None:
        batch = self._batch(row["shard"], row["sequence"])
        if batch is None or batch.digests is None or not batch.holds:
            self._add(Cause.TAMPERED, row, again, (), "the journal's digest does not hold for the rows of its batch")
            return
        other_payment = compare.differing(row, again, _PAYMENT)
        if other_payment:
            self._add(Cause.OTHER_PAYMENT, row, again, other_payment, "the topic had another payment of this id")
            return
        names = batch.feature_names
        features = compare.differing_features(row["features"], names, again["features"], self._names)
        verdict = compare.differing(row, again, [n for n in compare.VERDICT if n != "challenger_margins"])
        other_set = batch.feature_fingerprint != self._bundle.feature_set.fingerprint
        if not features and not verdict and not other_set:
            self._found.proof.equal += 1
            return
        cause, detail = self._cause(row, again, batch, features, other_set)
        self._add(cause, row, again, [*features, *verdict], detail)

    def _cause(
        self, row: dict[str, Any], again: dict[str, Any], batch: LiveBatch, features: Sequence[str], other_set: bool
    ) -> tuple[Cause, str]:
        if other_set:
            return Cause.OTHER_FEATURE_SET, f"{batch.bundle} has feature set {batch.feature_fingerprint[:12]}"
        if row["mode"] in ("degraded", "late") and row["mode"] != again["mode"]:
            return Cause.LIVE_CONDITION, f"decided live in mode {row['mode']}"
        if features:
            if not self._rest & {*features}:
                late = self._late_label(batch, int(row["event_time"].timestamp() * 1000))
                if late is not None:
                    return Cause.LATE_LABEL, f"labels from {late} on came after batch {batch.sequence}"
                if batch.record is not None and batch.record.labels_by is None:
                    return Cause.LABEL_RULE, f"batch {batch.sequence} counted the label that came last"
            return Cause.UNEXPLAINED, f"{', '.join(features[:5])} differ: the file's history is not the topic's"
        if batch.bundle != self._bundle.id:
            return Cause.OTHER_BUNDLE, f"{batch.bundle} decided live"
        return Cause.UNEXPLAINED, "the same bundle decides otherwise on the same features"

    def _late_label(self, batch: LiveBatch, event_time_ms: int) -> str | None:
        """Place of the first label with a `known_at` by `event_time_ms` that came too late for a batch, if any."""
        for topic, end in (("labels", batch.labels_end), ("control", batch.control_end)):
            offsets, earliest = self._labels[topic]
            place = int(np.searchsorted(offsets, end))
            if place < len(offsets) and earliest[place] <= event_time_ms:
                return f"{topic} offset {offsets[place]}"
        return None

    def _batch(self, shard: int, sequence: int) -> LiveBatch | None:
        if (shard, sequence) not in self._batches:
            if len(self._batches) >= 1024:  # files and trails have one order: older batches are not needed again
                self._batches.clear()
            self._batches[shard, sequence] = self._trail.batch(shard, sequence)
        return self._batches[shard, sequence]

    def _add(
        self, cause: Cause, row: dict[str, Any] | None, again: dict[str, Any], columns: Sequence[str], detail: str
    ) -> None:
        shown = list(columns) or list(compare.VERDICT[:4])
        batch = None if row is None else self._batch(row["shard"], row["sequence"])
        self._found.add(
            Difference(
                cause=cause,
                payment_id=again["payment_id"],
                event_time_ms=int(again["event_time"].timestamp() * 1000),
                columns=tuple(columns),
                detail=detail,
                shard=None if row is None else row["shard"],
                sequence=None if row is None else row["sequence"],
                row_number=None if row is None else row["row_number"],
                live={} if row is None else compare.shown(row, shown, () if batch is None else batch.feature_names),
                replayed=compare.shown(again, shown, self._names),
            )
        )
