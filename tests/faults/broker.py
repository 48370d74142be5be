"""A Kafka of the tests' own on Java: any property may be set, and a second listener stands behind a proxy."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import rmtree
from types import TracebackType
from typing import ClassVar, Protocol

from scorer.local_services import jars
from scorer.local_services.local_kafka import BROKER
from scorer.local_services.local_ports import free_port, port_open
from scorer.local_services.managed_service import ManagedService, Place, Plan
from scorer.local_services.services import prepare
from tests.faults.proxy import Proxy

# A member that is silent for 1.5 s has lost its shards: a frozen worker is replaced in a test's time.
QUICK = {
    "group.min.session.timeout.ms": "500",
    "group.consumer.session.timeout.ms": "2000",
    "group.consumer.min.session.timeout.ms": "500",
    "group.consumer.heartbeat.interval.ms": "400",
    "group.consumer.min.heartbeat.interval.ms": "400",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
}
_LOG4J = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = [%d] %p %m (%c)%n
rootLogger.level = WARN
rootLogger.appenderRef.out.ref = out
"""


class Brokers(Protocol):
    """Where an application finds its Kafka; `proxied_servers` is what its workers are given."""

    bootstrap_servers: str
    proxied_servers: str


class OwnBroker:
    """One node, or one of several of a cluster. stop, kill and start keep ports and data."""

    def __init__(
        self,
        properties: Mapping[str, str] | None = None,
        *,
        listener: str = "PLAINTEXT",
        proxied_listener: str | None = None,
        node: int = 1,
        controllers: Mapping[int, int] | None = None,
        cluster: str = "ZnJhdWQtc2NvcmVyLXRlc3Q",
    ) -> None:
        """`listener`, `proxied_listener`: their security protocols. `controllers`: port of each node's controller."""
        self._folder = Path(tempfile.mkdtemp(prefix="fraud-scorer-broker-"))
        place = Place(self._folder, os.environ, lambda _: None, temporary=True)
        prepare(place)
        java, reason = jars.find_java(os.environ)
        assert java is not None, reason
        libraries = jars.ensure_jars(os.environ, lambda _: None)
        home = place.service_folder("kafka")
        (home / "log4j2.properties").write_text(_LOG4J)
        base = [str(java), "-cp", f"{libraries}/*", f"-Dlog4j2.configurationFile={home / 'log4j2.properties'}"]
        base += [f"-Djava.io.tmpdir={home}", "-XX:-UsePerfData", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        port, behind, proxied = free_port(), free_port(), proxied_listener or listener
        controllers = controllers or {node: free_port()}
        self.proxy = Proxy(("127.0.0.1", behind))
        self.bootstrap_servers = f"127.0.0.1:{port}"
        self.proxied_servers = f"127.0.0.1:{self.proxy.port}"
        lines = BROKER | QUICK | {
            "node.id": str(node),
            "listeners": f"DIRECT://127.0.0.1:{port},PROXIED://127.0.0.1:{behind},"
            f"CONTROLLER://127.0.0.1:{controllers[node]}",
            "advertised.listeners": f"DIRECT://127.0.0.1:{port},PROXIED://127.0.0.1:{self.proxy.port}",
            "listener.security.protocol.map": f"DIRECT:{listener},PROXIED:{proxied},CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "DIRECT",
            "controller.quorum.voters": ",".join(f"{n}@127.0.0.1:{p}" for n, p in controllers.items()),
            "log.dirs": str(home / "data"),
        }  # fmt: skip
        path = home / "server.properties"
        path.write_text("".join(f"{name}={value}\n" for name, value in (lines | dict(properties or {})).items()))
        tool = ["-Xmx128m", "kafka.tools.StorageTool", "format", "--cluster-id", cluster, "--config", str(path)]
        subprocess.run([*base, *tool], check=True, capture_output=True, timeout=120)
        self.log = place.log_folder / "kafka.log"
        self.service = ManagedService(
            Plan(
                name="kafka",
                kind="java",
                address=self.bootstrap_servers,
                port=port,
                argv=[*base, "-Xmx384m", "kafka.Kafka", str(path)],
                environment=place.small_environment(),
                folder=home,
                answers=lambda: port_open(port),
                ready_timeout_s=90.0,
                stop_timeout_s=30.0,
            ),
            place,
        )

    def start(self) -> None:
        self.service.start()

    def kill(self) -> None:
        """SIGKILL: what a crash of the broker looks like."""
        self.service.kill()

    def stop(self) -> None:
        self.service.stop()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.service.pids["service"], number)

    def __enter__(self) -> OwnBroker:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.proxy.close()
        self.service.kill()  # nothing of it is needed any more
        self.service.close()
        rmtree(self._folder, ignore_errors=True)


class Cluster:
    """Three nodes, each a broker and a controller; every partition on all of them, and two must have a record."""

    REPLICATED: ClassVar = {
        "default.replication.factor": "3",
        "min.insync.replicas": "2",
        "offsets.topic.replication.factor": "3",
        "transaction.state.log.replication.factor": "3",
        "transaction.state.log.min.isr": "2",
        "replica.lag.time.max.ms": "4000",
    }

    def __init__(self) -> None:
        ports = {node: free_port() for node in (1, 2, 3)}
        self.nodes = [OwnBroker(self.REPLICATED, node=node, controllers=ports) for node in ports]
        self.bootstrap_servers = ",".join(node.bootstrap_servers for node in self.nodes)
        self.proxied_servers = ",".join(node.proxied_servers for node in self.nodes)

    def __enter__(self) -> Cluster:
        with ThreadPoolExecutor(3) as together:  # none answers before two are there
            list(together.map(OwnBroker.start, self.nodes))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes:
            node.__exit__(kind, error, trace)
