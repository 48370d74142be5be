"""Secrets in texts: what of an address or a client's setting may be shown, and texts without what may not.

Messages are made without secrets where they are made. Libraries make messages too, from the addresses and settings that
they are given; so every log line, and the last line of a command, passes `without_secrets` as well, which knows the
secrets of this process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from pydantic import BaseModel, SecretStr

from scorer.runtime.postgres_address import HIDDEN, secrets_of

if TYPE_CHECKING:
    from scorer.runtime.settings import Settings

# Of librdkafka's security settings: those that hold no secret. Of any other the name alone is shown.
SHOWN_SECURITY: Final = frozenset({
    "enable.sasl.oauthbearer.unsecure.jwt", "enable.ssl.certificate.verification", "https.ca.location",
    "sasl.kerberos.keytab", "sasl.kerberos.principal", "sasl.kerberos.service.name", "sasl.mechanism",
    "sasl.mechanisms", "sasl.oauthbearer.client.id", "sasl.oauthbearer.grant.type", "sasl.oauthbearer.method",
    "sasl.oauthbearer.scope", "sasl.username", "security.protocol", "ssl.ca.location",
    "ssl.certificate.location", "ssl.cipher.suites", "ssl.crl.location", "ssl.curves.list",
    "ssl.endpoint.identification.algorithm", "ssl.key.location", "ssl.keystore.location", "ssl.sigalgs.list",
})  # fmt: skip
# Shorter ones would be found in words that are no secret, and a log line would lose its sense.
_LENGTH_MIN: Final = 6
_HIDDEN_MAX: Final = 1024
_SCHEME = re.compile(r"[\w+.:-]*?://")


def shown_address(address: str) -> str:
    """A path or URL for people. Of a URL, all before its last @, the query and the fragment are hidden: keys of object
    stores, passwords and signatures stand there, and a password may hold a / or a ? as it is."""
    scheme, rest = _split(address)
    if not scheme:
        return address
    _, at, place = rest.rpartition("@")
    path = re.match(r"[^?#]*", place)
    shown = path[0] if path else ""
    return scheme + (HIDDEN + at if at else "") + shown + ("?" + HIDDEN if len(shown) < len(place) else "")


def address_secrets(address: str) -> Iterator[str]:
    """What `shown_address` hides, whole and in its parts, encoded and decoded."""
    scheme, rest = _split(address)
    if not scheme:
        return
    before, _, place = rest.rpartition("@")
    _, _, query = place.partition("?")
    # A name before the first colon is a user's or a key's, hidden with the rest.
    for part in (before, *before.split(":", 1), *(pair.partition("=")[2] for pair in re.split("[&#;]", query))):
        if part:
            yield part
            yield unquote(part)


def holds_secret(address: str) -> bool:
    """Whether an address has a part that is not shown."""
    return shown_address(address) != address


def shown_security(name: str, value: str) -> str:
    """The value of a client's security setting for people: hidden unless it is known to hold no secret."""
    return value if name in SHOWN_SECURITY else HIDDEN


def _split(address: str) -> tuple[str, str]:
    found = _SCHEME.match(address)
    return (found[0], address[found.end() :]) if found else ("", address)


def secrets_in(settings: Settings) -> set[str]:
    """Every secret of these settings, with the parts of it that a library may repeat alone."""
    found: set[str] = set()
    for name, value in settings:
        for setting, held in [(name, value), *(value if isinstance(value, BaseModel) else ())]:
            named = held.items() if isinstance(held, dict) else [(setting, held)]
            for key, secret in named:
                if isinstance(secret, SecretStr) and key not in SHOWN_SECURITY:
                    found.update(_parts(name, secret.get_secret_value()))
    return {part for part in found if len(part) >= _LENGTH_MIN}


def _parts(section: str, secret: str) -> Iterator[str]:
    if section == "postgres":
        # The password itself, or an address of which libpq knows what is secret.
        plain = secrets_of(secret) or [secret]
        yield from plain
        # As they stand in a URL.
        yield from (piece for piece in re.split("[:@/?&=]", secret) if unquote(piece) in plain)
    elif section == "tracing":  # name=value,name=value with percent signs: as it is given, and as it is sent
        values = [pair.partition("=")[2].strip() for pair in secret.split(",")]
        yield from (secret, *values, *map(unquote, values))
    elif _SCHEME.match(secret):
        yield from address_secrets(secret)
    else:
        yield secret
        # A key's lines, and the pairs of sasl.oauthbearer.config or sasl.jaas.config.
        for line in secret.splitlines():
            yield from (word.partition("=")[2].strip(";'\"") for word in line.split())
            if not line.startswith("-----"):
                yield line


_hidden: tuple[str, ...] = ()


def hide(settings: Settings) -> None:
    """Have `without_secrets` hide the secrets of these settings too, for the rest of the process."""
    global _hidden  # noqa: PLW0603 - one process has one log
    found = secrets_in(settings)
    # Rotated ones are added as long as the process runs; the oldest go.
    _hidden = (*(known for known in _hidden if known not in found), *sorted(found))[-_HIDDEN_MAX:]


def without_secrets(text: str, secrets: Iterable[str] | None = None) -> str:
    """`text` with every known secret in it hidden, longer ones first."""
    for secret in sorted(_hidden if secrets is None else secrets, key=len, reverse=True):
        for form in (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]):
            text = text.replace(form, HIDDEN)
    return text
