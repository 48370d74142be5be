"""Local Kafka and Postgres: real, on 127.0.0.1 alone, and never left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import psutil
import psycopg
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from scorer.errors import UsageError
from scorer.local_services import (
    AddressSilentError,
    Kafka,
    NoWayToStartError,
    Services,
    ServicesError,
    jars,
    kept_services,
    local_postgres,
    local_services,
    postgres_files,
)
from scorer.local_services.local_kafka import ADDRESS as KAFKA_ADDRESS
from scorer.local_services.local_kafka import start_kafka
from scorer.local_services.local_ports import free_port, port_open
from scorer.local_services.local_postgres import ADDRESS as POSTGRES_ADDRESS
from scorer.local_services.local_postgres import start_postgres
from scorer.local_services.managed_service import ManagedService, Place
from scorer.local_services.postgres_files import PACKAGE
from scorer.local_services.services import prepare
from scorer.runtime import assets
from tests.waits import WaitEnded

COMMAND = [sys.executable, "-c", "from scorer.cli.services_commands import app; app()"]


def own_environment() -> dict[str, str]:
    """This environment without given addresses."""
    given = (KAFKA_ADDRESS, POSTGRES_ADDRESS, f"{POSTGRES_ADDRESS}_FILE")
    return {name: value for name, value in os.environ.items() if name not in given}


def bare_environment(folder: Path) -> dict[str, str]:
    """An environment without Java, Maven and Docker."""
    return {"PATH": "", "HOME": str(folder), "DOCKER_HOST": f"unix://{folder}/no-docker.sock"}


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Wait for something that another process does, 40 s at most."""
    for _ in range(800):
        if holds():
            return
        time.sleep(0.05)
    raise WaitEnded(f"not within 40 s: {what}")


def alive(pid: int) -> bool:
    return kept_services.identity(pid) is not None


def port_of(url: str) -> int:
    found = re.search(r":(\d+)(/|$)", url)
    assert found
    return int(found[1])


@pytest.fixture
def place() -> Iterator[Place]:
    """A folder for services started below `local_services`."""
    made = Path(tempfile.mkdtemp(prefix="fraud-scorer-test-"))
    here = Place(made, own_environment(), lambda _line: None, temporary=True)
    prepare(here)
    yield here
    shutil.rmtree(made, ignore_errors=True)


def send(kafka: Kafka, topic: str, value: bytes, *, commit: bool) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": topic})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic, value)
    if commit:
        producer.commit_transaction(30)
    else:
        producer.flush(30)
        producer.abort_transaction(30)


def receive(kafka: Kafka, topic: str, count: int) -> list[bytes]:
    """The first `count` values that a read_committed reader sees."""
    settings = {"group.id": topic, "isolation.level": "read_committed", "auto.offset.reset": "earliest"}
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap_servers, **settings})
    consumer.subscribe([topic])
    try:
        values: list[bytes] = []
        for _ in range(40):
            if len(values) == count:
                return values
            message = consumer.poll(1.0)
            if message is not None and message.error() is None:
                values.append(message.value())
    finally:
        consumer.close()
    raise WaitEnded(f"{len(values)} of {count} messages within 40 s")


def make_topic(kafka: Kafka, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])[topic].result(30)


def test_readers_see_what_was_committed_and_nothing_else(kafka: Kafka, topics_prefix: str) -> None:
    """On this broker a read_committed reader sees a committed message and not an aborted one."""
    topic = f"{topics_prefix}payments"
    make_topic(kafka, topic)
    send(kafka, topic, b"taken back", commit=False)
    send(kafka, topic, b"kept", commit=True)
    assert receive(kafka, topic, 1) == [b"kept"]


def test_database_is_empty_and_speaks_utf8(database: str) -> None:
    """Every test gets an empty database whose text is Unicode."""
    with psycopg.connect(database) as connection:
        assert connection.execute("SHOW server_encoding").fetchone() == ("UTF8",)
        assert connection.execute("SELECT char_length(%s)", ("Zürich €",)).fetchone() == (8,)
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)


