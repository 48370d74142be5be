"""Refused records that name their payment are answered, and never against what was decided of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.audit_record import AuditHeader, decode_parts, digest_chunks, encode
from schemas.card_numbers import is_iban
from schemas.decision import DECISIONS, MODES
from schemas.decision_bytes import encode_decisions
from schemas.journal_record import ControlRange, InputRange, JournalRecord
from schemas.pseudonym import PseudonymKeys, is_pseudonym, pseudonym
from scorer.bundle import Bundle
from scorer.errors import UsageError
from scorer.pipeline import Outcomes, Pipeline
from scorer.pipeline.records import Batch, Records
from scorer.pipeline.state_image import ShardCapture, facts, restored
from tests.faults.payments import POLICY, START_MS, TOKENS, make_bundle

CARD = "4111111111111111"
IBAN = "FI2341446962913702"
KEY, OTHER = bytes(range(32)), bytes(32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(make_bundle(tmp_path_factory.mktemp("refused") / "plain"))


def payment(payment_id: str, minute: int = 0, **fields: Any) -> bytes:
    known = {
        "payment_id": payment_id, "event_time": START_MS + 60_000 * minute, "amount_minor": 1_000 + minute,
        "currency": "EUR", "customer_id": "c1", "terminal_id": "t1",
    }  # fmt: skip
    return json.dumps(known | fields).encode()


def decide(
    pipeline: Pipeline, values: Sequence[bytes | None], *, start: int = 0, keys: Sequence[bytes] = (), **options: Any
) -> Outcomes:
    n = len(values)
    records = Records(
        partition=np.zeros(n, np.int32),
        offset=np.arange(start, start + n, dtype=np.int64),
        timestamp_ms=np.full(n, START_MS + 600_000, np.int64),
        keys=keys or [b"c1"] * n,
        values=values,
    )
    ranges = (InputRange(partition=0, start=start, end=start + n),)
    return pipeline.run(Batch(records, ranges, [], ControlRange(start=0, end=0), **options))


def answers(outcomes: Outcomes) -> list[tuple[int, str, str, str, tuple[str, ...]]]:
    """(Offset, payment, decision, mode, reasons) of each row."""
    c = outcomes.columns
    columns = (c.offset.tolist(), list(map(str, c.payment_id)), c.decision.tolist(), c.mode.tolist(), c.reasons)
    return [(o, p, DECISIONS[d], MODES[m], tuple(r)) for o, p, d, m, r in zip(*columns, strict=True)]


ANSWERED = {
    "MISSING_FIELD": b'{"payment_id": "p"}',
    "UNKNOWN_CURRENCY": payment("p", currency="EUX"),
    "AMOUNT_NEGATIVE": payment("p", amount_minor=-1),
    "AMOUNT_OVERFLOW": payment("p", amount_minor=10**12),
    "AMOUNT_MINOR_UNITS": payment("p", amount_minor=1.5),
    "WRONG_TYPE": payment("p", merchant_id=7),
    "INVALID_VALUE": payment("p", country="Germany"),
    "UNKNOWN_FIELD": payment("p", surprise="123"),
    "CARD_VERIFICATION": payment("p", cvv="123"),
    "CARD_NUMBER": payment("p", customer_id=CARD),
    "EVENT_TIME_INVALID": payment("p", event_time="yesterday"),
    "EVENT_TIME_OUT_OF_RANGE": payment("p", event_time=1),
    "EVENT_TIME_IN_FUTURE": payment("p", 10**6),
    "NO_EXCHANGE_RATE": payment("p", currency="USD"),
    "NOT_FINITE": payment("p", latitude=1).replace(b'"latitude": 1', b'"latitude": NaN'),
    "DUPLICATE_KEY": payment("p")[:-1] + b', "currency": "EUR"}',
}
UNANSWERED = {
    "null_value": None,
    "empty_value": b"",
    "not_json": b"no json",
    "not_an_object": b"[1]",
    "not_utf8": b'{"payment_id": "\xff"}',
    "duplicate_key": b'{"payment_id": "p", "payment_id": "q"}',
    "missing_field": payment("p").replace(b"payment_id", b"payment"),
    "wrong_type": b'{"payment_id": 7}',
    "invalid_value": b'{"payment_id": "a\\u0000b"}',
    "too_large": payment("p", attributes={"a": "x" * 70_000}),
}


def test_every_refusal_that_names_its_payment_is_answered(bundle: Bundle) -> None:
    """Whatever is wrong with it: the policy's default, the refusal as reason, and a dead letter; and what names none is
    a dead letter alone. In = answered + unanswerable."""
    pipeline = Pipeline(bundle)
    values = [value.replace(b'"p"', b'"p%d"' % i) for i, value in enumerate(ANSWERED.values())]
    outcomes = decide(pipeline, [*values, *UNANSWERED.values()])
    assert answers(outcomes) == [
        (i, f"p{i}", "flag", "refused", (f"REFUSED_{reason}",)) for i, reason in enumerate(ANSWERED)
    ]
    assert len(outcomes.rejected) == len(values) + len(UNANSWERED)
    assert {item.error.reason.value for item in outcomes.rejected if item.payment_id is None} <= {
        *UNANSWERED, "unknown_field",
    }  # fmt: skip
    journal = outcomes.journal
    assert (journal.decisions, journal.dead_letters, journal.refused) == (16, 26, 16)
    assert len(outcomes.records) == journal.decisions + journal.dead_letters - journal.refused
    assert pipeline.engine.stream_time_ms is None  # it entered nothing
    assert len(pipeline.dedupe) == 0
    assert outcomes.columns.event_time_ms.tolist() == [START_MS + 600_000] * 16
    sentences = [bundle.policy.sentence(code) for (code,) in outcomes.columns.reasons]
    assert all(sentence.endswith(".") for sentence in sentences)
    c = outcomes.columns
    ids = c.record_batch.column("payment_id").to_pylist()
    bodies = encode_decisions(ids, c.decision, c.score, c.margin, c.reasons, c.mode, outcomes.bundles)
    assert json.loads(bodies[0])["mode"] == "refused"


def test_the_policy_says_which_default(tmp_path: Path) -> None:
    """`refused: {otherwise: approve}` approves what cannot be read."""
    lenient = Bundle.load(make_bundle(tmp_path / "b", policy=POLICY + "refused: {otherwise: approve}\n"))
    (answer,) = answers(decide(Pipeline(lenient), [ANSWERED["MISSING_FIELD"]]))
    assert answer[2:4] == ("approve", "refused")


def test_a_right_record_after_a_refused_one_is_decided(bundle: Bundle) -> None:
    """The refusal is no decision on the payment: corrected and sent again, it is decided as any other."""
    for together in (True, False):
        pipeline, values = Pipeline(bundle), [ANSWERED["UNKNOWN_CURRENCY"], payment("p")]
        parts = [values] if together else [[value] for value in values]
        found = [row for n, part in enumerate(parts) for row in answers(decide(pipeline, part, start=n))]
        assert [row[3] for row in found] == ["refused", "normal"]


def test_a_refused_record_never_contradicts_a_decision(bundle: Bundle) -> None:
    """Once decided, a payment keeps its decision: a broken record of the same id gets that very decision again."""
    for together in (True, False):
        pipeline = Pipeline(bundle)
        values = [payment("p", amount_minor=100), ANSWERED["UNKNOWN_CURRENCY"], payment("p", amount_minor=100)]
        parts = [values] if together else [[value] for value in values]
        outcomes = [decide(pipeline, part, start=n) for n, part in enumerate(parts)]
        found = [row for one in outcomes for row in answers(one)]
        assert [row[3] for row in found] == ["normal", "duplicate", "duplicate"]
        assert len({row[2] for row in found}) == 1
        assert found[1][2] == "approve"
        assert sum(one.duplicates for one in outcomes) == 2
        assert sum(one.conflicts for one in outcomes) == 1
        assert sum(one.journal.refused or 0 for one in outcomes) == 1


pieces = st.sampled_from(
    [payment(f"p{i}", 3 * i, amount_minor=amount) for i in range(4) for amount in (100, 49_000)]
    + [payment(f"p{i}", currency="EUX") for i in range(4)]
    + [b"garbage", b'{"payment_id": "p1"}']
)


@settings(max_examples=60, deadline=None)
@given(st.lists(pieces, min_size=1, max_size=12), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_borders_of_batches_change_no_answer(bundle: Bundle, values: list[bytes], sizes: list[int]) -> None:
    """However a stream is cut, each record has the same answer; an id has one decision besides refusals before it."""
    whole = decide(Pipeline(bundle), values)
    pipeline, found, at = Pipeline(bundle), [], 0
    while at < len(values):
        size = sizes[at % len(sizes)]
        found += answers(decide(pipeline, values[at : at + size], start=at))
        at += size
    assert found == answers(whole)
    assert [row[0] for row in found] == sorted(row[0] for row in found)
    decided: dict[str, str] = {}
    for _, payment_id, decision, mode, _ in found:
        if mode == "refused":
            assert payment_id not in decided
        else:
            assert decided.setdefault(payment_id, decision) == decision


def test_records_of_earlier_releases_are_decided_as_they_were(bundle: Bundle) -> None:
    """A journal without the count of refusals answered none: run again, it gives the very same bytes."""
    values = [payment("a"), ANSWERED["UNKNOWN_CURRENCY"], payment("b", 1)]
    before = decide(Pipeline(bundle), values, answer_refused=False)
    assert [row[1] for row in answers(before)] == ["a", "b"]
    assert b"refused" not in before.journal.to_bytes()
    assert JournalRecord.from_bytes(before.journal.to_bytes()).refused is None
    now = decide(Pipeline(bundle), values)
    assert JournalRecord.from_bytes(now.journal.to_bytes()).refused == 1
    assert now.journal.head != before.journal.head


def test_ids_that_look_like_card_numbers_stay_refused_where_an_earlier_release_refused_them(bundle: Bundle) -> None:
    """Terminals, merchants, devices and payments by number are decided now; a journal from before says otherwise."""
    values = [payment(CARD), payment("a", 1, terminal_id=CARD), payment("b", 2)]
    before = decide(Pipeline(bundle), values, answer_refused=False)
    assert [item.index for item in before.rejected] == [0, 1]
    assert len(decide(Pipeline(bundle), values).rejected) == 0


def test_account_numbers_stay_refused_where_an_earlier_release_refused_them(bundle: Bundle) -> None:
    """An IBAN in which the digits of a card number stand is one now, in a field, an attribute and the key; a journal
    from before has it as refused."""
    assert is_iban(IBAN)
    values = [payment("a", account_id=IBAN), payment("b", 1, attributes={"to": IBAN}), payment("c", 2), payment("d", 3)]
    keys = [b"c1", b"c1", IBAN.encode(), b"c1"]
    before = decide(Pipeline(bundle), values, keys=keys, answer_refused=False)
    assert [item.index for item in before.rejected] == [0, 1, 2]
    assert len(decide(Pipeline(bundle), values, keys=keys).rejected) == 0


def test_the_audit_record_holds_the_refusals(bundle: Bundle) -> None:
    """They are rows as all others: encoded, read back, with the journal's digest."""
    outcomes = decide(Pipeline(bundle), [payment("a"), ANSWERED["UNKNOWN_CURRENCY"], payment("b", 1)])
    header = AuditHeader(**dict(outcomes.context), shard=0, sequence=0, journal=outcomes.journal.to_bytes().decode())
    chunks = [decode_parts(value) for value in encode(outcomes.columns, header)]
    assert digest_chunks(chunks) == outcomes.journal.digest
    assert outcomes.text("terminal_id").to_pylist() == ["t1", None, "t1"]
    assert outcomes.keys() == [b"c1"] * 3


