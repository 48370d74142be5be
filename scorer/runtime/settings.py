"""Settings from the environment (prefix FRAUD_SCORER_, nested with __), secrets also from files.

    FRAUD_SCORER_KAFKA__BOOTSTRAP_SERVERS=broker:9092
    FRAUD_SCORER_KAFKA__SECURITY='{"security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-512",
                                   "sasl.username": "fraud"}'
    FRAUD_SCORER_KAFKA__SASL_PASSWORD_FILE=/run/secrets/kafka        # *_FILE: from a file; not lists or mappings
    FRAUD_SCORER_POSTGRES__URL=postgresql://sink@db/fraud

`fraud-scorer settings` prints every value with its source, secrets hidden.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from schemas.durations import parse_duration_ms
from schemas.pseudonym import PseudonymKeyError, PseudonymKeys
from scorer.errors import UsageError
from scorer.runtime import postgres_address, secret_text

PREFIX = "FRAUD_SCORER_"


class Section(BaseModel):
    """Settings that share the first part of their names."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class KafkaSettings(Section):
    """How to reach Kafka."""

    bootstrap_servers: str = Field(default="127.0.0.1:9092", description="host:port, comma separated")
    topic_prefix: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9._-]{0,100}$",
        description="put before every topic name, group and transactional id",
    )
    client_id: str = Field(
        default="fraud-scorer",
        pattern=r"^[A-Za-z0-9._-]{1,100}$",
        description="client.id of every client: the name in the broker's logs and metrics, and what its quotas go by; "
        "the worker's group member adds @ and its application",
    )
    client_rack: str | None = Field(
        default=None, description="client.rack: the followers of which rack are read from, where the brokers allow it"
    )
    connection_idle_s: float = Field(
        default=180.0,
        ge=1.0,
        description="a connection idle for so long is closed by the client; less than what brokers "
        "(connections.max.idle.ms, 10 minutes by default), load balancers and firewalls in between allow",
    )
    record_access: Literal["auto", "plain"] = Field(
        default="auto",
        description="auto: the worker reads records and produces decisions through the C interface of the client "
        "library, where that proves itself at start; plain: through Python objects, which costs several times the CPU",
    )
    security: dict[str, SecretStr] = Field(
        default_factory=dict, description="librdkafka settings passed through: security.protocol, sasl.*, ssl.*"
    )
    sasl_password: SecretStr | None = Field(default=None, description="sasl.password, best from SASL_PASSWORD_FILE")
    ssl_key_password: SecretStr | None = Field(
        default=None, description="ssl.key.password, best from SSL_KEY_PASSWORD_FILE"
    )
    oauth_client_secret: SecretStr | None = Field(
        default=None, description="sasl.oauthbearer.client.secret, best from OAUTH_CLIENT_SECRET_FILE"
    )

    @field_validator("security")
    @classmethod
    def _only_security(cls, given: dict[str, SecretStr]) -> dict[str, SecretStr]:
        # Anything else, such as enable.idempotence, would break what delivery rests on.
        for name in given:
            if not name.startswith(("security.", "sasl.", "ssl.", "enable.ssl.", "enable.sasl.", "https.")):
                raise ValueError(f"{name} is no security setting; security.*, sasl.*, ssl.* pass through")
        return given


class PostgresSettings(Section):
    """How to reach Postgres; only the sink, setup and audit commands do."""

    url: SecretStr = Field(
        default=SecretStr("postgresql://postgres@127.0.0.1:5432/postgres"),
        description="postgresql://user[:password]@host:port/database, or name=value pairs as libpq reads them",
    )
    password: SecretStr | None = Field(
        default=None, description="replaces the password of the url, best from PASSWORD_FILE"
    )


