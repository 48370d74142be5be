"""A seeded generator of card payments with realistic frauds and late labels: for the demo, for tests and for load."""

from scorer.simulate.batch import SimulatedBatch
from scorer.simulate.kinds import FraudKind
from scorer.simulate.labels import DueLabels
from scorer.simulate.world import World

__all__ = ["DueLabels", "FraudKind", "SimulatedBatch", "World"]
