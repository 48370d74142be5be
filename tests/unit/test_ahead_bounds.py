"""How far a shard's state runs ahead of its journal: bounded in batches, payments and bytes."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from schemas.byte_column import ByteColumn
from schemas.journal_record import ControlRange, JournalRecord
from scorer.pipeline import Outcomes
from scorer.pipeline.pipeline import Decided
from scorer.pipeline.records import ControlRecord, Records
from scorer.runtime.settings import load
from scorer.worker.decided_ahead import DecidedAhead
from scorer.worker.pending_commits import BYTES_AHEAD_MAX, PendingCommits, ahead_max

MIB = 1  # stands for one
AHEAD = ahead_max(load().worker)._replace(record_bytes=256 * MIB)


def outcomes(value: bytes, count: int, *, labels: int = 0) -> Any:
    """Of `count` payments with this value, and as many `labels` with it."""
    n = np.zeros(count, np.int64)
    records = Records(n.astype(np.int32), n, n, ByteColumn.absent_everywhere(count), ByteColumn.of([value] * count))
    others = [ControlRecord(i, b"", value) for i in range(labels)]
    journal = JournalRecord(
        shard=0, sequence=1, inputs=(), control=ControlRange(start=0, end=0), bundle="b", stream_time_ms=0,
        decisions=count, dead_letters=0, digest="d" * 64, previous="a" * 64, order=1,
    )  # fmt: skip
    given = {"records": records, "control": (), "labels": others, "journal": journal}
    return Outcomes(**dict.fromkeys(each.name for each in fields(Decided)) | given)  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", [0, 8], ids=["payments", "labels"])
def test_large_records_bound_the_batches_that_wait_for_their_commit(labels: int) -> None:
    """32 batches of 64 MiB each would keep 2 GiB. A batch that is larger than the bound goes its way alone."""
    waited = list[int]()
    publisher: Any = SimpleNamespace(overdue=False, wait=waited.append)
    commits = PendingCommits(publisher, AHEAD, lambda *_: None)
    large = outcomes(bytes(8 * MIB), 8 - labels, labels=labels)
    for number in range(10):
        commits.make_room()
        commits.add(number, 0.0, large)  # type: ignore[arg-type]
        assert len(commits) <= 4
    assert waited == list(range(6))
    commits.finish()
    commits.make_room()
    commits.add(10, 0.0, outcomes(bytes(40 * MIB), 10))  # type: ignore[arg-type]
    commits.make_room()
    assert len(commits) == 0
    assert ahead_max(load().worker) == (32, 24_576, BYTES_AHEAD_MAX)


def test_large_records_bound_what_a_standby_has_decided_ahead() -> None:
    """So do they where a standby is ahead of the journal; it goes on as that comes on, and after a new owner took
    all."""
    ahead = DecidedAhead(AHEAD)
    large = outcomes(bytes(8 * MIB), 8)
    for _ in range(4):
        assert not ahead.full
        ahead.add(large, {})
    assert ahead.full
    ahead.confirm(large.journal)
    assert not ahead.full
    ahead.add(large, {})
    assert ahead.full
    assert len(ahead.take("b" * 64)) == 4
    assert not ahead.full
    ahead.add(outcomes(bytes(40 * MIB), 10), {})
    assert ahead.full
