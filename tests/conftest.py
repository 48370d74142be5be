"""What holds for all tests."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.waits import RAN_OUT

# Examples are random where people work, so that each run looks at others; .ci/run sets CI and has the same each time,
# so that a run says something of the change alone. No bound on the time of an example: on a busy machine it says
# nothing of the code.
settings.register_profile(
    "tests",
    settings.get_profile("default"),
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Take what was imported out of each later collection of garbage: hundreds of modules, which live to the end."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Libraries look at the end of the process for objects of theirs that are left."""
    gc.unfreeze()


FAILURES = "FRAUD_SCORER_TEST_FAILURES"
"""Names the file into which .ci/run has each failure written."""


def pytest_exception_interact(
    node: pytest.Item | pytest.Collector,
    call: pytest.CallInfo[object],
    report: pytest.TestReport | pytest.CollectReport,
) -> None:
    """Show a failure when it happens, not after the last test, and note whether only a wait ran out."""
    if FAILURES not in os.environ or call.excinfo is None:
        return
    kind = "wait" if isinstance(node, pytest.Item) and isinstance(call.excinfo.value, RAN_OUT) else "wrong"
    with Path(os.environ[FAILURES]).open("a", encoding="utf-8") as failures:
        failures.write(f"{kind} {report.nodeid}\n")
    terminal = node.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        terminal.ensure_newline()
        terminal.write_line(f"FAILED NOW ({report.when or 'collection'}) {report.nodeid}")
        terminal.write_line(report.longreprtext[-4000:])
