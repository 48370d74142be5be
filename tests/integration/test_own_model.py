"""The tutorial from an existing xgboost model to live decisions runs as it stands."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from scorer.local_services import Services
from tests.documents import blocks, run_blocks
from tests.integration.running import environment, test_settings
from tests.ports import free_ports

EXAMPLES = Path(__file__).resolve().parents[2] / "deploy" / "examples"


def test_the_tutorial_leads_from_a_model_to_live_decisions(
    services: Services, topics_prefix: str, database: str, tmp_path: Path
) -> None:
    """Every block of the page runs in one folder, and 1,000 payments are decided live by the imported model as replay
    decides them again."""
    settings = test_settings(services.kafka.bootstrap_servers, topics_prefix, postgres={"url": database})
    (port,) = free_ports(1)
    page = blocks(EXAMPLES / "own_model" / "README.md", "sh", "python")
    env = environment(settings, EXAMPLES=str(EXAMPLES), FRAUD_SCORER_HTTP__WORKER_PORT=str(port))
    printed = run_blocks(page, tmp_path, env)[-1]
    replayed = json.loads(printed.splitlines()[-1])
    assert (replayed["payments"], replayed["decisions"]) == (1_000, 1_000)
    decided = pq.read_table(tmp_path / "decided.parquet")
    assert 0 < decided["decision"].to_pylist().count("flag") < 100
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert [block.language for block in page] == ["sh", "python", "sh", "sh", "sh", "python", "sh"]
