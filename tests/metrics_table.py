"""The table of deploy/METRICS.md: read for tests, and printed anew from what a process serves.

`python -m tests.metrics_table ADDRESS...` prints the rows of what is served at each address (a worker, a sink).
"""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "deploy/METRICS.md"
PREFIX = "fraud_scorer_"
_RESERVED = {"le", "quantile"}


class Row(NamedTuple):
    """One metric as it is documented or served."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str

    @property
    def line(self) -> str:
        labels = ", ".join(f"`{label}`" for label in self.labels) or "none"
        return f"| `{self.name}` | {self.kind} | {labels} | {self.meaning} |"


def documented(part: str) -> list[Row]:
    """The rows of a section of the page: Worker, Sink or Both."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {part}\n", 1)[1].split("\n## ", 1)[0]
    rows = []
    for line in section.splitlines():
        if line.startswith("| `"):
            name, kind, labels, meaning = (cell.strip() for cell in line.strip("|").split("|"))
            named = () if labels == "none" else tuple(label.strip(" `") for label in labels.split(","))
            rows.append(Row(name.strip("`"), kind, named, meaning))
    return rows


def families(address: str) -> list[Metric]:
    """What is served at http://host:port/metrics, our own names alone."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return [family for family in text_string_to_metric_families(text) if family.name.startswith(PREFIX)]


def rows_of(served: Iterable[Metric]) -> list[Row]:
    """As the page has them; of a family without a series the labels are not known and left out."""
    rows = []
    for family in served:
        names = {name for sample in family.samples for name in sample.labels} - _RESERVED
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append(Row(name, family.type, tuple(sorted(names)), family.documentation))
    return sorted(rows)


if __name__ == "__main__":
    for given in sys.argv[1:]:
        print(given)
        for row in rows_of(families(given)):
            print(row.line)
