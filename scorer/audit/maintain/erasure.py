"""`audit erase`: one person's identifiers leave the trail, and the chain stays whole.

In every row of the person the identifier, and the payment ids that lead back to the person in other systems, become
pseudonyms: HMAC-SHA-256 under a key that is made for this erasure and thrown away at its end. Equal values become equal
pseudonyms, so the rows of one person can still be recognised as such; whose they are can not be found, not even by
trying every name, because the key is gone. Labels of those payments get the same pseudonyms.

The journal's digest of such a batch was made of the values before, and is kept for ever: whoever could compute it for
a guess would find the person again. So its salt is destroyed with the values. The batch gets a new one, and a signed
record with the digest that its rows have under it; `verify` compares them with that. Its place in the chain, head and
journal digest stay as they were, and what was decided (`decided` in the journal record) is verified as before.
Batches are verified before they are touched: an erasure must not cover up a change.

Rows of the same payments without the identifier, such as answers to records that were refused, get the pseudonym of
the payment's id too. What else names the person is found by `scorer.audit.maintain.person_traces`.

What this does not reach: Kafka's topics hold values and salt until their own retention removes them (35 days by
default), backups and archived WAL of Postgres until theirs; a dead row goes with the next vacuum. The digest of a batch
of a release before 0.2 has no salt: it stays in the journal, and can be guessed.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import date
from typing import Any

import psycopg
from psycopg import sql

from schemas.audit_digest import SALT_BYTES, context_bytes, digests_of
from scorer.audit.maintain.person_traces import Traces, find_traces
from scorer.audit.signed.amendments import amend
from scorer.audit.signed.anchors import AnchorFile
from scorer.audit.signed.signatures import Signer
from scorer.audit.verify.unit_check import Unit, check
from scorer.errors import PromiseBroken, UsageError
from scorer.trail.audit_database import connect_text
from scorer.trail.copy_decode import read_rows

COLUMNS = ("customer_id", "account_id")
_Changed = tuple[Any, ...]  # table, topic, partition, offset, and the value that stands there since
_BATCH = sql.SQL("day = %s AND shard = %s AND sequence = %s")


@dataclass
class Erased:
    """What `erase` changed."""

    rows: int = 0
    batches: int = 0
    labels: int = 0
    elsewhere: int = 0
    unreadable_left: int = 0  # quarantined records that cannot be read and may name the person


def erase(
    url: str,
    *,
    column: str,
    value: str,
    signer: Signer,
    anchors: AnchorFile | None = None,
    lists: Collection[str] | None = None,
    also_unreadable: bool = False,
    found: Callable[[Traces], None] = lambda _: None,
) -> Erased:
    """Replaces every trace of the person whose `column` is `value`. Needs the owner's login.

    `lists`: those of the policy that hold such values; None where the caller does not know. `also_unreadable`: empties
    quarantined records that cannot be read and hold a value of few characters, too. `found` gets what will be changed
    before anything is. Raises UsageError for a column that names no person, and where lists have the value and none
    were named; PromiseBroken when a batch to be changed does not verify.
    """
    if column not in COLUMNS:
        raise UsageError(f"{column} is no identifier of a person; there are {', '.join(COLUMNS)}")
    key = secrets.token_bytes(32)  # lives in this call alone

    def pseudonym(text: str) -> str:
        return "erased-" + hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:32]

    result = Erased()
    with psycopg.connect(connect_text(url), autocommit=True) as connection:
        traces = find_traces(connection, column=column, value=value, lists=lists, also_unreadable=also_unreadable)
        found(traces)
        result.unreadable_left = traces.unreadable_left
        with connection.transaction():
            elsewhere = _elsewhere(connection, value, pseudonym(value), traces)
            _amend(connection, elsewhere, signer, anchors)
        result.elsewhere = len(elsewhere)
        name = sql.Identifier(column)
        # The person's own rows last: where this is stopped, the next run finds the payment ids by them again.
        parts = (
            (sql.SQL("payment_id = ANY (%s) AND {} IS NULL").format(name), traces.payment_ids),
            (sql.SQL("{} = %s").format(name), value),
        )
        changed: set[tuple[date, int, int]] = set()
        for where, of in parts:
            batches = connection.execute(
                sql.SQL("SELECT DISTINCT day, shard, sequence FROM decisions WHERE {} ORDER BY 1, 2, 3").format(where),
                (of,),
            ).fetchall()
            for day, shard, sequence in batches:
                checked = check(connection, Unit(shard, day, sequence, sequence), signer.verifier)
                if checked.findings:
                    raise PromiseBroken(
                        f"stopped after {len(changed)} batches: {checked.findings[0].sentence}. A batch that does not "
                        "verify is evidence and stays as it is"
                    )
                with connection.transaction():
                    labels = _batch(connection, (day, shard, sequence), (where, of), pseudonym, result)
                    body = _record(connection, (day, shard, sequence), signer, anchors)
                    if anchors is not None:
                        anchors.append([body], signer)
                    _amend(connection, labels, signer, anchors)
                changed.add((day, shard, sequence))
                result.labels += len(labels)
        result.batches = len(changed)
    return result


def _batch(
    connection: psycopg.Connection,
    batch: tuple[date, int, int],
    person: tuple[sql.Composed, Any],
    pseudonym: Callable[[str], str],
    result: Erased,
) -> list[_Changed]:
    """Changes the rows of one batch, and the labels of their payments; returns those. `person`: a condition on rows,
    and its value."""
    where, value = person
    labels: list[_Changed] = []
    rows = connection.execute(
        sql.SQL("SELECT row_number, payment_id, customer_id, account_id FROM decisions WHERE {} AND {}").format(
            _BATCH, where
        ),
        (*batch, value),
    ).fetchall()
    for row_number, payment_id, *identifiers in rows:
        hidden = [None if text is None else pseudonym(text) for text in identifiers]
        connection.execute(
            sql.SQL(
                "UPDATE decisions SET payment_id = %s, customer_id = %s, account_id = %s WHERE {} AND row_number = %s"
            ).format(_BATCH),
            (pseudonym(payment_id), *hidden, *batch, row_number),
        )
        labels += connection.execute(
            "UPDATE labels SET payment_id = %s WHERE payment_id = %s "
            """RETURNING 'labels', topic, 0, "offset", payment_id""",
            (pseudonym(payment_id), payment_id),
        ).fetchall()
    result.rows += len(rows)
    return labels


def _record(
    connection: psycopg.Connection, batch: tuple[date, int, int], signer: Signer, anchors: AnchorFile | None
) -> dict[str, Any]:
    """Destroys the batch's salt, and signs what its rows are since under another one; returns the record's body."""
    day, shard, sequence = batch
    salt = secrets.token_bytes(SALT_BYTES)
    about: Any = connection.execute(
        sql.SQL(
            "UPDATE batches b SET salt = %s FROM feature_sets s WHERE s.fingerprint = b.feature_fingerprint AND {} "
            "RETURNING b.bundle, b.threshold, b.feature_fingerprint, s.feature_names, b.challengers, b.head, b.digest"
        ).format(_BATCH),
        (salt, *batch),
    ).fetchone()
    bundle, threshold, fingerprint, names, challengers, head, digest = about
    rows = read_rows(
        connection, day=day, shard=shard, first=sequence, last=sequence, widths=(len(names), len(challengers))
    )
    context = context_bytes(
        bundle=bundle,
        threshold=threshold,
        feature_fingerprint=fingerprint,
        feature_names=names,
        challengers=challengers,
    )
    body = {
        "kind": "erasure",
        "shard": shard,
        "sequence": sequence,
        "head": head,
        "digest_in_journal": digest,
        "digest": digests_of([rows.parts(0, len(rows))], len(rows), context, salt).digest,
        **({} if anchors is None else {"anchors": anchors.place}),
    }
    connection.execute(
        "INSERT INTO erasures (shard, sequence, number, document) SELECT %(shard)s, %(sequence)s, "
        "1 + coalesce(max(number), 0), %(document)s FROM erasures WHERE shard = %(shard)s AND sequence = %(sequence)s",
        {"shard": shard, "sequence": sequence, "document": signer.sign(body)},
    )
    return body


def _elsewhere(connection: psycopg.Connection, value: str, pseudonym: str, traces: Traces) -> list[_Changed]:
    """Values of lists, and quarantined records, that name the person."""
    changed: list[_Changed] = connection.execute(
        "UPDATE control_changes SET record = jsonb_set(record, '{value}', to_jsonb(%s::text)) "
        """WHERE record->>'value' = %s AND record->>'list' = ANY (%s) """
        """RETURNING 'control_changes', topic, 0, "offset", record->>'value'""",
        (pseudonym, value, list(traces.lists)),
    ).fetchall()
    for place in traces.quarantined:
        changed += connection.execute(
            "UPDATE set_aside SET value = NULL, value_sha256 = NULL WHERE topic = %s AND partition = %s "
            """AND "offset" = %s RETURNING 'set_aside', topic, partition, "offset", NULL""",
            place,
        ).fetchall()
    return changed


def _amend(connection: psycopg.Connection, changed: list[_Changed], signer: Signer, anchors: AnchorFile | None) -> None:
    """`verify` compares those tables with their topics, which keep the old values: the record has the new ones."""
    if changed:
        amend(connection, {"kind": "records_erased", "records": [list(row) for row in changed]}, signer, anchors)
