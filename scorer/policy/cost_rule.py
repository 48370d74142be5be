"""Flagging by money: a payment is flagged when that saves more, in expectation, than it costs.

With the probability of fraud p (the calibrated score), the amount A, the share of it that an unseen fraud loses L, the
cost of a review R and of stopping a good customer G, all in major units of the feature set's currency:

    expected saving = p x A x L - R - (1 - p) x G        flagged when it is above `saving_min`

computed as p x (A x L + G) - (R + G). (The example-dependent cost matrix of Bahnsen, Aouada, Ottersten: Example-
dependent cost-sensitive decision trees, 2015, with the good customer's cost beside the review's.) `saving_min` is 0, or
what training found so that no more payments a day are flagged by it than the team can review; what rules and lists flag
is not counted.

float64, one ufunc each, of a score and an integer amount that are bit-equal on every machine: so is the decision.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.currency_conversion import CurrencyConversion
from features.feature_set import FeatureSet
from schemas.currencies import CURRENCY_EXPONENT
from schemas.payment_batch import PaymentBatch
from scorer.policy.policy_document import FlagCost, PolicyError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CostRule:
    """The costs of a policy, bound to the currency of a feature set."""

    cost: FlagCost
    saving_min: float
    """Major units; a payment is flagged when its expected saving is above this."""
    conversion: CurrencyConversion
    minor_per_major: float

    @classmethod
    def of(cls, cost: FlagCost, saving_min: float, feature_set: FeatureSet) -> CostRule:
        """Raises PolicyError where the costs are in another currency than the feature set's."""
        if cost.currency != feature_set.currency:
            raise PolicyError(
                f"flag.cost.currency is {cost.currency}, the feature set {feature_set.name} counts in "
                f"{feature_set.currency}: give the costs in {feature_set.currency}"
            )
        exponent = CURRENCY_EXPONENT[feature_set.currency]
        return cls(cost, saving_min, CurrencyConversion(feature_set), 10.0**exponent)

    def amounts(self, batch: PaymentBatch) -> Floats:
        """float64 [n]: amounts in major units of the feature set's currency, converted as the features are."""
        minor, _ = self.conversion.convert(batch)  # what can't be converted was refused at the door
        return np.asarray(minor / self.minor_per_major)

    def flags(self, scores: Floats, amounts: Floats) -> Bools:
        """bool [n]: which payments are flagged. scores float64 [n] in [0, 1], amounts float64 [n], major units."""
        return np.asarray(expected_saving(self.cost, scores, amounts) > self.saving_min)


def expected_saving(cost: FlagCost, scores: Floats, amounts: Floats) -> Floats:
    """float64 [n], major units: what flagging each payment saves in expectation, below 0 where it costs."""
    gain = amounts * cost.loss_share
    gain = gain + cost.good_customer
    return np.asarray(scores * gain - (cost.review + cost.good_customer))


def money_saved(cost: FlagCost, fraud: Bools, flagged: Bools, amounts: Floats) -> Floats:
    """float64 [n], major units: what each decision saved against flagging nothing, now that fraud bool [n] is known."""
    of_fraud = amounts * cost.loss_share - cost.review
    return np.where(flagged, np.where(fraud, of_fraud, -(cost.review + cost.good_customer)), 0.0)


def saving_min_for(cost: FlagCost, savings: Floats, days: float) -> float:
    """The smallest `saving_min` from 0 on that flags at most `reviews_a_day` of the payments a day, on average over
    `days`. savings float64 [n]: their expected savings."""
    return 0.0 if cost.reviews_a_day is None else saving_min_of_most(savings, int(cost.reviews_a_day * days))


def saving_min_of_most(savings: Floats, allowed: int) -> float:
    """The smallest `saving_min` from 0 on that flags at most `allowed` of the payments with expected savings float64
    [n]."""
    worth = savings[savings > 0.0]
    if len(worth) <= allowed:
        return 0.0
    # Above the first that is one too many: payments of equal saving are flagged together or not at all.
    return float(np.partition(worth, len(worth) - allowed - 1)[len(worth) - allowed - 1])


def score_of_as_many(scores: Floats, flagged: int) -> float:
    """The score from which as many payments are flagged by score alone: the `flagged`th highest of float64 [n]."""
    return float(np.partition(scores, len(scores) - flagged)[len(scores) - flagged])