class AuditSettings(Section):
    """What proves the audit trail outside Postgres. Keys: `fraud-scorer audit keygen`."""

    anchors: str | None = Field(
        default=None,
        description="file or fsspec URL that heads are appended to; keep it where Postgres' owner cannot write",
    )
    signing_key: SecretStr | None = Field(
        default=None,
        description="Ed25519 private key (PEM), best from SIGNING_KEY_FILE; signs anchors, tombstones, erasures",
    )
    public_key: str | None = Field(
        default=None, description="Ed25519 public key (PEM), best from PUBLIC_KEY_FILE; enough to verify"
    )
    quality_days: int = Field(
        default=30,
        ge=0,
        le=3650,
        description="the sink counts payments of so many days of stream time whose label is known, for precision and "
        "recall; more than reports of fraud take; 0: it does not",
    )
    quality_every_s: float = Field(
        default=300.0, ge=1, le=86_400, description="pause between two counts; longer where one takes long"
    )


class TopicSettings(Section):
    """What `setup` creates. Existing topics are checked, and changed by `setup --append-time` alone."""

    payments_partitions: int = Field(
        default=4, ge=1, le=10_000, description="partitions of payments and of decisions (the same number)"
    )
    replication_factor: int = Field(default=-1, ge=-1, le=9, description="-1: the broker's default; 3 in production")
    min_insync_replicas: int = Field(default=1, ge=1, le=9, description="2 in production, with replication factor 3")
    payments_retention_hours: int = Field(
        default=24 * 35, ge=-1, description="must cover the longest window: recovery reads payments again; -1 keeps all"
    )
    decisions_retention_hours: int = Field(
        default=24 * 7, ge=-1, description="payment systems read them within seconds"
    )
    audit_retention_hours: int = Field(default=24 * 35, ge=-1, description="how long Postgres may be away")
    dead_letters_retention_hours: int = Field(default=24 * 35, ge=-1, description="time to look at them")


class WorkerSettings(Section):
    """The decision path."""

    application: str = Field(
        default="fraud-scorer",
        pattern=r"^[A-Za-z0-9._-]{1,100}$",
        description="name of the deployment: workers on the same topics must have the same; part of the path of "
        "snapshots and of the readers' names",
    )
    shards: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="partitions of journal and audit; one shard keeps every entity's features exact",
    )
    shard_key: list[str] = Field(
        default_factory=list,
        description='JSON list of the fields that key the payments topic, such as ["customer_id"]; with several '
        "shards every entity of the feature set must have them all",
    )
    batch_payments_max: int = Field(default=4096, ge=1, le=65_536, description="payments in one batch at most")
    fast_decisions: bool = Field(
        default=True,
        description="write each batch's order to topic order first, and its decisions to topic decisions-fast as soon "
        "as that is durable; the transaction with everything else follows",
    )
    fast_on_one_broker: Literal["warn", "refuse"] = Field(
        default="warn",
        description="what to do at start where the broker may lose what it has acknowledged of payments, control, "
        "labels, order or decisions-fast (fewer than two replicas in sync, unclean elections): a fast decision could "
        "then be taken back. refuse: end with 2; warn: log it",
    )
    transaction_batches_max: int = Field(
        default=16,
        ge=1,
        le=256,
        description="batches in one transaction at most, full ones no more than three; as many again may be decided "
        "meanwhile",
    )
    transaction_gather_ms: float = Field(
        default=20.0,
        ge=0,
        le=1000,
        description="transactions that are not full begin so far apart at least, and take the batches that come "
        "meanwhile: so much later at most is a decision on topic decisions. Without fast decisions it is not used",
    )
    gather_ms_max: float = Field(
        default=50.0,
        ge=0,
        le=1000,
        description="longest linger: how long a batch waits for more payments while the one before is committed",
    )
    frontier_wait_ms: int = Field(
        default=2_000,
        ge=0,
        le=600_000,
        description="longest wait of the other partitions for one that is behind and shows nothing, or gains less than "
        "the clock does; then they are decided without it, and its payments may come late. Five times as long for one "
        "that was not read yet since the start",
    )
    transaction_timeout_ms: int = Field(
        default=10_000, ge=1000, le=900_000, description="after that the broker aborts a transaction left open"
    )
    session_timeout_ms: int = Field(
        default=6_000, ge=1000, le=300_000, description="after that a silent worker loses its shards"
    )
    buffered_payments_max: int = Field(
        default=32_768, ge=1024, le=10_000_000, description="payments read ahead of their decision at most"
    )
    deadline_ms: float | None = Field(
        default=None,
        gt=0,
        description="a decision is worth having for so long after the payment's broker timestamp; when the queue makes "
        "that impossible, lists, rules and the bundle's student decide (mode degraded). Empty: no deadline",
    )
    deadline_header: str | None = Field(
        default=None,
        description="name of a payment header that holds its own deadline, epoch ms in digits; wins over deadline_ms",
    )
    producer_timestamps: bool = Field(
        default=False,
        description="decide records with their producers' timestamps too, for a broker that cannot stamp them itself "
        "(the demo's last resort): any producer can then make the payments of others late",
    )
    max_poll_interval_ms: int = Field(
        default=300_000,
        ge=1000,
        description="a worker whose main thread stands still for so long leaves the group, and its shards go to others",
    )
    no_progress_s: float = Field(
        default=60.0, gt=0, description="recovery or commit without progress for so long stops the worker loudly"
    )
    denied_s: float = Field(
        default=600.0,
        ge=0,
        description="a right at Kafka that is taken away while the worker runs is waited for so long, not ready and "
        "with an error that names it; then the worker ends",
    )
    log_folder: Path | None = Field(
        default=None,
        description="folder for the event log of the windows, on a fast local disk; without: in memory",
    )
    standby_shards_max: int = Field(
        default=1, ge=0, le=1000, description="shards of others that a worker follows warm; each takes a shard's memory"
    )
    standby_warm_s: float = Field(
        default=1_800.0,
        ge=0,
        description="a worker is not ready until it has caught up with the shards that it follows, so that a rolling "
        "update does not stop their owner before; a standby that is not warm after so long is not waited for any more. "
        "0: none is",
    )
    group_protocol: Literal["classic", "consumer"] = Field(
        default="classic",
        description="consumer: the broker assigns (KIP-848, Kafka 4); session timeout and heartbeats are then the "
        "brokers' settings, 45 s and 5 s by default",
    )
    instance_id: str | None = Field(
        default=None, description="static group membership: a restart within the session timeout keeps its shards"
    )


