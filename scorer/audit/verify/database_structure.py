"""Views, functions and rights compared with what the migrations made: a changed view would show what is not stored.

The migrations' own text is compiled by the same server, as temporary views in a transaction that is rolled back, and
the server's two renderings are compared: so neither spelling nor version makes a difference.
"""

from __future__ import annotations

import re

import psycopg
from alembic.script import ScriptDirectory
from psycopg import sql

from scorer.audit.findings import Finding
from scorer.runtime import assets
from scorer.trail import audit_database, audit_tables

_VIEW = re.compile(r"CREATE (?:OR REPLACE )?VIEW (\w+) AS(.*?);$", re.DOTALL | re.MULTILINE)
_FUNCTION = re.compile(r"CREATE (?:OR REPLACE )?FUNCTION (\w+)\(.*?\).*?AS \$\$(.*?)\$\$;", re.DOTALL)
_OURS = ("fraud_scorer_writer", "fraud_scorer_reader")
_TABLES = tuple(audit_tables.metadata.tables)


def structure(connection: psycopg.Connection) -> tuple[list[Finding], bool]:
    """What differs, and whether views could be compared: that takes a server that is no standby, and the right to make
    temporary tables. Raises psycopg.Error."""
    views, functions = made()
    findings = [*_functions(connection, functions), *_attached(connection), *_rights(connection)]
    try:
        return [*findings, *_views(connection, views)], True
    except (psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.InsufficientPrivilege):
        return findings, False


def missing_columns(connection: psycopg.Connection) -> list[Finding]:
    """Tables and columns that are gone. Raises psycopg.Error."""
    there: dict[str, set[str]] = {}
    for table, name in connection.execute(
        "SELECT t, a.attname FROM unnest(%s::text[]) t JOIN pg_attribute a ON a.attrelid = to_regclass(t) "
        "WHERE a.attnum > 0 AND NOT a.attisdropped",
        (list(_TABLES),),
    ):
        there.setdefault(table, set()).add(name)
    findings = []
    for name, table in audit_tables.metadata.tables.items():
        if name not in there:
            findings.append(Finding.at(f"table {name}", "schema_changed", "it is gone"))
        elif gone := sorted({column.name for column in table.columns} - there[name]):
            detail = f"it has no column {', '.join(gone)}, which the migrations made"
            findings.append(Finding.at(f"table {name}", "schema_changed", detail))
    return findings


def made() -> tuple[dict[str, str], dict[str, str]]:
    """The text of each view and each function's body, by the newest migration that has it."""
    views: dict[str, str] = {}
    functions: dict[str, str] = {}
    directory = ScriptDirectory(str(assets.path("migrations")))
    for script in reversed(list(directory.walk_revisions("base", audit_database.REVISION))):
        views |= dict(_VIEW.findall(getattr(script.module, "VIEWS", "")))
        functions |= dict(_FUNCTION.findall(getattr(script.module, "FUNCTIONS", "")))
    return views, functions


def _views(connection: psycopg.Connection, views: dict[str, str]) -> list[Finding]:
    there: dict[str, str] = dict(
        connection.execute(
            "SELECT relname, pg_get_viewdef(oid) FROM pg_class WHERE relkind = 'v' AND reloptions IS NULL "
            "AND oid = to_regclass(quote_ident(relname)) AND relname = ANY (%s)",
            (list(views),),
        ).fetchall()
    )
    with connection.transaction(force_rollback=True):
        for name, text in views.items():
            connection.execute(sql.SQL("CREATE TEMP VIEW {} AS ").format(sql.Identifier(name)) + sql.SQL(text))  # type: ignore[arg-type]  # the migrations' own text
        meant: dict[str, str] = dict(
            connection.execute(
                "SELECT relname, pg_get_viewdef(oid) FROM pg_class WHERE relkind = 'v' "
                "AND relnamespace = pg_my_temp_schema() AND relname = ANY (%s)",
                (list(views),),
            ).fetchall()
        )
    findings = []
    for name in views:
        if name not in there:
            detail = "it is gone, or has options that the migrations do not give"
            findings.append(Finding.at(f"view {name}", "schema_changed", detail))
        elif there[name] != meant[name]:
            findings.append(Finding.at(f"view {name}", "schema_changed", "its definition is not the migrations'"))
    return findings


