"""The policy: from margins and features to decisions and reason codes, as data.

Precedence, first that applies: a list or rule that flags; a list or rule that approves; the score threshold. Lists and
rules give their own reason; a payment flagged by its score gets the reason groups that pushed the margin up most.

    name: cards
    flag: {share: 0.01}                # or {score: 0.9}
    rules:
      - {name: card_testing, when: [{feature: card_count_10m, at_least: 8}], then: flag, reason: VELOCITY}
    lists:
      - {name: blocked_terminals, field: terminal_id, then: flag, reason: BLOCKED_TERMINAL}
    reasons:
      - {code: UNUSUAL_AMOUNT, sentence: "The amount is unusual for this customer.", features: [amount, amount_to_mean]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from features.feature_set import Name
from features.filters import KEY_FIELDS
from features.yaml_model import read_yaml_model
from schemas.payment_decoder import PaymentBatch
from scorer.errors import UsageError

APPROVE, FLAG = 0, 1
# Given when no reason group explains a flagged score: the model's margin is above the threshold, and no group pushed it
# up.
SCORE_REASON = "MODEL_SCORE"
LATE_REASON = "LATE"
# Given to a payment that was flagged though the deadline left no time for the model: by the policy; with SCORE_REASON
# before it, by the bundle's student.
DEGRADED_REASON = "DEGRADED"

Code = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,47}$")]


class PolicyError(UsageError):
    """The policy says something impossible; the message names the line and the way out."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FlagBy(_Strict):
    """What flags a payment when no list or rule decides: a probability, or the share of payments that people can look
    at.
    """

    score: float | None = Field(None, gt=0, lt=1)
    share: float | None = Field(None, gt=0, lt=1)

    @model_validator(mode="after")
    def _one(self) -> FlagBy:
        if (self.score is None) == (self.share is None):
            raise ValueError("give either score (a probability) or share (of payments to flag)")
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
        """Which of `values` satisfy all bounds given; compared as float64, so that 0.1 in YAML means the same
        everywhere.
        """
        exact = values.astype(np.float64)
        result = ~np.isnan(exact)
        for bound, compare in (
            (self.at_least, np.greater_equal),
            (self.above, np.greater),
            (self.at_most, np.less_equal),
            (self.below, np.less),
            (self.equals, np.equal),
        ):
            if bound is not None:
                result &= compare(exact, bound)
        return result


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


class ReasonGroup(_Strict):
    """Features that people would name with one sentence."""

    code: Code
    sentence: str = Field(min_length=1, max_length=200)
    features: list[str] = Field(min_length=1)


class Degraded(_Strict):
    """What happens to a payment whose deadline leaves no time for the model: lists and rules, then the bundle's
    student; without one `otherwise`.
    """

    otherwise: Literal["approve", "flag"] = "approve"


class Policy(_Strict):
    """The whole policy. It knows feature names; `check` holds it against a feature set."""

    name: Name
    flag: FlagBy
    rules: list[Rule] = Field(default_factory=list, max_length=256)
    lists: list[ListRule] = Field(default_factory=list, max_length=64)
    reasons: list[ReasonGroup] = Field(default_factory=list, max_length=128)
    reason_count_max: int = Field(4, ge=1, le=16)
    degraded: Degraded = Degraded()

    @model_validator(mode="after")
    def _check(self) -> Policy:
        deciding: list[Rule | ListRule] = [*self.rules, *self.lists]
        names = [item.name for item in deciding]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"the name {min(twice)!r} is used twice among rules and lists")
        for item in self.lists:
            if item.field not in KEY_FIELDS:
                raise ValueError(f"list {item.name}: unknown field {item.field!r}; known are {', '.join(KEY_FIELDS)}")
        grouped = [feature for group in self.reasons for feature in group.features]
        twice = {name for name in grouped if grouped.count(name) > 1}
        if twice:
            raise ValueError(f"the feature {min(twice)!r} stands in two reason groups")
        return self

    @classmethod
    def from_yaml(cls, source: str | Path) -> Policy:
        """Read a policy from YAML text, or from a file when a Path is given. Raises PolicyError."""
        where = str(source) if isinstance(source, Path) else "policy"
        text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
        return read_yaml_model(cls, text, where=where, error=PolicyError)

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
        """The reason in words, for people."""
        for group in self.reasons:
            if group.code == code:
                return group.sentence
        deciding: list[Rule | ListRule] = [*self.rules, *self.lists]
        for item in deciding:
            if item.reason == code:
                return f"{'Rule' if isinstance(item, Rule) else 'List'} {item.name} applies."
        return {
            SCORE_REASON: "The model's score is above the threshold.",
            LATE_REASON: "The payment came too late to enter the windows.",
            DEGRADED_REASON: "The deadline left no time for the model; its student, or the policy, flags then.",
        }.get(code, code)


