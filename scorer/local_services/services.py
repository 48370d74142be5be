"""Kafka and Postgres for as long as a block of code runs: the demo's and the tests' way in."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from scorer.errors import UsageError
from scorer.local_services.local_kafka import Kafka, start_kafka
from scorer.local_services.local_postgres import Postgres, start_postgres
from scorer.local_services.managed_service import ManagedService, Place
from scorer.local_services.service_errors import ServicesError

S = TypeVar("S", Kafka, Postgres)


class Services:
    """What `local_services` started or was given."""

    def __init__(self, kafka: Kafka | None, postgres: Postgres | None, log_folder: Path) -> None:
        self._kafka = kafka
        self._postgres = postgres
        self.log_folder = log_folder

    @property
    def kafka(self) -> Kafka:
        if self._kafka is None:
            raise UsageError("no Kafka was asked for; call local_services(kafka=True)")
        return self._kafka

    @property
    def postgres(self) -> Postgres:
        if self._postgres is None:
            raise UsageError("no Postgres was asked for; call local_services(postgres=True)")
        return self._postgres

    def check(self) -> None:
        """Raises ServicesError for a service of ours that has ended by itself, or whose guard was killed."""
        for part in (self._kafka, self._postgres):
            if part is not None and isinstance(part.service, ManagedService) and not part.service.pids:
                raise ServicesError(f"{part.service.name} has ended; see {self.log_folder / part.service.name}.log")


@contextlib.contextmanager
def local_services(
    *,
    kafka: bool = True,
    postgres: bool = True,
    folder: Path | None = None,
    demo_only_broker_allowed: bool = False,
    fsync: bool = True,
    short_lived: bool = False,
    environment: Mapping[str, str] | None = None,
    report: Callable[[str], None] = lambda _line: None,
) -> Iterator[Services]:
    """Kafka and Postgres on 127.0.0.1, ready to be used, ended with the block or with this process, however it dies.

    folder: data and logs; what is in it is used again, and it stays. None: a temporary folder, removed at the end.
    demo_only_broker_allowed: last of all take a broker that keeps everything in memory and shows aborted records.
    fsync: False makes Postgres quicker and a power cut fatal to its data: for tests.
    short_lived: Kafka on Java without the JVM's second compiler: half the CPU of a start, less throughput later.
    environment: where addresses, PATH and the like are looked up; os.environ by default.
    report: gets one line for each slow step.

    Raises NoWayToStartError with the ways out, AddressSilentError for a given address, ServicesError for a busy folder.
    """
    temporary = folder is None
    place = Place(
        folder=(Path(tempfile.mkdtemp(prefix="fraud-scorer-")) if folder is None else folder).resolve(),
        environment=os.environ if environment is None else environment,
        report=report,
        temporary=temporary,
    )
    prepare(place)
    started: list[ManagedService] = []
    try:
        broker, database = _start(
            (lambda: start_kafka(place, demo_only_broker_allowed=demo_only_broker_allowed, short_lived=short_lived))
            if kafka
            else None,
            (lambda: start_postgres(place, fsync=fsync)) if postgres else None,
            started,
        )
        yield Services(broker, database, place.log_folder)
    finally:
        for service in started:
            service.begin_close()
        for service in started:
            service.close()
        if temporary:
            shutil.rmtree(place.folder, ignore_errors=True)


def _start(
    kafka: Callable[[], Kafka] | None, postgres: Callable[[], Postgres] | None, started: list[ManagedService]
) -> tuple[Kafka | None, Postgres | None]:
    """Both side by side: neither needs the other, and a first start fetches files for minutes. What runs is in
    `started` in any case, also when one of them cannot be had. Raises what the starts raise, Kafka's first."""

    def begin(way: Callable[[], S]) -> S:
        service = way()
        if isinstance(service.service, ManagedService):
            started.append(service.service)
        return service

    with ThreadPoolExecutor(1, "postgres") as beside:  # leaving it waits for the thread
        database = None if postgres is None else beside.submit(begin, postgres)
        broker = None if kafka is None else begin(kafka)
        return broker, None if database is None else database.result()


def prepare(place: Place) -> None:
    """Make the folder and its logs. A temporary one is open to pass through: as root, Postgres' user has to."""
    place.log_folder.mkdir(parents=True, exist_ok=True)
    if place.temporary:
        place.folder.chmod(0o711)
    place.log_folder.chmod(0o700)