def test_a_snapshot_remembers_what_a_refusal_must_not_contradict(bundle: Bundle) -> None:
    """Taken up from an image, the next broken record of a decided id gets its decision."""
    pipeline = Pipeline(bundle)
    decide(pipeline, [payment("p", amount_minor=100)])
    capture = ShardCapture(pipeline)
    capture.copy()
    again = restored(bundle, facts(pipeline), capture.finish() or {})
    for one in (pipeline, again):
        (answer,) = answers(decide(one, [ANSWERED["MISSING_FIELD"]], start=1))
        assert answer[2:4] == ("approve", "duplicate")


def test_a_refused_key_is_in_no_answer(bundle: Bundle) -> None:
    """A record keyed by a card number is answered without a key; under another reason a number in the key is masked."""
    outcomes = decide(
        Pipeline(bundle), [payment("a"), ANSWERED["UNKNOWN_CURRENCY"], payment("b")],
        keys=[CARD.encode(), b"x" + CARD.encode(), b"k" * 5_000],
    )  # fmt: skip
    assert [row[3:] for row in answers(outcomes)] == [
        ("refused", ("REFUSED_CARD_NUMBER",)),
        ("refused", ("REFUSED_CARD_NUMBER",)),
        ("refused", ("REFUSED_KEY_TOO_LARGE",)),
    ]
    assert outcomes.keys() == [None, None, None]
    (key,) = decide(Pipeline(bundle), [payment("a", customer_id=CARD)], keys=[b"k 12"]).keys()
    assert key == b"k **"


