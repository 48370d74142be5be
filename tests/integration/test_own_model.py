"""The tutorial from an existing xgboost model to live decisions runs as it stands."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from scorer.demo.demo_processes import free_ports
from scorer.local_services import Services
from tests.integration.running import environment, test_settings

EXAMPLES = Path(__file__).resolve().parents[2] / "deploy" / "examples"
PAGE = (EXAMPLES / "own_model" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_tutorial_leads_from_a_model_to_live_decisions(
    services: Services, topics_prefix: str, database: str, tmp_path: Path
) -> None:
    """Every block of the page runs in one folder, and 1,000 payments are decided live by the imported model as replay
    decides them again."""
    settings = test_settings(services.kafka.bootstrap_servers, topics_prefix, postgres={"url": database})
    (port,) = free_ports(1)
    env = environment(settings, EXAMPLES=str(EXAMPLES), FRAUD_SCORER_HTTP__WORKER_PORT=str(port))
    command = f'fraud-scorer() {{ {sys.executable} -m scorer "$@"; }}\n'
    printed = ""
    try:
        for language, text in BLOCKS:
            run = ["bash", "-euc", command + text] if language == "sh" else [sys.executable, "-c", text]
            # A file, not a pipe: the worker that a block leaves behind would hold a pipe open.
            with (tmp_path / "printed.txt").open("w+") as out:
                done = subprocess.run(run, cwd=tmp_path, env=env, stdout=out, stderr=out, timeout=400, check=False)
                out.seek(0)
                printed = out.read()
            assert done.returncode == 0, f"{text}\n{printed}"
    finally:
        if (tmp_path / "worker.pid").exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int((tmp_path / "worker.pid").read_text()), signal.SIGKILL)
    replayed = json.loads(printed.splitlines()[-1])
    assert (replayed["payments"], replayed["decisions"]) == (1_000, 1_000)
    decided = pq.read_table(tmp_path / "decided.parquet")
    assert 0 < decided["decision"].to_pylist().count("flag") < 100
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert [language for language, _ in BLOCKS] == ["sh", "python", "sh", "sh", "sh", "python", "sh"]
