"""Commands of `fraud-scorer`, run in this process."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from scorer.cli import app
from scorer.errors import FraudScorerError


def ran(*arguments: str, refused: bool = False) -> dict[str, Any]:
    """The JSON that a command gave, which has no NaN, and all that it printed; refused: its error."""
    done = CliRunner().invoke(app, list(arguments))
    if refused:
        assert isinstance(done.exception, FraudScorerError), done.output
        return {"error": str(done.exception)}
    if done.exception is not None:
        raise done.exception

    def fail(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1], parse_constant=fail)
    return result | {"output": done.output}
