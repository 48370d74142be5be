"""Tests of the worker on both ways of reading records and producing decisions (FRAUD_SCORER_KAFKA__RECORD_ACCESS).

A test marked `BOTH_WAYS` runs once on each; all others run on the one that the environment names, else as users do.
"""

from __future__ import annotations

import os

import pytest

RECORD_ACCESS = "FRAUD_SCORER_KAFKA__RECORD_ACCESS"
BOTH_WAYS = pytest.mark.parametrize("way", ["auto", "plain"], indirect=True)


@pytest.fixture
def way(request: pytest.FixtureRequest) -> str:
    """The setting of the test's workers."""
    return str(getattr(request, "param", os.environ.get(RECORD_ACCESS, "auto")))
