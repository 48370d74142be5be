"""Real Kafka and Postgres for the integration tests: started once a session, and never a reason to skip.

Where CI gives addresses (FRAUD_SCORER_KAFKA__BOOTSTRAP_SERVERS, FRAUD_SCORER_POSTGRES__URL), those are used.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from scorer.local_services import Kafka, Services, local_services
from tests.answers import check_answers
from tests.integration.handbook import train_bundle
from tests.integration.running import test_settings
from tests.record_ways import way

__all__ = ["way"]


@pytest.fixture(scope="session")
def services() -> Iterator[Services]:
    """Kafka and Postgres, ended with the session however it ends."""
    with local_services(fsync=False, report=lambda line: print(line, file=sys.stderr)) as running:
        yield running


@pytest.fixture(scope="session")
def own_services(services: Services) -> Iterator[Services]:
    """Services that may be stopped: the session's, or where their addresses were given, others that we start."""
    if "given" not in (services.kafka.kind, services.postgres.kind):
        yield services
        return
    given = ("FRAUD_SCORER_KAFKA__BOOTSTRAP_SERVERS", "FRAUD_SCORER_POSTGRES__URL", "FRAUD_SCORER_POSTGRES__URL_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in given}
    with local_services(fsync=False, environment=environment) as running:
        yield running


@pytest.fixture(scope="session")
def kafka(services: Services) -> Kafka:
    """The session's broker; a test that stops it starts it again."""
    return services.kafka


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle trained on the first 60,000 generated payments."""
    return train_bundle(tmp_path_factory.mktemp("bundle") / "handbook")


@pytest.fixture
def topics_prefix() -> str:
    """A prefix that no other test's topics, groups and transactional ids have."""
    return f"test-{secrets.token_hex(4)}-"


@pytest.fixture
def one_decision_each(request: pytest.FixtureRequest, services: Services, topics_prefix: str) -> Iterator[None]:
    """When the test has ended, all of its decisions are read, repeats included: no payment has two different ones, but
    for those of the marker `decided_anew`."""
    yield
    marker = request.node.get_closest_marker("decided_anew")
    anew = None if marker is None else marker.args[0]
    check_answers(test_settings(services.kafka.bootstrap_servers, topics_prefix), anew=anew)


@pytest.fixture
def database(services: Services) -> Iterator[str]:
    """The URL of an empty database of the test's own."""
    name = sql.Identifier(f"test_{secrets.token_hex(4)}")
    with psycopg.connect(services.postgres.url, autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(name))
        shown = server.info
        password = conninfo_to_dict(services.postgres.url).get("password")
        user = f"{shown.user}:{password}" if password else shown.user
        try:
            yield f"postgresql://{user}@{shown.host}:{shown.port}/{name.as_string().strip(chr(34))}"
        finally:
            # FORCE: connections that a failed test left open must not keep the database.
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
