"""What deploy/ starts: settings from variables as a program reads them, and options that its command has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from scorer.model.vector.jit_compiler import CACHE_VARIABLE
from scorer.runtime.settings import PREFIX, Settings, load
from tests.documents import complaint


def settings_of(variables: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of a program with these variables and no others of ours; each *_FILE gets a file with a secret.
    Raises UsageError for a variable that is no setting."""
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        text = value
        if name.startswith(PREFIX) and name.endswith("_FILE"):
            secret = folder / name
            secret.write_text("00112233445566778899aabbccddeeff" * 2)
            text = str(secret)
        if name != CACHE_VARIABLE:
            monkeypatch.setenv(name, text)
    loaded = load()
    for name in variables:
        if name.startswith(PREFIX) and name != CACHE_VARIABLE:
            section, _, field = name.removeprefix(PREFIX).removesuffix("_FILE").lower().partition("__")
            value = getattr(loaded, section)
            assert not field or field in value.model_fields_set, f"{name} was not read"
    return loaded


def check_command(arguments: Sequence[str]) -> None:
    """Asserts that `fraud-scorer ARGUMENTS` names a command and options that exist."""
    assert complaint(list(arguments), whole=False) is None, arguments
