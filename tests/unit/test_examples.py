"""The shipped examples hold together."""

from __future__ import annotations

from pathlib import Path

import pytest

from features.feature_set import FeatureSet
from scorer.files.mapping import Mapping
from scorer.policy import Policy

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


@pytest.mark.parametrize("example", ["handbook", "demo"])
def test_set_policy_and_mapping_fit(example: str) -> None:
    """An example's policy names and explains all features of its set; its mapping gives the fields they need."""
    folder = DEPLOY / "examples" / example
    feature_set = FeatureSet.from_yaml(folder / "feature_set.yaml")
    policy = Policy.from_yaml(folder / "policy.yaml")
    policy.check(feature_set.names)
    assert {name for group in policy.reasons for name in group.features} == set(feature_set.names)
    mapping = Mapping.from_yaml(folder / "mapping.yaml")
    assert {name for name in feature_set.fields if getattr(mapping, name, None) is None} <= {"payment_id"}
