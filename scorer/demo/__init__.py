"""The demo: services, topics, tables, a bundle, simulated payments, worker and sink on one machine.

It may touch every room but the command line; worker and sink run as the processes that they are in production.
"""

from scorer.demo.decision_reader import DecisionReader, Flagged, Percentiles
from scorer.demo.demo_bundle import CUSTOMERS, LIVE_SEED, demo_bundle, live_blocks
from scorer.demo.demo_processes import free_ports
from scorer.demo.demo_run import Demo, Result, StoppedEarly
from scorer.demo.demo_view import ASCII, DemoState, line, screen, summary
from scorer.demo.demo_watch import DemoWatch

__all__ = [
    "ASCII",
    "CUSTOMERS",
    "LIVE_SEED",
    "DecisionReader",
    "Demo",
    "DemoState",
    "DemoWatch",
    "Flagged",
    "Percentiles",
    "Result",
    "StoppedEarly",
    "demo_bundle",
    "free_ports",
    "line",
    "live_blocks",
    "screen",
    "summary",
]
