"""The chain between units: each shard's units joined in order of sequence, and what is missing between them."""

from __future__ import annotations

from datetime import date

import psycopg

from scorer.audit.findings import Finding
from scorer.audit.verify.scope import End, Report, Scope, Start
from scorer.audit.verify.unit_check import Checked, chain_finding


class ChainLinks:
    """Joins the units of each shard, in order, and reports what is missing between them."""

    def __init__(self, connection: psycopg.Connection, scope: Scope, starts: dict[int, Start], report: Report) -> None:
        self._connection, self._scope, self._starts, self._report = connection, scope, starts, report
        self._ends: dict[int, End] = {}
        self._day: dict[int, date] = {}
        self._edited: dict[int, set[int]] = {}

    def add(self, result: Checked) -> None:
        shard = result.unit.shard
        for first, last in result.gaps:
            self._missing(shard, first, last, dropped=False)
        if result.first_sequence is None or result.last_sequence is None:
            return
        end = self._ends.get(shard)
        if end is None:
            end = self._before_first(shard, result.first_sequence)
        if end is not None and result.first_sequence <= end.sequence:
            self._report.findings.append(
                Finding(shard, result.first_sequence, "batch_inserted", "its sequence stands in two places",
                        str(result.unit.day))
            )  # fmt: skip
        elif end is not None and result.first_sequence > end.sequence + 1:
            day = self._day.get(shard)
            apart = day is None or (result.unit.day - day).days > 1
            self._missing(shard, end.sequence + 1, result.first_sequence - 1, dropped=apart)
        elif (
            end is not None
            and result.previous != end.head
            and not {result.first_sequence, end.sequence} & (result.edited | self._edited.get(shard, set()))
        ):
            if end.sequence < 0 or shard not in self._ends:
                self._report.findings.append(
                    Finding(shard, result.first_sequence, "chain_broken", "it does not follow what retention removed"
                            if end.sequence >= 0 else "the first batch names a batch before it")
                )  # fmt: skip
            else:
                self._report.findings.append(chain_finding(shard, end.sequence, str(result.unit.day)))
        self._ends[shard] = End(result.last_sequence, result.head)
        self._day[shard] = result.unit.day
        self._edited[shard] = result.edited

    def finish(self) -> dict[int, End]:
        """The newest batch checked in each shard."""
        for shard, start in self._starts.items():
            if shard not in self._ends and self._scope.bounds(shard) is not None and start.sequence:
                self._ends[shard] = End(start.sequence - 1, start.previous)
        return self._ends

    def _before_first(self, shard: int, first: int) -> End | None:
        """What the first batch of the scope must follow."""
        bounds = self._scope.bounds(shard)
        start = self._starts.get(shard, Start())
        if bounds is None or bounds[0] <= start.sequence:
            return End(start.sequence - 1, start.previous)
        found = self._connection.execute(
            "SELECT sequence, head FROM batches WHERE shard = %s AND sequence < %s ORDER BY sequence DESC LIMIT 1",
            (shard, first),
        ).fetchone()
        return End(bounds[0] - 1, "") if found is None else End(found[0], found[1])

    def _missing(self, shard: int, first: int, last: int, *, dropped: bool) -> None:
        quarantined = self._connection.execute(
            "SELECT min(sequence), max(sequence), min(kind), count(*) FROM set_aside "
            "WHERE shard = %s AND sequence BETWEEN %s AND %s",
            (shard, first, last),
        ).fetchone()
        if quarantined is not None and quarantined[0] is not None:
            kind, detail = "set_aside", f"{quarantined[3]} records of it stand in set_aside ({quarantined[2]})"
            unknown = (last - first) - (quarantined[1] - quarantined[0])
            if unknown:
                detail += f"; {unknown} more batches of this range are gone"
        elif dropped:
            kind, detail = "day_dropped", "no batch of it is left, and no tombstone was written"
        else:
            kind, detail = "batch_missing", "it is not in the database"
        self._report.findings.append(Finding(shard, first, kind, detail, None, last))
