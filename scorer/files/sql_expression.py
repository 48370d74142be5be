"""Expressions of a mapping: one expression over the columns of the row, and nothing else.

DuckDB parses the text; what is accepted is a single expression without subqueries, whose functions always give the same
for the same row. So a mapping reads no other file, and a file gives the same payments each time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import duckdb

from schemas.verification_names import FORBIDDEN, is_verification_column
from scorer.files.mapping import MappingError
from scorer.files.source_relation import first_row

# Functions of the row's place are the same each time, since rows keep the order of the file.
_WINDOWS = frozenset({"row_number", "lag", "lead", "first_value", "last_value", "rank", "dense_rank", "count", "sum"})
_EMPTY_CLAUSES = ("where_clause", "group_expressions", "group_sets", "having", "sample", "qualify", "modifiers")


def checked(connection: duckdb.DuckDBPyConnection, field: str, text: str, columns: Iterable[str]) -> str:
    """The expression over `columns` as it may be put into a query, in brackets. Raises MappingError."""
    known = {name.lower() for name in columns}
    node = _select(connection, field, text)
    items = node["select_list"]
    if len(items) != 1 or items[0].get("alias"):
        raise MappingError(
            f"{field}: the sql is not one expression; write one, without commas outside of brackets or AS"
        )
    volatile = _volatile(connection)
    for part in _parts(items[0]):
        kind = part.get("class")
        names: list[str] = part.get("column_names", []) if kind == "COLUMN_REF" else []
        if kind in ("SUBQUERY", "STAR", "POSITIONAL_REFERENCE", "PARAMETER", "DEFAULT"):
            raise MappingError(f"{field}: the sql holds a {kind.lower()}; only an expression over columns is taken")
        name = str(part.get("function_name", "")).lower()
        if kind == "COLUMN_REF" and any(is_verification_column(column) for column in names):
            raise MappingError(f"{field}: a column in the sql is {FORBIDDEN}")
        if kind == "COLUMN_REF" and len(names) == 1 and names[0].lower() not in known:
            name = names[0].lower()  # current_date is written like a column
        if name in volatile:
            raise MappingError(f"{field}: {name}() in the sql gives something else each time; leave it away")
        if kind == "WINDOW" and name not in _WINDOWS:
            raise MappingError(f"{field}: {name}() over rows is not taken; known are {', '.join(sorted(_WINDOWS))}")
    return f"({text}\n)"  # the new line ends a comment


def holds_window(connection: duckdb.DuckDBPyConnection, field: str, text: str) -> bool:
    """Whether the expression looks at other rows too."""
    return any(part.get("class") == "WINDOW" for part in _parts(_select(connection, field, text)["select_list"][0]))


def _select(connection: duckdb.DuckDBPyConnection, field: str, text: str) -> dict[str, Any]:
    row = first_row(connection, "select json_serialize_sql(?)", [f"select {text}\n"])
    document: dict[str, Any] = json.loads(row[0]) if row else {"error": True}
    statements = document.get("statements", [])
    if document["error"] or len(statements) != 1:
        why = str(document.get("error_message", "")).split("\n")[0][:200]
        raise MappingError(f"{field}: the sql cannot be read as one expression of DuckDB{': ' if why else ''}{why}")
    node: dict[str, Any] = statements[0]["node"]
    plain = (
        node.get("type") == "SELECT_NODE"
        and (node.get("from_table") or {}).get("type") == "EMPTY"
        and not (node.get("cte_map") or {}).get("map")
        and not any(node.get(clause) for clause in _EMPTY_CLAUSES)
    )
    if not plain:
        raise MappingError(f"{field}: the sql is more than an expression; leave FROM, WHERE, ORDER BY and such away")
    return node


def _parts(node: object) -> list[dict[str, Any]]:
    """Every object below, this one included."""
    found: list[dict[str, Any]] = []
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            found.append(one)
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)
    return found


def _volatile(connection: duckdb.DuckDBPyConnection) -> frozenset[str]:
    """Functions that may give something else for the same arguments."""
    rows = connection.execute(
        "select distinct lower(function_name) from duckdb_functions() where stability is not null"
        " and stability <> 'CONSISTENT' and function_type in ('scalar', 'macro')"
    ).fetchall()
    return frozenset(name for (name,) in rows) | _OF_THE_SESSION


_OF_THE_SESSION = frozenset({
    "current_setting", "getvariable", "current_date", "current_time", "current_timestamp", "current_localtime",
    "current_localtimestamp", "localtime", "localtimestamp", "today", "now", "transaction_timestamp", "random", "uuid",
    "gen_random_uuid", "uuidv4", "uuidv7", "nextval", "currval", "txid_current", "current_database", "current_schema",
    "current_user", "session_user", "user", "version", "pg_backend_pid", "write_log", "getenv", "age", "sleep",
    "sleep_ms", "query", "query_table", "read_text", "read_blob", "set_config",
})  # fmt: skip
