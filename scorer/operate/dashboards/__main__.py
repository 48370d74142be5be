"""Writes the dashboards' JSON: `python -m scorer.operate.dashboards [--runbooks URL] [FOLDER]`; with
`--pictures URL`, of a Prometheus, pictures of what they show now instead.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scorer.operate.dashboards import BOARDS
from scorer.operate.dashboards.grafana_json import RUNBOOKS, dashboard_json
from scorer.operate.dashboards.picture import picture
from scorer.runtime import assets


def main() -> None:
    """One file for each dashboard: NAME.json, or NAME.svg."""
    parser = argparse.ArgumentParser(prog="python -m scorer.operate.dashboards", description=main.__doc__)
    parser.add_argument("--runbooks", default=RUNBOOKS, help="address below which ALERT.md lie")
    parser.add_argument("--pictures", metavar="URL", help="draw what the Prometheus there has, instead of writing JSON")
    parser.add_argument("--seconds", type=int, default=120, help="for --pictures: up to now")
    parser.add_argument("folder", nargs="?", type=Path, default=assets.path("deploy/dashboards"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for board in BOARDS:
        if given.pictures is None:
            text, ending = dashboard_json(board, given.runbooks), "json"
        else:
            text, ending = picture(board, given.pictures, given.seconds), "svg"
        (given.folder / f"{board.name}.{ending}").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