class CardSettings(Section):
    """Pseudonyms, for fields that the feature set declares as token (`card_numbers`)."""

    keys: SecretStr | None = Field(
        default=None,
        description="keys of the pseudonyms, best from KEYS_FILE: one a line, each of 64 hexadecimal digits or more. "
        "The first is for what comes in now; the others for what was read with them, kept as long as the journal",
    )


class BundleSettings(Section):
    """Which bundles a worker accepts."""

    trusted_keys: list[str] = Field(
        default_factory=list,
        description='JSON list of public keys ("ed25519:BASE64"); one must have signed a bundle and an activation. '
        "Empty: bundles need no signature, and no activation is taken",
    )
    locations: list[str] = Field(
        default_factory=list,
        max_length=64,
        description="JSON list of the folders and URLs below which an activated bundle may lie, such as "
        '["/srv/bundles", "s3://bundles/cards"]. Empty: nowhere, and no activation is taken',
    )
    fetch_timeout_s: float = Field(
        default=30.0,
        gt=0,
        le=600,
        description="an activated bundle that is not loaded after so long is refused; payments are decided meanwhile, "
        "labels and lists behind the activation wait",
    )
    unsigned_activations: bool = Field(
        default=False,
        description="take activations that no key signed, where no trusted keys are set: whoever may write to the "
        "control topic then chooses the model. For trials",
    )


