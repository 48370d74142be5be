"""The counts of a replay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from features.window_engine import EngineCounts
from schemas.card_fields import CardFields
from schemas.contract_error import ContractError
from schemas.payment_batch import PaymentBatch
from scorer.files.refusals import Refusals
from scorer.pipeline import Outcomes
from scorer.pipeline.card_shares import CardShares
from scorer.pipeline.records import Rejected

Progress = Callable[[int], None]
"""Called after each batch with the number of payments so far."""


@dataclass
class Report:
    """The counts of one run."""

    payments: int = 0
    decisions: int = 0
    dead_letters: int = 0
    duplicates: int = 0
    late: int = 0
    flagged: int = 0
    # Refused records that name their payment, and are answered; among decisions and among dead letters.
    refused: int = 0
    batches_checked: int = 0
    # Labels that the engine had no space for: label features are too low from then on.
    labels_refused: int = 0
    # Labels dropped for newer ones before their payment came.
    labels_unmatched: int = 0
    # Label records that the contract refuses, such as one whose payment id is a card number.
    labels_invalid: int = 0
    reasons_refused: dict[str, int] = field(default_factory=dict)
    card_shares: CardShares | None = field(default=None, compare=False, repr=False)
    # Of a file: which rows were refused.
    refusals: Refusals = field(default_factory=Refusals)

    def counts(self) -> dict[str, Any]:
        """All counts by name."""
        found = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "card_shares"}
        return found | {"refusals": self.refusals.described()}

    def refuse(self, error: ContractError, row: int | None = None) -> None:
        """Count a record that was refused; of a file with its row."""
        reason = error.reason.value
        self.dead_letters += 1
        self.reasons_refused[reason] = self.reasons_refused.get(reason, 0) + 1
        if row is not None:
            self.refusals.add(row, error)

    def count_labels(self, counts: EngineCounts) -> None:
        """Take the label counts of the whole run from the engine."""
        self.labels_refused, self.labels_unmatched = counts.labels_refused, counts.unmatched_labels_dropped

    def look_for_cards(self, cards: CardFields, payments: PaymentBatch, rejected: Sequence[Rejected]) -> None:
        """Count what looks like card numbers, to say what should be declared."""
        self.card_shares = self.card_shares or CardShares(cards)
        self.card_shares.add(payments, rejected)

    def add(self, outcomes: Outcomes, rows: npt.NDArray[np.int64] | None = None) -> None:
        """Count a batch; of a file with the place of each record in it."""
        self.look_for_cards(outcomes.cards, outcomes.payments, outcomes.rejected)
        self.payments += len(outcomes.records)
        self.decisions += len(outcomes.rows)
        self.duplicates += outcomes.duplicates
        self.late += outcomes.late
        self.refused += outcomes.refused
        self.flagged += int(outcomes.columns.decision.sum())
        self.labels_invalid += len(outcomes.rejected_control) + len(outcomes.rejected_labels)
        for item in outcomes.rejected:
            self.refuse(item.error, None if rows is None else int(rows[item.index]))
