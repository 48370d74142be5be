"""Replay of a file in several processes: each computes the payments of some keys; together they give one's result.

    parent:     file ─▶ parsed, in order, refused ─▶ rows on disk
    process k:  rows ─▶ check ─▶ find repeats ─▶ own keys ─▶ features ─▶ model ─▶ policy ─┐ Arrow over a pipe,
    parent:     block by block: rows of all processes in the file's order ─▶ output   ◀───┘ block by block

The file is read once. Every process takes all its payments from disk and finds the repeated ones, so each has the
dedupe table and the stream time that a single process would have. Memory is bounded: a process waits until its block is
taken.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import compress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.feature_set import FeatureSet
from features.hashing import PUBLIC_KEY, hash_strings
from schemas.card_fields import CardFields
from schemas.payment_batch import PaymentBatch
from schemas.pseudonym import PseudonymKeys
from scorer.bundle import Bundle
from scorer.errors import FraudScorerError, UsageError
from scorer.files.file_columns import FileLabels, Shared, shared_rows
from scorer.files.mapping import Mapping
from scorer.files.payment_file import ReadOptions
from scorer.files.refusals import Refusals
from scorer.pipeline import Pipeline
from scorer.pipeline.card_keys import NO_KEYS, cards_of
from scorer.pipeline.dedupe import Dedupe
from scorer.pipeline.records import Batch
from scorer.replay.file_batches import BATCH_ROWS, LabelledBatch, shared_batches
from scorer.replay.file_replay import described
from scorer.replay.replay_output import Open, Window, decision_schema, decision_table, opened
from scorer.replay.replay_report import Progress, Report

PROCESSES_MAX = 256
_JOIN_S = 10.0
_DEFAULTS = ReadOptions()


@dataclass(frozen=True)
class Share:
    """One of `count` parts of a file's payments, by the keys that all entities of the feature set have in common."""

    number: int
    count: int
    fields: tuple[str, ...]

    @classmethod
    def fields_of(cls, feature_set: FeatureSet) -> tuple[str, ...]:
        """The fields that all entities have in common. Raises UsageError, naming two entities, when there are none."""
        entities = list(feature_set.entities.items())
        common = set(entities[0][1]) if entities else set()
        for name, fields in entities:
            if not common & set(fields):
                raise UsageError(
                    f"entities {entities[0][0]} and {name} have no field in common, so no key can decide which "
                    f"process computes a payment; use one process"
                )
            common &= set(fields)
        return tuple(sorted(common)) or ("payment_id",)

    def of(self, payments: PaymentBatch) -> npt.NDArray[np.int64]:
        """The share of each payment, int64 [n]."""
        total = np.zeros(len(payments), dtype=np.uint64)
        for name in self.fields:
            total = total * np.uint64(31) + hash_strings(payments.text(name), PUBLIC_KEY)[0][:, 0]
        return (total % np.uint64(self.count)).astype(np.int64)


class ShareSelector:
    """A share as the row selector of a pipeline (scorer.pipeline.enrichment.RowSelector).

    Its values are those of one process as long as stream time is each payment's own time, hence payments must be in
    order of event time; and as long as a repeated payment has the same key, hence the key of each is kept.
    """

    def __init__(self, share: Share, feature_set: FeatureSet) -> None:
        self._share = share
        self._owners = Dedupe(horizon_ms=feature_set.dedupe_horizon, capacity=feature_set.dedupe_capacity)
        self.stream_time_ms: int | None = None
        self.reports_rejected = share.number == 0

    def select(
        self,
        payments: PaymentBatch,
        ids: npt.NDArray[np.uint64],
        duplicate: npt.NDArray[np.bool_],
        stream_ms: int,
    ) -> npt.NDArray[np.int64]:
        """Positions of the share's own payments. Raises UsageError where shares would differ from one process."""
        times, owner = payments.event_time_ms, self._share.of(payments)
        fresh = times[~duplicate]
        before = np.concatenate([np.array([stream_ms]), fresh[:-1]]) if len(fresh) else fresh
        if (fresh < before).any():
            at = int(payments.index[np.flatnonzero(~duplicate)[np.argmax(fresh < before)]])
            raise UsageError(
                f"record {at} of a block is earlier than one before it: several processes need payments in order of "
                f"event time; sort the file, or use one process"
            )
        _, _, elsewhere = self._owners.scan(ids, owner.astype(np.uint64), times, stream_ms)
        if elsewhere.any():
            raise UsageError(
                f"a payment came again with another {' or '.join(self._share.fields)}, which is another process's; "
                f"use one process"
            )
        self.stream_time_ms = max(stream_ms, int(fresh[-1])) if len(fresh) else stream_ms
        return np.flatnonzero(owner == self._share.number)


