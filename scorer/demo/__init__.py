"""The demo: services, topics, tables, a bundle, simulated payments, worker and sink on one machine."""

from scorer.demo.bundle import CUSTOMERS, LIVE_SEED, demo_bundle, live_blocks
from scorer.demo.demo import Demo, Result
from scorer.demo.processes import free_ports
from scorer.demo.reader import DecisionReader

__all__ = ["CUSTOMERS", "LIVE_SEED", "DecisionReader", "Demo", "Result", "demo_bundle", "free_ports", "live_blocks"]
