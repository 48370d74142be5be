"""`fraud-scorer features`: what it refuses before it computes anything, and what it reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from features import pending_labels
from scorer.cli import app
from scorer.errors import FraudScorerError, UsageError

SET = """name: t
currency: EUR
entities: {customer: [customer_id]}
features:
  - {name: x, payment: attributes.x}
  - {name: frauds, entity: customer, aggregate: fraud_count, window: 30d, where: {attributes.x: {above: 2}}}
"""
MAPPING = """{payment_id: id, event_time: t, amount: {constant: 1}, currency: {constant: EUR}, customer_id: c,
label: fraud, label_delay: 1d, attributes: {x: x}}"""


def run(folder: Path, rows: str, output: str = "out.parquet") -> Any:
    (folder / "set.yaml").write_text(SET)
    (folder / "mapping.yaml").write_text(MAPPING)
    (folder / "rows.csv").write_text("id,t,c,fraud,x\n" + rows)
    return CliRunner().invoke(
        app,
        [
            "features", "--feature-set", f"{folder}/set.yaml", "--input", f"{folder}/rows.csv", "--mapping",
            f"{folder}/mapping.yaml", "--output", f"{folder}/{output}", "--json",
        ],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "output", "message"),
    [
        ("p1,2026-01-01,c,1,3\n", "none/out.parquet", "there is no folder .*none; make it first"),
        ("p1,2026-01-01,c,1,3\n", "", "is a folder; name a file"),
        ("", "out.parquet", "rows.csv: no payments to learn from"),
    ],
)
def test_what_cannot_be_done_is_refused_with_exit_code_2(rows: str, output: str, message: str, tmp_path: Path) -> None:
    """No traceback, and before any work: the place of the output, a file without payments."""
    with pytest.raises(UsageError, match=message) as error:
        raise run(tmp_path, rows, output).exception
    assert isinstance(error.value, FraudScorerError)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    "command", [["features", "--output", "o.parquet"], ["train", "--policy", "set.yaml", "--output", "o"]]
)
def test_a_wrong_line_of_the_feature_set_is_named(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2 with file, line and what to write instead, whichever command reads the set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("id\n")
    (tmp_path / "set.yaml").write_text(SET.replace("window: 30d", "windows: 30d"))
    done = CliRunner().invoke(app, [*command, "--feature-set", "set.yaml", "--input", "rows.csv"])
    with pytest.raises(UsageError, match=r"set\.yaml:6: .*did you mean window"):
        raise done.exception  # type: ignore[misc]


def test_labels_without_room_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels that the engine had no room for are counted in the JSON and warned of; none otherwise."""
    rows = "".join(f"p{k},2026-01-0{k + 1},c,1,3\n" for k in range(5))
    done = run(tmp_path, rows)
    assert json.loads(done.stdout.splitlines()[-1])["labels_refused"] == 0
    assert "warning" not in done.stderr
    monkeypatch.setattr(pending_labels, "LABELS_PENDING_MAX", 2)
    done = run(tmp_path, rows)
    assert json.loads(done.stdout.splitlines()[-1])["labels_refused"] == 3
    assert "warning: 3 labels exceeded the engine's capacity" in done.stderr
