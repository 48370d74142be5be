"""Retention and erasure: what leaves the trail leaves it whole."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pytest

from schemas.audit_record import digest
from scorer.audit.maintain.erasure import _record, erase
from scorer.audit.maintain.person_traces import Traces
from scorer.audit.maintain.retention import retain
from scorer.audit.signed.anchors import AnchorFile, anchor
from scorer.audit.signed.signatures import Signer
from scorer.audit.verify.verification import verify
from scorer.errors import PromiseBroken, UsageError
from scorer.sink import store
from scorer.sink.batch_rows import batch_row
from scorer.trail import audit_database
from tests.integration.audit_batches import CONTEXT, rows
from tests.integration.audit_trail import Trail, in_order, migrated, sql


@pytest.fixture
def trail(database: str) -> Trail:
    """Two shards over four days."""
    trail = Trail(migrated(database))
    for day in range(4):
        for shard in range(2):
            trail.write(shard, (30, 0, 20), day=day, seed=day)
    return trail


def kinds(url: str, **options: object) -> list[tuple[int, int, str]]:
    return [(f.shard, f.sequence, f.kind) for f in verify(url, **options).findings]  # type: ignore[arg-type]


def test_whole_days_leave_and_the_rest_verifies(trail: Trail, tmp_path: Path) -> None:
    """Days before the limit are gone with their partitions; signed tombstones carry the chain on, anchors included."""
    signer, file = Signer.generate(), AnchorFile(str(tmp_path / "anchors.jsonl"))
    anchor(trail.url, file, signer)
    done = retain(trail.url, before=date(2026, 1, 3), signer=signer, anchors=file)
    assert (done.days, done.batches, done.decisions) == ([date(2026, 1, 1), date(2026, 1, 2)], 12, 200)
    report = verify(trail.url, verifier=signer.verifier, anchors=file)
    assert report.findings == []
    assert (report.batches, report.tombstones, report.heads_anchored) == (12, 4, 2)
    trail.write(0, (10,), day=4)
    assert verify(trail.url, verifier=signer.verifier, anchors=file).good
    assert retain(trail.url, before=date(2026, 1, 3), signer=signer, anchors=file).days == []
    # However little is to be kept: the chains go on from their newest batches (shard 1 has none on the last day).
    assert retain(trail.url, before=date(2030, 1, 1), signer=signer).days == [date(2026, 1, 3)]
    assert verify(trail.url, verifier=signer.verifier).good
    with psycopg.connect(trail.url) as connection:
        left = connection.execute("SELECT DISTINCT day FROM decisions ORDER BY 1").fetchall()
    assert left == [(date(2026, 1, 4),), (date(2026, 1, 5),)]


def test_a_tombstone_is_not_laid_over_a_change(trail: Trail) -> None:
    """Days that do not verify are evidence: nothing is removed."""
    sql(trail.url, "UPDATE decisions SET amount_minor = 1 WHERE shard = 1 AND sequence = 3 AND row_number = 2")
    with pytest.raises(PromiseBroken, match="batch 1/3: row_edited"):
        retain(trail.url, before=date(2026, 1, 3), signer=Signer.generate())
    assert kinds(trail.url) == [(1, 3, "row_edited")]
    assert retain(trail.url, before=date(2026, 1, 2), signer=Signer.generate()).days == [date(2026, 1, 1)]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("DELETE FROM tombstones WHERE shard = 1", (1, 0, "day_dropped")),
        ("DELETE FROM tombstones WHERE shard = 1 AND day = '2026-01-01'", (1, 0, "tombstone_forged")),
        (
            "UPDATE tombstones SET document = replace(document, '\"batches\":3', '\"batches\":2')",
            (0, 0, "tombstone_forged"),
        ),
        (
            "INSERT INTO tombstones SELECT shard, '2026-01-03', 6, 8, document FROM tombstones "
            "WHERE day = '2026-01-02'; "
            "DROP TABLE decisions_20260103; DROP TABLE batches_20260103",
            (0, 6, "tombstone_forged"),
        ),
    ],
    ids=["deleted", "one deleted", "edited", "forged"],
)
def test_changed_tombstones_are_found(trail: Trail, change: str, found: tuple[int, int, str]) -> None:
    """A tombstone taken away, edited or made without the key explains nothing."""
    signer = Signer.generate()
    retain(trail.url, before=date(2026, 1, 3), signer=signer)
    assert verify(trail.url, verifier=signer.verifier).good
    sql(trail.url, *change.split("; "))
    assert kinds(trail.url, verifier=signer.verifier)[0] == found
    assert kinds(trail.url, verifier=Signer.generate().verifier)[0] == (0, 0, "tombstone_forged")
    with pytest.raises(UsageError, match="PUBLIC_KEY"):
        verify(trail.url)


def test_anchors_that_lack_a_tombstone_are_found(trail: Trail, tmp_path: Path) -> None:
    """A tombstone names the file it was noted in: without that line the file was cut or replaced."""
    path, signer = tmp_path / "anchors.jsonl", Signer.generate()
    file = AnchorFile(str(path))
    retain(trail.url, before=date(2026, 1, 2), signer=signer, anchors=file)
    assert kinds(trail.url, verifier=signer.verifier, anchors=file) == []
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    assert kinds(trail.url, verifier=signer.verifier, anchors=file) == [(-1, 1, "anchor_forged")]


def test_a_shard_that_ends_where_retention_did_is_found(trail: Trail) -> None:
    """What retention kept is emptied and the position set back to the last tombstone: the newest batch is missed."""
    signer = Signer.generate()
    retain(trail.url, before=date(2026, 1, 3), signer=signer)
    sql(trail.url, "TRUNCATE decisions, batches", "UPDATE positions SET sequence = 5")
    assert kinds(trail.url, verifier=signer.verifier) == [(0, 6, "tail_cut"), (1, 6, "tail_cut")]


def test_a_person_is_erased_and_the_chain_stays_whole(trail: Trail, tmp_path: Path) -> None:
    """No identifier of the person is left anywhere; rows, amounts and decisions stay, everything still verifies."""
    signer, file = Signer.generate(), AnchorFile(str(tmp_path / "anchors.jsonl"))
    with psycopg.connect(trail.url) as connection:
        mine = connection.execute(
            "SELECT payment_id, account_id, amount_minor FROM decisions WHERE customer_id = 'c_1' ORDER BY 3"
        ).fetchall()
        connection.execute(
            "INSERT INTO labels VALUES ('control', 1, %s, true, now(), NULL, 'chargeback', NULL, now())", mine[0][:1]
        )
    anchor(trail.url, file, signer)
    done = erase(trail.url, column="customer_id", value="c_1", signer=signer, anchors=file)
    assert (done.rows, done.labels) == (len(mine), 1)
    with psycopg.connect(trail.url) as connection:
        hidden = connection.execute(
            "SELECT DISTINCT customer_id FROM decisions WHERE customer_id LIKE 'erased-%'"
        ).fetchall()
        assert len(hidden) == 1, "the rows of one person can still be recognised as such"
        amounts = connection.execute(
            "SELECT amount_minor FROM decisions WHERE customer_id = %s ORDER BY 1", hidden[0]
        ).fetchall()
        assert amounts == [row[2:] for row in mine]
        dump = "".join(
            str(connection.execute(f"SELECT {table}::text FROM {table}").fetchall())
            for table in ("decisions", "batches", "labels", "erasures", "set_aside", "control_changes")
        )
        assert not {"c_1", *(row[0] for row in mine)} & {*re.split(r"""[(),"'\\]""", dump)}
    report = verify(trail.url, verifier=signer.verifier, anchors=file)
    assert report.findings == []
    assert report.erased == done.batches > 1
    # A second person, partly in the same batches.
    erase(trail.url, column="account_id", value="a_2", signer=signer)
    assert verify(trail.url, verifier=signer.verifier, anchors=file).good
    assert erase(trail.url, column="customer_id", value="c_1", signer=signer).rows == 0