class SnapshotSettings(Section):
    """Snapshots of a shard's state, so that recovery re-runs minutes of the journal and not its whole life."""

    url: SecretStr | None = Field(
        default=None,
        description="fsspec URL, such as s3://bucket/snapshots or file:///var/lib/fraud; the cache by default",
    )
    every_payments: int = Field(
        default=1_000_000, ge=0, description="a snapshot after so many payments; 0: not by count"
    )
    every_s: float = Field(
        default=300.0, ge=0, description="a snapshot after so many seconds in which something was read; 0: not by time"
    )
    kept: int = Field(
        default=3, ge=1, le=1000, description="snapshots kept: when the newest is bad, the next one serves"
    )
    key: SecretStr | None = Field(
        default=None,
        min_length=32,
        description="secret of the application, 32 characters at least, best from FRAUD_SCORER_SNAPSHOTS__KEY_FILE: "
        "snapshots carry an HMAC "
        "under it, and others are refused unread. Without: those that the journal names are used, and no others",
    )
    unnamed: bool = Field(
        default=False,
        description="use snapshots that the journal does not name as well: for the first start after an upgrade from a "
        "release that did not name them. Whoever can write to the store can change decisions then",
    )


class ReplaySettings(Section):
    """How replay, prove and explain read topics: apart from the live worker, so that a quota can hold them alone."""

    client_id: str = Field(
        default="fraud-scorer-replay",
        pattern=r"^[A-Za-z0-9._-]{1,100}$",
        description="client.id of what reads history; give it a quota (kafka-configs.sh, see README)",
    )
    client_rack: str | None = Field(
        default=None,
        description="client.rack of what reads history: a rack whose followers may be read from, instead of the "
        "leaders that serve the worker (brokers need replica.selector.class=RackAwareReplicaSelector)",
    )


class FileSettings(Section):
    """How commands read payments from files."""

    memory_mib: int = Field(
        default=1024, ge=64, description="memory for reading and sorting; what needs more goes to temp_folder"
    )
    temp_folder: Path | None = Field(
        default=None,
        description="where sorting spills to, stdin and objects are copied, and what was parsed of CSV and JSON is "
        "kept; the system's by default",
    )
    future_gap: str = Field(
        default="30d",
        description="a row so much later than all before it in time is refused when it is one of few (1 %)",
    )
    refused_max: float = Field(
        default=0.01, ge=0, le=1, description="share of rows that may be refused; a run that refuses more fails"
    )

    late_max: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of rows that may be late when they are read in the file's own order; more stop the run",
    )

    @field_validator("future_gap")
    @classmethod
    def _duration(cls, given: str) -> str:
        parse_duration_ms(given)
        return given


class TracingSettings(Section):
    """Traces of sampled payments, given to an OpenTelemetry collector. Off by default."""

    exporter: Literal["none", "otlp"] = Field(
        default="none",
        description="otlp: spans of sampled payments go to the collector at endpoint, by OTLP over HTTP; needs the "
        "extra fraud-scorer[tracing]. none: no header of a payment is looked at, none is given back",
    )
    endpoint: str = Field(
        default="http://127.0.0.1:4318/v1/traces",
        pattern=r"^https?://",
        description="the collector's address for traces, with its path",
    )
    headers: SecretStr | None = Field(
        default=None,
        description="name=value,name=value: headers of the requests to the collector, such as a token, best from "
        "HEADERS_FILE; values are percent-encoded",
    )
    certificate: Path | None = Field(
        default=None, description="PEM file of the authorities that the collector's certificate is checked with"
    )
    client_certificate: Path | None = Field(
        default=None, description="PEM file of the certificate that is shown to the collector; needs client_key"
    )
    client_key: Path | None = Field(default=None, description="PEM file of its private key")
    service_name: str = Field(
        default="fraud-scorer", min_length=1, max_length=100, description="service.name of the spans"
    )
    ratio: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the payments without a traceparent header that are sampled, chosen by their place on the "
        "topic; those with one are sampled as it says",
    )
    payments_per_s_max: int = Field(
        default=100,
        ge=1,
        le=1000,
        description="sampled payments a second and shard at most, and as many at once; others are counted and not "
        "traced, whatever their sender asks for",
    )
    timeout_s: float = Field(
        default=5.0, gt=0, le=60, description="longest time of one request to the collector, repeats included"
    )
    flush_s: float = Field(
        default=3.0, ge=0, le=30, description="how long a process that ends waits for its last spans to be taken"
    )

    @field_validator("endpoint")
    @classmethod
    def _without_credentials(cls, given: str) -> str:
        if "@" in given:
            raise ValueError("give the address without credentials, and those in headers, best from HEADERS_FILE")
        return given

    @model_validator(mode="after")
    def _pair(self) -> TracingSettings:
        if (self.client_certificate is None) != (self.client_key is None):
            raise ValueError("client_certificate and client_key belong together: give both, or neither")
        return self


