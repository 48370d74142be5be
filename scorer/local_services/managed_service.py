"""One service as its caller holds it: a guard to start, a port to find, an answer to wait for, a bounded stop."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from scorer.errors import UsageError
from scorer.local_services import guard
from scorer.local_services.local_ports import free_port
from scorer.local_services.service_errors import PortTakenError, ServiceNotReadyError, ServicesError

TAIL_LINES = 20
_PORT_ATTEMPTS_MAX = 5
_POLL_INTERVAL_S = 0.05
_GUARD_START_TIMEOUT_S = 60.0  # 0.1 s on an idle core
_GUARD_END_TIMEOUT_S = 15.0  # after its service
_FOLDER_FREE_TIMEOUT_S = 90.0  # longer than a former guard takes to stop its service (45 s) and clean up
# What Postgres (the first two) and Kafka log while a process of a former life ends that holds no lock of ours: a
# container's, or one that an earlier release started. When it has ended they start.
_STILL_ENDING = (
    "pre-existing shared memory block",
    'lock file "postmaster.pid" already exists',
    "failed to acquire lock on file .lock",
)
_TAKEN = ("address already in use", "port is already allocated", "could not create any tcp/ip sockets")

# What a child needs of the environment; more would let a stray KAFKA_OPTS or STORAGE_ENGINE change the service.
_ENVIRONMENT_PASSED = ("PATH", "HOME", "TMPDIR", "USER", "LOGNAME")


class _StillEndingError(ServiceNotReadyError):
    """What ran before is not gone yet."""


@dataclass(frozen=True)
class Place:
    """Where a service of this run lives, and what the way it is started needs to know."""

    folder: Path
    environment: Mapping[str, str]
    report: Callable[[str], None]  # progress, one line each, for people
    temporary: bool  # the folder was made for this run and goes with it

    @property
    def log_folder(self) -> Path:
        return self.folder / "logs"

    def service_folder(self, name: str) -> Path:
        """A service's own folder, made and closed to others."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        return folder

    def small_environment(self) -> dict[str, str]:
        passed = {name: self.environment[name] for name in _ENVIRONMENT_PASSED if name in self.environment}
        return passed | {"LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True)
class Plan:
    """How one service runs on ports already chosen."""

    name: str  # "kafka", "postgres" or "prometheus": names the folder, the log and the service in messages
    kind: str
    address: str
    port: int
    argv: list[str]
    environment: dict[str, str]
    folder: Path  # the service's own: data, configuration, lock
    answers: Callable[[], bool]
    ready_timeout_s: float
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout_s: float = 20.0
    user: tuple[int, int] | None = None
    memory_bytes_max: int | None = None
    discard: list[Path] = field(default_factory=list)
    discard_argv: list[str] = field(default_factory=list)


class Service(Protocol):
    """What Kafka and Postgres have in common, wherever they came from."""

    @property
    def kind(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def pids(self) -> dict[str, int]: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class GivenService:
    """A service run by others, by the address in the environment."""

    name: str
    address: str
    kind: str = "given"

    @property
    def pids(self) -> dict[str, int]:
        return {}

    def start(self) -> None:
        self._refuse()

    def stop(self) -> None:
        self._refuse()

    def kill(self) -> None:
        self._refuse()

    def close(self) -> None:
        """Nothing of it is ours to end."""

    def _refuse(self) -> None:
        raise UsageError(f"{self.name} was given by its address and is not ours to start or stop; unset that variable")


class ManagedService:
    """A service under a guard of ours. start and stop keep port and data; close ends it for good."""

    def __init__(self, plan: Plan, place: Place) -> None:
        self._plan = plan
        self._place = place
        self._log = place.log_folder / f"{plan.name}.log"
        self._guard: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None
        self._service_pid = 0

    @property
    def name(self) -> str:
        return self._plan.name

    @property
    def kind(self) -> str:
        return self._plan.kind

    @property
    def address(self) -> str:
        return self._plan.address

    @property
    def port(self) -> int:
        return self._plan.port

    @property
    def stop_signal(self) -> signal.Signals:
        return self._plan.stop_signal

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of guard and service; empty when stopped."""
        if self._guard is None or self._guard.poll() is not None:
            return {}
        return {"guard": self._guard.pid, "service": self._service_pid}

    def start(self) -> None:
        """Start, and wait until it answers. Raises ServiceNotReadyError, or ServicesError for a folder in use."""
        if self.pids:
            return
        give_up = time.monotonic() + self._plan.ready_timeout_s
        while True:
            try:
                self._start()
            except _StillEndingError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(_POLL_INTERVAL_S)
            else:
                return

    def _start(self) -> None:
        self._release_guard()
        self._service_pid = 0
        lock = self._claim_folder()
        log_start = self._log.stat().st_size if self._log.exists() else 0
        try:
            try:
                self._launch(lock)
            finally:
                os.close(lock)  # guard and service have copies: the folder is free when both are gone
            self._read_pid(log_start)
            self._wait(log_start)
        except BaseException:  # Ctrl-C as well: nothing half started stays behind
            self.stop()
            raise

    def stop(self) -> None:
        """Stop it as its operator would; it is killed after its stop timeout. Port and data are kept for `start`."""
        if self._guard is not None and self._guard.poll() is None:
            self._guard.terminate()
        self._wait_for_guard()
        self._release_guard()

    def kill(self) -> None:
        """SIGKILL, as a crash would; then `start` recovers it."""
        if self.pids:
            self._kill_service()
        self._wait_for_guard()
        self._release_guard()

    def begin_close(self) -> None:
        """Ask it to end, without waiting: several services then stop side by side."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    def close(self) -> None:
        """End it, and remove what was made for this run."""
        self.begin_close()
        self._wait_for_guard()
        guard.discard(self._spec())  # once more, for a service that was already stopped

    def _claim_folder(self) -> int:
        """The lock that shows who uses the folder: guard and service, each as long as it lives, hold it, whatever the
        caller does. A service whose guard was killed still writes there, and answers, until it has ended."""
        lock = os.open(self._plan.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        give_up = time.monotonic() + _FOLDER_FREE_TIMEOUT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > give_up:
                    os.close(lock)
                    raise ServicesError(
                        f"another {self._plan.name} runs in {self._plan.folder}; stop it or choose another folder"
                    ) from None
                time.sleep(_POLL_INTERVAL_S)
            else:
                return lock

    def _launch(self, lock: int) -> None:
        reading, writing = os.pipe()
        try:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__],
                stdin=reading,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
                pass_fds=(lock,),
            )
        except OSError:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        self._lifeline = writing
        spec = memoryview(json.dumps(self._spec(lock)).encode() + b"\n")
        with contextlib.suppress(BrokenPipeError):  # the guard has ended: `_wait` reports it
            while spec:  # a pipe takes 64 KiB at a time
                spec = spec[os.write(writing, spec) :]

    def _read_pid(self, log_start: int) -> None:
        """The guard's first line: the process id of the service. Raises ServiceNotReadyError when none comes."""
        assert self._guard is not None
        assert self._guard.stdout is not None
        with self._guard.stdout as answer, selectors.DefaultSelector() as selector:
            selector.register(answer, selectors.EVENT_READ)
            if not selector.select(_GUARD_START_TIMEOUT_S):
                raise self._not_ready(f"was not started by its guard within {_GUARD_START_TIMEOUT_S:.0f} s", log_start)
            line = answer.readline()
        if not line:  # the guard has ended
            raise self._not_ready("ended while it was starting", log_start)
        self._service_pid = json.loads(line)["pid"]

    def _wait(self, log_start: int) -> None:
        assert self._guard is not None
        give_up = time.monotonic() + self._plan.ready_timeout_s
        while self._guard.poll() is None:
            # Asked again after the answer: on a port lost to another process, it may have been theirs.
            if self._plan.answers() and self._guard.poll() is None:
                return
            if time.monotonic() > give_up:
                raise self._not_ready(f"did not answer within {self._plan.ready_timeout_s:.0f} s", log_start)
            time.sleep(_POLL_INTERVAL_S)
        raise self._not_ready("ended while it was starting", log_start)

    def _not_ready(self, what: str, log_start: int) -> ServiceNotReadyError:
        logged = read_from(self._log, log_start)
        lines = "\n".join(f"    {line}" for line in logged.splitlines()[-TAIL_LINES:]) or "    (empty)"
        error: type[ServiceNotReadyError] = ServiceNotReadyError
        if any(sign in logged.lower() for sign in _STILL_ENDING):  # it may have the port as well, and keeps neither
            error = _StillEndingError
        elif any(sign in logged.lower() for sign in _TAKEN):
            error = PortTakenError
        return error(f"{self._plan.name} {what}; the end of {self._log}:\n{lines}")

    def _wait_for_guard(self) -> None:
        if self._guard is None:
            return
        try:
            # Beyond the guard's own bound there is nothing it still waits for.
            self._guard.wait(self._plan.stop_timeout_s + _GUARD_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._kill_service()
            self._guard.kill()
            self._guard.wait()

    def _kill_service(self) -> None:
        # Group 0 is the caller's own, and 1 is not ours: without an id there is nothing to kill.
        if self._service_pid > 1:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._service_pid, signal.SIGKILL)

    def _release_guard(self) -> None:
        self.begin_close()
        self._guard = None

    def leave_running(self) -> None:
        """Have the guard keep the service when this process ends. Nothing here can stop it any more."""
        if self._guard is not None and self._lifeline is not None:
            os.write(self._lifeline, guard.KEEP)
            self._guard.returncode = 0  # or Python warns that a child still runs
            self._release_guard()

    def _spec(self, lock: int | None = None) -> guard.Spec:
        plan, temporary = self._plan, self._place.temporary
        logs = [self._log, self._log.with_name(self._log.name + ".1")]
        return guard.Spec(
            argv=plan.argv,
            environment=plan.environment,
            folder=str(plan.folder),
            log=str(self._log),
            lock=lock,
            user=list(plan.user) if plan.user is not None else None,
            stop_signal=int(plan.stop_signal),
            stop_timeout_s=plan.stop_timeout_s,
            memory_bytes_max=plan.memory_bytes_max,
            discard=[str(path) for path in (*plan.discard, plan.folder, *logs)] if temporary else [],
            discard_empty=[str(self._place.log_folder), str(self._place.folder)] if temporary else [],
            discard_argv=plan.discard_argv if temporary else [],
        )


def start_on_free_port(make_plan: Callable[[int], Plan], place: Place, preferred: int | None) -> ManagedService:
    """Start on the preferred port or a free one. A port lost between choosing and binding costs a try, of five."""
    for attempt in range(_PORT_ATTEMPTS_MAX):
        port = preferred if preferred is not None and attempt == 0 else free_port()
        service = ManagedService(make_plan(port), place)
        try:
            service.start()
        except PortTakenError:
            if attempt == _PORT_ATTEMPTS_MAX - 1:
                raise
            place.report(f"port {port} was taken meanwhile; trying another one")
        else:
            return service
    raise AssertionError("unreachable")


def read_from(log: Path, start: int) -> str:
    """What the log holds from byte `start` on, at most its last 64 KiB."""
    try:
        with log.open("rb") as lines:
            end = lines.seek(0, os.SEEK_END)
            # A log shorter than before was rotated meanwhile: all of it is new.
            lines.seek(max(start if start <= end else 0, end - 65_536))
            return lines.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
