"""What `audit verify` checks, what it compares with, and its report."""

from __future__ import annotations

from dataclasses import dataclass, field

import psycopg

from schemas.journal_record import FIRST_PREVIOUS
from scorer.audit.findings import Finding
from scorer.audit.signed.amendments import Amendments
from scorer.runtime.settings import Settings

BIGINT_MAX = 2**63 - 1


@dataclass(frozen=True)
class Scope:
    """What to verify: all of it by default. `since`: shard → sequence after which everything is checked."""

    shard: int | None = None
    first: int = 0
    last: int | None = None
    since: dict[int, int] | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing is left out."""
        return self.shard is None and self.first == 0 and self.last is None and self.since is None

    def bounds(self, shard: int) -> tuple[int, int] | None:
        """First and last sequence to check in a shard; None for none."""
        if self.shard is not None and shard != self.shard:
            return None
        first = max(self.first, self.since.get(shard, -1) + 1 if self.since is not None else 0)
        return first, BIGINT_MAX if self.last is None else self.last


@dataclass
class Report:
    """What was checked, and what was found, the first bad batch first."""

    batches: int = 0
    decisions: int = 0
    erased: int = 0
    tombstones: int = 0
    shards: int = 0
    heads_journal: int | None = None  # None: the journal topic was not asked
    heads_anchored: int | None = None
    set_aside: int = 0
    views_compared: bool = False  # not on a standby, nor without the right to make temporary tables
    records: int | None = None  # labels, dead letters and the like compared with their topics; None: not asked
    records_older: int = 0  # those whose records are no longer on their topics
    behind: int = 0  # batches, and records of the other topics, that the sink has not written yet
    findings: list[Finding] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


@dataclass(frozen=True)
class Evidence:
    """What a comparison with a topic needs: the database, Kafka, what was removed or erased on purpose, the report."""

    connection: psycopg.Connection
    settings: Settings
    amendments: Amendments
    report: Report


@dataclass
class Start:
    """Where a shard's chain goes on after what retention removed."""

    sequence: int = 0
    previous: str = FIRST_PREVIOUS
    heads: dict[int, str] = field(default_factory=dict)  # last sequence of each day removed → its head


@dataclass(frozen=True)
class End:
    """The newest batch of a shard."""

    sequence: int
    head: str
