"""The backtest as one HTML file: figures and drawing code inside, nothing is loaded from elsewhere."""

from __future__ import annotations

import dataclasses
import html
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scorer.backtest.measurement import Backtest

CHANGES_SHOWN_MAX = 2_000
_SCRIPT = Path(__file__).with_name("report_page.js")
_STYLE = Path(__file__).with_name("report_page.css")


def write_page(result: Backtest, path: Path, title: str) -> None:
    """Write the page. It holds figures and, of changed payments, ids, amounts and reasons; no other field of them."""
    document = {
        "title": title,
        "from": _day(result.from_ms),
        "until": _day(result.until_ms - 1),
        "payments": result.payments,
        "matured": result.matured,
        "currency": result.currency,
        "alerts": result.alerts,
        "cards": result.cards,
        "notes": result.notes,
        "sides": [dataclasses.asdict(side) for side in result.sides],
        "changes": _changes(result),
        "changes_all": 0 if result.changes is None else result.changes.num_rows,
    }
    # "</" would end the script element early, also inside a string.
    data = json.dumps(_finite(document), allow_nan=False).replace("<", "\\u003c")
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f'<style>\n{_STYLE.read_text(encoding="utf-8")}</style></head>\n<body><main id="page"></main>\n'
        f'<script type="application/json" id="data">{data}</script>\n'
        f"<script>\n{_SCRIPT.read_text(encoding='utf-8')}</script></body></html>\n",
        encoding="utf-8",
    )


def _changes(result: Backtest) -> list[dict[str, Any]]:
    """The changed payments with most money first."""
    if result.changes is None:
        return []
    rows = result.changes.to_pylist()
    rows.sort(key=lambda row: -(row["money"] or 0.0))
    return [row | {"event_time": row["event_time"].isoformat()} for row in rows[:CHANGES_SHOWN_MAX]]


def _finite(value: Any) -> Any:
    """JSON has no NaN: a figure that is not defined becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _day(epoch_ms: int) -> str:
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).strftime("%Y-%m-%d")
