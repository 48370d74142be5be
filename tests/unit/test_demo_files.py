"""The demo's feature set and policy fit each other and the simulated world."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from features.feature_set import FeatureSet
from scorer.bundle import Bundle
from scorer.demo import demo_bundle
from scorer.demo.demo_bundle import demo_bundle_id
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


def test_the_bundle_was_made_of_the_files_beside_it() -> None:
    """The demo's bundle is found stale when its feature set or policy changed: python -m tests.demo_bundle trains it
    again."""
    bundle = demo_bundle()
    for name in ("feature_set.yaml", "policy.yaml"):
        assert (bundle / name).read_bytes() == path(f"deploy/examples/demo/{name}").read_bytes(), name
    loaded = Bundle.load(bundle)
    assert loaded.manifest.name == "demo"
    assert demo_bundle_id() == loaded.id


def test_no_password_setting_reaches_the_demos_own_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's URL is complete: a password set for another Postgres neither replaces its own nor is lost."""
    monkeypatch.setenv("FRAUD_SCORER_POSTGRES__PASSWORD", "of another server")
    monkeypatch.setenv("FRAUD_SCORER_POSTGRES__URL_FILE", "/of/another/server")
    before = dict(os.environ)
    with environment_of({"POSTGRES__URL": "host=demo password=own"}) as environment:
        assert environment == dict(os.environ)
        assert "password=own" in load().postgres_url
    assert dict(os.environ) == before
