"""A dashboard as data: rows of panels, the queries of each, which alerts lead to it, and what a zero in it means."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

# In a query: the series of the chosen shards; and of those that the chosen bundles decide.
SHARD = 'shard=~"$shard"'
OF_BUNDLE = 'and on (instance, shard) fraud_scorer_bundle_info{bundle=~"$bundle"}'
PANEL_ID_MAX = 9_999


class Unit(StrEnum):
    """Grafana's names of units."""

    COUNT = "short"
    SECONDS = "s"
    BYTES = "bytes"
    SHARE = "percentunit"
    PER_SECOND = "ops"
    DAYS = "d"


@dataclass(frozen=True)
class Query:
    """`expression` in PromQL, with `$shard`, `$bundle`, `$__rate_interval`, `$__range`; `legend` of its series."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel. `zero`: why a zero, or nothing but zeros, is right; empty where a running deployment has data.

    `number`: one big value instead of lines over time. `bad_from`: values from here on are drawn red; `good_from`:
    values below are. `alerts`: those whose page leads here.
    """

    title: str
    meaning: str
    queries: tuple[Query, ...]
    unit: Unit = Unit.COUNT
    zero: str = ""
    number: bool = False
    bad_from: float | None = None
    good_from: float | None = None
    alerts: tuple[str, ...] = ()

    @property
    def id(self) -> int:
        """Its number in Grafana: of its title, so that links to it stay right when panels are added or moved."""
        return zlib.crc32(self.title.encode()) % PANEL_ID_MAX + 1

    @property
    def description(self) -> str:
        """As people read it: meaning, and what a zero means."""
        return f"{self.meaning} {self.zero}".strip()


@dataclass(frozen=True)
class Row:
    """Panels under one title."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    """One dashboard; `name` is its file's and, after `fraud-scorer-`, its id in Grafana."""

    name: str
    title: str
    meaning: str
    rows: tuple[Row, ...]

    @property
    def uid(self) -> str:
        """Its id in Grafana, the same in every installation: alerts link to it."""
        return f"fraud-scorer-{self.name}"

    def panels(self) -> Iterator[Panel]:
        """All panels, in their order."""
        for row in self.rows:
            yield from row.panels

    def address(self, panel: Panel) -> str:
        """Path of a panel at any Grafana."""
        return f"/d/{self.uid}?viewPanel={panel.id}"


def rate(metric: str, *, by: str = "", where: str = SHARD, more: str = "") -> str:
    """Per second, summed, over a time that Grafana fits to the scrape interval; `more` filters the series first."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}{{{where}}}[$__rate_interval]){_before(more)})"


def quantile(share: float, histogram: str, *, where: str = SHARD, more: str = "") -> str:
    """The value below which `share` of what a histogram counted lies."""
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', by='le', where=where, more=more)})"


def mean(histogram: str) -> str:
    """The mean of what a histogram counted."""
    return f"{rate(f'{histogram}_sum')} / {rate(f'{histogram}_count')}"


def or_zero(expression: str) -> str:
    """A zero where no series is there yet: of events that need not ever happen."""
    return f"{expression} or on () vector(0)"


def with_all_chosen(expression: str, *, rate_interval: str, time_range: str) -> str:
    """The query with all shards and bundles chosen, as Prometheus takes it: `5m` is a duration."""
    for name, value in (("$__rate_interval", rate_interval), ("$__range", time_range)):
        expression = expression.replace(name, value)
    return expression.replace("$shard", ".*").replace("$bundle", ".*")


def _before(more: str) -> str:
    return f" {more}" if more else ""
