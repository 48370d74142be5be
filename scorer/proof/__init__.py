"""History decided again and compared with what was decided live, payment by payment; each difference has a cause.

It may read files, Kafka and the audit trail in Postgres, and writes nothing but the list of differences.
"""

from __future__ import annotations

from scorer.proof.differences import Cause, Difference, Differences, Proof
from scorer.proof.file_proof import prove_file
from scorer.proof.topic_proof import prove_topic

__all__ = ["Cause", "Difference", "Differences", "Proof", "prove_file", "prove_topic"]
