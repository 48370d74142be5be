"""What `audit verify` can find, in the words that people and programs get."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

KINDS = {
    "row_edited": "a row of the batch differs from what was decided",
    "rows_deleted": "rows of the batch are gone",
    "rows_inserted": "rows were added that no worker decided",
    "rows_reordered": "the rows of the batch stand in another order",
    "batch_edited": "the batch's own row was changed",
    "batch_missing": "the batch is gone",
    "batch_inserted": "a batch was added that the sink did not write",
    "set_aside": "the batch could not be written; its records are in table set_aside",
    "day_dropped": "a whole day is gone, and no tombstone records its removal",
    "tail_cut": "the newest batches are gone",
    "trail_missing": "the journal topic has batches of the shard, the database has none",
    "forged": "the batch was replaced, digest and all: its head is not the one the journal or an anchor names",
    "chain_broken": "the batch does not follow the one before it",
    "tombstone_forged": "a tombstone is not valid: not signed by the key, or it does not fit the chain",
    "erasure_forged": "the record of an erasure is not valid: not signed by the key, or it does not fit the batch",
    "change_forged": "what an operator accepted with `recover` is not signed by the key, or says something else",
    "anchor_forged": "a line of the anchors is not valid: not signed by the key, or not in its place",
    "anchor_deleted": "a row of table anchors is gone, and the file of the anchors has its line",
    "amendment_forged": "a record of retention or erasure is not valid: not signed by the key, or unreadable",
    "record_edited": "a label, dead letter or control record differs from its topic",
    "record_deleted": "a label, dead letter or control record that its topic has is gone",
    "record_inserted": "a label, dead letter or control record was added that its topic does not have",
    "position_edited": "a position of the sink was changed by something else",
    "bundle_edited": "a row of bundles or feature_sets differs from the batches",
    "schema_changed": "a table, view, function, trigger, rule or policy differs from what the migrations made",
    "rights_widened": "a role that only adds or reads may change, remove or make objects",
}


@dataclass(frozen=True)
class Finding:
    """One change, and where: batch `sequence` to `last_sequence` of a shard, or `place` where it concerns no batch.

    With a `place` shard and sequence only put findings in order.
    """

    shard: int
    sequence: int
    kind: str
    detail: str
    day: str | None = None
    last_sequence: int | None = None
    place: str | None = None

    @classmethod
    def at(cls, place: str, kind: str, detail: str, number: int = 0) -> Finding:
        """A finding that concerns no batch; `number` puts those of one kind in order."""
        return cls(-1, number, kind, detail, place=place)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        if self.place is not None:
            del values["shard"], values["sequence"]
        return values | {"means": KINDS[self.kind]}

    @property
    def where(self) -> str:
        """For people."""
        if self.place is not None:
            return self.place
        if self.last_sequence is not None and self.last_sequence != self.sequence:
            return f"batches {self.shard}/{self.sequence} to {self.last_sequence}"
        return f"batch {self.shard}/{self.sequence}"

    @property
    def sentence(self) -> str:
        """For people."""
        return f"{self.where}: {self.kind}: {self.detail}"


# Of two findings on one batch the first of these explains more.
_WEIGHT = {kind: number for number, kind in enumerate((
    "tombstone_forged", "erasure_forged", "change_forged", "rows_deleted", "rows_inserted", "rows_reordered",
    "row_edited",
    "batch_edited", "forged", "set_aside", "day_dropped", "trail_missing", "tail_cut", "batch_missing",
    "batch_inserted", "chain_broken", "anchor_forged", "anchor_deleted", "amendment_forged", "schema_changed",
    "rights_widened", "position_edited", "bundle_edited", "record_deleted", "record_edited", "record_inserted",
))}  # fmt: skip


def in_order(findings: list[Finding]) -> list[Finding]:
    """The first bad batch first: by shard and sequence, on one batch the one that explains most; last what concerns
    none."""
    return sorted(
        set(findings),
        key=lambda finding: (
            finding.place is not None,
            finding.shard,
            _WEIGHT[finding.kind] if finding.place is not None else 0,
            finding.sequence,
            _WEIGHT[finding.kind],
            finding.place or "",
        ),
    )