def test_a_short_identifier_erases_nothing_of_others(trail: Trail) -> None:
    """Customer 17 is erased with all rows of its payments; merchant 17 stays on its list, and records that merely hold
    these characters stay in quarantine."""
    signer, made = Signer.generate(), in_order(rows(71, 3))
    person = replace(made, payment_id=["pay_a", "pay_b", "pay_c"], customer_id=["17", "x", "17"])
    refused = replace(
        made, payment_id=["pay_a", "pay_b", "pay_d"], customer_id=[None, None, "y"], account_id=[None, None, None]
    )
    trail.write_columns(0, [person, refused], day=4)
    (theirs,), _ = trail.chunks(1, replace(made, payment_id=["17a", "17b", "17c"]), day=4)
    (hers,), _ = trail.chunks(1, person, day=4)
    kept = {
        0: (theirs, True),
        1: (hers, False),
        2: (b"no chunk 17", True),
        3: (b'{"type":"list_add","list":"blocked_merchants","value":"17"}', True),
        4: (b'{"type":"list_add","list":"blocked_customers","value":"17"}', False),
        5: (b'{"type":"label","payment_id":"pay_c","fraud":true}', False),
        6: (b'{"type":"label","payment_id":"17","fraud":true}', True),
    }
    with psycopg.connect(trail.url, autocommit=True) as connection:
        for offset, (value, _) in kept.items():
            connection.execute(
                'INSERT INTO set_aside (topic, partition, "offset", kind, reason, value, masked) '
                "VALUES ('audit', 9, %s, 'unreadable', '', %s, false)",
                (offset, value),
            )
        for offset, name in enumerate(("blocked_merchants", "blocked_customers")):
            connection.execute(
                'INSERT INTO control_changes (topic, "offset", type, record, recorded_at) '
                "VALUES ('control', %s, 'list_add', %s, now())",
                (offset, json.dumps({"type": "list_add", "list": name, "value": "17"})),
            )

        def left() -> set[int]:
            return {row[0] for row in connection.execute('SELECT "offset" FROM set_aside WHERE value IS NOT NULL')}

        with pytest.raises(UsageError, match="blocked_customers, blocked_merchants"):
            erase(trail.url, column="customer_id", value="17", signer=signer)
        assert left() == {*kept}, "nothing is changed before the lists are named"
        traces: list[Traces] = []
        done = erase(
            trail.url, column="customer_id", value="17", signer=signer, lists=["blocked_customers"], found=traces.append
        )
        assert [(t.rows, t.more_rows, t.lists, len(t.quarantined)) for t in traces] == [
            (2, 1, {"blocked_customers": 1}, 3)
        ]
        assert (done.rows, done.batches, done.elsewhere, done.unreadable_left) == (3, 2, 4, 1)
        assert left() == {offset for offset, (_, stays) in kept.items() if stays}
        values = dict(connection.execute("SELECT record->>'list', record->>'value' FROM control_changes").fetchall())
        assert values["blocked_merchants"] == "17"
        assert values["blocked_customers"].startswith("erased-")
        ids = connection.execute(
            "SELECT payment_id FROM decisions WHERE shard = 0 AND day = '2026-01-05' ORDER BY sequence, row_number"
        ).fetchall()
        assert [payment_id for (payment_id,) in ids if not payment_id.startswith("erased-")] == ["pay_b"] * 2 + [
            "pay_d"
        ]
        assert ids[0] == ids[3], "the rows of one payment can still be recognised as such"
        assert verify(trail.url, verifier=signer.verifier).good
        with pytest.raises(UsageError):
            erase(trail.url, column="customer_id", value="17", signer=signer)
        again = erase(trail.url, column="customer_id", value="17", signer=signer, lists=(), also_unreadable=True)
        assert (again.rows, again.elsewhere, left()) == (0, 1, {0, 3, 6})


