"""The check of a shard's first payments: does each field hold what the feature set declares of it?"""

from __future__ import annotations

from typing import Any

from schemas.card_fields import CardFields
from scorer.pipeline import Outcomes
from scorer.pipeline.card_shares import CardShares


class CardWatch:
    """Warns once of each field whose long numbers are not what is declared (scorer.pipeline.card_shares)."""

    def __init__(self, cards: CardFields, log: Any) -> None:
        self._shares, self._log = CardShares(cards), log
        self._warned: set[str] = set()

    def see(self, outcomes: Outcomes) -> None:
        """Look at a batch; after the first few ten thousand payments at none."""
        if not self._shares.add(outcomes.payments, outcomes.rejected):
            return
        for share in self._shares.found():
            if share.field not in self._warned:
                self._warned.add(share.field)
                self._log.warning(
                    "cards.undeclared", field=share.field, rule=share.rule.value, numbers=share.numbers,
                    passed=share.passed, declare=share.advice.value, note=share.sentence(),
                )  # fmt: skip
