"""Every setting with its value, source and meaning, as `fraud-scorer settings` prints them; secrets are hidden."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pydantic import SecretStr

from scorer.runtime import postgres_address, secret_text
from scorer.runtime.postgres_address import HIDDEN
from scorer.runtime.settings import PREFIX, Section, Settings


def described(settings: Settings) -> Iterator[tuple[str, str, str, str]]:
    """(name, value with secrets hidden, source, description) of every setting, in order."""
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Section):
            for inner, inner_field in type(value).model_fields.items():
                key = f"{PREFIX}{name}__{inner}".upper()
                yield key, _shown(name, inner, getattr(value, inner)), _source(key), inner_field.description or ""
        else:
            key = f"{PREFIX}{name}".upper()
            yield key, _shown("", name, value), _source(key), field.description or ""


def _shown(section: str, name: str, value: object) -> str:
    if isinstance(value, SecretStr):
        if name != "url":
            return HIDDEN
        show = postgres_address.shown if section == "postgres" else secret_text.shown_address
        return show(value.get_secret_value())
    if isinstance(value, dict):
        return str(
            {
                key: secret_text.shown_security(key, held.get_secret_value()) if isinstance(held, SecretStr) else held
                for key, held in value.items()
            }
        )
    # Whatever else is an address may hold what its author did not mean to show.
    return "" if value is None else secret_text.shown_address(str(value))


def _source(key: str) -> str:
    names = {name.upper() for name in os.environ}
    if key in names:
        return "environment"
    if f"{key}_FILE" in names:
        return "file"
    return "environment" if any(name.startswith(key + "__") for name in names) else "default"