def kept_digests(url: str) -> set[str]:
    """Every digest that the trail keeps for ever, journal records, signed records and `decided` included."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT to_jsonb(b)::text FROM batches b UNION ALL SELECT document FROM erasures")
        return {digest for (text,) in rows for digest in re.findall(r"[0-9a-f]{64}", text)}


@pytest.mark.parametrize("salted", [True, False], ids=["salted", "of an earlier release"])
def test_no_digest_of_one_payment_gives_the_person_back(database: str, *, salted: bool) -> None:
    """Who has all that the trail and the journal keep after an erasure, and tries the right customer of a batch of one
    payment, cannot tell that it is the right one. Without a salt, as batches of earlier releases are, one can."""
    trail, signer = Trail(migrated(database), salted=salted), Signer.generate()
    trail.write(0, (1, 1), seed=3)
    person = replace(trail.made[0, 1], customer_id=["c_42"], account_id=["a_42"])
    trail.write_columns(0, [person])
    with psycopg.connect(database) as connection:
        salt: Any = connection.execute("SELECT salt FROM batches WHERE sequence = 2").fetchone()
    assert digest(person, CONTEXT, salt[0]) in kept_digests(database), "until then it can be verified"
    erase(database, column="customer_id", value="c_42", signer=signer)
    with psycopg.connect(database) as connection:
        new_salt: Any = connection.execute("SELECT salt FROM batches WHERE sequence = 2").fetchone()
    guesses = {digest(person, CONTEXT, known) for known in (None, b"", bytes(32), new_salt[0])}
    assert bool(guesses & kept_digests(database)) is not salted
    assert new_salt != salt
    assert len(new_salt[0]) == 32
    assert verify(database, verifier=signer.verifier).good


def test_an_erased_batch_is_verified_as_before(trail: Trail) -> None:
    """What was decided is compared with the journal after an erasure, too; not even the signer can cover up a change
    of it, and a salt changed, taken away or made up is found."""
    signer = Signer.generate()
    erase(trail.url, column="customer_id", value="c_1", signer=signer)
    for change in (
        "salt = NULL",
        "salt = salt || '\\x00'",
        "salt = decode(repeat('ab', 32), 'hex')",
    ):
        sql(trail.url, "CREATE TABLE kept AS SELECT shard, sequence, salt FROM batches")
        sql(trail.url, f"UPDATE batches SET {change} WHERE sequence = 2")
        found = verify(trail.url, verifier=signer.verifier).findings
        assert {(f.shard, f.sequence) for f in found} == {(0, 2), (1, 2)}, change
        restore = "UPDATE batches b SET salt = k.salt FROM kept k WHERE (b.shard, b.sequence) = (k.shard, k.sequence)"
        sql(trail.url, restore, "DROP TABLE kept")
    assert verify(trail.url, verifier=signer.verifier).good
    sql(trail.url, "UPDATE decisions SET amount_minor = 1 WHERE shard = 1 AND sequence = 2 AND row_number = 5")
    with psycopg.connect(trail.url) as connection:
        _record(connection, (date(2026, 1, 1), 1, 2), signer, None)
    assert kinds(trail.url, verifier=signer.verifier) == [(1, 2, "row_edited")]


def test_a_trail_of_the_release_before_goes_on(database: str) -> None:
    """Batches written before the migration verify with those written after it, before and after an erasure in both."""
    audit_database.migrate(database, "0004")
    old, signer = Trail(database, salted=False), Signer.generate()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "batch_row", without_salt)  # as the sink of that release writes
        patch.setattr(audit_database, "REVISION", "0004")
        old.write(0, (12, 1), seed=1)
    with psycopg.connect(database) as connection:
        connection.execute(
            'INSERT INTO set_aside (topic, partition, "offset", kind, reason, value, value_sha256, masked) VALUES '
            "('audit', 0, 90, 'unreadable', 'r', '*', 'aa', true), "
            "('audit', 0, 91, 'unreadable', 'r', 'v', 'bb', false)"
        )
    migrated(database)
    new = Trail(database, heads=old.heads, made=old.made)
    new.write(0, (12, 1), seed=2)
    assert verify(database, verifier=signer.verifier).findings == []
    assert erase(database, column="customer_id", value="c_1", signer=signer).batches == 2
    assert erase(database, column="account_id", value="a_2", signer=signer).batches == 2
    assert verify(database, verifier=signer.verifier).findings == []
    with psycopg.connect(database) as connection:
        hashes = connection.execute('SELECT value_sha256 FROM set_aside ORDER BY "offset"').fetchall()
        salts = connection.execute("SELECT sequence, salt IS NULL FROM batches ORDER BY 1").fetchall()
    assert hashes == [(None,), ("bb",)], "a hash of a record with masked digits gives them back by trying"
    assert salts == [(0, False), (1, True), (2, False), (3, False)]


def without_salt(*about: Any) -> dict[str, object]:
    return {name: value for name, value in batch_row(*about).items() if name not in ("salt", "refused")}


def test_an_edit_that_poses_as_an_erasure_is_found(trail: Trail) -> None:
    """Without the key a row cannot be changed under an erasure's name, nor after one."""
    signer = Signer.generate()
    erase(trail.url, column="customer_id", value="c_1", signer=signer)
    sql(trail.url, "UPDATE decisions SET customer_id = 'erased-0' WHERE shard = 1 AND sequence = 2 AND row_number = 2")
    assert kinds(trail.url, verifier=signer.verifier) == [(1, 2, "row_edited")]
    other = Signer.generate()
    with psycopg.connect(trail.url) as connection:
        document = connection.execute("SELECT document FROM erasures WHERE shard = 1 AND sequence = 2").fetchone()
        assert document is not None
        body = signer.verifier.open(document[0])
        connection.execute("UPDATE erasures SET document = %s WHERE shard = 1 AND sequence = 2", (other.sign(body),))
    assert kinds(trail.url, verifier=signer.verifier)[0] == (1, 2, "erasure_forged")
    with pytest.raises(UsageError, match="identifier of a person"):
        erase(trail.url, column="merchant_id", value="m", signer=signer)
    with pytest.raises(PromiseBroken, match="evidence"):
        erase(trail.url, column="customer_id", value="c_3", signer=signer)