def _functions(connection: psycopg.Connection, functions: dict[str, str]) -> list[Finding]:
    findings = []
    for name, body in functions.items():
        found = connection.execute(
            "SELECT prosrc, prosecdef, proconfig, quote_ident(nspname) "
            "FROM pg_proc JOIN pg_namespace n ON n.oid = pronamespace "
            "WHERE proname = %s AND pg_function_is_visible(pg_proc.oid)",
            (name,),
        ).fetchall()
        meant = [(body, True, [f"search_path=pg_catalog, {schema}, pg_temp"]) for *_, schema in found]
        if len(found) != 1 or [row[:3] for row in found] != meant:
            detail = "it is not the one that the migrations made" if found else "it is gone"
            findings.append(Finding.at(f"function {name}", "schema_changed", detail))
    # With the owner's rights for whoever calls it: none but the migrations' own beside the tables.
    others = connection.execute(
        "SELECT DISTINCT proname FROM pg_proc WHERE prosecdef AND proname <> ALL (%s) "
        "AND pronamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('positions')) ORDER BY 1",
        (list(functions),),
    ).fetchall()
    detail = "it runs with its owner's rights, and no migration makes it"
    return findings + [Finding.at(f"function {name}", "schema_changed", detail) for (name,) in others]


# Our tables and their partitions.
_RELATIONS = (
    "WITH ours AS (SELECT oid, relname, relowner, relacl, relrowsecurity FROM pg_class WHERE oid IN "
    "(SELECT to_regclass(t) FROM unnest(%(tables)s::text[]) t UNION SELECT inhrelid FROM pg_inherits "
    "WHERE inhparent IN ('decisions'::regclass, 'batches'::regclass))) "
)


def _attached(connection: psycopg.Connection) -> list[Finding]:
    """Triggers, rules and policies: they change what is written or shown, and the migrations make none."""
    rows = connection.execute(
        f"{_RELATIONS} SELECT relname, 'trigger ' || tgname "  # noqa: S608 - constants
        "FROM ours JOIN pg_trigger ON tgrelid = ours.oid "
        "WHERE NOT tgisinternal UNION ALL "
        "SELECT relname, 'rule ' || rulename FROM ours JOIN pg_rewrite ON ev_class = ours.oid UNION ALL "
        "SELECT relname, 'row security' FROM ours WHERE relrowsecurity ORDER BY 1, 2",
        {"tables": list(_TABLES)},
    ).fetchall()
    return [
        Finding.at(f"table {table}", "schema_changed", f"it has a {what} that no migration makes")
        for table, what in rows
    ]


def _rights(connection: psycopg.Connection) -> list[Finding]:
    """The writer adds and the reader reads; neither they nor everybody may change or remove (positions aside)."""
    rows = connection.execute(
        f"{_RELATIONS} SELECT relname, CASE grantee WHEN 0 THEN 'everybody' "  # noqa: S608 - constants
        "ELSE grantee::regrole::text END, privilege "
        "FROM (SELECT relname, (aclexplode(relacl)).* FROM ours UNION ALL SELECT relname, (aclexplode(attacl)).* "
        "FROM ours JOIN pg_attribute ON attrelid = ours.oid WHERE relname <> 'positions') acl "
        "(relname, grantor, grantee, privilege, grantable) "
        "WHERE privilege IN ('UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER') "
        "AND (grantee = 0 OR grantee::regrole::text = ANY (%(roles)s)) ORDER BY 1, 2, 3",
        {"tables": list(_TABLES), "roles": list(_OURS)},
    ).fetchall()
    findings = [Finding.at(f"table {table}", "rights_widened", f"{role} may {what}") for table, role, what in rows]
    return [*findings, *_rights_to_make(connection)]


def _rights_to_make(connection: psycopg.Connection) -> list[Finding]:
    """The writer makes no objects: neither temporary ones nor any beside the tables."""
    rows = connection.execute(
        "SELECT 'database ' || current_database(), 'TEMPORARY' WHERE EXISTS (SELECT 1 FROM pg_roles "
        "WHERE rolname = %(writer)s AND has_database_privilege(oid, current_database(), 'TEMPORARY')) "
        "UNION ALL SELECT 'schema ' || nspname, 'CREATE' FROM pg_namespace n, pg_roles r WHERE r.rolname = %(writer)s "
        "AND n.oid = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('positions')) "
        "AND has_schema_privilege(r.oid, n.oid, 'CREATE')",
        {"writer": _OURS[0]},
    ).fetchall()
    return [Finding.at(place, "rights_widened", f"{_OURS[0]} may {what}") for place, what in rows]
