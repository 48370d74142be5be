"""`pseudonym`: what stands for a value of a token field, to look for it in the audit trail or to put it on a list."""

from __future__ import annotations

import sys

from scorer.cli.command_support import settings as load_settings
from scorer.errors import UsageError


def pseudonym_command() -> None:
    """The pseudonym of each line of stdin, by the first key of FRAUD_SCORER_CARDS__KEYS.

    Values are never arguments: those stand in the shell's history.

    Example: fraud-scorer pseudonym < card.txt
    """
    from schemas.pseudonym import PseudonymKeyError, pseudonym  # noqa: PLC0415

    try:
        key = load_settings().pseudonym_keys.current()
    except PseudonymKeyError as exc:
        raise UsageError(str(exc)) from exc
    for line in sys.stdin:
        if text := line.strip():
            print(pseudonym(key, text))