def replay_shares(
    bundle_folder: Path,
    path: str | Path,
    mapping: Mapping | None,
    output: Path | Open | None,
    *,
    processes: int,
    begin_ms: int | None = None,
    until_ms: int | None = None,
    keys: PseudonymKeys = NO_KEYS,
    progress: Progress = lambda _: None,
    expect: Progress = lambda _: None,
    options: ReadOptions = _DEFAULTS,
    refused: Path | None = None,
) -> Report:
    """As replay_file, by `processes` processes; each loads the bundle of the folder itself. `refused`: Parquet of the
    rows that are refused.

    Raises UsageError when no key decides which process computes a payment, when rows are not in order of event time,
    and when a payment comes again under another key.
    """
    bundle = Bundle.load(bundle_folder)
    fields = Share.fields_of(bundle.feature_set)
    window, names = Window(begin_ms, until_ms), bundle.feature_set.names
    options = replace(options, lateness_ms=bundle.feature_set.allowed_lateness)
    rows, workspace = shared_rows(path, mapping, BATCH_ROWS, options=options, until_ms=until_ms)
    expect(rows.survey.rows)
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    workers = []
    try:
        for number in range(processes):
            ours, theirs = context.Pipe(duplex=False)
            share = Share(number, processes, fields)
            # Every process has all rows; the first one writes those that are refused.
            to = refused if number == 0 else None
            part = _Part(bundle_folder, rows, share, output is not None, keys, to)
            worker = context.Process(target=_work, args=(theirs, part), daemon=True)
            worker.start()
            theirs.close()
            pipes.append(ours)
            workers.append(worker)
        with opened(output, names, described(bundle, path, mapping, window)) as writer:
            done = 0
            while (tables := _next(pipes)) is not None:
                done += tables[0]
                if writer is not None:
                    found = pa.concat_tables(tables[1])
                    order = np.argsort(found["offset"].to_numpy(), kind="stable")
                    writer.write(window.of(found.take(pa.array(order))))
                progress(done)
        return _together([pickle.loads(pipe.recv_bytes()) for pipe in pipes])  # noqa: S301 - our own processes' report
    finally:
        for pipe in pipes:
            pipe.close()
        for worker in workers:
            worker.terminate()
            worker.join(_JOIN_S)
        workspace.close()


def _next(pipes: Sequence[Connection]) -> tuple[int, list[pa.Table]] | None:
    """The next block of every process: records read, and each one's decisions; None at the end."""
    found: list[tuple[int, pa.Table | None] | None] = []
    for pipe in pipes:
        try:
            kind, payload = pickle.loads(pipe.recv_bytes())  # noqa: S301 - written by our own processes, as is `_work`
        except EOFError as exc:
            raise FraudScorerError("a process of the replay ended without a result; see its message above") from exc
        if kind == "error":
            raise payload
        found.append(payload)
    blocks = [block for block in found if block is not None]
    if not blocks:
        return None
    return blocks[0][0], [pa.ipc.open_stream(table).read_all() for _, table in blocks if table is not None]


@dataclass(frozen=True)
class _Part:
    """What one process does: a share of a file with a bundle; `with_rows`: decisions are sent, not only counted."""

    bundle_folder: Path
    rows: Shared
    share: Share
    with_rows: bool
    keys: PseudonymKeys
    refused: Path | None


def _work(pipe: Connection, part: _Part) -> None:
    """One process: sends ("block", (records, table or None)) for each block, ("block", None), then its report."""

    def send(kind: str, payload: Any) -> None:
        pipe.send_bytes(pickle.dumps((kind, payload)))

    with suppress(BrokenPipeError):  # the parent has ended
        try:
            bundle = Bundle.load(part.bundle_folder)
            pipeline = Pipeline(bundle, selector=ShareSelector(part.share, bundle.feature_set), keys=part.keys)
            cards = cards_of(bundle.feature_set, part.keys)
            report = Report(refusals=Refusals(part.refused))
            schema = decision_schema(bundle.feature_set.names)
            for labelled in shared_batches(part.rows, cards):
                outcomes = pipeline.run(_own_labels(labelled, part.share, cards))
                report.add(outcomes, labelled.row)
                rows = None
                if part.with_rows:
                    rows = _bytes(decision_table(outcomes, schema, labelled.label, labelled.label_known_at_ms))
                send("block", (len(labelled.label), rows))
            report.refusals.close()
            report.count_labels(pipeline.engine.counts())
            send("block", None)
            pipe.send_bytes(pickle.dumps(report))
        except FraudScorerError as exc:
            send("error", exc)


def _own_labels(labelled: LabelledBatch, share: Share, cards: CardFields) -> Batch:
    """The batch with the labels of the share's own payments alone; those of refused ones are the first share's."""
    batch = labelled.batch
    payments = batch.records.decode(cards)
    owner = np.zeros(len(batch.records), dtype=np.int64)
    owner[payments.index] = share.of(payments)
    own = owner == share.number
    own_label = own[np.flatnonzero(labelled.label_known_at_ms >= 0)].tolist()
    known = list(compress(batch.known_labels, own_label))
    if isinstance(batch.control, FileLabels):
        return replace(batch, control=batch.control.only(own), known_labels=known)
    return replace(batch, control=list(compress(batch.control, own_label)), known_labels=known)


def _bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _together(reports: Sequence[Report]) -> Report:
    """The counts of all; every process has read every payment."""
    total = Report(payments=reports[0].payments, dead_letters=reports[0].dead_letters)
    total.refusals = reports[0].refusals
    total.reasons_refused, total.card_shares = reports[0].reasons_refused, reports[0].card_shares
    for name in (
        "decisions",
        "duplicates",
        "refused",
        "late",
        "flagged",
        "labels_refused",
        "labels_unmatched",
        "labels_invalid",
    ):
        setattr(total, name, sum(getattr(report, name) for report in reports))
    return total
