"""Grafana's JSON of a dashboard, made with Grafana's own SDK; needs `grafana-foundation-sdk`."""

from __future__ import annotations

import json
from typing import Final

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    GridPos,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from scorer.operate.dashboards.board import PANEL_ID_MAX, Board, Panel

TAG: Final = "fraud-scorer"
# Where the runbooks are is each site's own: a field at the top of the dashboard, or `--runbooks` for all of them.
RUNBOOKS: Final = "https://runbooks.example/fraud-scorer"
_SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
_WIDTH, _PANEL_WIDTH, _PANEL_HEIGHT, _NUMBER_WIDTH, _NUMBER_HEIGHT = 24, 12, 8, 6, 4

_Builder = timeseries.Panel | stat.Panel


def dashboard_json(board: Board, runbooks: str = RUNBOOKS) -> str:
    """The dashboard as a file's text; the same for the same board. `runbooks`: the address below which they lie."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.meaning)
        .tags([TAG])
        .time("now-1h", "now")
        .refresh("10s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_choice("shard", "Shard", "label_values(fraud_scorer_bundle_info, shard)"))
        .with_variable(_choice("bundle", "Bundle", "label_values(fraud_scorer_bundle_info, bundle)"))
        .with_variable(
            dashboard.TextBoxVariable("runbooks")
            .label("Runbooks")
            .default_value(runbooks)
            .current(VariableOption(selected=True, text=runbooks, value=runbooks))
        )
        .link(
            dashboard.DashboardLink("fraud-scorer")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
        )
    )
    y = 0
    for place, row in enumerate(board.rows):
        made.with_row(dashboard.Row(row.title).id(PANEL_ID_MAX + 1 + place).grid_pos(GridPos(h=1, w=_WIDTH, x=0, y=y)))
        x, y, height = 0, y + 1, 0
        for panel in row.panels:
            width = _NUMBER_WIDTH if panel.number else _PANEL_WIDTH
            if x + width > _WIDTH:
                x, y, height = 0, y + height, 0
            tall = _NUMBER_HEIGHT if panel.number else _PANEL_HEIGHT
            made.with_panel(_panel(panel).grid_pos(GridPos(h=tall, w=width, x=x, y=y)))
            x, height = x + width, max(height, tall)
        y += height
    return json.dumps(made.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def _choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    """Of the values that Prometheus has: several, or all."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(_SOURCE)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.NATURAL_ASC)
    )


def _panel(panel: Panel) -> _Builder:
    made: _Builder
    if panel.number:
        made = stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    else:
        made = (
            timeseries.Panel()
            .line_width(1)
            .fill_opacity(10)
            .show_points(VisibilityMode.NEVER)
            .legend(
                common.VizLegendOptions()
                .display_mode(LegendDisplayMode.LIST)
                .placement(LegendPlacement.BOTTOM)
                .show_legend(True)
            )
            .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        )
    made.id(panel.id).title(panel.title).description(panel.description).unit(panel.unit.value).datasource(_SOURCE)
    if panel.bad_from is not None:
        made.thresholds(_thresholds("green", panel.bad_from, "red"))
    elif panel.good_from is not None:
        made.thresholds(_thresholds("red", panel.good_from, "green"))
    made.links(
        [
            dashboard.DashboardLink(f"Runbook: {alert}")
            .type(DashboardLinkType.LINK)
            .url(f"${{runbooks:raw}}/{alert}.md")
            .target_blank(True)
            for alert in panel.alerts
        ]
    )
    for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
        made.with_target(
            prometheus.Dataquery().expr(query.expression).legend_format(query.legend).ref_id(letter).range()
        )
    return made


def _thresholds(below: str, value: float, above: str) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(value=None, color=below), Threshold(value=value, color=above)])
    )
