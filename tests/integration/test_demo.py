"""The demo as the README gives it, from a cache of its own: the first thing that a stranger runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scorer.local_services import Services


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the runs: the bundle is trained once."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("run", ["first start trains", "later starts find the bundle"])
def test_it_reconciles_every_count(run: str, services: Services, cache: Path) -> None:
    """payments = decisions + dead letters = audit rows + dead letters, some flagged, exit 0; twice."""
    environment = {
        **os.environ,
        "FRAUD_SCORER_KAFKA__BOOTSTRAP_SERVERS": services.kafka.bootstrap_servers,
        "FRAUD_SCORER_POSTGRES__URL": services.postgres.url,
        "FRAUD_SCORER_CACHE": str(cache),
    }
    command = [sys.executable, "-m", "scorer", "demo", "--rate", "400", "--seconds", "6", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert ("Training" in done.stderr) == (run == "first start trains")
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["payments"] > 2000
    assert result["payments"] == result["decisions"] + result["dead_letters"]
    assert result["decisions"] == result["audit_rows"]
    assert result["flagged"] > 0
    assert 0 < result["latency_p50_ms"] <= result["latency_p99_ms"]
