"""What a dashboard shows, drawn from the same queries as an SVG: for documents, where no Grafana is.

It is not Grafana's look. Each panel is a box of its title with the lines of its series, the largest value at the left;
a panel of one number shows its newest value.
"""

from __future__ import annotations

import json
import math
import re
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

from scorer.operate.dashboards.board import Board, Panel, Query, Unit, with_all_chosen

POINTS: Final = 60
SERIES_MAX: Final = 8
_ANSWER_S: Final = 30.0
_WIDTH, _GAP, _TITLE, _LINES_HEIGHT, _NUMBER_HEIGHT = 960, 8, 26, 150, 64
_COLOURS = ("#3366cc", "#dc3912", "#109618", "#ff9900", "#990099", "#0099c6", "#dd4477", "#66aa00")
_PLACE = re.compile(r"\{\{\w+\}\}")
_TEXT = 'font-family="sans-serif" fill="#222"'


@dataclass(frozen=True)
class Series:
    """`values` by point in time, NaN where there is none."""

    name: str
    values: list[float]


def picture(board: Board, prometheus: str, seconds: int) -> str:
    """SVG of the last `seconds` of every panel, as the Prometheus at `prometheus` (http://host:port) has them.

    Raises OSError when it does not answer.
    """
    end_s = time.time()
    parts, y = [_label(_GAP, 20, board.title, 16, bold=True)], 30
    for row in board.rows:
        parts.append(_label(_GAP, y + 16, row.title, 13, bold=True))
        x, y, height = _GAP, y + _TITLE, 0
        for panel in row.panels:
            width = (_WIDTH - _GAP) // (4 if panel.number else 2) - _GAP
            if x + width > _WIDTH:
                x, y, height = _GAP, y + height + _GAP, 0
            tall = _NUMBER_HEIGHT if panel.number else _LINES_HEIGHT
            series = [found for query in panel.queries for found in _series(query, prometheus, end_s, seconds)]
            parts += _box(panel, series[:SERIES_MAX], x, y, width, tall)
            x, height = x + width + _GAP, max(height, tall)
        y += height + _GAP
    size = f'width="{_WIDTH}" height="{y}" viewBox="0 0 {_WIDTH} {y}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><rect width="{_WIDTH}" height="{y}" fill="#fff"/>'
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def _series(query: Query, prometheus: str, end_s: float, seconds: int) -> list[Series]:
    step_s = seconds / POINTS
    parameters = {
        "query": with_all_chosen(query.expression, rate_interval="15s", time_range=f"{seconds}s"),
        "start": f"{end_s - seconds:.3f}",
        "end": f"{end_s:.3f}",
        "step": f"{step_s:.3f}",
    }
    text = urllib.parse.urlencode(parameters)
    with urllib.request.urlopen(
        f"http://{prometheus.removeprefix('http://')}/api/v1/query_range?{text}", timeout=_ANSWER_S
    ) as answer:
        found = json.load(answer)["data"]["result"]
    made = []
    for item in found:
        values = [math.nan] * (POINTS + 1)
        for at_s, value in item["values"]:
            values[min(POINTS, max(0, round((float(at_s) - end_s + seconds) / step_s)))] = float(value)
        name = query.legend
        for label, text in item["metric"].items():
            name = name.replace(f"{{{{{label}}}}}", text)
        made.append(Series(_PLACE.sub("none", name), values))
    return made


def _box(panel: Panel, series: list[Series], x: int, y: int, width: int, height: int) -> list[str]:
    parts = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="#fafafa" stroke="#ccc"/>',
        _label(x + 6, y + 15, panel.title, 11, bold=True),
    ]
    if panel.number:
        shown = [(item.name, _newest(item.values)) for item in series]
        if len(shown) == 1:
            return [*parts, _label(x + 6, y + 46, _shown(shown[0][1], panel.unit), 22)]
        lines = [f"{name}: {_shown(value, panel.unit)}" for name, value in shown[:2]]
        return [*parts, *(_label(x + 6, y + 34 + 18 * i, line, 13) for i, line in enumerate(lines))]
    finite = [value for item in series for value in item.values if math.isfinite(value)]
    top, bottom = max([*finite, 0.0]), min([*finite, 0.0])
    left, right, low, high = x + 66, x + width - 8, y + height - 40, y + 26
    parts.append(_label(x + 6, high + 6, _shown(top, panel.unit), 9))
    parts.append(_label(x + 6, low + 3, _shown(bottom, panel.unit), 9))
    parts.append(f'<line x1="{left}" y1="{low}" x2="{right}" y2="{low}" stroke="#ccc"/>')
    scale = (low - high) / (top - bottom) if top > bottom else 0.0
    legend_x = x + 6.0
    legend_y = y + height - 22
    for item, colour in zip(series, _COLOURS, strict=False):
        places = [
            f"{left + (right - left) * i / POINTS:.0f},{low - (value - bottom) * scale:.0f}"
            for i, value in enumerate(item.values)
            if math.isfinite(value)
        ]
        line = " ".join(places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        needed = 12 + 5.2 * len(item.name)
        if legend_x > x + 6 and legend_x + needed > x + width:
            legend_x, legend_y = x + 6.0, legend_y + 12
        if legend_y < y + height:
            parts.append(f'<rect x="{legend_x:.0f}" y="{legend_y - 7}" width="7" height="7" fill="{colour}"/>')
            parts.append(_label(legend_x + 10, legend_y, item.name, 9))
            legend_x += needed + 8
    return parts


def _newest(values: list[float]) -> float:
    return next((value for value in reversed(values) if math.isfinite(value)), math.nan)


def _shown(value: float, unit: Unit) -> str:
    """A value with its unit, three digits."""
    if not math.isfinite(value):
        return "no data"
    if unit is Unit.SHARE:
        return f"{100 * value:.3g} %"
    if unit is Unit.SECONDS:
        return (
            f"{1000 * value:.3g} ms"
            if 0 < value < 1
            else f"{value:,.3g} s"
            if value < 1e5
            else f"{value / 86400:,.0f} d"
        )
    if unit is Unit.BYTES:
        return f"{value / 2**20:.3g} MiB" if value < 2**30 else f"{value / 2**30:.3g} GiB"
    number = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{number} {unit.value}" if unit is Unit.DAYS else f"{number}/s" if unit is Unit.PER_SECOND else number


def _label(x: float, y: float, text: str, size: int, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}"{weight} {_TEXT}>{escape(text)}</text>'