@dataclass(frozen=True)
class Verdicts:
    """What the policy says of n payments: decision uint8 [n] (0 approve, 1 flag), reason codes and fired names per
    payment.
    """

    decision: npt.NDArray[np.uint8]
    reasons: list[tuple[str, ...]]
    fired: list[tuple[str, ...]]
    by_score: npt.NDArray[np.bool_]


_NOTHING: tuple[str, ...] = ()


class PolicyRunner:
    """A policy bound to a feature set's columns, a margin threshold and the live lists."""

    def __init__(self, policy: Policy, feature_names: Sequence[str], threshold_margin: float) -> None:
        policy.check(feature_names)
        self.policy = policy
        self.threshold_margin = np.float32(threshold_margin)
        self._column = {name: i for i, name in enumerate(feature_names)}
        self._groups = [(group.code, np.array([self._column[f] for f in group.features])) for group in policy.reasons]

    def decide(
        self,
        batch: PaymentBatch,
        features: npt.NDArray[np.float32],
        margins: npt.NDArray[np.float32],
        lists: Mapping[str, AbstractSet[str]],
    ) -> Verdicts:
        """Decide n payments. Margins are compared, not scores: a float32 that is bit-equal everywhere.

        Reasons of payments flagged by score are added later by `explain`, for those payments alone.
        """
        return self._decide(batch, features, margins >= self.threshold_margin, lists)

    def decide_degraded(
        self,
        batch: PaymentBatch,
        features: npt.NDArray[np.float32],
        lists: Mapping[str, AbstractSet[str]],
        by_student: npt.NDArray[np.bool_] | None = None,
    ) -> Verdicts:
        """Decide n payments without the model: lists and rules as always; for the rest what the student flags,
        bool [n], or without one the policy's `degraded.otherwise`.
        """
        reasons: tuple[str, ...]
        if by_student is None:
            by_score, reasons = np.full(len(features), self.policy.degraded.otherwise == "flag"), (DEGRADED_REASON,)
        else:
            by_score, reasons = by_student, (SCORE_REASON, DEGRADED_REASON)
        verdicts = self._decide(batch, features, by_score, lists)
        for i in np.flatnonzero(verdicts.by_score).tolist():
            verdicts.reasons[i] = (*verdicts.reasons[i], *reasons)[: self.policy.reason_count_max]
        return verdicts

    def _decide(
        self,
        batch: PaymentBatch,
        features: npt.NDArray[np.float32],
        by_score: npt.NDArray[np.bool_],
        lists: Mapping[str, AbstractSet[str]],
    ) -> Verdicts:
        n = len(by_score)
        decision = by_score.astype(np.uint8)
        hits: list[tuple[str, str, str, npt.NDArray[np.bool_]]] = []
        for item in self.policy.lists:
            values = lists.get(item.name)
            if values:
                held = np.fromiter((v in values for v in batch.column(item.field)), np.bool_, n)
                if held.any():
                    hits.append((item.name, item.then, item.reason, held))
        for rule in self.policy.rules:
            held = np.logical_and.reduce([c.holds(features[:, self._column[c.feature]]) for c in rule.when])
            if held.any():
                hits.append((rule.name, rule.then, rule.reason, held))
        reasons: list[tuple[str, ...]] = [_NOTHING] * n
        fired: list[tuple[str, ...]] = [_NOTHING] * n
        if not hits:
            return Verdicts(decision, reasons, fired, by_score)
        # Approving first, flagging over it: a flag wins.
        for then, value in (("approve", APPROVE), ("flag", FLAG)):
            for _, effect, _, held in hits:
                if effect == then:
                    decision[held] = value
        for i in np.flatnonzero(np.logical_or.reduce([held for *_, held in hits])):
            outcome = "flag" if decision[i] == FLAG else "approve"
            fired[i] = tuple(name for name, _, _, held in hits if held[i])
            codes = dict.fromkeys(reason for _, effect, reason, held in hits if held[i] and effect == outcome)
            reasons[i] = tuple(codes)[: self.policy.reason_count_max]
        return Verdicts(decision, reasons, fired, by_score & (decision == FLAG))

    def explain(self, contributions: npt.NDArray[np.float64], before: tuple[str, ...]) -> tuple[str, ...]:
        """Reason codes of one payment flagged by its score: `before` (lists and rules), then the groups that raise the
        margin most.

        `contributions` float64 [F + 1] are margin units, the last one the bias. Ties keep the policy's order.
        """
        weights = [(round(float(contributions[columns].sum()), 9), code) for code, columns in self._groups]
        ranked = [code for weight, code in sorted(weights, key=lambda item: -item[0]) if weight > 0.0]
        codes = tuple(dict.fromkeys((*before, *ranked)))[: self.policy.reason_count_max]
        return codes or (SCORE_REASON,)
