"""Settings: what is mistyped is refused by name, before anything runs."""

from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict

from scorer import kafka
from scorer.errors import UsageError
from scorer.runtime import settings
from scorer.worker.snapshotter import store_of


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "FRAUD_SCORER_SNAPSHOT__URL",
            "file:///x",
            "SNAPSHOT__URL: .*did you mean FRAUD_SCORER_SNAPSHOTS",
        ),
        ("FRAUD_SCORER_WORKER__SHARD", "2", "FRAUD_SCORER_WORKER__SHARD: "),
        ("FRAUD_SCORER_WORKER__SHARD_KEY", "customer_id", "FRAUD_SCORER_WORKER__…: .* JSON"),
    ],
)
def test_a_mistyped_setting_is_refused_by_name(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that names the variable, never a value that nobody reads."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match=message):
        settings.load()


def test_what_a_library_refuses_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """librdkafka's and fsspec's refusals name the setting they came by."""
    monkeypatch.setenv("FRAUD_SCORER_KAFKA__SECURITY", '{"sasl.mechansim": "PLAIN"}')
    with pytest.raises(UsageError, match=r"sasl\.mechansim.*FRAUD_SCORER_KAFKA__SECURITY"):
        kafka.admin(settings.load().kafka)
    monkeypatch.delenv("FRAUD_SCORER_KAFKA__SECURITY")
    monkeypatch.setenv("FRAUD_SCORER_SNAPSHOTS__URL", "fil:///x/y")
    with pytest.raises(UsageError, match="FRAUD_SCORER_SNAPSHOTS__URL"):
        store_of(settings.load(), 0)


def test_options_of_the_postgres_url_reach_libpq_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spaces stay spaces, a plus a plus, and the password goes where it belongs."""
    monkeypatch.setenv("FRAUD_SCORER_POSTGRES__URL", "postgresql://me@db/x?options=-c%20role%3Da%2Bb")
    monkeypatch.setenv("FRAUD_SCORER_POSTGRES__PASSWORD", "p w")
    parts = conninfo_to_dict(settings.load().postgres_url)
    assert (parts["options"], parts["password"]) == ("-c role=a+b", "p w")
