"""The demo: services, topics, tables, a bundle, simulated payments, worker and sink on one machine."""

from scorer.demo.decision_reader import DecisionReader
from scorer.demo.demo_processes import free_ports
from scorer.demo.demo_run import Demo, Result
from scorer.demo.trained_bundle import CUSTOMERS, LIVE_SEED, demo_bundle, live_blocks

__all__ = ["CUSTOMERS", "LIVE_SEED", "DecisionReader", "Demo", "Result", "demo_bundle", "free_ports", "live_blocks"]
