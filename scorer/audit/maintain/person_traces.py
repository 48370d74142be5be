"""Where the trail names a person, found before anything is changed: rows, lists, quarantined records.

An identifier such as 17 is no name of its own: merchant 17 may be on a list, and any record may hold these two
characters. So a list is the person's only where the caller says that it holds customers or accounts, and a quarantined
record where its own column has the value. One that cannot be read is the person's where its bytes hold the value, and
the value is long enough not to be there by chance.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from schemas.audit_record import AuditError, decode_parts
from schemas.contract_error import ContractError
from schemas.json_document import parse_object
from scorer.errors import UsageError

# Eight characters of an identifier stand in a record of 1 MB by chance once in 10^8 (64^8 / 2^20), two nearly always.
UNREADABLE_CHARACTERS_MIN = 8
_LIST_CHANGES = ("list_add", "list_remove")
_PAGE = 200  # these rows have whole records


@dataclass
class Traces:
    """What names a person whose `column` is a value.

    payment_ids: those of the person's rows · rows: how many have the value · more_rows: rows of the same payments
    without it, such as answers to records that were refused · lists: changes by the list's name · lists_left: those of
    lists that were not named, and stay · quarantined: topic,
    partition and offset · unreadable_left: quarantined records that cannot be read and are left, though their bytes
    hold the value
    """

    payment_ids: list[str] = field(default_factory=list)
    rows: int = 0
    more_rows: int = 0
    lists: dict[str, int] = field(default_factory=dict)
    lists_left: dict[str, int] = field(default_factory=dict)
    quarantined: list[tuple[str, int, int]] = field(default_factory=list)
    unreadable_left: int = 0


def find_traces(
    connection: psycopg.Connection, *, column: str, value: str, lists: Collection[str] | None, also_unreadable: bool
) -> Traces:
    """Where the person stands. `lists`: those that hold such values; None: not named.

    Raises UsageError when lists have the value and none were named, and for a list that was never changed.
    """
    traces = Traces()
    name = sql.Identifier(column)
    for payment_id, count in connection.execute(
        sql.SQL("SELECT payment_id, count(*) FROM decisions WHERE {} = %s GROUP BY payment_id").format(name), (value,)
    ):
        traces.payment_ids.append(payment_id)
        traces.rows += count
    row = connection.execute(
        sql.SQL("SELECT count(*) FROM decisions WHERE payment_id = ANY (%s) AND {} IS NULL").format(name),
        (traces.payment_ids,),
    ).fetchone()
    traces.more_rows = 0 if row is None else row[0]
    traces.lists = dict(
        connection.execute(
            "SELECT record->>'list', count(*) FROM control_changes WHERE record->>'value' = %s GROUP BY 1 ORDER BY 1",
            (value,),
        ).fetchall()
    )
    if lists is None and traces.lists:
        raise UsageError(
            f"the value stands on lists too: {', '.join(traces.lists)}. Name those that hold a {column} with --list "
            "NAME (once for each), or give --no-lists where none does; nothing was erased"
        )
    changed = {
        name
        for (name,) in connection.execute(
            "SELECT DISTINCT record->>'list' FROM control_changes WHERE record->>'list' IS NOT NULL"
        ).fetchall()
    }
    if unknown := sorted(set(lists or ()) - changed):
        raise UsageError(
            f"--list {unknown[0]}: there is no change of such a list, but of {', '.join(sorted(changed)) or 'none'}; "
            "nothing was erased"
        )
    traces.lists_left = {name: count for name, count in traces.lists.items() if name not in (lists or ())}
    traces.lists = {name: count for name, count in traces.lists.items() if name in (lists or ())}
    ids = {*traces.payment_ids}
    for place, record in _quarantine(connection):
        named = _names(record, column, value, ids, lists or ())
        if named is None and value.encode() in record:
            named = also_unreadable or len(value) >= UNREADABLE_CHARACTERS_MIN
            traces.unreadable_left += not named
        if named:
            traces.quarantined.append(place)
    return traces


def _names(record: bytes, column: str, value: str, ids: set[str], lists: Collection[str]) -> bool | None:
    """Whether a quarantined record names the person; None where it cannot be read."""
    try:
        rows = decode_parts(record).rows
    except AuditError:
        pass
    else:
        return value in rows.column(column).to_pylist() or not ids.isdisjoint(rows.column("payment_id").to_pylist())
    try:
        document = parse_object(record)
    except ContractError:
        return None
    if document.get("type") in _LIST_CHANGES:
        return document.get("list") in lists and document.get("value") == value
    return document.get(column) == value or document.get("payment_id") in ids


def _quarantine(connection: psycopg.Connection) -> Iterator[tuple[tuple[str, int, int], bytes]]:
    """Every quarantined record that is still there, with its place, by pages along the primary key."""
    last: tuple[str, int, int] = ("", -(2**31), -(2**63))
    while page := connection.execute(
        'SELECT topic, partition, "offset", value FROM set_aside WHERE value IS NOT NULL '
        'AND (topic, partition, "offset") > (%s, %s, %s) ORDER BY topic, partition, "offset" LIMIT %s',
        (*last, _PAGE),
    ).fetchall():
        for *place, value in page:
            last = (place[0], place[1], place[2])
            yield last, bytes(value)
