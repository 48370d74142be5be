"""Payments that levers are tried on: those of known label measure a model, all of them show how much it flags."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scorer.bundle import Bundle
from scorer.policy import CostRule, expected_saving, score_of_as_many
from scorer.training import threshold_for_share

UNLABELLED_MAX = 0.1  # from this share on a note counts payments without a known label


@dataclass(frozen=True, eq=False)
class Payments:
    """All payments of a time, in its order: a share to flag is of all that is decided, and mostly those that were
    flagged get a label.

    X float32 [m, k]; `measuring` bool [m]: the n of them that measure, which are those of known label; amounts
    float64 [m], major units of the feature set's currency, or None where they are not known.
    """

    X: np.ndarray
    measuring: np.ndarray
    amounts: np.ndarray | None = None

    @classmethod
    def all_of(cls, X: np.ndarray, amounts: np.ndarray | None = None) -> Payments:
        """All of the rows measure."""
        return cls(X, np.ones(len(X), np.bool_), amounts)

    def halves(self, first: int) -> tuple[Payments, Payments]:
        """Those before the payment that is number `first` of the measuring ones, and those from it on."""
        border = int(np.flatnonzero(self.measuring)[first])
        return self._part(slice(border)), self._part(slice(border, None))

    def _part(self, part: slice) -> Payments:
        amounts = None if self.amounts is None else self.amounts[part]
        return Payments(np.ascontiguousarray(self.X[part]), self.measuring[part], amounts)

    @property
    def unlabelled(self) -> int:
        """How many have no known label."""
        return int((~self.measuring).sum())

    def note(self) -> str | None:
        """Where many have no known label: which figures are of whom."""
        if self.unlabelled < UNLABELLED_MAX * len(self.X):
            return None
        return (
            f"{self.unlabelled:,} of {len(self.X):,} payments have no known label: what is flagged and what changes is "
            "of all of them, average precision of the others"
        )


@dataclass(frozen=True, eq=False)
class Decided:
    """How a model decides payments by a bundle's policy: margins float32 [m], scores float64 [m], the score from which
    it flags (by cost: that of as many), and flags bool [m]."""

    margins: np.ndarray
    scores: np.ndarray
    threshold_score: float
    flags: np.ndarray
    rank: np.ndarray
    """float64 [m]: what is flagged first has the highest, by cost the expected saving."""

    @classmethod
    def of(
        cls, bundle: Bundle, payments: Payments, margins: np.ndarray, scores: np.ndarray, least: tuple[float, float]
    ) -> Decided:
        """`least`: the score, and the margin of it, from which payments are flagged where the policy does not flag by
        cost, or the amounts are not known."""
        score, margin = least
        rule = rule_of(bundle, payments)
        if rule is None or payments.amounts is None:
            return cls(margins, scores, score, margins >= np.float32(margin), margins.astype(np.float64))
        savings = expected_saving(rule.cost, scores, payments.amounts)
        return cls(margins, scores, score, rule.flags(scores, payments.amounts), savings)

    @classmethod
    def by_bundle(cls, bundle: Bundle, payments: Payments) -> Decided:
        """The bundle's own model."""
        margins = bundle.model.margins(payments.X)
        least = bundle.manifest.threshold_score, float(bundle.threshold_margin)
        return cls.of(bundle, payments, margins, bundle.scores(margins), least)


def rule_of(bundle: Bundle, payments: Payments) -> CostRule | None:
    """The bundle's rule by cost, where its policy has one and the amounts are known."""
    cost, least = bundle.policy.flag.cost, bundle.manifest.saving_min
    if cost is None or least is None or payments.amounts is None:
        return None
    return CostRule.of(cost, least, bundle.feature_set)


def threshold_of(bundle: Bundle, payments: Payments, scores: np.ndarray) -> float:
    """The score from which the policy flags by scores float64 [m] of the payments. By cost the rule itself stays as it
    is, for scores are probabilities: the threshold is that of as many payments as it flags, or, where no amounts are
    known, as the bundle's own flags here."""
    flag = bundle.policy.flag
    if flag.score is not None:
        return flag.score
    if flag.cost is not None:
        rule = rule_of(bundle, payments)
        if rule is not None and payments.amounts is not None:
            flagged = int(rule.flags(scores, payments.amounts).sum())
        else:
            flagged = int((bundle.model.margins(payments.X) >= bundle.threshold_margin).sum())
        return score_of_as_many(scores, max(1, flagged))
    return threshold_for_share(scores, float(flag.share or 0))