def test_broker_keeps_port_and_data_when_stopped_and_when_killed(own_services: Services, topics_prefix: str) -> None:
    """stop and kill of the broker cost nothing that was committed, and start brings it back to the same address."""
    topic = f"{topics_prefix}payments"
    kafka = own_services.kafka
    address = kafka.bootstrap_servers
    make_topic(kafka, topic)
    send(kafka, topic, b"before", commit=True)
    kafka.stop()
    assert not port_open(port_of(address))
    kafka.start()
    send(kafka, topic, b"between", commit=True)
    kafka.kill()
    kafka.start()
    assert kafka.bootstrap_servers == address
    assert receive(kafka, topic, 2) == [b"before", b"between"]


def test_no_other_machine_on_the_network_can_connect(own_services: Services) -> None:
    """Every listener of services that we start is on 127.0.0.1."""
    for service in (own_services.kafka.service, own_services.postgres.service):
        assert isinstance(service, ManagedService)
        if service.kind == "docker":  # on any other address the port is free
            with socket.socket() as probe:
                probe.bind(("127.0.0.2", service.port))
            continue
        process = psutil.Process(service.pids["service"])
        parts = (process, *process.children(recursive=True))
        connections = [found for part in parts for found in part.net_connections()]
        listening = [found.laddr for found in connections if found.status == psutil.CONN_LISTEN]
        assert service.port in {address.port for address in listening}
        assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


