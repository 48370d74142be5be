"""What is known of a journal after one walk along it equals what the list of all its records gives."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.journal_record import FIRST_PREVIOUS, Change, ControlRange, InputRange, JournalRecord, Sources
from scorer.errors import UsageError
from scorer.journal.journal_span import JournalSpan, span_of
from scorer.replay import Window
from scorer.replay.topic_replay import span_within

PARTITIONS = 3
IDS = [Sources(payments=letter * 22, control=letter * 22) for letter in "ab"]


@st.composite
def journals(draw: st.DrawFn) -> list[tuple[int, JournalRecord]]:
    """Records with their offsets: markers between them, batches that read nothing of some partitions, changes."""
    at, found, offset, previous = (
        dict.fromkeys(range(PARTITIONS), 0),
        list[tuple[int, JournalRecord]](),
        0,
        FIRST_PREVIOUS,
    )
    for sequence in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from([None] * 8 + ["accept_loss", "new_state"])) if sequence else None
        counts = draw(st.lists(st.integers(0, 4), min_size=PARTITIONS, max_size=PARTITIONS))
        inputs = [
            InputRange(partition=p, start=at[p], end=at[p] + n) for p, n in enumerate(counts) if n or not sequence
        ]
        at |= {r.partition: 0 if kind == "new_state" else r.end for r in inputs}
        labels = draw(st.one_of(st.none(), st.integers(0, 9)))
        record = JournalRecord(
            shard=0, sequence=sequence, inputs=tuple(inputs), control=ControlRange(start=sequence, end=sequence + 1),
            labels=None if labels is None else ControlRange(start=labels, end=labels + 2), bundle="b",
            sources=draw(st.sampled_from([None, *IDS])), stream_time_ms=sequence, digest="0" * 64, previous=previous,
            decisions=0 if kind else sum(counts), dead_letters=0 if kind else draw(st.integers(0, 2)),
            change=None if kind is None else Change(kind=kind, reason="a test"),
        )  # fmt: skip
        found.append((offset, record))
        offset, previous = offset + draw(st.integers(1, 3)), record.head
    return found


def plain(records: Sequence[tuple[int, JournalRecord]]) -> JournalSpan:
    """The same of a list, each from all of its records."""
    alone = [record for _, record in records]
    positions: dict[int, int] = {}
    for record in alone:
        for r in record.inputs:
            positions.setdefault(r.partition, r.start if record.change is None else r.end)
    return JournalSpan(
        start=records[0][0],
        end=records[-1][0] + 1,
        first=alone[0],
        last=alone[-1],
        count=len(alone),
        decisions=sum(record.decisions for record in alone),
        dead_letters=sum(record.dead_letters for record in alone),
        positions=positions,
        labels=next((r.labels.start if r.change is None else r.labels.end for r in alone if r.labels), None),
        sources=next((record.sources for record in alone if record.sources), None),
    )


def since_new_state(records: Sequence[tuple[int, JournalRecord]]) -> Sequence[tuple[int, JournalRecord]]:
    last = max((i for i, (_, r) in enumerate(records) if r.change and r.change.kind == "new_state"), default=0)
    return records[last:]


def last_touching(
    records: Sequence[tuple[int, JournalRecord]], offsets: Mapping[int, tuple[int, int]]
) -> dict[int, int]:
    """By partition of the window: place of the last record that read something of it."""
    return {
        r.partition: i
        for i, (_, record) in enumerate(records)
        for r in record.inputs
        if r.partition in offsets and r.start < offsets[r.partition][1] and r.end > offsets[r.partition][0]
    }


@given(journals())
def test_a_walk_gives_what_the_whole_list_gives(records: list[tuple[int, JournalRecord]]) -> None:
    """Bounds, counts, first offsets and ids are those since the last `new_state`."""
    assert span_of(iter(records)) == plain(since_new_state(records))


BOUNDS = st.builds(lambda start, count: (start, start + count), st.integers(0, 10), st.integers(1, 6))


@given(journals(), st.dictionaries(st.integers(0, PARTITIONS - 1), BOUNDS))
def test_a_window_ends_with_the_last_record_that_reads_of_it(
    records: list[tuple[int, JournalRecord]], offsets: dict[int, tuple[int, int]]
) -> None:
    """Nothing after it is replayed; a partition or range that the journal does not have is refused."""
    window, counted = Window(offsets=offsets), since_new_state(records)
    touching = last_touching(counted, offsets)
    if touching.keys() != offsets.keys():
        with pytest.raises(UsageError, match=r"the journal has (the partitions|decided none)"):
            span_within(iter(records), window)
    else:
        end = max(touching.values(), default=len(counted) - 1)
        assert span_within(iter(records), window) == plain(counted[: end + 1])


def test_a_walk_keeps_few_records() -> None:
    """However long the journal, only the first record and the last ones of the walk are in memory."""
    alive, most = weakref.WeakSet[JournalRecord](), 0

    def records() -> Iterator[tuple[int, JournalRecord]]:
        nonlocal most
        for sequence in range(500):
            record = JournalRecord(
                shard=0, sequence=sequence, inputs=(InputRange(partition=0, start=sequence, end=sequence + 1),),
                control=ControlRange(start=0, end=0), bundle="b", stream_time_ms=0, decisions=1, dead_letters=0,
                digest="0" * 64, previous=FIRST_PREVIOUS if not sequence else "1" * 64,
            )  # fmt: skip
            alive.add(record)
            yield sequence, record
            del record
            most = max(most, len(alive))

    for window, count in ((Window(), 500), (Window(offsets={0: (10, 400)}), 400)):
        most = 0
        span = span_within(records(), window)
        assert span is not None
        assert (span.count, span.positions, span.end) == (count, {0: 0}, count)
        assert 0 < most <= 5
        del span
