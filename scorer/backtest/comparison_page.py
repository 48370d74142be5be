"""The comparison of champion and challenger as one HTML file: tables alone, no script, nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from scorer.backtest.champion_comparison import Comparison
from scorer.backtest.comparison_findings import Finding, in_days
from scorer.backtest.paired_estimates import Estimate

_STYLE = Path(__file__).with_name("page") / "page.css"
ADVICE = {
    "activate": "Activate the challenger",
    "keep": "Keep the champion",
    "wait": "Wait: go on in shadow",
    "inspect": "Inspect a random sample first",
}


def write_comparison(result: Comparison, path: Path) -> None:
    """Write the page. It holds figures and no payment's id."""
    title = f"{result.champion} and its challenger {result.challenger}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p><strong>{escape(ADVICE[result.action])}.</strong> {escape(result.reason)}.</p>",
        f"<p>{result.payments:,} payments of {result.days:,} days, {_day(result.from_ms)} to "
        f"{_day(result.until_ms - 1)}, labels as known on {_day(result.as_of_ms)}; younger than "
        f"{in_days(result.delay_ms)}: left out. Figures are challenger less champion.</p>",
        "<h2>What would differ</h2>",
        _table(
            ("figure", "challenger - champion", "95 %", "by labelled payments alone"),
            ((_words(name), value(one), interval(one), value(result.naive[name])) for name, one in
            result.figures.items()),
        ),
        "<h2>Who flags what</h2>",
        _table(
            ("", "payments", "labelled", "frauds", "inspected", f"{result.currency}", "of fraud", "frauds known by"),
            (
                (
                    cell.name, f"{cell.payments:,}", f"{cell.labelled:,}", f"{cell.frauds:,}", f"{cell.inspected:,}",
                    f"{cell.money:,.0f}", f"{cell.fraud_money:,.0f}", cell.how or "",
                )
                for cell in result.cells
            ),
        ),
        "<h2>What the figures rest on</h2>",
        *map(_finding, result.findings),
        "<h2>By segment</h2>",
        _table(
            ("kind", "segment", "payments", "differ", _words(result.deciding), "95 %", "shown"),
            (
                (
                    one.kind, one.name, f"{one.payments:,}", f"{one.differ:,}", value(one.figures[result.deciding]),
                    interval(one.figures[result.deciding]), one.verdict,
                )
                for one in result.segments
            ),
        ),
    ]  # fmt: skip
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n",
        encoding="utf-8",
    )


def value(one: Estimate) -> str:
    """A sum, or between what it lies."""
    if one.value is None:
        return f"{one.lowest:+,.0f} to {one.highest:+,.0f}"
    return f"{one.value:+,.0f}"


def interval(one: Estimate) -> str:
    """Its 95 % interval."""
    return "" if one.interval is None else f"{one.interval[0]:+,.0f} to {one.interval[1]:+,.0f}"


def _finding(one: Finding) -> str:
    mark = ' class="bad"' if one.warning else ""
    return f'<p class="note"><strong{mark}>{escape(one.name)}</strong>: {escape(one.text)}</p>'


def _words(name: str) -> str:
    return name.replace("_", " ")


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    lines = "\n".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{lines}\n</tbody></table>"


def _day(epoch_ms: int) -> str:
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).strftime("%Y-%m-%d")
