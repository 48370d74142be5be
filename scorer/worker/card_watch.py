"""The check of a shard's first payments: does each field hold what the feature set declares of it?"""

from __future__ import annotations

from typing import Any, Final

from schemas.card_fields import CardFields
from scorer.pipeline import Outcomes
from scorer.pipeline.card_shares import CardShares
from scorer.runtime.threads import Threads

# To look at a batch takes a millisecond, as long as to decide a small one: of those, one in a while is enough.
SMALL: Final = 1_000
EVERY_S: Final = 0.1


class CardWatch:
    """Warns once of each field whose long numbers are not what is declared (scorer.pipeline.card_shares)."""

    def __init__(self, cards: CardFields, threads: Threads, log: Any) -> None:
        self._shares, self._threads, self._log = CardShares(cards), threads, log
        self._warned: set[str] = set()
        self._seen_at = float("-inf")

    def see(self, outcomes: Outcomes) -> None:
        """Look at a batch; after the first few ten thousand payments at none, and of small ones at some, whatever they
        hold: with more of the refused ones than of others, the shares would be wrong."""
        now = self._threads.monotonic()
        if len(outcomes.payments) + len(outcomes.rejected) < SMALL and now - self._seen_at < EVERY_S:
            return
        self._seen_at = now
        if not self._shares.add(outcomes.payments, outcomes.rejected):
            return
        for share in self._shares.found():
            if share.field not in self._warned:
                self._warned.add(share.field)
                self._log.warning(
                    "cards.undeclared", field=share.field, rule=share.rule.value, numbers=share.numbers,
                    passed=share.passed, declare=share.advice.value, note=share.sentence(),
                )  # fmt: skip
