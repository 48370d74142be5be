"""From contributions to reason codes: groups, the limit of four, and a stable order where groups tie."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from scorer.policy import SCORE_REASON, Policy, PolicyRunner

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