class HttpSettings(Section):
    """Metrics and health."""

    host: str = Field(default="127.0.0.1", description="address of /metrics, /livez and /readyz")
    worker_port: int = Field(
        default=9464,
        ge=0,
        le=65_535,
        description="0: any free port, printed at start. Without this setting a second worker on one machine takes the "
        "first free port from 9466 on, and logs it",
    )
    sink_port: int = Field(
        default=9465,
        ge=0,
        le=65_535,
        description="0: any free port, printed at start. Without this setting a second sink on one machine takes the "
        "first free port from 9467 on, and logs it",
    )
    certificate: Path | None = Field(
        default=None, description="PEM file of the port's certificate and its chain: then it speaks TLS; needs key"
    )
    key: Path | None = Field(default=None, description="PEM file of the certificate's private key")
    key_password: SecretStr | None = Field(
        default=None, description="password of an encrypted key, best from KEY_PASSWORD_FILE"
    )
    user: str | None = Field(
        default=None,
        min_length=1,
        pattern="^[^:]*$",
        description="name for basic authentication of /metrics; needs password. /livez and /readyz then answer others "
        "with their status alone, without a reason",
    )
    password: SecretStr | None = Field(
        default=None, description="password for basic authentication, best from PASSWORD_FILE"
    )

    @model_validator(mode="after")
    def _pairs(self) -> HttpSettings:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: give both for TLS, or neither")
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password belong together: give both for basic authentication, or neither")
        return self


class Settings(BaseSettings):
    """All settings of all commands."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", validate_default=True
    )

    # Names of the settings of Postgres whose values came from files.
    _from_files: frozenset[str] = PrivateAttr(default=frozenset())

    kafka: KafkaSettings = KafkaSettings()
    postgres: PostgresSettings = PostgresSettings()
    audit: AuditSettings = AuditSettings()
    topics: TopicSettings = TopicSettings()
    worker: WorkerSettings = WorkerSettings()
    cards: CardSettings = CardSettings()
    bundle: BundleSettings = BundleSettings()
    snapshots: SnapshotSettings = SnapshotSettings()
    replay: ReplaySettings = ReplaySettings()
    files: FileSettings = FileSettings()
    http: HttpSettings = HttpSettings()
    tracing: TracingSettings = TracingSettings()
    log_level: str = Field(
        default="info", pattern="^(debug|info|warning|error)$", description="lowest level that is logged"
    )
    cache: Path = Field(
        default=Path("~/.cache/fraud-scorer"), description="demo bundle, local services; safe to delete"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - given by name; there is no .env file
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - given by name; _FileSource reads the files
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # NAME_FILE belongs to the source below; to the environment source it would be an unknown setting.
        if isinstance(env_settings, EnvSettingsSource):
            env_settings.env_vars = {k: v for k, v in env_settings.env_vars.items() if not k.upper().endswith("_FILE")}
        return init_settings, env_settings, _FileSource(settings_cls)

    @property
    def pseudonym_keys(self) -> PseudonymKeys:
        """The keys for token fields; none are given where none are set. Raises UsageError, never with a key."""
        if self.cards.keys is None:
            return PseudonymKeys()
        try:
            return PseudonymKeys.from_text(self.cards.keys.get_secret_value())
        except PseudonymKeyError as exc:
            raise UsageError(f"setting {PREFIX}CARDS__KEYS: {exc}") from None

    @property
    def postgres_url(self) -> str:
        """The address of Postgres as libpq's `name=value` pairs, with its password put in; never log it."""
        password = self.postgres.password
        return postgres_address.connection_text(
            self.postgres.url.get_secret_value(), None if password is None else password.get_secret_value()
        )


