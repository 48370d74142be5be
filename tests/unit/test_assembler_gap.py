"""Which quarantined records may be the batch that is expected next, and so allow a gap."""

from __future__ import annotations

import pytest

from schemas.audit_record import AuditHeader, digest, encode
from schemas.journal_record import ControlRange, InputRange, JournalRecord
from scorer.sink.assembler import Assembler, Batch, Position
from scorer.sink.sink_errors import AuditBroken
from tests.integration.audit_batches import CONTEXT, rows


def made(sequence: int, head: str, *, shard: int = 0, **changes: object) -> tuple[bytes, JournalRecord]:
    """One batch of one chunk, and its journal record."""
    columns = rows(sequence, 3)
    record = JournalRecord(
        **{
            "shard": shard,
            "sequence": sequence,
            "inputs": (InputRange(partition=0, start=0, end=3),),
            "control": ControlRange(start=0, end=0),
            "stream_time_ms": 1_767_225_600_000,
            "bundle": CONTEXT.bundle,
            "decisions": 3,
            "dead_letters": 0,
            "digest": digest(columns, CONTEXT),
            "previous": head,
        }
        | changes
    )
    header = AuditHeader(**CONTEXT.model_dump(), shard=shard, sequence=sequence, journal=record.to_bytes().decode())
    (chunk,) = encode(columns, header)
    return chunk, record


FIRST = "0" * 64
_WRONG: dict[str, tuple[bool | None, bool]] = {  # what the journal answers, whether a gap is allowed
    "unreadable": (None, True),
    "written before": (None, False),
    "another shard": (None, False),
    "another head, of the journal": (True, True),
    "another head, journal unknown": (None, True),
    "another head, not of the journal": (False, False),
    "digest, of the journal": (True, True),
    "digest, not of the journal": (False, False),
}


@pytest.mark.parametrize("wrong", _WRONG)
def test_only_what_may_be_the_next_batch_allows_a_gap(wrong: str) -> None:
    """After a good batch one goes to quarantine, and then batch 1 is lost: the sink stops unless the quarantine may
    have it."""
    holds, gap = _WRONG[wrong]
    first, record = made(0, FIRST)
    assembler = Assembler("audit", 0, Position(), 1 << 28, in_journal=lambda _: holds)
    assert [type(item) for item in assembler.add(0, first)] == [Batch]
    values = {
        "unreadable": b"?",
        "written before": first,
        "another shard": made(1, record.head, shard=7)[0],
        "another head": made(1, "1" * 64)[0],
        "digest": made(1, record.head, digest="2" * 64)[0],
    }
    (item,) = assembler.add(1, values[wrong.split(",", maxsplit=1)[0]])
    assert not isinstance(item, Batch)
    assert assembler.position.gap is gap
    # A second one that cannot be the next batch takes back nothing.
    assembler.add(2, first)
    assert assembler.position.gap is gap
    assembler.in_journal = lambda _: None
    later, _ = made(2, "3" * 64)
    if gap:
        assert [type(item) for item in assembler.add(3, later)] == [Batch]
    else:
        with pytest.raises(AuditBroken, match="missing between"):
            assembler.add(3, later)
