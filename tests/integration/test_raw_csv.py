"""The tutorial from a raw CSV to a backtest report: the page's own commands, on a file of its layout."""

from __future__ import annotations

import datetime as dt
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from tests.documents import with_command

EXAMPLE = Path(__file__).parents[2] / "deploy" / "examples" / "raw_csv"
PAGE = (EXAMPLE / "README.md").read_text(encoding="utf-8")


def transactions(path: Path, rows: int = 6000) -> None:
    """Two months of card payments in the page's layout, sorted by user as the public file is; one amount is broken."""
    rng = np.random.default_rng(7)
    start = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    lines = []
    for i in range(rows):
        at = start + dt.timedelta(minutes=int(i * 60 * 24 * 60 / rows))
        user, fraud = int(rng.integers(0, 60)), bool(rng.random() < 0.03)
        amount = float(rng.lognormal(5.5 if fraud else 3, 0.6))
        written = f"$-{amount:.2f}" if rng.random() < 0.02 else f"${amount:.2f}"
        merchant = int(rng.integers(0, 200)) if not fraud else int(rng.integers(200, 205))
        cells = (
            user, int(user % 2), at.year, at.month, at.day, f"{at:%H:%M}", written, "Swipe Transaction",
            3_000_000_000_000_000_000 + 97 * merchant, "La Verne", int(rng.choice([742, 5300, 5411])),
            "" if rng.random() < 0.9 else "Bad PIN", "Yes" if fraud else "No",
        )  # fmt: skip
        lines.append((user, ",".join(map(str, cells))))
    lines[17] = (lines[17][0], re.sub(r"\$[-0-9.]+", "$12.34.56", lines[17][1]))
    head = next(line.strip() for line in PAGE.splitlines() if line.strip().startswith("User,Card"))
    body = "\n".join(line for _, line in sorted(lines, key=lambda one: one[0]))
    path.write_text(f"{head}\n{body}\n", encoding="utf-8")


def test_the_tutorial_from_a_raw_csv_to_a_report(tmp_path: Path) -> None:
    """Every command of the page runs as it stands there; at the end there is a report of a model that finds fraud."""
    for name in ("mapping.yaml", "feature_set.yaml", "policy.yaml"):
        shutil.copy(EXAMPLE / name, tmp_path / name)
    transactions(tmp_path / "transactions.csv")
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL))
    assert commands.count("fraud-scorer ") == 4
    environment = with_command({**os.environ, "PYTHONPATH": str(EXAMPLE.parents[2])}, tmp_path)
    ended = subprocess.run(
        ["bash", "-ec", commands],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    assert "event_time: {column: [Year, Month, Day, Time]" in (tmp_path / "draft.yaml").read_text(encoding="utf-8")
    assert pq.read_table(tmp_path / "features.parquet").num_rows == 5999
    refused = pq.read_table(tmp_path / "refused.parquet").to_pylist()
    assert [(row["field"], row["reason"]) for row in refused] == [("amount", "invalid_value")]
    assert (tmp_path / "report.html").stat().st_size > 10_000
