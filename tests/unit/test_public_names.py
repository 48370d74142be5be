"""The library surface of `scorer`: which names it has, what importing it costs, and that it types."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources

import scorer

# A name that leaves this list breaks programs that use it: it needs a major version and a line in CHANGELOG.md.
NAMES = [
    "Batch",
    "Bundle",
    "CompiledModel",
    "FastDecisions",
    "FraudScorerError",
    "Outcomes",
    "Pipeline",
    "TrainingReport",
    "TrainingRows",
    "TrainingSettings",
    "train",
]


def run(code: str) -> str:
    """What a fresh interpreter prints for `code`."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_public_names_are_these() -> None:
    """Every public name is there, documented, and listed by dir()."""
    assert scorer.__all__ == NAMES
    assert set(NAMES) <= set(dir(scorer))
    for name in NAMES:
        assert (getattr(scorer, name).__doc__ or "").strip(), name


def test_train_is_the_function_whatever_was_imported_before() -> None:
    """`from scorer import train` is the function, also after the rooms of the package were imported."""
    code = "import scorer.training, scorer.cli.train_command; from scorer import train; print(type(train).__name__)"
    assert run(code) == "function"


def test_importing_the_library_is_cheap() -> None:
    """`import scorer` loads no heavy library, and the serving names load no training library and no client."""
    heavy = "{'numba', 'pyarrow', 'xgboost', 'optuna', 'confluent_kafka', 'psycopg', 'treelite'}"
    assert run(f"import sys, scorer; print(sorted({heavy} & set(sys.modules)))") == "[]"
    code = (
        "import sys; from scorer import Batch, Bundle, CompiledModel, Pipeline\n"
        "print(sorted({'xgboost', 'optuna', 'confluent_kafka', 'psycopg', 'scorer.training'} & set(sys.modules)))"
    )
    assert run(code) == "[]"


def test_a_misspelt_name_is_answered_with_the_names_there_are() -> None:
    """A name that does not exist gives an AttributeError that lists the public ones."""
    assert "Pipeline" in run("import scorer\ntry: scorer.Pipelines\nexcept AttributeError as e: print(e)")


def test_type_checkers_may_read_the_annotations() -> None:
    """The package carries py.typed, so a program that uses it is checked against its annotations."""
    assert resources.files("scorer").joinpath("py.typed").is_file()