def reading_history(settings: Settings) -> Settings:
    """The same settings for what reads history: with the client id and rack of `replay`."""
    replay = settings.replay
    clients = settings.kafka.model_copy(
        update={"client_id": replay.client_id, "client_rack": replay.client_rack or settings.kafka.client_rack}
    )
    return settings.model_copy(update={"kafka": clients})


def with_secrets_read_again(settings: Settings) -> Settings:
    """The same settings, with the address and the password of Postgres as their *_FILE files hold them now.

    For a process that connects anew: passwords are rotated while it runs. What came from elsewhere stays as it is.
    Raises UsageError naming the variable whose file cannot be read.
    """
    if not settings._from_files:
        return settings
    now: dict[str, str] = _contents().get("postgres", {})
    again = {name: SecretStr(now[name]) for name in settings._from_files if name in now}
    renewed = settings.model_copy(update={"postgres": settings.postgres.model_copy(update=again)})
    renewed.postgres_url  # noqa: B018 - raises where the new content cannot be read as an address
    secret_text.hide(renewed)
    return renewed


class _FileSource(PydanticBaseSettingsSource):
    """FRAUD_SCORER_A__B_FILE=/path gives a.b the content of the file, without its last newline."""

    def get_field_value(
        self,
        field: Any,  # noqa: ARG002 - the base class's signature
        field_name: str,
    ) -> tuple[Any, str, bool]:  # pragma: no cover - not used by __call__
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        return _contents()


def _contents() -> dict[str, Any]:
    """What the files of all *_FILE variables hold, nested by section."""
    result: dict[str, Any] = {}
    for name, target in os.environ.items():
        if not (name.startswith(PREFIX) and name.endswith("_FILE")):
            continue
        try:
            content = Path(target).read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as exc:
            raise UsageError(f"{name}: the file cannot be read: {exc.strerror}") from exc
        place = result
        *sections, last = name[len(PREFIX) : -len("_FILE")].lower().split("__")
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = content
    return result


def load(**overrides: Any) -> Settings:
    """Read settings; `overrides` win over the environment.
    Raises UsageError naming the setting, never a secret's value."""
    _refuse_unknown_sections()
    try:
        loaded = Settings(**overrides)
        loaded._from_files = _from_files(loaded)
        secret_text.hide(loaded)
        return loaded
    except SettingsError as exc:
        section = re.search(r'field "(\w+)"', str(exc))
        raise UsageError(
            f"settings {PREFIX}{section[1].upper() if section else ''}__…: a list or mapping is written as JSON, such "
            f'as ["customer_id"] or {{"security.protocol": "SSL"}}'
        ) from None  # the cause repeats the value
    except ValidationError as exc:
        first = exc.errors(include_input=False, include_url=False)[0]
        name = PREFIX + "__".join(str(part).upper() for part in first["loc"])
        raise UsageError(f"setting {name}: {first['msg']}") from None  # the cause repeats the value


def _from_files(settings: Settings) -> frozenset[str]:
    """Of the settings of Postgres: those that came from a file, not from an override or the environment itself."""
    found = set()
    for name, content in _contents().get("postgres", {}).items():
        value = getattr(settings.postgres, name, None)
        if isinstance(value, SecretStr) and value.get_secret_value() == content:
            found.add(name)
    return frozenset(found)


def _refuse_unknown_sections() -> None:
    """Raise UsageError for PREFIX + SECTION + __NAME of a section that does not exist. pydantic knows fields, and does
    not look at variables of others."""
    for variable in os.environ:
        section, nested, _ = variable.upper().removeprefix(PREFIX).partition("__")
        if variable.upper().startswith(PREFIX) and nested and section.lower() not in Settings.model_fields:
            near = difflib.get_close_matches(section.lower(), list(Settings.model_fields), 1)
            known = f"did you mean {PREFIX}{near[0].upper()}__…?" if near else "`fraud-scorer settings` prints them all"
            raise UsageError(f"setting {variable}: there is no section {section}; {known}")
