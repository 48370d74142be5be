"""Secrets in texts: what `settings` shows, and what libraries repeat in their messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
import structlog
from confluent_kafka import KafkaError, Producer

from scorer.audit.signed.anchors import AnchorFile
from scorer.errors import UsageError
from scorer.kafka.clients import admin, client_config
from scorer.runtime import logs, settings
from scorer.runtime.secret_text import SHOWN_SECURITY, secrets_in, shown_address, without_secrets
from scorer.runtime.settings_listing import described

PEM = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIFs3cretLine1\nMIIFs3cretLine2\n-----END ENCRYPTED PRIVATE KEY-----"
# Every setting of librdkafka that holds a secret or may, whatever its name says.
SECURITY = {
    "sasl.oauthbearer.config": "principal=me scope=s3cretscope",
    "sasl.oauthbearer.client.secret": "s3cret-client",
    "sasl.oauthbearer.extensions": "token=s3cretext",
    "sasl.oauthbearer.token.endpoint.url": "https://me:s3cret@idp/token?api=s3cretkey",
    "sasl.oauthbearer.assertion.private.key.passphrase": "s3cret-phrase",
    "sasl.oauthbearer.assertion.private.key.pem": PEM,
    "sasl.jaas.config": "…ScramLoginModule required username='me' password='s3cretjaas';",
    "sasl.kerberos.kinit.cmd": "kinit -w s3cret-kinit",
    "sasl.password": "s3cret-sasl",
    "ssl.key.password": "s3cret-key",
    "ssl.key.pem": PEM,
    "ssl.keystore.password": "s3cret-store",
    "ssl.certificate.pem": "s3cret-together-with-its-key",
    "sasl.something.new": "s3cret-of-a-later-release",
}


def shown_settings() -> str:
    return "\n".join(value for _, value, _, _ in described(settings.load()))


def test_settings_show_no_secret_of_a_kafka_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of librdkafka's settings only those are shown that are known to hold no secret; the others by their names."""
    monkeypatch.setenv(
        "FRAUD_SCORER_KAFKA__SECURITY", json.dumps({**SECURITY, "sasl.username": "payer", "sasl.mechanism": "PLAIN"})
    )
    shown = shown_settings()
    assert "s3cret" not in shown
    assert "'sasl.username': 'payer'" in shown
    assert all(name in shown for name in SECURITY)
    loaded = settings.load()
    assert "s3cret" not in repr(loaded) + str(loaded.model_dump())
    assert client_config(loaded.kafka)["sasl.password"] == "s3cret-sasl"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://AKIAS3CRET:s3cret@bucket/snapshots", "s3://********@bucket/snapshots"),
        ("ftp://me:s3/cret?s3cret@host/x", "ftp://********@host/x"),
        ("simplecache::s3://k:s3cret@bucket/x", "simplecache::s3://********@bucket/x"),
        ("https://host/x?sig=s3cret&v=1", "https://host/x?********"),
        ("https://host/x#s3cret", "https://host/x?********"),
        ("abfs://data@account.dfs/x?sas=s3cret", "abfs://********@account.dfs/x?********"),
        ("s3://bucket/snapshots", "s3://bucket/snapshots"),
        ("file:///var/lib/fraud", "file:///var/lib/fraud"),
        ("/var/lib/a@b?c", "/var/lib/a@b?c"),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`settings` shows where snapshots and anchors are, and no key, password or signature in their URLs."""
    assert shown_address(url) == shown
    monkeypatch.setenv("FRAUD_SCORER_SNAPSHOTS__URL", url)
    monkeypatch.setenv("FRAUD_SCORER_AUDIT__ANCHORS", url)
    assert shown_settings().splitlines().count(shown) == 2
    assert "s3cret" not in repr(settings.load().snapshots).lower()


def test_anchors_take_no_credentials() -> None:
    """The anchors' place is written into the audit trail: a URL with a key in it is refused, without repeating it."""
    with pytest.raises(UsageError, match="FSSPEC_") as refused:
        AnchorFile("s3://AKIA:s3cret@bucket/anchors")
    assert "s3cret" not in str(refused.value)
    assert AnchorFile("s3://bucket/anchors").place == "s3://bucket/anchors"


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        ("postgresql://db/x?options=endpoint%3Dabc;s3cret-pw", "s3cret"),
        ("postgresql://me:s3cret-pw@db/x?application_name=app", "s3cret"),
        ("host=db sslpassword=s3cret-pw", "s3cret"),
    ],
)
def test_a_postgres_address_hides_its_options_too(url: str, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosted Postgres reads passwords out of `options`: they are hidden like libpq's own secrets."""
    monkeypatch.setenv("FRAUD_SCORER_POSTGRES__URL", url)
    assert secret not in shown_settings()
    assert "db" in shown_settings()
    assert any("s3cret-pw" in found for found in secrets_in(settings.load()))


def test_what_librdkafka_repeats_of_its_settings_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client answers a wrong OAuth configuration or a wrong choice with the text it was given; logs and errors have
    it without the secret."""
    monkeypatch.setenv(
        "FRAUD_SCORER_KAFKA__SECURITY",
        json.dumps(
            {
                "security.protocol": "SASL_PLAINTEXT",
                "sasl.mechanism": "OAUTHBEARER",
                "enable.sasl.oauthbearer.unsecure.jwt": "true",
                "sasl.oauthbearer.config": "principal=me wrong=s3cret-oauth",
            }
        ),
    )
    errors: list[KafkaError] = []
    client = Producer({**client_config(settings.load().kafka), "error_cb": errors.append})
    give_up = time.monotonic() + 30
    while not errors and time.monotonic() < give_up:
        client.poll(0.05)
    assert "s3cret-oauth" in errors[0].str(), "librdkafka no longer repeats it: this test has lost its case"
    assert "s3cret-oauth" not in without_secrets(errors[0].str())
    monkeypatch.setenv("FRAUD_SCORER_KAFKA__SECURITY", '{"sasl.oauthbearer.method": "s3cret-choice"}')
    with pytest.raises(UsageError, match=r"sasl\.oauthbearer\.method"):
        admin(settings.load().kafka)


def test_no_log_line_holds_a_secret(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a library puts into a message, nested or in a traceback, leaves the process without the secret."""
    monkeypatch.setenv("FRAUD_SCORER_SNAPSHOTS__URL", "s3://AKIAKEY:s3cret%2Fkey@bucket/x")
    monkeypatch.setenv("FRAUD_SCORER_KAFKA__SASL_PASSWORD", 's3cret"quoted')
    monkeypatch.setenv("FRAUD_SCORER_AUDIT__SIGNING_KEY", PEM)
    settings.load()
    logs.configure()
    log = structlog.get_logger()
    try:
        raise OSError("PUT s3://AKIAKEY:s3cret/key@bucket failed")
    except OSError:
        log.exception("snapshot.failed", reason='tried s3cret"quoted', more={"at": ["s3cret%2Fkey", 3]}, line=PEM)
    logged = capsys.readouterr().err
    assert json.loads(logged)["more"]["at"][1] == 3
    assert "s3cret" not in logged
    assert "snapshot.failed" in logged


CRASH = """
import os, threading
from scorer.runtime import logs, settings
settings.load(); logs.configure()
def fail():
    raise RuntimeError(f"environment: {dict(os.environ)}")
thread = threading.Thread(target=fail); thread.start(); thread.join()
fail()
"""


def test_a_crash_that_dumps_the_environment_shows_no_secret() -> None:
    """An exception that nothing caught, in any thread, is printed without the secrets that its message repeats."""
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
    environment |= {"FRAUD_SCORER_POSTGRES__URL": "postgresql://me:s3cret%40pw@db/x?options=s3cret-o"}
    environment |= {"FRAUD_SCORER_KAFKA__SECURITY": '{"sasl.password": "s3cret-sasl"}'}
    done = subprocess.run(
        [sys.executable, "-c", CRASH], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("RuntimeError: environment") == 2
    assert "s3cret" not in done.stderr, [line[:300] for line in done.stderr.splitlines() if "s3cret" in line]


def test_no_setting_that_is_shown_can_hold_a_secret() -> None:
    """The list of what is shown names none of the settings that the client itself treats as secret."""
    assert not any(word in name for name in SHOWN_SECURITY for word in ("password", "secret", "pem", "config", "cmd"))


def test_a_value_that_is_not_understood_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that cannot be read is refused by its name: neither message nor cause has its value."""
    for name, value in (("KAFKA__SECURITY", '{"sasl.password": "s3cret'), ("KAFKA__SECURITY", '{"x": "s3cret"}')):
        monkeypatch.setenv(f"FRAUD_SCORER_{name}", value)
        with pytest.raises(UsageError, match=f"FRAUD_SCORER_{name.partition('__')[0]}") as refused:
            settings.load()
        assert "s3cret" not in str(refused.value)
        assert refused.value.__cause__ is None
