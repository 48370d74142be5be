"""Services that outlive the command that started them: what is noted of them, how they are found and stopped.

`state.json` in the folder is changed under a lock, by rename, and remains after `stop` with its ports: a shell that has
evaluated the exports finds the services at the same addresses after the next `start`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from scorer.errors import UsageError
from scorer.local_services import local_kafka, local_postgres
from scorer.local_services.managed_service import ManagedService, Place, Service
from scorer.local_services.service_errors import ServicesError
from scorer.local_services.services import prepare

VARIABLES = {"kafka": local_kafka.ADDRESS, "postgres": local_postgres.ADDRESS}

_STOP_TIMEOUT_S = 60.0  # longer than any guard's own bound
_KILL_TIMEOUT_S = 10.0
_POLL_INTERVAL_S = 0.05


class ProcessNote(msgspec.Struct, frozen=True):
    """A process id and what distinguishes the process from a later one of the same number."""

    pid: int
    identity: str


class ServiceNote(msgspec.Struct, frozen=True):
    """One service of the folder. No processes: it was given by its address."""

    kind: str
    address: str
    port: int | None
    stop_signal: int
    processes: dict[str, ProcessNote]  # "guard" and "service"

    @property
    def running(self) -> bool:
        """Whether its guard lives, or it itself without one."""
        return any(lives(note) for note in self.processes.values())

    @property
    def guarded(self) -> bool:
        """Whether its guard lives. A service without one is about to end."""
        return "guard" in self.processes and lives(self.processes["guard"])


class State(msgspec.Struct, frozen=True):
    """What state.json holds: services by name, "kafka" and "postgres"."""

    version: int
    services: dict[str, ServiceNote]

    def exports(self) -> dict[str, str]:
        """The settings by which the pipeline finds these services."""
        return {VARIABLES[name]: service.address for name, service in sorted(self.services.items())}


def default_folder(environment: Mapping[str, str]) -> Path:
    """Where `services start` keeps data, logs and state by default."""
    base = environment.get("XDG_STATE_HOME") or str(
        Path(environment.get("HOME", "~")).expanduser() / ".local" / "state"
    )
    return Path(base) / "fraud-scorer" / "services"


def read(folder: Path) -> State:
    """The state written last; without services when there is none. Raises UsageError for a file that is not ours."""
    path = folder / "state.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=State)
    except FileNotFoundError:
        return State(version=1, services={})
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is not a state file of this version ({error}); remove it") from None


def start(
    folder: Path,
    environment: Mapping[str, str],
    report: Callable[[str], None],
    *,
    demo_only_broker_allowed: bool,
) -> State:
    """Start what does not run yet, and leave it running. What runs already is left as it is."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        old = read(folder)
        # In a shell that evaluated an earlier start's exports, these addresses are ours, not given.
        ours = State(
            version=1, services={name: note for name, note in old.services.items() if note.processes}
        ).exports()
        others = {name: value for name, value in environment.items() if ours.get(name) != value}
        place = Place(folder=folder, environment=others, report=report, temporary=False)
        prepare(place)
        starters: dict[str, Callable[[int | None], Service]] = {
            "kafka": lambda port: (
                local_kafka.start_kafka(
                    place, demo_only_broker_allowed=demo_only_broker_allowed, preferred_port=port
                ).service
            ),
            "postgres": lambda port: local_postgres.start_postgres(place, fsync=True, preferred_port=port).service,
        }
        notes = dict(old.services)
        for name, starter in starters.items():
            known = old.services.get(name)
            if known is not None and known.running:
                if others.get(VARIABLES[name]):
                    where = f"{name} runs in {folder}, and {VARIABLES[name]} gives another"
                    raise UsageError(f"{where}; stop the one or unset the other")
                if known.guarded:
                    continue
                report(f"{name} runs without its guard: it is stopped and started again")
                _end({name: known}, report)
            service = starter(known.port if known is not None else None)
            notes[name] = _note(service)
            # Noted first, then left: killed in between, this command takes the service along.
            _write(folder, State(version=1, services=notes))
            if isinstance(service, ManagedService):
                service.leave_running()
        return State(version=1, services=notes)


def stop(folder: Path, report: Callable[[str], None]) -> list[str]:
    """Stop what runs, by process ids checked to be still ours. Returns the names of the services stopped."""
    folder = folder.resolve()
    if not (folder / "state.json").exists():
        return []
    with _locked(folder):
        state = read(folder)
        running = {name: service for name, service in state.services.items() if service.running}
        _end(running, report)
    return sorted(running)


def identity(pid: int) -> str | None:
    """When the process started: with the pid it names one process for ever. None: there is no such process."""
    if sys.platform == "linux":
        try:
            # After the name, which may hold anything, parentheses included. A zombie has ended.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else f"{boot}/{fields[19]}"
    listed = subprocess.run(
        ["ps", "-o", "lstart=,command=", "-p", str(pid)],
        capture_output=True,
        text=True,
        env={"LC_ALL": "C"},
        check=False,
    )
    return listed.stdout.strip() or None


def lives(note: ProcessNote) -> bool:
    """Whether that very process still runs."""
    return identity(note.pid) == note.identity


def _note(service: Service) -> ServiceNote:
    processes = {name: ProcessNote(pid, identity(pid) or "") for name, pid in service.pids.items()}
    if isinstance(service, ManagedService):
        return ServiceNote(service.kind, service.address, service.port, int(service.stop_signal), processes)
    return ServiceNote(service.kind, service.address, None, int(signal.SIGTERM), processes)


def _end(services: Mapping[str, ServiceNote], report: Callable[[str], None]) -> None:
    """Stop them side by side; what does not stop is killed. Raises ServicesError for one that outlives that."""
    for service in services.values():
        _ask_to_stop(service)
    give_up = time.monotonic() + _STOP_TIMEOUT_S
    for name, service in services.items():
        if _gone(service, give_up):
            continue
        report(f"{name} did not stop within {_STOP_TIMEOUT_S:.0f} s and is killed")
        for note in service.processes.values():
            _send(note, signal.SIGKILL)
        if not _gone(service, time.monotonic() + _KILL_TIMEOUT_S):
            raise ServicesError(f"{name} does not end even when killed: process {service.processes['service'].pid}")


def _ask_to_stop(service: ServiceNote) -> None:
    guard, itself = service.processes["guard"], service.processes["service"]
    if lives(guard):
        _send(guard, signal.SIGTERM)
    else:  # the guard was killed
        _send(itself, service.stop_signal)


def _gone(service: ServiceNote, give_up: float) -> bool:
    while service.running and time.monotonic() < give_up:
        time.sleep(_POLL_INTERVAL_S)
    return not service.running


def _send(note: ProcessNote, number: int) -> None:
    if lives(note):
        with contextlib.suppress(ProcessLookupError):
            os.kill(note.pid, number)


def _write(folder: Path, state: State) -> None:
    fresh = folder / "state.json.new"
    fresh.write_text(json.dumps(msgspec.to_builtins(state), indent=2) + "\n")
    fresh.chmod(0o600)  # a given URL may hold a password
    fresh.replace(folder / "state.json")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One start or stop of a folder at a time; the second waits, and finds the first one's work done."""
    lock = os.open(folder / "state.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
