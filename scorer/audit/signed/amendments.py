"""Signed records of what retention and erasure did outside the chain: to labels, dead letters, changes of lists."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import psycopg

from scorer.audit.findings import Finding
from scorer.audit.signed.anchors import AnchorFile
from scorer.audit.signed.signatures import SignatureBroken, Signer, Verifier, body_of

Place = tuple[str, int, int]  # topic, partition, offset


@dataclass
class Amendments:
    """What was meant: rows before an offset are gone, and values that erasure put in place of others."""

    removed: dict[tuple[str, str, int], int] = field(
        default_factory=dict
    )  # table, topic, partition → first offset left
    erased: dict[str, dict[Place, Any]] = field(default_factory=dict)  # table → place → what stands there since

    def before(self, table: str, topic: str, partition: int) -> int:
        """Rows below this offset were removed by retention."""
        return self.removed.get((table, topic, partition), 0)


def amend(
    connection: psycopg.Connection, body: dict[str, Any], signer: Signer, anchors: AnchorFile | None
) -> dict[str, Any]:
    """Signs a record and notes it, in the caller's transaction; anchored with `anchors`. Returns the body."""
    body = {**body, **({} if anchors is None else {"anchors": anchors.place})}
    connection.execute(
        "INSERT INTO amendments (number, document) SELECT 1 + coalesce(max(number), 0), %s FROM amendments",
        (signer.sign(body),),
    )
    if anchors is not None:
        anchors.append([body], signer)
    return body


def read_amendments(connection: psycopg.Connection, verifier: Verifier | None) -> tuple[Amendments, list[Finding]]:
    """All of them, and those that do not hold."""
    found, findings = Amendments(), []
    for number, document in connection.execute("SELECT number, document FROM amendments ORDER BY number"):
        try:
            body = body_of(document, verifier)
            if body["kind"] == "records_removed":
                key = (body["table"], body["topic"], body["partition"])
                found.removed[key] = max(found.removed.get(key, 0), int(body["before_offset"]))
            elif body["kind"] == "records_erased":
                for table, topic, partition, offset, value in body["records"]:
                    found.erased.setdefault(table, {})[topic, partition, offset] = value
            else:
                raise SignatureBroken(f"it is of kind {body['kind']}")
        except (SignatureBroken, KeyError, TypeError, ValueError) as exc:
            findings.append(Finding.at(f"amendment {number}", "amendment_forged", str(exc), number))
    return found, findings
