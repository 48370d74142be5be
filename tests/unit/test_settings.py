"""Settings: what is mistyped is refused by name, before anything runs."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from scorer import kafka
from scorer.errors import UsageError
from scorer.runtime import settings
from scorer.runtime.settings_listing import described
from scorer.worker.ports import store_of


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
    """One line that names the variable, never a value that has no effect."""
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


def address(monkeypatch: pytest.MonkeyPatch, url: str, password: str | None = None) -> dict[str, object]:
    """What libpq reads from these settings."""
    monkeypatch.setenv("FRAUD_SCORER_POSTGRES__URL", url)
    if password is not None:
        monkeypatch.setenv("FRAUD_SCORER_POSTGRES__PASSWORD", password)
    return dict(conninfo_to_dict(settings.load().postgres_url))


def test_options_of_the_postgres_url_reach_libpq_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spaces stay spaces, a plus a plus, and the password goes where it belongs."""
    parts = address(monkeypatch, "postgresql://me@db/x?options=-c%20role%3Da%2Bb", "p w")
    assert (parts["options"], parts["password"]) == ("-c role=a+b", "p w")


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1))
def test_any_password_reaches_libpq_as_it_is(password: str) -> None:
    """Quotes, backslashes, spaces, percent signs and @ of a password are the password's own, in both forms."""
    for url in ("postgresql://me@db:5433/x", "host=db port=5433 user=me dbname=x password=other"):
        loaded = settings.load(postgres={"url": url, "password": password})
        assert conninfo_to_dict(loaded.postgres_url) == {
            "host": "db", "port": "5433", "user": "me", "dbname": "x", "password": password
        }  # fmt: skip
    in_url = settings.load(postgres={"url": f"postgresql://me:{quote(password, safe='')}@db/x"})
    assert conninfo_to_dict(in_url.postgres_url)["password"] == password


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql:///x?host=/run/pg%20sql", {"host": "/run/pg sql", "dbname": "x"}),
        ("postgresql://me@%2Frun%2Fpg/x", {"host": "/run/pg", "user": "me", "dbname": "x"}),
        ("host='/run/pg sql' dbname=x", {"host": "/run/pg sql", "dbname": "x"}),
        ("host=@/run/pg", {"host": "@/run/pg"}),
        ("postgresql://[::1]:5433/x", {"host": "::1", "port": "5433", "dbname": "x"}),
        (
            "postgresql+psycopg://a,b:5433/x?target_session_attrs=read-write",
            {"host": "a,b", "port": ",5433", "dbname": "x", "target_session_attrs": "read-write"},
        ),
    ],
)
def test_an_address_means_what_libpq_reads(url: str, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets, IPv6, several hosts and another program's scheme are taken; nothing is added."""
    assert address(monkeypatch, url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "nonsense-s3cret",
        "postgresql://me:s3cret word@db/x",
        "postgresql://me:s3@cret@db/x",
        "postgresql://me:s3/cret@db:5432/x",
        "postgresql://me:s3cret%ff@db/x",
        "postgresql://me:s3cret%zz@db/x",
    ],
)
def test_an_address_that_cannot_be_read_is_refused_without_repeating_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the setting and the way out; a piece of the password is in no message and no cause."""
    with pytest.raises(UsageError, match=r"postgres\.url: ") as refused:
        address(monkeypatch, url)
    assert refused.value.__cause__ is None
    assert not any(piece in str(refused.value) for piece in ("s3", "cret"))


@pytest.mark.parametrize(
    "url", ["postgresql://me:s3cret@db/x?sslpassword=s3cret", "postgresql://db/x?password=s3cret", "password=s3cret"]
)
def test_settings_show_no_secret_of_the_postgres_url(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What libpq itself calls a secret is hidden wherever in the address it stands; the rest is shown."""
    monkeypatch.setenv("FRAUD_SCORER_POSTGRES__URL", url)
    (value,) = [value for name, value, _, _ in described(settings.load()) if name.endswith("POSTGRES__URL")]
    assert "s3cret" not in value
    assert "password=********" in value
    assert ("host=db" in value) == ("db" in url)
