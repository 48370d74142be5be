"""The backtest as one HTML file: figures, charts (uPlot) and styles inside; nothing is loaded from elsewhere.

Its content security policy lets just this script and this style run, by their hashes, and nothing be fetched: what
stands in an id, a reason or a name is text, whatever it looks like.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from schemas.finite_json import finite
from scorer.backtest.measurement import Backtest

CHANGES_SHOWN_MAX = 2_000
_FOLDER = Path(__file__).with_name("page")
_UPLOT = _FOLDER / "uplot"  # as published; ORIGIN.json has its version and hashes


def write_page(result: Backtest, path: Path, title: str) -> None:
    """Write the page. It holds figures and, of changed payments, ids, amounts and reasons; no other field of them."""
    # "</" would end the script element early, also inside a string.
    data = json.dumps(finite(document_of(result, title)), allow_nan=False).replace("<", "\\u003c")
    script, style = _script(), _style()
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'"
    path.write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}; form-action \'none\'">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{style}</style></head>\n"
        '<body><main id="page"><noscript>This report is drawn by its own script.</noscript></main>\n'
        f'<script type="application/json" id="data">{data}</script>\n<script>{script}</script></body></html>\n',
        encoding="utf-8",
    )


def document_of(result: Backtest, title: str) -> dict[str, Any]:
    """What the page shows; figures that are not defined are NaN."""
    return {
        "title": title,
        "from": _day(result.from_ms),
        "until": _day(result.until_ms - 1),
        "payments": result.payments,
        "matured": result.matured,
        "currency": result.currency,
        "alerts": result.alerts,
        "cards": result.cards,
        "notes": result.notes,
        "summary": result.summary,
        "effects": [dataclasses.asdict(effect) for effect in result.effects],
        "sides": [dataclasses.asdict(side) for side in result.sides],
        "changes": _changes(result),
        "changes_all": 0 if result.changes is None else result.changes.num_rows,
    }


def _script() -> str:
    """The licence stands with the copy of uPlot, as it asks for."""
    parts = [_read(_FOLDER / name) for name in ("elements.js", "charts.js", "page.js")]
    licence = f"/*\n{_read(_UPLOT / 'LICENSE')}\n*/"
    return "\n".join(['"use strict";', licence, _read(_UPLOT / "uPlot.iife.min.js"), *parts])


def _style() -> str:
    return "\n".join([_read(_UPLOT / "uPlot.min.css"), _read(_FOLDER / "page.css")])


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a content security policy names an element's content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _changes(result: Backtest) -> list[dict[str, Any]]:
    """The changed payments with most money first."""
    if result.changes is None:
        return []
    rows = result.changes.to_pylist()
    rows.sort(key=lambda row: -(row["money"] or 0.0))
    return [row | {"event_time": row["event_time"].isoformat()} for row in rows[:CHANGES_SHOWN_MAX]]


def _day(epoch_ms: int) -> str:
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).strftime("%Y-%m-%d")
