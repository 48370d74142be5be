"""Every setting with its value, source and meaning, as `fraud-scorer settings` prints them; secrets are hidden."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pydantic import SecretStr

from scorer.runtime import postgres_address
from scorer.runtime.postgres_address import HIDDEN
from scorer.runtime.settings import PREFIX, Section, Settings


def described(settings: Settings) -> Iterator[tuple[str, str, str, str]]:
    """(name, value with secrets hidden, source, description) of every setting, in order."""
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Section):
            for inner, inner_field in type(value).model_fields.items():
                key = f"{PREFIX}{name}__{inner}".upper()
                yield key, _shown(inner, getattr(value, inner)), _source(key), inner_field.description or ""
        else:
            key = f"{PREFIX}{name}".upper()
            yield key, _shown(name, value), _source(key), field.description or ""


def _shown(name: str, value: object) -> str:
    if isinstance(value, SecretStr):
        if name == "url":
            return postgres_address.shown(value.get_secret_value())
        return HIDDEN
    if isinstance(value, dict):
        secret = ("password", "secret", "key.pem", "jaas")
        return str({k: HIDDEN if any(word in k for word in secret) else v for k, v in value.items()})
    return "" if value is None else str(value)


def _source(key: str) -> str:
    names = {name.upper() for name in os.environ}
    if key in names:
        return "environment"
    if f"{key}_FILE" in names:
        return "file"
    return "environment" if any(name.startswith(key + "__") for name in names) else "default"
