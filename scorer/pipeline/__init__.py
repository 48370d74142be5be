"""Bytes to outcomes, pure: records, decoding, order, duplicates, features, model, policy, and the state's image.

It may touch schemas, features, model, policy and loaded bundles; it knows no Kafka, no clock and no logger.
"""

from schemas.decision import DEGRADED, DUPLICATE, LATE, NORMAL, REFUSED
from scorer.pipeline.pipeline import Decided, Outcomes, Pipeline, explained
from scorer.pipeline.records import Batch

__all__ = [
    "DEGRADED",
    "DUPLICATE",
    "LATE",
    "NORMAL",
    "REFUSED",
    "Batch",
    "Decided",
    "Outcomes",
    "Pipeline",
    "explained",
]
