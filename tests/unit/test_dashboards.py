"""Dashboards as code: the committed JSON is what the code makes, no panel asks for what no process serves, and the way
from an alert to its panel and on to its runbook is whole."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from scorer.local_services import local_prometheus
from scorer.operate.dashboards import BOARDS, Board
from scorer.operate.dashboards.grafana_json import RUNBOOKS, dashboard_json
from tests.metrics_table import ROOT, documented
from tests.unit.test_alerts import alerts

FOLDER = ROOT / "deploy/dashboards"
# Of the Python client, in every process.
CLIENT = {"process_cpu_seconds_total", "process_resident_memory_bytes"}
_NAME = re.compile(r"\b(?:fraud_scorer|process)_\w+")


def served() -> dict[str, tuple[str, ...]]:
    """Names of series, with their labels, that deploy/METRICS.md has; a test compares that page with real processes."""
    known: dict[str, tuple[str, ...]] = {}
    for part in ("Worker", "Sink", "Both"):
        for row in documented(part):
            ends = ("_bucket", "_sum", "_count") if row.kind == "histogram" else ("",)
            known |= {row.name + end: row.labels for end in ends}
    return known


def panels(board: Board) -> list[dict[str, Any]]:
    """As Grafana reads them, without titles of rows."""
    made = json.loads((FOLDER / f"{board.name}.json").read_text())
    return [panel for panel in made["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_the_committed_dashboard_is_what_the_code_makes(board: Board) -> None:
    """`python -m scorer.operate.dashboards` changes no byte of deploy/dashboards/."""
    assert (FOLDER / f"{board.name}.json").read_bytes() == dashboard_json(board).encode()


def test_there_is_no_other_dashboard() -> None:
    """A file without its code is out of date; no two have the same id, and no two panels of one."""
    assert {path.stem for path in FOLDER.glob("*.json")} == {board.name for board in BOARDS}
    assert len({board.uid for board in BOARDS}) == len(BOARDS)
    for board in BOARDS:
        ids = [panel["id"] for panel in json.loads((FOLDER / f"{board.name}.json").read_text())["panels"]]
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_no_panel_asks_for_what_is_not_served(board: Board) -> None:
    """Every series in a panel or in the values of a variable is in deploy/METRICS.md, or the Python client's own."""
    text = (FOLDER / f"{board.name}.json").read_text()
    made = json.loads(text)
    expressions = [target["expr"] for panel in panels(board) for target in panel["targets"]]
    queries = [item["query"] for item in made["templating"]["list"] if item["type"] == "query"]
    assert len(queries) == 2
    named = {name for expression in (*expressions, *queries) for name in _NAME.findall(expression)}
    assert named <= set(served()) | CLIENT


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_a_chosen_shard_holds_for_every_panel(board: Board) -> None:
    """Each series that has a label `shard` is asked for with the chosen shards; bundles are joined by theirs."""
    names = served()
    for panel in panels(board):
        for target in panel["targets"]:
            expression = target["expr"].replace('fraud_scorer_bundle_info{bundle=~"$bundle"}', "")
            for match in re.finditer(r"\b(fraud_scorer_\w+)(\{[^}]*\})?", expression):
                if "shard" in names[match[1]]:
                    assert 'shard=~"$shard"' in (match[2] or ""), f"{panel['title']}: {target['expr']}"


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_leads_to_its_panel_and_the_panel_to_the_runbook(alert: dict[str, Any]) -> None:
    """The annotation `dashboard` opens a panel, that has a link to the runbook, and the runbook names the panel."""
    (found,) = [(board, panel) for board in BOARDS for panel in board.panels() if alert["alert"] in panel.alerts]
    board, panel = found
    assert alert["annotations"]["dashboard"] == board.address(panel)
    (shown,) = [item for item in panels(board) if item["id"] == panel.id]
    assert shown["title"] == panel.title
    assert f"${{runbooks:raw}}/{alert['alert']}.md" in [link["url"] for link in shown["links"]]
    page = (ROOT / alert["annotations"]["runbook"]).read_text()
    assert f'(../dashboards/{board.name}.json), panel "{panel.title}".' in page


def test_every_link_to_a_runbook_has_its_page() -> None:
    """No panel names an alert that does not exist."""
    pages = {page.stem for page in (ROOT / "deploy/runbooks").glob("*.md")}
    named = {alert for board in BOARDS for panel in board.panels() for alert in panel.alerts}
    assert named == pages


def test_a_site_has_links_to_its_own_runbooks() -> None:
    """`--runbooks URL` is the only thing that changes."""
    board = BOARDS[0]
    own = dashboard_json(board, "https://wiki.example/runbooks")
    assert own.replace("https://wiki.example/runbooks", RUNBOOKS) == dashboard_json(board)
    assert own != dashboard_json(board)


def test_without_prometheus_there_is_no_address_and_no_folder(tmp_path: Path) -> None:
    """Where no Prometheus is on the PATH, none is started and nothing is written."""
    with local_prometheus(tmp_path, [9464], environment={"PATH": str(tmp_path)}) as address:
        assert address is None
    assert list(tmp_path.iterdir()) == []
