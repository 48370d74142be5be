"""How Postgres is reached, read by libpq itself: a URL, several hosts in it, or `name=value` pairs.

What libpq reads, escapes and calls a secret is libpq's business; nothing here takes an address apart by hand.
"""

from __future__ import annotations

import re
from typing import Final

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo

from scorer.errors import UsageError

HIDDEN: Final = "********"
_SQLALCHEMY_SCHEME = re.compile(r"^postgres(?:ql)?\+\w+://")  # postgresql+psycopg://, as other programs write it
_PORTS = re.compile(r"[\d,]*")
# Hidden though libpq shows them: keys that log in without the password, and options, which others read secrets from.
_SECRET_TOO = frozenset({b"options", b"scram_client_key", b"scram_server_key"})
_STRAY_AT = re.compile(r"[^,]@")  # at the start of a host it is an abstract socket


def connection_text(address: str, password: str | None = None) -> str:
    """`address` as libpq's `name=value` pairs, with `password` in place of its own; never log it.

    Raises UsageError, which repeats no part of the address: any of it may be a piece of a password.
    """
    if "\0" in address or "\0" in (password or ""):
        raise UsageError("postgres.url or postgres.password: holds a NUL character, where libpq stops reading")
    try:
        parts = conninfo_to_dict(_SQLALCHEMY_SCHEME.sub("postgresql://", address))
        if password is not None:
            parts["password"] = password
        text = make_conninfo("", **parts)
    except (ProgrammingError, UnicodeDecodeError):
        raise UsageError(
            "postgres.url: neither a URL such as postgresql://user@host:5432/database nor name=value pairs that libpq "
            "reads; in a URL a space is %20 and a percent sign %25"
        ) from None
    # A plain @ or / in the password moves the rest of the URL: libpq then takes a piece of the password for a host.
    if _STRAY_AT.search(str(parts.get("host", ""))) or _PORTS.fullmatch(str(parts.get("port", ""))) is None:
        raise UsageError(
            "postgres.url: its host or port cannot be read; in a URL's password @ is %40 and / is %2F, or "
            "give the password as it is by FRAUD_SCORER_POSTGRES__PASSWORD_FILE"
        )
    return text


def shown(address: str) -> str:
    """`address` for people, as `name=value` pairs: what libpq itself calls a secret is hidden, and so is what may hold
    one for others on the way (poolers and hosted services read passwords out of `options`)."""
    try:
        text = connection_text(address)
    except UsageError:
        return HIDDEN
    return make_conninfo(text, **dict.fromkeys(_secret_parts(text), HIDDEN))


def secrets_of(address: str) -> list[str]:
    """What `shown` hides of an address; none where libpq cannot read it."""
    try:
        return list(_secret_parts(connection_text(address)).values())
    except UsageError:
        return []


def _secret_parts(text: str) -> dict[str, str]:
    return {
        option.keyword.decode(): option.val.decode()
        for option in Conninfo.parse(text.encode())
        if option.val and (option.dispchar == b"*" or option.keyword in _SECRET_TOO)
    }
