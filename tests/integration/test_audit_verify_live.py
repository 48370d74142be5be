"""`audit verify` beside a sink at work: what is written while it reads is no finding."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any

import psycopg
import pytest

from schemas.audit_record import AuditContext
from scorer.audit.maintain.retention import retain
from scorer.audit.signed.signatures import Signer
from scorer.audit.verify import verification
from scorer.audit.verify.scope import Scope
from scorer.audit.verify.verification import verify
from scorer.errors import FraudScorerError
from tests.integration.audit_batches import CONTEXT, rows
from tests.integration.audit_trail import Trail, in_order, migrated, sql

_ROUNDS_LIVE = 12


@pytest.fixture
def trail(database: str) -> Trail:
    """Two shards of a few batches each."""
    trail = Trail(migrated(database))
    for shard in range(2):
        trail.write(shard, (30, 0, 20), day=shard)
    return trail


@contextmanager
def _after_each_statement(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> Iterator[None]:
    """Inside, `act` runs after every statement of a verification, before its next one."""
    lock = threading.Lock()

    class Interrupted(psycopg.Cursor[Any]):
        def execute(self, *arguments: Any, **options: Any) -> Any:
            result = super().execute(*arguments, **options)
            if self.connection.info.transaction_status != psycopg.pq.TransactionStatus.INERROR:
                with lock:
                    act()
            return result

    class Connect:
        Connection = psycopg.Connection
        errors = psycopg.errors

        @staticmethod
        def connect(text: str, **options: Any) -> psycopg.Connection[Any]:
            return psycopg.connect(text, cursor_factory=Interrupted, **options)

    with monkeypatch.context() as patch:
        patch.setattr(verification, "psycopg", Connect)
        yield


@pytest.mark.parametrize("scope", [Scope(), Scope(shard=1), Scope(since={0: 1, 1: 1})], ids=["whole", "shard", "since"])
def test_batches_between_any_two_statements_are_no_finding(
    trail: Trail, monkeypatch: pytest.MonkeyPatch, scope: Scope
) -> None:
    """A sink that commits a batch, a bundle's first or a day's first, after each statement of `verify`."""
    written = 0

    def write() -> None:
        nonlocal written
        written += 1
        shard, day = written % 2, 1 + written // 20
        bundle = f"cards-{written // 3:012x}"
        context = AuditContext(**CONTEXT.model_dump() | {"bundle": bundle})
        columns = in_order(rows(written, 1 + written % 3))
        trail.write_columns(shard, [columns], day=day, context=context)

    with _after_each_statement(monkeypatch, write):
        report = verify(trail.url, scope=scope, parallel=2)
    assert [finding.sentence for finding in report.findings] == []
    assert written > 10
    assert verify(trail.url).good


def test_a_trail_at_work_verifies_again_and_again(trail: Trail) -> None:
    """As with a command by cron beside a busy sink: every run is good, and sees more than the one before."""
    stop, number = threading.Event(), 0

    def write() -> None:
        nonlocal number
        while not stop.is_set():
            number += 1
            trail.write(number % 2, (number % 5,), day=1, seed=number)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        reports = [verify(trail.url, parallel=2) for _ in range(_ROUNDS_LIVE)]
    finally:
        stop.set()
        thread.join()
    assert [finding.sentence for report in reports for finding in report.findings] == []
    assert reports[-1].batches > reports[0].batches


@pytest.mark.parametrize("change", ["position", "tail"])
def test_a_cut_beside_a_sink_at_work_is_still_found(trail: Trail, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """Other shards are written meanwhile, and one has lost its newest batch: that is found as without them."""
    if change == "position":
        sql(trail.url, "UPDATE positions SET sequence = sequence + 1 WHERE shard = 0")
    else:
        sql(
            trail.url,
            "DELETE FROM decisions WHERE shard = 0 AND sequence = 2",
            "DELETE FROM batches WHERE shard = 0 AND sequence = 2",
        )
    with _after_each_statement(monkeypatch, lambda: trail.write(1, (2,), day=1)):
        report = verify(trail.url)
    found = {(finding.shard, finding.sequence, finding.kind) for finding in report.findings}
    assert (0, 3 if change == "position" else 2, "tail_cut") in found


def test_retention_beside_a_verification_is_no_finding(trail: Trail, monkeypatch: pytest.MonkeyPatch) -> None:
    """Days that retention removes while they are verified: the run ends by asking for another, which is good."""
    signer = Signer.generate()
    trail.write(0, (5, 5), day=5)
    trail.write(1, (5, 5), day=5)
    with _after_each_statement(monkeypatch, lambda: None):
        real, calls = verification.check, []

        def check(*arguments: Any) -> Any:
            if not calls:
                calls.append(1)
                retain(trail.url, before=date(2026, 1, 4), signer=signer)
            return real(*arguments)

        monkeypatch.setattr(verification, "check", check)
        with pytest.raises(FraudScorerError, match="verify again") as raised:
            verify(trail.url, verifier=signer.verifier)
        assert raised.value.exit_code == 1
    assert verify(trail.url, verifier=signer.verifier).good
