"""What `fraud-scorer recover` has to know of a shard's journal, however long that is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from schemas.journal_record import InputRange, JournalRecord, Sources
from scorer import kafka


@dataclass
class JournalSummary:
    """`count`: batches · `last`: the last record · `ordered`: the last one that names a record of the order log ·
    `sources`: ids of the topics that were read last, None in a journal of an earlier release · `ranges`: what was read
    last of each payments partition."""

    count: int = 0
    last: JournalRecord | None = None
    ordered: JournalRecord | None = None
    sources: Sources | None = None
    ranges: dict[int, InputRange] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[tuple[int, JournalRecord]]) -> JournalSummary:
        """Of the whole journal, record by record with its offset; none is kept but what this holds."""
        found = cls()
        for _, record in records:
            found.count += 1
            found.last = record
            found.ordered = found.ordered if record.order is None else record
            found.sources = record.sources or found.sources
            found.ranges |= {r.partition: r for r in record.inputs}
        return found

    @property
    def positions(self) -> dict[int, int]:
        """Where the journal says that each payments partition was decided to."""
        return {partition: r.end for partition, r in self.ranges.items()}

    @property
    def last_records(self) -> dict[int, kafka.LastRecord]:
        """The last record decided of each payments partition, where the journal notes its leader epoch."""
        return {
            partition: kafka.LastRecord(r.end if r.records_end is None else r.records_end, r.epoch)
            for partition, r in self.ranges.items()
            if r.epoch is not None
        }
