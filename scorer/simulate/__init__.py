"""A seeded generator of card payments with realistic frauds and late labels, for the demo, tests and load.

It is pure: it may use numpy and its own room, no clock and no file.
"""

from scorer.simulate.due_labels import DueLabels
from scorer.simulate.fraud_kinds import FraudKind
from scorer.simulate.simulated_batch import SimulatedBatch
from scorer.simulate.world import World

__all__ = ["DueLabels", "FraudKind", "SimulatedBatch", "World"]
