"""Trace contexts of hostile senders: what follows W3C's grammar is taken, all else is as if it were not there."""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scorer.runtime import trace_context
from scorer.runtime.trace_context import Carried, SampledRow, TraceParent

HEX = "0123456789abcdef"
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def plain_parse(text: bytes) -> TraceParent | None:
    """The grammar of https://www.w3.org/TR/trace-context/#traceparent-header, part by part."""
    parts = text.decode("latin-1").split("-", 4)
    if len(parts) < 4 or [len(part) for part in parts[:4]] != [2, 32, 16, 2]:
        return None
    version, trace_id, parent_id, flags = parts[:4]
    if any(letter not in HEX for part in parts[:4] for letter in part):
        return None
    if version == "ff" or (version == "00" and len(parts) > 4):
        return None
    if trace_id == "0" * 32 or parent_id == "0" * 16:
        return None
    return TraceParent(trace_id, parent_id, int(flags, 16))


def hexed(size: int) -> st.SearchStrategy[str]:
    return st.sampled_from(["0" * size, "f" * size]) | st.text(HEX, min_size=size, max_size=size)


WELL = st.builds(
    "-".join,
    st.tuples(st.sampled_from(["00", "00", "01", "fe", "ff"]) | hexed(2), hexed(32), hexed(16), hexed(2)),
)
MORE = st.sampled_from(["", "", "", "-", "-more", "x", "\n", "-\n"])
TRACEPARENTS = st.builds(lambda well, more: (well + more).encode(), WELL, MORE)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A well-formed one with one byte changed, added or left out."""
    text = bytearray(draw(TRACEPARENTS))
    at = draw(st.integers(0, len(text) - 1))
    new = draw(st.binary(max_size=2) | st.sampled_from([b"-", b"A", b"G", b" ", b"\0", b"\xff"]))
    text[at : at + draw(st.integers(0, 2))] = new
    return bytes(text)


@given(TRACEPARENTS | damaged() | st.binary(max_size=80))
@example(f"00-{TRACE}-{SPAN}-01\n".encode())
@example(f"00-{TRACE.upper()}-{SPAN}-01".encode())
def test_a_traceparent_is_taken_exactly_as_the_grammar_says(text: bytes) -> None:
    """Whatever bytes a sender writes, what is taken of them is what a plain reading of the grammar takes, and nothing
    raises."""
    assert trace_context.parse(text) == plain_parse(text)


KEY = string.ascii_lowercase + string.digits + "_-*/"
VALUE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in ",=")
MEMBERS = st.lists(
    st.tuples(
        st.builds(lambda first, rest: first + rest, st.sampled_from("abz"), st.text(KEY, max_size=20))
        | st.sampled_from(["t0@system", "0t@s"]),
        st.builds(lambda text, last: text + last, st.text(VALUE, max_size=20), st.sampled_from("x!~")),
    ),
    max_size=32,
    unique_by=lambda member: member[0],
)


@given(MEMBERS, st.sampled_from([",", " , ", ",,", "\t,"]))
def test_a_tracestate_that_follows_the_grammar_is_carried_on(members: list[tuple[str, str]], between: str) -> None:
    """Up to 32 members of unlike keys, with blanks and empty members between them."""
    assert trace_context.valid_tracestate(between.join(f"{key}={value}" for key, value in members).encode())


@pytest.mark.parametrize(
    "text",
    [
        b"a", b"=1", b"A=1", b"a=", b"a=1,a=2", b"a=1=2", b"a=\x7f", b"a=\x1f", b"a=\xc3\xa4", b"a b=1", b"@s=1",
        b"t@=1", b"t@S=1", b"a=1;b=2\n", b",".join(b"k%d=v" % n for n in range(33)),
        b"a" * 257 + b"=1", b"a=" + b"v" * 257,
    ],
)  # fmt: skip
def test_a_tracestate_that_does_not_is_left_out(text: bytes) -> None:
    """The traceparent goes back without it."""
    assert not trace_context.valid_tracestate(text)
    carried = Carried(f"00-{TRACE}-{SPAN}-00".encode(), text)
    parent = trace_context.parse(carried.traceparent)
    assert parent is not None
    assert trace_context.headers_back(carried, parent, None) == [("traceparent", carried.traceparent)]


@given(st.lists(st.tuples(st.sampled_from(["traceparent", "tracestate", "x"]), st.none() | st.binary(max_size=600))))
def test_what_a_record_carries_is_bounded(headers: list[tuple[str, bytes | None]]) -> None:
    """Whatever headers a sender writes, no more than a known number of bytes of them is kept."""
    carried = trace_context.carried_of(headers)
    assert carried is None or (len(carried.traceparent) <= 128 and len(carried.tracestate) <= 512)
    if sum(name == "traceparent" for name, _ in headers) != 1:
        assert carried is None


@given(TRACEPARENTS, st.sampled_from([None, "1234567890abcdef"]))
def test_what_is_given_back_is_a_traceparent_of_the_same_trace(text: bytes, span_id: str | None) -> None:
    """With our span as the parent and the caller's decision to sample; or, without a span, unchanged, but for what a
    later version adds."""
    parent = trace_context.parse(text)
    if parent is None:
        return
    ((name, back),) = trace_context.headers_back(Carried(text), parent, span_id)
    assert name == "traceparent"
    if span_id is None and len(text) == 55:
        assert back == text
    elif span_id is None:
        assert plain_parse(back) == parent._replace(flags=parent.flags & 3)
    else:
        assert plain_parse(back) == TraceParent(parent.trace_id, span_id, parent.flags & 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", [b"a=4111111111111111", b"a=1,b=4111-1111-1111-1111", b"a=4111 1111 1111 1111"])
def test_no_card_number_comes_back_in_a_tracestate(state: bytes) -> None:
    """It follows the grammar, and both decision topics are read by many."""
    assert trace_context.valid_tracestate(state)
    text = f"00-{TRACE}-{SPAN}-00".encode()
    parent = trace_context.parse(text)
    assert parent is not None
    assert trace_context.headers_back(Carried(text, state), parent, None) == [("traceparent", text)]
    assert len(trace_context.headers_back(Carried(text, b"a=1"), parent, None)) == 2


def test_of_more_tracestate_than_a_sender_needs_none_is_kept() -> None:
    """A record may have 100,000 headers of one name."""
    text = f"00-{TRACE}-{SPAN}-00".encode()
    for count, kept in ((32, b"a=1"), (33, b"")):
        headers = [("traceparent", text), ("tracestate", b"a=1"), *[("tracestate", None)] * (count - 1)]
        assert trace_context.carried_of(headers) == Carried(text, kept)


IDS = st.tuples(hexed(32), hexed(16))


@given(st.lists(st.builds(lambda row, ids: SampledRow(row, *ids), st.integers(0, 65_535), IDS), max_size=30))
def test_the_sampled_rows_of_a_batch_come_back(rows: list[SampledRow]) -> None:
    """What the worker writes of a batch is what the sink reads."""
    assert trace_context.sampled_rows([("other", b"x"), trace_context.sampled_rows_header(rows)]) == rows


@given(st.binary(max_size=200) | st.lists(st.binary(max_size=80)).map(b"\n".join))
def test_a_forged_header_of_an_audit_record_is_no_error(value: bytes) -> None:
    """What does not name rows gives none, and nothing raises; one that is too long is not read."""
    trace_context.sampled_rows([(trace_context.SAMPLED_ROWS, value), (trace_context.SAMPLED_ROWS, None)])
    long = b"\n".join([b"1 " + trace_context.written(TRACE, SPAN)] * 2_000)
    assert trace_context.sampled_rows([(trace_context.SAMPLED_ROWS, long)]) == []


def test_no_id_is_of_zeros_alone() -> None:
    """Ids are as the grammar wants them, and differ by each of what they follow from."""
    ids = {
        trace_context.span_id(kind, trace, shard, sequence, row)
        for kind in ("a", "b")
        for trace in (TRACE, TRACE[::-1])
        for shard in (0, 1)
        for sequence in (0, 10)
        for row in (0, 1)
    }
    assert len(ids) == 32
    assert all(len(each) == 16 and each.strip("0") for each in ids)
