"""The demo: services, topics, tables, a bundle, simulated payments, worker and sink on one machine.

It may touch every room but the command line; worker and sink run as the processes that they are in production.
"""

from scorer.demo.decision_reader import DecisionReader
from scorer.demo.demo_processes import free_ports
from scorer.demo.demo_run import Demo, Result
from scorer.demo.trained_bundle import CUSTOMERS, LIVE_SEED, demo_bundle, live_blocks

__all__ = ["CUSTOMERS", "LIVE_SEED", "DecisionReader", "Demo", "Result", "demo_bundle", "free_ports", "live_blocks"]
