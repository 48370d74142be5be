"""What tells card numbers from ids that look like them: how many of a field's long numbers pass the Luhn check.

Random numbers pass one time in ten, card numbers (and IMEIs) always. So a field's first few hundred long numbers show
which it holds, and what to declare of it in the feature set (`card_numbers`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from schemas.card_fields import CardFields, CardRule
from schemas.card_numbers import is_card_number
from schemas.contract_error import DeadLetterReason
from schemas.field_kinds import Kind
from schemas.field_table import FIELDS
from schemas.payment_batch import PaymentBatch
from scorer.pipeline.records import Rejected

NUMBERS_MIN: Final = 30  # fewer say nothing: five of ten pass by chance once in 700 fields
PAYMENTS_MAX: Final = 50_000  # a tenth of a second of work
SHARE_OF_CARDS: Final = 0.5  # far from a tenth and from all
_IDENTIFIERS: Final = tuple(field.name for field in FIELDS if field.kind is Kind.IDENTIFIER)
_NUMBER: Final = r"^[0-9][0-9 \-]{11,36}[0-9]$"


class CardShare(NamedTuple):
    """A field that should be declared otherwise: long numbers seen in it, how many passed, and what to declare."""

    field: str
    numbers: int
    passed: int
    rule: CardRule
    advice: CardRule

    def sentence(self) -> str:
        """For people."""
        share = f"{self.passed} of {self.numbers} long numbers in it pass the check of card numbers"
        if self.advice is CardRule.TOKEN:
            way = "Give payments an id of their own" if self.field == "payment_id" else "Declare it as token"
            return f"{self.field} is {self.rule}, and {share}: it holds card numbers (or IMEIs). {way}"
        return (
            f"{self.field} is {self.rule}, and {share}, as one in ten of any numbers does: each of those payments is "
            "refused. Declare it as opaque if it never holds card numbers, else as token"
        )


class CardShares:
    """Counts by field, over payments and refusals. A field that is a token is not looked at: it is replaced."""

    def __init__(self, cards: CardFields) -> None:
        self._cards = cards.with_key(None)  # not needed here, and this may be sent to another process
        self._looked_at = 0
        self._numbers: Counter[str] = Counter()
        self._passed: Counter[str] = Counter()

    def add(self, payments: PaymentBatch, rejected: Sequence[Rejected]) -> bool:
        """Count what was accepted and what was refused for a card number, of the first PAYMENTS_MAX.

        False when those were seen before.
        """
        if self._looked_at >= PAYMENTS_MAX:
            return False
        self._looked_at += len(payments) + len(rejected)
        for name in _IDENTIFIERS:
            if self._cards.rule(name) is CardRule.TOKEN:
                continue
            numbers = _long_numbers(payments.text(name))
            self._numbers[name] += len(numbers)
            self._passed[name] += sum(map(is_card_number, numbers))
        for item in rejected:
            if item.error.reason is DeadLetterReason.CARD_NUMBER and item.error.field is not None:
                self._numbers[item.error.field] += 1
                self._passed[item.error.field] += 1
        return True

    def found(self) -> Iterator[CardShare]:
        """The fields whose declaration does not fit what is in them."""
        for name, numbers in self._numbers.items():
            passed, rule = self._passed[name], self._cards.rule(name)
            if numbers < NUMBERS_MIN or not passed:
                continue
            if passed / numbers >= SHARE_OF_CARDS:
                yield CardShare(name, numbers, passed, rule, CardRule.TOKEN)
            elif rule is CardRule.REFUSE:
                yield CardShare(name, numbers, passed, rule, CardRule.OPAQUE)


def _long_numbers(texts: pa.StringArray) -> list[str]:
    return texts.filter(pc.fill_null(pc.match_substring_regex(texts, _NUMBER), False)).to_pylist()  # type: ignore[no-any-return]
