"""The rows of bundles and feature_sets compared with the batches that made the sink write them."""

from __future__ import annotations

import psycopg

from scorer.audit.findings import Finding
from scorer.audit.verify.scope import Start
from scorer.trail.audit_database import snapshot


def compare_bundles(connection: psycopg.Connection, starts: dict[int, Start]) -> list[Finding]:
    """Where a bundle's row differs from its batches, and rows that are missing or too many.

    Of a bundle that none but removed days decided with, nothing is left to compare. All is read in one snapshot: a
    bundle may be activated meanwhile.
    """
    with snapshot(connection):
        return _compare(connection, starts)


def _compare(connection: psycopg.Connection, starts: dict[int, Start]) -> list[Finding]:
    used: dict[str, dict[int, tuple[int, float, str]]] = {}
    for shard, bundle, first, threshold, fingerprint in connection.execute(
        "SELECT shard, bundle, min(sequence), min(threshold), min(feature_fingerprint) FROM batches GROUP BY 1, 2"
    ):
        used.setdefault(bundle, {})[shard] = (first, threshold, fingerprint)
    findings: list[Finding] = []

    def found(what: str, name: str, detail: str) -> None:
        findings.append(Finding.at(f"{what} {name}", "bundle_edited", detail))

    rows = connection.execute(
        "SELECT bundle, threshold, feature_fingerprint, first_shard, first_sequence FROM bundles ORDER BY bundle"
    ).fetchall()
    for bundle, threshold, fingerprint, shard, sequence in rows:
        of = used.get(bundle, {})
        removed = 0 <= sequence < starts.get(shard, Start()).sequence
        for name, ours, theirs in (("threshold", threshold, 1), ("feature_fingerprint", fingerprint, 2)):
            if of and ours != next(iter(of.values()))[theirs]:
                found("bundle", bundle, f"column {name} differs from that of its batches")
        if not removed and of.get(shard, (None,))[0] != sequence:
            found("bundle", bundle, f"batch {shard}/{sequence} is not the first of its shard that it decided")
    for bundle in sorted(used.keys() - {row[0] for row in rows}):
        found("bundle", bundle, "batches name it, and its row is gone")
    if not starts:  # sets that none but removed days used stay
        for (fingerprint,) in connection.execute(
            "SELECT fingerprint FROM feature_sets s WHERE NOT EXISTS "
            "(SELECT 1 FROM batches b WHERE b.feature_fingerprint = s.fingerprint) ORDER BY 1"
        ):
            found("feature set", fingerprint, "no batch uses it")
    return findings
