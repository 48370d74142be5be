"""The policy document: what decides besides the score, as data.

Precedence, first that applies: a list or rule that flags; a list or rule that approves; the score threshold, which a
segment may have of its own. Lists and rules give their own reason; a payment flagged by its score gets the reason
groups that pushed the margin up most.

    name: cards
    flag: {share: 0.01}                # or {score: 0.9}, or {cost: {currency: EUR, review: 4, good_customer: 15}}
    segments:                          # `fraud-scorer segments` shows which the data support
      - {name: online, field: channel, values: [ecom], score: 0.7}
    rules:
      - {name: card_testing, when: [{feature: card_count_10m, at_least: 8}], then: flag, reason: VELOCITY}
    lists:
      - {name: blocked_terminals, field: terminal_id, then: flag, reason: BLOCKED_TERMINAL}
    reasons:
      - {code: UNUSUAL_AMOUNT, sentence: "The amount is unusual for this customer.", features: [amount, amount_to_mean]}
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from features.feature_set import Name
from features.filters import KEY_FIELDS
from features.yaml_model import read_yaml_model
from schemas.contract_error import DeadLetterReason
from scorer.errors import UsageError

# Reason of a flagged score when no reason group raised the margin.
SCORE_REASON = "MODEL_SCORE"
LATE_REASON = "LATE"
# Reason of a payment that was flagged without the model because of a deadline: by the policy; with SCORE_REASON before
# it, by the bundle's student.
DEGRADED_REASON = "DEGRADED"

# Before the reason of a dead letter, in capitals: of an answer in mode refused.
REFUSED_PREFIX = "REFUSED_"

Code = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,47}$")]


class PolicyError(UsageError):
    """The policy says something impossible; the message names the line and the way out."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FlagCost(_Strict):
    """What flagging costs and saves, in major units of `currency`, which is the feature set's: scorer.policy.cost_rule.

    review: the cost of looking at a flagged payment · good_customer: of stopping a genuine one, beside the review ·
    loss_share: the part of the amount that is lost with a fraud that nothing stops · reviews_a_day: payments that
    the team can look at; those flagged by cost, what rules and lists flag comes on top
    """

    currency: str = Field(pattern=r"^[A-Z]{3}$")
    review: float = Field(ge=0, le=1e9, allow_inf_nan=False)
    good_customer: float = Field(ge=0, le=1e9, allow_inf_nan=False)
    loss_share: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    reviews_a_day: int | None = Field(None, ge=1, le=100_000_000)

    @model_validator(mode="after")
    def _some(self) -> FlagCost:
        if self.review == 0 and self.good_customer == 0 and self.reviews_a_day is None:
            raise ValueError(
                "review and good_customer are both 0: flagging every payment would cost nothing; give a cost, or "
                "reviews_a_day"
            )
        return self


class FlagBy(_Strict):
    """What flags a payment when no list or rule decides: a probability, a share of the payments, or money."""

    score: float | None = Field(None, gt=0, lt=1)
    share: float | None = Field(None, gt=0, lt=1)
    cost: FlagCost | None = None

    @model_validator(mode="after")
    def _one(self) -> FlagBy:
        if sum(value is not None for value in (self.score, self.share, self.cost)) != 1:
            raise ValueError(
                "give one of score (a probability), share (of payments to flag) and cost (of a review and of a good "
                "customer stopped)"
            )
        return self


