"""What `audit verify` can find, in the words that people and programs get."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

KINDS = {
    "row_edited": "a row of the batch is not what was decided",
    "rows_deleted": "rows of the batch are gone",
    "rows_inserted": "rows were added that nobody decided",
    "rows_reordered": "the rows of the batch stand in another order",
    "batch_edited": "the batch's own row was changed",
    "batch_missing": "the batch is gone",
    "batch_inserted": "a batch was added that the sink did not write",
    "set_aside": "the batch could not be written; its records stand in set_aside",
    "day_dropped": "a whole day is gone, and no tombstone says so",
    "tail_cut": "the newest batches are gone",
    "trail_missing": "the journal topic has batches of the shard, the database has none",
    "forged": "the batch was replaced, digest and all: its head is not the one the journal or an anchor names",
    "chain_broken": "the batch does not follow the one before it",
    "tombstone_forged": "a tombstone does not hold: not signed by the key, or it does not fit the chain",
    "erasure_forged": "the record of an erasure does not hold: not signed by the key, or it does not fit the batch",
    "anchor_forged": "a line of the anchors does not hold: not signed by the key, or not in its place",
}


@dataclass(frozen=True)
class Finding:
    """One change, and where. `sequence` is the first batch it concerns, `last_sequence` the last."""

    shard: int
    sequence: int
    kind: str
    detail: str
    day: str | None = None
    last_sequence: int | None = None

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {name: value for name, value in asdict(self).items() if value is not None} | {"means": KINDS[self.kind]}

    @property
    def sentence(self) -> str:
        """For people."""
        batch = f"batch {self.shard}/{self.sequence}"
        if self.last_sequence is not None and self.last_sequence != self.sequence:
            batch = f"batches {self.shard}/{self.sequence} to {self.last_sequence}"
        return f"{batch}: {self.kind}: {self.detail}"


# Of two findings on one batch the first of these says more about it.
_WEIGHT = {kind: number for number, kind in enumerate((
    "tombstone_forged", "erasure_forged", "rows_deleted", "rows_inserted", "rows_reordered", "row_edited",
    "batch_edited", "forged", "set_aside", "day_dropped", "trail_missing", "tail_cut", "batch_missing",
    "batch_inserted", "chain_broken", "anchor_forged",
))}  # fmt: skip


def in_order(findings: list[Finding]) -> list[Finding]:
    """The first bad batch first: by shard and sequence, and on one batch the most telling first."""
    return sorted(set(findings), key=lambda finding: (finding.shard, finding.sequence, _WEIGHT[finding.kind]))
