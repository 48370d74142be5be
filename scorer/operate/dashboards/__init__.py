"""Grafana's dashboards as code: what each panel asks Prometheus, and why; deploy/dashboards/ holds what is made of it.

    python -m scorer.operate.dashboards                        write deploy/dashboards/*.json again
    python -m scorer.operate.dashboards --runbooks URL FOLDER   with links to where your runbooks are

`board` says what a dashboard is, the four `…_board` modules what stands on each, and `grafana_json` makes Grafana's
JSON of it; that one alone needs `grafana-foundation-sdk` (in the extra `test`). No serving process imports any of it.
"""

from scorer.operate.dashboards.audit_board import AUDIT
from scorer.operate.dashboards.board import Board, Panel, Query, Row
from scorer.operate.dashboards.model_board import MODEL
from scorer.operate.dashboards.payments_board import PAYMENTS
from scorer.operate.dashboards.service_board import SERVICE

BOARDS = (SERVICE, PAYMENTS, MODEL, AUDIT)

__all__ = ["BOARDS", "Board", "Panel", "Query", "Row"]
