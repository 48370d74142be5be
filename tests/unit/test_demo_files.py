"""The demo's feature set and policy fit each other and the simulated world."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from features.feature_set import FeatureSet
from scorer.demo import trained_bundle as demo
from scorer.demo.demo_processes import environment_of
from scorer.policy import Policy
from scorer.runtime.assets import path
from scorer.runtime.settings import load
from scorer.simulate.catalogue import CATEGORIES, Channel
from scorer.simulate.geography import COUNTRIES, EUR_PER_UNIT


@pytest.fixture(scope="module")
def feature_set() -> FeatureSet:
    return FeatureSet.from_yaml(Path(path("deploy/examples/demo/feature_set.yaml")))


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.from_yaml(Path(path("deploy/examples/demo/policy.yaml")))


def test_feature_set(feature_set: FeatureSet) -> None:
    """25 to 45 features over all the entities that the frauds touch."""
    assert 25 <= len(feature_set.names) <= 45
    assert {"customer", "card", "terminal", "merchant", "device"} <= set(feature_set.entities)


def test_rates_are_the_simulators(feature_set: FeatureSet) -> None:
    """The feature set converts every currency of the world at the rate the world prices with."""
    assert feature_set.rates is not None
    assert {"EUR": 1.0, **feature_set.rates.per_unit} == EUR_PER_UNIT
    assert {country.currency for country in COUNTRIES} == set(EUR_PER_UNIT)


def test_categories_are_the_simulators(feature_set: FeatureSet) -> None:
    """Every channel and merchant code of the world has its number in the feature set."""
    declared = {feature.name: feature.categories for feature in feature_set.features if feature.categories}
    assert declared["channel"] == [channel.name.lower() for channel in Channel]
    assert declared["mcc"] == [category.mcc for category in CATEGORIES]


def test_policy_covers_every_feature(feature_set: FeatureSet, policy: Policy) -> None:
    """Every feature stands in exactly one reason group, with a plain sentence."""
    policy.check(feature_set.names)
    grouped = [name for group in policy.reasons for name in group.features]
    assert sorted(grouped) == sorted(feature_set.names)
    assert all(group.sentence.endswith(".") for group in policy.reasons)
    assert policy.flag.share == 0.01
    assert len(policy.rules) == len(policy.lists) == 2


def test_a_bundle_of_another_release_is_not_taken_for_this_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo's cached bundle is named by the code that made it too: other code makes it again."""
    asked: list[Path] = []
    real = Path.exists

    def exists(target: Path) -> bool:
        if target.parent != tmp_path:
            return real(target)
        asked.append(target)
        raise InterruptedError

    monkeypatch.setattr(Path, "exists", exists)
    for version in (1, 1, 2):
        monkeypatch.setattr(demo, "FORMAT_VERSION", version)
        with pytest.raises(InterruptedError):
            demo.demo_bundle(tmp_path, print)
    assert asked[0] == asked[1] != asked[2]


def test_no_password_setting_reaches_the_demos_own_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's URL is complete: a password set for another Postgres neither replaces its own nor is lost."""
    monkeypatch.setenv("FRAUD_SCORER_POSTGRES__PASSWORD", "of another server")
    monkeypatch.setenv("FRAUD_SCORER_POSTGRES__URL_FILE", "/of/another/server")
    before = dict(os.environ)
    with environment_of({"POSTGRES__URL": "host=demo password=own"}) as environment:
        assert environment == dict(os.environ)
        assert "password=own" in load().postgres_url
    assert dict(os.environ) == before
