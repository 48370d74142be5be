"""The order contract and the bytes of topic decisions-fast."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.byte_column import ByteColumn
from schemas.decision import Decision
from schemas.fast_decision import FastDecision, FastDecisions
from schemas.fast_decision_bytes import placed
from schemas.journal_record import ControlRange, InputRange, JournalRecord, SnapshotDigest, Sources
from schemas.order_record import ClaimRecord, OrderError, OrderRecord, order_log_record
from scorer.journal.order_reader import counting

BATCH = OrderRecord(
    shard=1,
    sequence=41,
    inputs=(InputRange(partition=1, start=5, end=9, epoch=2), InputRange(partition=3, start=0, end=0)),
    control=ControlRange(start=0, end=1),
    labels=ControlRange(start=2, end=2),
    bundle="cards-3f9c2a11d07b",
    sources=Sources(payments="A" * 22, control="B" * 22),
    snapshot=SnapshotDigest(sequence=40, sha256="a" * 64),
    epoch=17,
    records=4,
)
CLAIM = ClaimRecord(shard=1, sequence=41, owner="worker-1")


@pytest.mark.parametrize("record", [BATCH, CLAIM])
def test_a_record_of_the_order_log_reads_back_as_it_was_written(record: OrderRecord | ClaimRecord) -> None:
    """A new owner reads exactly what the former one appended."""
    assert order_log_record(record.to_bytes()) == record
    assert b" " not in record.to_bytes()
    assert b"null" not in record.to_bytes()


@pytest.mark.parametrize("raw", [None, b"", b"{}", b'{"kind":"batch"}', BATCH.to_bytes().replace(b"41", b"-1")])
def test_bytes_that_are_no_record_of_the_order_log_stop_its_reader(raw: bytes | None) -> None:
    """Nothing in the order log is passed over because it cannot be read."""
    with pytest.raises(OrderError, match="no record of the order log"):
        order_log_record(raw)


def test_a_journal_without_an_order_log_keeps_its_bytes() -> None:
    """Records without an order log have the head that they had in releases before; its offset is part of the head."""
    record = JournalRecord(
        shard=0, sequence=0, inputs=(), control=ControlRange(start=0, end=0), stream_time_ms=-1, bundle="b",
        decisions=0, dead_letters=0, digest="0" * 64, previous="0" * 64,
    )  # fmt: skip
    assert b"order" not in record.to_bytes()
    settled = JournalRecord.model_validate({**dict(record), "order": 7})
    assert JournalRecord.from_bytes(settled.to_bytes()).order == 7
    assert settled.head != record.head


@settings(deadline=None)  # the first call compiles
@given(
    st.lists(st.text(st.characters(codec="ascii", categories=["L", "Nd"]), min_size=1, max_size=8), max_size=120),
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**63 - 1),
)
def test_a_fast_decision_is_the_decision_with_its_place_behind_it(ids: list[str], shard: int, sequence: int) -> None:
    """What decisions-fast holds are the very bytes of topic decisions, then shard, sequence and row."""
    plain = [
        b'{"payment_id":"%s","decision":"approve","score":0.5,"margin":0.0,"reasons":[],"bundle":"b","mode":"normal"}'
        % text.encode()
        for text in ids
    ]
    found = placed(ByteColumn.of(plain), shard, sequence).to_list()
    for row, (before, after) in enumerate(zip(plain, found, strict=True)):
        assert after is not None
        assert after.startswith(before[:-1])
        assert json.loads(after) == json.loads(before) | {"shard": shard, "sequence": sequence, "row": row}
        FastDecision.model_validate_json(after)


def test_rows_of_every_length_are_written_whole() -> None:
    """A batch of thousands has rows of one to five digits."""
    found = placed(ByteColumn.of([b"{}"] * 12_345), 0, 3)
    assert [int((value or b"").rsplit(b":", 1)[1][:-1]) for value in found] == list(range(12_345))


def test_a_batch_counts_when_the_newest_claim_before_it_is_its_own() -> None:
    """What an owner appends after a later one has claimed the log counts for no reader; a log that is read from the
    middle begins with a batch that counts."""

    def batch(epoch: int, sequence: int) -> OrderRecord:
        return OrderRecord.model_validate({**dict(BATCH), "epoch": epoch, "sequence": sequence})

    log = dict(enumerate([batch(9, 0), CLAIM, batch(1, 0), batch(1, 1), CLAIM, batch(1, 2), batch(4, 2), CLAIM]))
    assert [offset for offset, _ in counting(log.items())] == [2, 3, 6]
    assert [offset for offset, _ in counting(list(log.items())[3:])] == [3, 6]


def test_a_reader_takes_each_fast_decision_once_and_in_order() -> None:
    """Whatever a new owner publishes again, and whatever a former one publishes late, is dropped; each partition has a
    place of its own, and a reader that is started again with its places goes on where it was."""
    reader = FastDecisions()

    def record(sequence: int, row: int) -> bytes:
        place = {"shard": 0, "sequence": sequence, "row": row}
        plain = Decision(
            payment_id=f"p{sequence}-{row}", decision="approve", score=0.5, margin=0.0, reasons=(), bundle="b",
            mode="normal",
        )  # fmt: skip
        return FastDecision(**dict(plain), **place).model_dump_json().encode()

    published = [(0, 5, 0), (0, 5, 1), (0, 5, 0), (0, 5, 1), (0, 5, 2), (1, 5, 1), (0, 6, 0), (0, 5, 2), (0, 6, 1)]
    taken = [(p, s, r) for p, s, r in published if reader.new(p, record(s, r)) is not None]
    assert taken == [(0, 5, 0), (0, 5, 1), (0, 5, 2), (1, 5, 1), (0, 6, 0), (0, 6, 1)]
    again = FastDecisions(reader.last)
    assert again.new(0, record(6, 1)) is None
    decision = again.new(1, record(6, 0))
    assert type(decision) is Decision
    assert decision.payment_id == "p6-0"


@pytest.mark.parametrize(
    ("raw", "later"),
    [(b'{"version":2,"kind":"batch","new":1}', True), (b'{"version":1,"kind":"batch"}', False), (b"hello", False)],
)
def test_a_record_of_a_later_version_is_told_from_a_strangers(raw: bytes, *, later: bool) -> None:
    """Else an operator would be advised to give up batches where an upgrade helps."""
    with pytest.raises(OrderError) as caught:
        order_log_record(raw)
    assert caught.value.later_version is later
