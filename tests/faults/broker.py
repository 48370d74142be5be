"""A Kafka of the tests' own on Java: any property may be set, and a second listener stands behind a proxy."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import rmtree
from types import TracebackType
from typing import ClassVar, Protocol

from scorer.local_services import jars
from scorer.local_services.local_kafka import BROKER
from scorer.local_services.local_ports import port_open
from scorer.local_services.managed_service import ManagedService, Place, Plan
from scorer.local_services.service_errors import PortTakenError
from scorer.local_services.services import prepare
from tests.faults.proxy import Proxy
from tests.ports import BROKERS, free_ports

# A frozen worker is replaced in a test's time; sessions are as short as a test asks for. Of the consumer protocol the
# broker sets them: 6 s, and for a group of its own what tests.faults.run says.
QUICK = {
    "group.min.session.timeout.ms": "500",
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.session.timeout.ms": "500",
    "group.consumer.heartbeat.interval.ms": "400",
    "group.consumer.min.heartbeat.interval.ms": "400",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
}
_PORT_ATTEMPTS_MAX = 5
CLUSTER_ID = "ZnJhdWQtc2NvcmVyLXRlc3Q"
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
        ports: Sequence[int] | None = None,
        controllers: Mapping[int, int] | None = None,
    ) -> None:
        """`listener`, `proxied_listener`: their security protocols. `ports`: of the two listeners. `controllers`: port
        of each node's controller."""
        self._properties = dict(properties or {})
        self._protocols = listener, proxied_listener or listener
        self._node = node
        if ports is None or controllers is None:
            *ports, controller = free_ports(3, BROKERS)
            controllers = {node: controller}
        self._make(ports, controllers)

    def _make(self, ports: Sequence[int], controllers: Mapping[int, int]) -> None:
        """Folder, settings and proxy of a broker that has not run yet."""
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
        (port, behind), (listener, proxied) = ports, self._protocols
        self.proxy = Proxy(("127.0.0.1", behind))
        self.bootstrap_servers = f"127.0.0.1:{port}"
        self.proxied_servers = f"127.0.0.1:{self.proxy.port}"
        lines = BROKER | QUICK | {
            "node.id": str(self._node),
            "listeners": f"DIRECT://127.0.0.1:{port},PROXIED://127.0.0.1:{behind},"
            f"CONTROLLER://127.0.0.1:{controllers[self._node]}",
            "advertised.listeners": f"DIRECT://127.0.0.1:{port},PROXIED://127.0.0.1:{self.proxy.port}",
            "listener.security.protocol.map": f"DIRECT:{listener},PROXIED:{proxied},CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "DIRECT",
            "controller.quorum.voters": ",".join(f"{n}@127.0.0.1:{p}" for n, p in controllers.items()),
            "log.dirs": str(home / "data"),
        }  # fmt: skip
        path = home / "server.properties"
        path.write_text("".join(f"{name}={value}\n" for name, value in (lines | self._properties).items()))
        tool = ["-Xmx128m", "kafka.tools.StorageTool", "format", "--cluster-id", CLUSTER_ID, "--config", str(path)]
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
        """Started. A port lost between choosing and binding costs a try: the broker is made anew, with other ports."""
        for _ in range(_PORT_ATTEMPTS_MAX - 1):
            try:
                self.start()
            except PortTakenError:
                self.end()
                *ports, controller = free_ports(3, BROKERS)
                self._make(ports, {self._node: controller})
            else:
                return self
        self.start()
        return self

    def end(self) -> None:
        """Killed, with all that it has written: nothing of it is needed any more."""
        self.proxy.close()
        self.service.kill()
        self.service.close()
        rmtree(self._folder, ignore_errors=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


class Cluster:
    """Three nodes, each a broker and a controller; every partition on all of them, and two must have a record."""

    REPLICATED: ClassVar = {
        "default.replication.factor": "3",
        "min.insync.replicas": "2",
        "offsets.topic.replication.factor": "3",
        "transaction.state.log.replication.factor": "3",
        "transaction.state.log.min.isr": "2",
        "replica.lag.time.max.ms": "4000",
        "broker.session.timeout.ms": "9000",  # as by default: a node that a busy machine keeps still is not missed
    }

    def __init__(self) -> None:
        self._make()

    def _make(self) -> None:
        ports = free_ports(9, BROKERS)
        controllers = {node: ports.pop() for node in (1, 2, 3)}
        self.nodes = [
            OwnBroker(self.REPLICATED, node=node, ports=(ports.pop(), ports.pop()), controllers=controllers)
            for node in controllers
        ]
        self.bootstrap_servers = ",".join(node.bootstrap_servers for node in self.nodes)
        self.proxied_servers = ",".join(node.proxied_servers for node in self.nodes)

    def __enter__(self) -> Cluster:
        """All three started. A port lost between choosing and binding costs a try, as with one broker."""
        for _ in range(_PORT_ATTEMPTS_MAX - 1):
            try:
                self._start()
            except PortTakenError:
                self._end()
                self._make()
            else:
                return self
        self._start()
        return self

    def _start(self) -> None:
        with ThreadPoolExecutor(3) as together:  # none answers before two are there
            list(together.map(OwnBroker.start, self.nodes))

    def _end(self) -> None:
        for node in self.nodes:
            node.end()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
