"""From contributions to reason codes, and the precedence of lists, rules and score."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from schemas.payment_decoder import decode_payments
from scorer.policy import APPROVE, FLAG, SCORE_REASON, Policy, PolicyRunner

NAMES = [f"f{i}" for i in range(12)]
CODES = ["A", "B", "C", "D", "E", "F"]
GROUPS = "".join(
    f"  - {{code: {code}, sentence: '{code}.', features: [f{2 * i}, f{2 * i + 1}]}}\n" for i, code in enumerate(CODES)
)


def _runner(more: str = "") -> PolicyRunner:
    policy = Policy.from_yaml(f"name: cards\nflag: {{score: 0.5}}\n{more}reasons:\n{GROUPS}")
    return PolicyRunner(policy, NAMES, 0.0)


def _shares(**weights: float) -> np.ndarray:
    """Contributions with the bias last: a group's weight on its second feature, what cancels on its first."""
    out = np.zeros(13)
    out[-1] = -9.0
    for code, weight in weights.items():
        at = 2 * CODES.index(code)
        out[at], out[at + 1] = -1.0, weight + 1.0
    return out


def test_groups_are_ranked_by_what_they_add_together() -> None:
    """A group's weight is the sum over its features; those that lower the margin are no reason."""
    assert _runner().explain(_shares(A=0.1, B=2.0, C=-5.0, D=1.0), ()) == ("B", "D", "A")


def test_at_most_four_reasons() -> None:
    """Four by default, or as many as the policy says; rules and lists come first and count."""
    shares = _shares(A=1, B=2, C=3, D=4, E=5, F=6)
    assert _runner().explain(shares, ()) == ("F", "E", "D", "C")
    assert _runner("reason_count_max: 2\n").explain(shares, ()) == ("F", "E")
    assert _runner().explain(shares, ("RULE", "E")) == ("RULE", "E", "F", "D")


@pytest.mark.parametrize("noise", [0.0, 1e-12, -1e-12])
def test_ties_keep_the_order_of_the_policy(noise: float) -> None:
    """Groups that differ by rounding alone stand in the policy's order, whichever of them the noise favours."""
    for favoured in itertools.product([0.0, noise], repeat=3):
        weights = dict(zip("BDF", (0.5 + part for part in favoured), strict=True))
        assert _runner().explain(_shares(**weights), ()) == ("B", "D", "F")


def test_a_flag_always_has_a_reason() -> None:
    """Where no group raised the margin the score itself is the reason."""
    assert _runner().explain(_shares(A=-1.0, B=1e-12), ()) == (SCORE_REASON,)


def test_a_flag_wins_over_an_approval() -> None:
    """Where a list approves and a rule flags, or the other way round, the payment is flagged with the flag's reason; an
    approval alone wins over the score."""
    runner = _runner(
        "lists:\n"
        "  - {name: trusted, field: customer_id, then: approve, reason: TRUSTED}\n"
        "  - {name: blocked, field: merchant_id, then: flag, reason: BLOCKED}\n"
        "rules:\n"
        "  - {name: small, when: [{feature: f0, below: 1}], then: approve, reason: SMALL}\n"
        "  - {name: fast, when: [{feature: f1, at_least: 8}], then: flag, reason: FAST}\n"
    )
    payment = (
        '{"payment_id":"p%d","event_time":1767225600000,"amount_minor":1,"currency":"EUR",'
        '"customer_id":"%s","merchant_id":"%s"}'
    )
    who = [("friend", "shop"), ("friend", "thief"), ("other", "thief"), ("friend", "shop"), ("other", "shop")]
    batch = decode_payments([(payment % (i, *pair)).encode() for i, pair in enumerate(who)])
    features = np.full((5, 12), 5.0, dtype=np.float32)
    features[0, 1] = 9.0  # a list approves, a rule flags
    features[2, 0] = 0.0  # a rule approves, a list flags
    margins = np.array([-1.0, -1.0, -1.0, 1.0, 1.0], dtype=np.float32)
    found = runner.decide(
        batch, features, margins, np.zeros(len(margins)), {"trusted": {"friend"}, "blocked": {"thief"}}
    )
    assert found.decision.tolist() == [FLAG, FLAG, FLAG, APPROVE, FLAG]
    assert found.reasons == [("FAST",), ("BLOCKED",), ("BLOCKED",), ("TRUSTED",), ()]
    assert found.fired == [("trusted", "fast"), ("trusted", "blocked"), ("blocked", "small"), ("trusted",), ()]
    assert found.by_score.tolist() == [False, False, False, False, True]
