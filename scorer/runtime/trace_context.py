"""W3C Trace Context in Kafka headers: read, derived, written. Pure.

    traceparent     00-<trace id, 32 hex digits>-<parent id, 16>-<flags, 2>     https://www.w3.org/TR/trace-context/
    tracestate      name=value,name=value                                        carried on, never looked into

What does not follow the grammar counts as absent and is never an error. The ids of our own spans are hashes of what a
batch is determined by, so whoever decides a batch again gives its spans the same ids and, below the limit a second, its
payments the same headers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from types import MappingProxyType
from typing import Final, NamedTuple

from schemas.card_numbers import holds_card_number

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
# Of an audit record: which rows of its batch are sampled. No digest covers headers.
SAMPLED_ROWS: Final = "fraud_scorer.sampled"
# A traceparent of version 00 has 55 bytes; later versions may append to it. Longer ones are not given back.
TRACEPARENT_BYTES_MAX: Final = 128
HEADERS_OF_A_NAME_MAX: Final = 32  # looked at: a record may have 100,000
TRACESTATE_BYTES_MAX: Final = 512  # what a receiver should at least carry on (3.3.1.5)
_TRACESTATE_MEMBERS_MAX: Final = 32
SAMPLED_ROWS_MAX: Final = 1_000
_ROW_BYTES_MAX: Final = 76  # row, traceparent, the characters between

Headers = list[tuple[str, str | bytes | None]]  # as the Kafka client takes them; values are bytes
HeadersOfRows = Mapping[int, Headers]  # by row; rows without headers are not in it
NO_HEADERS: Final[HeadersOfRows] = MappingProxyType({})

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_KEY = r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
_MEMBER = re.compile(rf"({_KEY})=[ -+\--<>-~]{{0,255}}[!-+\--<>-~]".encode())
_ROW = re.compile(rb"(0|[1-9][0-9]{0,8}) 00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_SAMPLED, _RANDOM = 1, 2
_VERSION_00_BYTES = 55


class Carried(NamedTuple):
    """The two headers of a payment as its record has them, not looked at; `tracestate` empty without one."""

    traceparent: bytes
    tracestate: bytes = b""

    @property
    def bytes(self) -> int:
        """What it takes in memory, about."""
        return 200 + len(self.traceparent) + len(self.tracestate)


class TraceParent(NamedTuple):
    """A traceparent that follows the grammar: ids in hex digits; flags as they came."""

    trace_id: str
    parent_id: str
    flags: int

    @property
    def sampled(self) -> bool:
        """Whether the sender may have recorded it."""
        return bool(self.flags & _SAMPLED)


class SampledRow(NamedTuple):
    """A row of a batch whose decision has a span: ids in hex digits."""

    row: int
    trace_id: str
    span_id: str


def carried_of(headers: Iterable[tuple[str, bytes | None]]) -> Carried | None:
    """The two of a record's headers; None without a traceparent, with two of them or with one that is too long. Several
    tracestate are one list (3.3.1.1); one that is too long is left out, and so are more than HEADERS_OF_A_NAME_MAX."""
    found: list[bytes] = []
    states: list[bytes] = []
    count = 0
    for name, value in headers:
        if name == TRACEPARENT:
            found.append(value or b"")
        elif name == TRACESTATE:
            count += 1
            if value:
                states.append(value)
    if count > HEADERS_OF_A_NAME_MAX:
        states = []
    if len(found) != 1 or not 0 < len(found[0]) <= TRACEPARENT_BYTES_MAX:
        return None
    state = b",".join(states)
    return Carried(found[0], state if len(state) <= TRACESTATE_BYTES_MAX else b"")


def parse(traceparent: bytes) -> TraceParent | None:
    """None for one that does not follow the grammar (3.2.2)."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    if version == b"ff" or (version == b"00" and more is not None) or not trace_id.strip(b"0"):
        return None
    if not parent_id.strip(b"0"):
        return None
    return TraceParent(trace_id.decode(), parent_id.decode(), int(flags, 16))


def valid_tracestate(tracestate: bytes) -> bool:
    """Whether it follows the grammar (3.3.1): members of unlike keys, 32 at most, some of them perhaps empty."""
    keys = set()
    for text in tracestate.split(b","):
        member = text.strip(b" \t")
        if not member:
            continue
        found = _MEMBER.fullmatch(member)
        if found is None or found[1] in keys:
            return False
        keys.add(found[1])
    return len(keys) <= _TRACESTATE_MEMBERS_MAX


def headers_back(carried: Carried, parent: TraceParent, span_id: str | None) -> Headers:
    """What a decision's record carries: the traceparent with our span as the parent, or as it was without one
    (`span_id` None), but for what a later version adds; and the tracestate, unless a card number is in it. `parent`:
    what `carried.traceparent` holds."""
    traceparent = carried.traceparent
    if span_id is not None:
        traceparent = written(parent.trace_id, span_id, parent.flags)
    elif len(traceparent) > _VERSION_00_BYTES:  # of a later version: what it adds is not known here
        traceparent = written(parent.trace_id, parent.parent_id, parent.flags)
    headers: Headers = [(TRACEPARENT, traceparent)]
    state = carried.tracestate
    if state and valid_tracestate(state) and not holds_card_number(state.decode("ascii")):
        headers.append((TRACESTATE, carried.tracestate))
    return headers


def written(trace_id: str, span_id: str, flags: int = _SAMPLED) -> bytes:
    """A traceparent of version 00; of `flags` those that this version knows."""
    return f"00-{trace_id}-{span_id}-{flags & (_SAMPLED | _RANDOM):02x}".encode()


def span_id(kind: str, trace_id: str, shard: int, sequence: int, place: int) -> str:
    """The id of the span of a `kind` for one payment of a batch, the same whoever decides it. `place`: the row of its
    decision."""
    return _hex(f"{kind}\n{trace_id}\n{shard}\n{sequence}\n{place}", 8)


def trace_id(service: str, topic: str, partition: int, offset: int, timestamp_ms: int) -> str:
    """The id of the trace that begins with a payment which carries none."""
    return _hex(f"trace\n{service}\n{topic}\n{partition}\n{offset}\n{timestamp_ms}", 16)


def _hex(text: str, size: int) -> str:
    digest = sha256(b"fraud-scorer " + text.encode()).digest()[:size]
    return (digest if any(digest) else digest[:-1] + b"\1").hex()  # an id of zeros alone is none


def sampled_rows_header(rows: Sequence[SampledRow]) -> tuple[str, bytes]:
    """The header of an audit record that names the sampled rows of its batch, a line each."""
    lines = (b"%d %b" % (row.row, written(row.trace_id, row.span_id)) for row in rows[:SAMPLED_ROWS_MAX])
    return SAMPLED_ROWS, b"\n".join(lines)


def sampled_rows(headers: Iterable[tuple[str, bytes | None]]) -> list[SampledRow]:
    """Back from an audit record's headers. What is not as `sampled_rows_header` writes it is passed over."""
    for name, value in headers:
        if name == SAMPLED_ROWS and value is not None and len(value) <= SAMPLED_ROWS_MAX * _ROW_BYTES_MAX:
            found = map(_ROW.fullmatch, value.split(b"\n"))
            return [SampledRow(int(row[1]), row[2].decode(), row[3].decode()) for row in found if row is not None]
    return []


def header_bytes(headers: Iterable[tuple[str, str | bytes | None]]) -> int:
    """Names and values together."""
    return sum(len(name) + len(value or b"") for name, value in headers)
