"""The built wheel: it owns its three packages, and everything works from it without a checkout."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("scorer", "features", "schemas")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content and nothing else."""
    made, target = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(made), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=600)
    (wheel,) = made.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True, timeout=600)
    return target


def run(installed: Path, folder: Path, *arguments: str) -> str:
    """`python -m scorer …` with the wheel first on the path, from a folder without a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_package_has_one_owner(installed: Path, tmp_path: Path) -> None:
    """`features` and `schemas` are common names: the wheel brings all three,
    and no other distribution here has them."""
    (distribution,) = importlib.metadata.distributions(path=[str(installed)])
    files = {file.parts[0] for file in distribution.files or [] if file.suffix == ".py"}
    assert files == set(PACKAGES)
    code = "import importlib.metadata as m, json; print(json.dumps(m.packages_distributions()))"
    owners = json.loads(run(installed, tmp_path, "-c", code))
    assert {name: set(owners[name]) for name in PACKAGES} == {name: {"fraud-scorer"} for name in PACKAGES}


def test_data_files_travel_in_it(installed: Path, tmp_path: Path) -> None:
    """Migrations, the demo's feature set and policy, and Kafka's pom.xml are found from an installed wheel."""
    code = (
        "from scorer.runtime import assets; import scorer; print(scorer.__file__)\n"
        "for name in ('migrations/env.py', 'migrations/versions', 'deploy/examples/demo/feature_set.yaml', "
        "'deploy/examples/demo/policy.yaml', 'deploy/kafka/pom.xml'): print(assets.path(name))"
    )
    places = run(installed, tmp_path, "-c", code).split()
    assert len(places) == 6
    assert all(place.startswith(str(installed)) for place in places), places


def test_the_report_s_page_travels_in_it(installed: Path, tmp_path: Path) -> None:
    """A report can be written from an installed wheel: its script, its style and the copy of uPlot are there."""
    code = (
        "import sys; from pathlib import Path; from scorer.backtest import Backtest, write_page\n"
        "write_page(Backtest(0, 1, 0, 0, 'EUR', 1, 1, []), Path('report.html'), 'empty')"
    )
    run(installed, tmp_path, "-c", code)
    page = (tmp_path / "report.html").read_text()
    assert all(text in page for text in ("var uPlot=", "function chart(", ".u-wrap", "Permission is hereby granted"))


def test_its_command_works(installed: Path, tmp_path: Path) -> None:
    """The command line of the wheel answers, and prints every contract."""
    contracts = json.loads(run(installed, tmp_path, "-m", "scorer", "schemas"))
    assert {"payment", "label", "decision", "journal"} <= set(contracts)


def test_the_library_is_typed(installed: Path) -> None:
    """Type checkers read the annotations of the installed library (PEP 561)."""
    assert (installed / "features" / "py.typed").exists()