def test_killed_caller_leaves_nothing_behind() -> None:
    """After SIGKILL of the process that asked for them, both services, their ports and their folder are gone."""
    script = (
        "import json, sys, time\n"
        "from scorer.local_services import local_services\n"
        "with local_services() as s:\n"
        "    pids = [*s.kafka.service.pids.values(), *s.postgres.service.pids.values()]\n"
        "    addresses = [s.kafka.bootstrap_servers, s.postgres.url]\n"
        "    print(json.dumps([pids, addresses, str(s.log_folder.parent)]), flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=own_environment()) as caller:
        assert caller.stdout is not None
        pids, addresses, folder = json.loads(caller.stdout.readline())
        assert all(alive(pid) for pid in pids)
        caller.send_signal(signal.SIGKILL)
    eventually(lambda: not any(alive(pid) for pid in pids), "processes end")
    assert not any(port_open(port_of(address)) for address in addresses)
    eventually(lambda: not Path(folder).exists(), "the temporary folder is removed")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a process whose parent died")
def test_killed_guard_takes_its_service_along(place: Place) -> None:
    """Even the guard's own SIGKILL leaves no Postgres behind, and a caller that checks learns of it. What the guard was
    asked to do, environments with their secrets included, stands in no argument list, which every user can read."""
    postgres = start_postgres(place, fsync=False)
    services = Services(None, postgres, place.log_folder)
    services.check()
    pids = postgres.service.pids
    assert psutil.Process(pids["guard"]).cmdline()[-1].endswith("guard.py")
    os.kill(pids["guard"], signal.SIGKILL)
    eventually(lambda: not alive(pids["service"]), "Postgres ends")
    with pytest.raises(ServicesError, match=r"postgres has ended; see .*postgres\.log"):
        services.check()
    postgres.service.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a process whose parent died")
@pytest.mark.parametrize("start", [start_kafka, start_postgres])
def test_service_starts_again_after_its_guard_was_killed(place: Place, start: Callable[..., Services]) -> None:
    """While a service whose guard was killed still ends, start waits for it, and brings it back on its port."""
    more = {"demo_only_broker_allowed": False} if start is start_kafka else {"fsync": False}
    service = start(place, **more).service
    former, address = service.pids, service.address
    os.kill(former["guard"], signal.SIGKILL)
    eventually(lambda: not service.pids, "the guard is gone")
    service.start()
    try:
        assert not alive(former["service"])
        assert service.pids
        assert service.address == address
    finally:
        service.close()


def test_command_starts_once_and_stops_for_good(place: Place) -> None:
    """Two starts at once make one pair of services; stop frees their ports; the next start has the same addresses."""
    options = ["--folder", str(place.folder)]

    def run(*words: str, **more: str) -> str:
        environment = own_environment() | more
        return subprocess.run(
            [*COMMAND, *words, *options], env=environment, stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    try:
        with ThreadPoolExecutor() as pool:
            first, second = pool.map(lambda _: run("start"), range(2))
        assert first == second
        exports = dict(re.findall(r"^export (\w+)=(\S+)$", first, re.MULTILINE))
        assert list(exports) == [KAFKA_ADDRESS, POSTGRES_ADDRESS]
        assert len(first.splitlines()) == 2
        shown: dict[str, dict[str, object]] = {}

        def both_answer() -> bool:  # a busy one may need longer than `status` waits
            shown.update(json.loads(run("status", "--json").splitlines()[-1])["services"])
            return [shown[name]["answers"] for name in ("kafka", "postgres")] == [True, True]

        eventually(both_answer, "both answer")
        eventually(lambda: "answers" in run("status"), "the table shows that one answers")
        run("stop")
        assert not any(port_open(port_of(address)) for address in exports.values())
        assert not any(alive(service["pid"]) for service in shown.values())
        # In a shell that evaluated the exports: its own former addresses are not given ones.
        assert run("start", **exports) == first
    finally:
        run("stop")
    stopped = json.loads(run("status", "--json").splitlines()[-1])["services"]
    assert not any(service["running"] for service in stopped.values())


def test_stop_spares_a_process_that_is_not_ours(tmp_path: Path) -> None:
    """A process that has inherited a pid from the state file is neither reported nor stopped."""
    with subprocess.Popen(["sleep", "600"]) as stranger:
        note = {"pid": stranger.pid, "identity": "another boot/1"}
        service = {"kind": "java", "address": "127.0.0.1:1", "port": 1, "stop_signal": 15}
        service["processes"] = {"guard": note, "service": note}
        (tmp_path / "state.json").write_text(json.dumps({"version": 1, "services": {"kafka": service}}))
        assert kept_services.stop(tmp_path, print) == []
        assert stranger.poll() is None
        stranger.kill()


def test_two_at_once_do_not_clash() -> None:
    """Services asked for at the same moment get ports of their own."""

    def url(_: int) -> str:
        with local_services(kafka=False, environment=own_environment()) as services:
            with psycopg.connect(services.postgres.url) as connection:
                connection.execute("SELECT 1")
            both_up.wait(60)
            return services.postgres.url

    both_up = Barrier(2)
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(url, range(2))
    assert first != second


@pytest.mark.parametrize("start", [start_kafka, start_postgres])
def test_lost_port_costs_a_try(place: Place, start: Callable[..., Services]) -> None:
    """A port taken between choosing and binding is replaced by another one."""
    more = {"demo_only_broker_allowed": False} if start is start_kafka else {"fsync": False}
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", free_port()))
        thief.listen()
        lost = thief.getsockname()[1]
        service = start(place, preferred_port=lost, **more).service
        try:
            assert service.port != lost
        finally:
            service.close()


def test_given_addresses_win(services: Services) -> None:
    """With addresses in the environment nothing is started, and nothing that is not ours is stopped."""
    given = {KAFKA_ADDRESS: services.kafka.bootstrap_servers, POSTGRES_ADDRESS: services.postgres.url}
    with local_services(environment=own_environment() | given) as used:
        assert (used.kafka.kind, used.postgres.kind) == ("given", "given")
        assert used.kafka.bootstrap_servers == services.kafka.bootstrap_servers
        assert used.postgres.url == services.postgres.url
        with pytest.raises(UsageError, match="not ours"):
            used.kafka.stop()
    assert local_postgres.answers(services.postgres.url)


def test_silent_address_is_named_without_its_password() -> None:
    """A given address that does not answer is an error that names the variable, and no password."""
    environment = own_environment() | {POSTGRES_ADDRESS: f"postgresql://me:s3cret@127.0.0.1:{free_port()}/audit"}
    with (
        pytest.raises(AddressSilentError, match=POSTGRES_ADDRESS) as silent,
        local_services(kafka=False, environment=environment),
    ):
        pass
    assert "s3cret" not in str(silent.value)
    environment = own_environment() | {KAFKA_ADDRESS: f"127.0.0.1:{free_port()}"}
    with (
        pytest.raises(AddressSilentError, match=KAFKA_ADDRESS),
        local_services(postgres=False, environment=environment),
    ):
        pass


def test_without_java_and_docker_the_error_names_the_ways_out(tmp_path: Path) -> None:
    """Where nothing can run Kafka, the error gives the reason for each way and names three ways out."""
    with (
        pytest.raises(NoWayToStartError) as nothing,
        local_services(postgres=False, environment=bare_environment(tmp_path)),
    ):
        pass
    for part in ("Docker:", "Java:", f"export {KAFKA_ADDRESS}=", "start Docker", "install Java 17 or later and Maven"):
        assert part in str(nothing.value)


def test_failure_shows_the_end_of_the_log(place: Place) -> None:
    """When Postgres cannot start, the error shows what it logged."""
    service = start_postgres(place, fsync=False).service
    service.stop()
    data = next(path for path in (place.folder / "postgres").glob("data"))
    (data / "PG_VERSION").write_text("7\n")
    with pytest.raises(NoWayToStartError, match="not compatible"):
        start_postgres(Place(place.folder, bare_environment(place.folder), print, temporary=True), fsync=False)


def test_postgres_never_runs_as_root(place: Place) -> None:
    """Also for root, and in a folder closed to everybody else, Postgres runs, as an ordinary user."""
    place.folder.chmod(0o700)
    environment = bare_environment(place.folder)
    with local_services(kafka=False, folder=place.folder, environment=environment) as services:
        uid = psutil.Process(services.postgres.service.pids["service"]).uids().real
        with psycopg.connect(services.postgres.url) as connection:
            row = connection.execute("SHOW data_directory").fetchone()
    assert row is not None
    data = Path(row[0])
    assert uid == data.stat().st_uid != 0
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    shutil.rmtree(data)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root drops privileges")
def test_binaries_out_of_reach_are_copied(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the user that runs Postgres cannot read the installation, it runs a copy that only root can change."""
    closed, shared = place.folder / "closed", place.folder / "shared"
    closed.mkdir(mode=0o700)
    shared.mkdir(mode=0o755)
    (origin,) = importlib.util.find_spec(PACKAGE).submodule_search_locations
    for name in (PACKAGE, f"{PACKAGE}.libs"):
        shutil.copytree(Path(origin).with_name(name), closed / name)
    monkeypatch.setattr(postgres_files, "_SHARED", shared)
    binaries = postgres_files.readable_binaries(closed / PACKAGE, postgres_files.ordinary_user())
    assert binaries.is_relative_to(shared)
    assert (binaries / "postgres").stat().st_uid == 0
    assert not stat.S_IMODE((binaries / "postgres").stat().st_mode) & 0o022


def test_interrupted_download_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    """After a failed fetch the next one starts anew, and of two at once only one fetches."""
    tools, calls = tmp_path / "bin", tmp_path / "calls"
    tools.mkdir()
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def maven(script: str) -> None:
        # `mvn` sees the folder in its last argument.
        lines = ["#!/bin/sh", f"echo call >> {calls}", 'for last; do :; done; folder="${last#*=}"', script]
        (tools / "mvn").write_text("\n".join(lines) + "\n")
        (tools / "mvn").chmod(0o755)

    maven('touch "$folder/kafka_2.13-4.1.0.jar"; echo "line is dead"; exit 1')
    with pytest.raises(jars.DownloadError, match="line is dead"):
        jars.ensure_jars(environment, print)
    assert not jars.cached(environment)
    maven('sleep 0.5; touch "$folder/kafka_2.13-4.1.0.jar"')
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda _: jars.ensure_jars(environment, print), range(2))
    assert first == second
    assert [path.name for path in first.iterdir()] == ["kafka_2.13-4.1.0.jar"]
    assert calls.read_text().count("call") == 2


def test_one_version_of_kafka() -> None:
    """The pom, the cache folder and the Docker image mean one version."""
    assert f"<kafka.version>{jars.KAFKA_VERSION}</kafka.version>" in assets.path("deploy/kafka/pom.xml").read_text()