class FeatureCondition(_Strict):
    """A comparison of one feature; NaN satisfies none."""

    feature: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    equals: float | None = None

    @model_validator(mode="after")
    def _some(self) -> FeatureCondition:
        if not (self.model_fields_set - {"feature"}):
            raise ValueError(f"a condition on {self.feature} needs at_least, above, at_most, below or equals")
        return self

    def holds(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Which of `values` satisfy all bounds given; compared as float64, so that 0.1 in YAML is one number."""
        exact = values.astype(np.float64)
        bounds = (
            (self.at_least, np.greater_equal),
            (self.above, np.greater),
            (self.at_most, np.less_equal),
            (self.below, np.less),
            (self.equals, np.equal),
        )
        parts = [compare(exact, bound) for bound, compare in bounds if bound is not None]  # NaN satisfies none
        return reduce(np.logical_and, parts or [~np.isnan(exact)])


class Rule(_Strict):
    """All conditions must hold."""

    name: Name
    when: list[FeatureCondition] = Field(min_length=1, max_length=16)
    then: Literal["flag", "approve"] = "flag"
    reason: Code


class ListRule(_Strict):
    """Decides by membership of a payment's field in a list, which control records change while the worker runs."""

    name: Name
    field: str
    then: Literal["flag", "approve"] = "flag"
    reason: Code
    values: list[str] = Field(default_factory=list, max_length=1_000_000)


class Segment(_Strict):
    """Payments that the score flags from a threshold of their own on: those with one of `values` in `field`. Of several
    that apply the first counts."""

    name: Name
    field: Literal["channel", "country", "mcc", "currency"]
    values: list[str] = Field(min_length=1, max_length=1_000)
    score: float = Field(gt=0, lt=1)


class ReasonGroup(_Strict):
    """Features that share one reason code and sentence."""

    code: Code
    sentence: str = Field(min_length=1, max_length=200)
    features: list[str] = Field(min_length=1)


class Degraded(_Strict):
    """What decides a payment whose deadline leaves no time for the model: lists and rules, then the bundle's student;
    without one `otherwise`.
    """

    otherwise: Literal["approve", "flag"] = "approve"


class Refused(_Strict):
    """What answers a record that is no payment but names one (mode refused)."""

    otherwise: Literal["approve", "flag"] = "flag"


class Policy(_Strict):
    """The whole policy. It names features; `check` compares those with a feature set's."""

    name: Name
    flag: FlagBy
    segments: list[Segment] = Field(default_factory=list, max_length=64)
    rules: list[Rule] = Field(default_factory=list, max_length=256)
    lists: list[ListRule] = Field(default_factory=list, max_length=64)
    reasons: list[ReasonGroup] = Field(default_factory=list, max_length=128)
    reason_count_max: int = Field(4, ge=1, le=16)
    degraded: Degraded = Degraded()
    refused: Refused = Refused()

    @model_validator(mode="after")
    def _check(self) -> Policy:
        named: list[Rule | ListRule | Segment] = [*self.rules, *self.lists, *self.segments]
        names = [item.name for item in named]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"the name {min(twice)!r} is used twice among rules, lists and segments")
        if self.segments and self.flag.cost is not None:
            raise ValueError(
                "segments have thresholds of the score, and flag.cost decides by money: give flag.score or flag.share, "
                "or leave the segments out"
            )
        for item in self.lists:
            if item.field not in KEY_FIELDS:
                raise ValueError(f"list {item.name}: unknown field {item.field!r}; known are {', '.join(KEY_FIELDS)}")
        grouped = [feature for group in self.reasons for feature in group.features]
        twice = {name for name in grouped if grouped.count(name) > 1}
        if twice:
            raise ValueError(f"the feature {min(twice)!r} is in two reason groups")
        return self

    @classmethod
    def from_yaml(cls, source: str | Path) -> Policy:
        """Read a policy from YAML text, or from a file when a Path is given. Raises PolicyError."""
        where = str(source) if isinstance(source, Path) else "policy"
        text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
        return read_yaml_model(cls, text, where=where, error=PolicyError)

    def without_segments(self) -> str | None:
        """What to say beside figures of the common threshold, which know no field of a payment; None where there are no
        segments."""
        if not self.segments:
            return None
        names = ", ".join(segment.name for segment in self.segments)
        return (
            f"what is flagged, and figures from it, are by the common threshold, without the policy's segments "
            f"({names}): `backtest` and `what-if` decide with them"
        )

    def check(self, feature_names: Sequence[str]) -> None:
        """Raise PolicyError when a rule or reason names a feature that the set does not have."""
        known = set(feature_names)
        for rule in self.rules:
            for condition in rule.when:
                if condition.feature not in known:
                    raise PolicyError(
                        f"policy {self.name}: rule {rule.name} names the unknown feature {condition.feature!r}"
                    )
        for group in self.reasons:
            for name in group.features:
                if name not in known:
                    raise PolicyError(f"policy {self.name}: reason {group.code} names the unknown feature {name!r}")

    def sentence(self, code: str) -> str:
        """The reason as a sentence."""
        for group in self.reasons:
            if group.code == code:
                return group.sentence
        deciding: list[Rule | ListRule] = [*self.rules, *self.lists]
        for item in deciding:
            if item.reason == code:
                return f"{'Rule' if isinstance(item, Rule) else 'List'} {item.name} applies."
        if code.startswith(REFUSED_PREFIX):
            known = {reason.value: reason.sentence for reason in DeadLetterReason}
            return known.get(code.removeprefix(REFUSED_PREFIX).lower(), code)
        return {
            SCORE_REASON: "The model's score is above the threshold."
            if self.flag.cost is None
            else "By the model's score and the amount, flagging saves more than it costs.",
            LATE_REASON: "The payment came too late to enter the windows.",
            DEGRADED_REASON: "The deadline left no time for the model; its student, or the policy, flags then.",
        }.get(code, code)