@pytest.fixture(scope="module")
def of_tokens(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(make_bundle(tmp_path_factory.mktemp("tokens") / "b", features=TOKENS))


def test_a_card_number_in_a_token_field_is_decided_and_goes_nowhere(of_tokens: Bundle) -> None:
    """Its windows count all its payments, however it is written; no output of the pipeline holds it."""
    written = [CARD, "4111 1111 1111 1111", "4111-1111-1111-1111", pseudonym(KEY, CARD)]
    values = [payment(f"p{i}", i, card_token=text, attributes={"pan": int(CARD)}) for i, text in enumerate(written)]
    values.append(payment("p9", 9, card_token=CARD, currency="EUX"))
    pipeline = Pipeline(of_tokens, keys=PseudonymKeys((KEY,)))
    outcomes = decide(pipeline, values, keys=[CARD.encode()] * 5)
    assert [row[3] for row in answers(outcomes)] == ["normal"] * 4 + ["refused"]
    count = of_tokens.feature_set.names.index("customer_count_1h")
    assert outcomes.columns.features[:4, count].tolist() == [0, 1, 2, 3]
    shown = pseudonym(KEY, CARD)
    assert outcomes.keys() == [shown.encode()] * 5
    assert outcomes.text("card_token").to_pylist() == [shown] * 4 + [None]
    assert all(is_pseudonym(row.attributes["pan"]) for row in outcomes.payments.rows)
    for seen in (outcomes.columns, outcomes.payments.rows, outcomes.journal, outcomes.context, outcomes.rejected):
        assert "4111" not in repr(seen)
    assert KEY.hex() not in repr(outcomes.cards)


def test_keys_are_rotated_without_a_break(of_tokens: Bundle) -> None:
    """A new key stands first, the old one behind it: what was read with the old one gives the same again, what comes
    now has the new one; without the old one that is an error, not another decision."""
    values = [payment("p0", card_token=CARD), payment("p1", 1, card_token=CARD)]
    live = Pipeline(of_tokens, keys=PseudonymKeys((KEY,)))
    before = decide(live, values)
    again = Pipeline(of_tokens, keys=PseudonymKeys((OTHER, KEY)))
    same = decide(again, values, pseudonym_key=before.journal.pseudonym_key)
    assert same.journal.head == before.journal.head
    after = decide(again, [payment("p2", 2, card_token=CARD)], start=2)
    assert after.text("card_token").to_pylist() == [pseudonym(OTHER, CARD)]
    assert after.journal.pseudonym_key != before.journal.pseudonym_key
    without = Pipeline(of_tokens, keys=PseudonymKeys((OTHER,)))
    with pytest.raises(UsageError, match="read with the pseudonym key"):
        decide(without, values, pseudonym_key=before.journal.pseudonym_key)
    with pytest.raises(UsageError, match="CARDS__KEYS_FILE"):
        Pipeline(of_tokens)
