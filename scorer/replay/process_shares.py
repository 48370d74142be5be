"""Replay of a file in several processes: each computes the payments of some keys, all together what one would.

    process k:  read all ─▶ decode ─▶ repeated ones ─▶ own keys ─▶ features ─▶ model ─▶ policy ─┐ Arrow over a pipe,
    this one:   block by block: rows of all processes in the file's order ─▶ output   ◀─────────┘ block by block

Reading and finding repeated payments are done by each, so that each knows what one process would know. Memory is
bounded: a process waits until its block is taken.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scorer.bundle import Bundle
from scorer.errors import FraudScorerError
from scorer.files.file_columns import FileLabels
from scorer.files.file_reader import row_count
from scorer.files.mapping import Mapping
from scorer.pipeline import Pipeline
from scorer.pipeline.enrichment import Share
from scorer.pipeline.records import Batch
from scorer.replay.file_batches import LabelledBatch, file_batches
from scorer.replay.file_replay import described
from scorer.replay.output import Open, Window, decision_schema, decision_table, opened
from scorer.replay.report import Progress, Report

PROCESSES_MAX = 256
_JOIN_S = 10.0


def replay_shares(
    bundle_folder: Path,
    path: Path,
    mapping: Mapping | None,
    output: Path | Open | None,
    *,
    processes: int,
    begin_ms: int | None = None,
    until_ms: int | None = None,
    progress: Progress = lambda _: None,
    expect: Progress = lambda _: None,
) -> Report:
    """As replay_file, by `processes` processes; each loads the bundle of the folder itself.

    Raises UsageError when no key decides which process computes a payment, when rows are not in order of event time,
    and when a payment comes again under another key.
    """
    bundle = Bundle.load(bundle_folder)
    fields = Share.fields_of(bundle.feature_set)
    window, names = Window(begin_ms, until_ms), bundle.feature_set.names
    expect(row_count(path) or 0)
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    workers = []
    try:
        for number in range(processes):
            ours, theirs = context.Pipe(duplex=False)
            share = Share(number, processes, fields)
            arguments = (theirs, bundle_folder, path, mapping, until_ms, share, output is not None)
            worker = context.Process(target=_work, args=arguments, daemon=True)
            worker.start()
            theirs.close()
            pipes.append(ours)
            workers.append(worker)
        with opened(output, names, described(bundle, path, mapping, window)) as writer:
            done = 0
            while (tables := _next(pipes)) is not None:
                done += tables[0]
                if writer is not None:
                    rows = pa.concat_tables(tables[1])
                    writer.write(window.of(rows.take(pa.array(np.argsort(rows["offset"].to_numpy(), kind="stable")))))
                progress(done)
        return _together([pickle.loads(pipe.recv_bytes()) for pipe in pipes])  # noqa: S301 - our own processes' report
    finally:
        for pipe in pipes:
            pipe.close()
        for worker in workers:
            worker.terminate()
            worker.join(_JOIN_S)


def _next(pipes: Sequence[Connection]) -> tuple[int, list[pa.Table]] | None:
    """The next block of every process: records read, and each one's decisions; None at the end."""
    found: list[tuple[int, pa.Table | None] | None] = []
    for pipe in pipes:
        try:
            kind, payload = pickle.loads(pipe.recv_bytes())  # noqa: S301 - written by our own processes, as is `_work`
        except EOFError as exc:
            raise FraudScorerError("a process of the replay ended without a word; see its message above") from exc
        if kind == "error":
            raise payload
        found.append(payload)
    blocks = [block for block in found if block is not None]
    if not blocks:
        return None
    return blocks[0][0], [pa.ipc.open_stream(table).read_all() for _, table in blocks if table is not None]


def _work(
    pipe: Connection,
    bundle_folder: Path,
    path: Path,
    mapping: Mapping | None,
    until_ms: int | None,
    share: Share,
    with_rows: bool,
) -> None:
    """One process: sends ("block", (records, table or None)) for each block, ("block", None), then its report."""

    def send(kind: str, payload: Any) -> None:
        pipe.send_bytes(pickle.dumps((kind, payload)))

    with suppress(BrokenPipeError):  # whoever asked for the work has ended
        try:
            bundle = Bundle.load(bundle_folder)
            pipeline, report = Pipeline(bundle, share=share), Report()
            schema = decision_schema(bundle.feature_set.names)
            for labelled in file_batches(path, mapping, until_ms=until_ms):
                outcomes = pipeline.run(_own(labelled, share))
                report.add(outcomes)
                rows = None
                if with_rows:
                    rows = _bytes(decision_table(outcomes, schema, labelled.label, labelled.label_known_at_ms))
                send("block", (len(labelled.label), rows))
            report.count_labels(pipeline.engine.counts())
            send("block", None)
            pipe.send_bytes(pickle.dumps(report))
        except FraudScorerError as exc:
            send("error", exc)


def _own(labelled: LabelledBatch, share: Share) -> Batch:
    """The batch with the labels of the share's own payments alone; those of refused ones are the first share's."""
    batch = labelled.batch
    payments = batch.records.decode()
    owner = np.zeros(len(batch.records), dtype=np.int64)
    owner[payments.index] = share.of(payments)
    own = owner == share.number
    if isinstance(batch.control, FileLabels):
        return replace(batch, control=batch.control.only(own))
    rows = np.flatnonzero(labelled.label_known_at_ms >= 0)
    return replace(batch, control=[record for record, row in zip(batch.control, rows, strict=True) if own[row]])


def _bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _together(reports: Sequence[Report]) -> Report:
    """The counts of all; every process has read every payment."""
    total = Report(payments=reports[0].payments, dead_letters=reports[0].dead_letters)
    total.reasons_refused = reports[0].reasons_refused
    for name in ("decisions", "duplicates", "late", "flagged", "labels_refused", "labels_unmatched", "labels_invalid"):
        setattr(total, name, sum(getattr(report, name) for report in reports))
    return total
