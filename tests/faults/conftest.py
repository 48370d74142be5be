"""One broker of the tests' own and one nursery of warm workers for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.broker import OwnBroker
from tests.faults.nursery import Nursery
from tests.faults.payments import make_bundle
from tests.faults.run import Application
from tests.record_ways import RECORD_ACCESS, way

__all__ = ["way"]


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "faults")


@pytest.fixture(scope="session")
def broker() -> Iterator[OwnBroker]:
    """A test that stops it, or spoils its proxy, repairs it again."""
    with OwnBroker() as running:
        yield running


@pytest.fixture(scope="session")
def nursery(bundle: Path) -> Iterator[Nursery]:
    with Nursery(bundle) as running:
        yield running


@pytest.fixture
def application(
    broker: OwnBroker, nursery: Nursery, bundle: Path, tmp_path: Path, way: str
) -> Iterator[Callable[..., Application]]:
    """Makes applications; their workers end with the test, and the broker is whole again."""
    made: list[Application] = []

    def make(**settings: Any) -> Application:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        environment = {RECORD_ACCESS: way} | settings.pop("workers_environment", {})
        made.append(Application(broker, nursery, folder, bundle, workers_environment=environment, **settings))
        return made[-1]

    yield make
    broker.proxy.heal()
    broker.start()
    try:
        for app in made:  # whatever the test was about, and however its workers ended
            app.check_answers()
    finally:
        for app in made:
            app.close()
