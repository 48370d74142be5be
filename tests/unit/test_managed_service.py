"""A local service without its guard: nothing of another process is killed, and the next start waits for the former."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import psutil
import pytest

from scorer.local_services import guard, kept_services, local_kafka, local_postgres, managed_service
from scorer.local_services.kept_services import ProcessNote, ServiceNote, State, identity
from scorer.local_services.managed_service import GivenService, ManagedService, Place, Plan
from scorer.local_services.service_errors import ServiceNotReadyError
from scorer.local_services.services import prepare

Make = Callable[..., ManagedService]
# Asked to end it works on for a second, as a broker does that writes its logs.
SLOW_TO_END = "trap 'sleep 1; echo ended; exit 0' TERM; echo began; while :; do sleep 0.05; done"
# As Kafka where a former life has its folder, once; then it runs.
LOCKED_ONCE = "[ -e tried ] || { touch tried; echo 'KafkaException: Failed to acquire lock on file .lock'; exit 1; }; "


@pytest.fixture
def service(tmp_path: Path) -> Make:
    """Makes a service that is a shell script and counts as ready when it has started."""
    place = Place(tmp_path, os.environ, lambda _line: None, temporary=True)
    prepare(place)

    def make(script: str, *, ready: Callable[[], bool] = lambda: True) -> ManagedService:
        return ManagedService(
            Plan(
                name="script",
                kind="test",
                address="none",
                port=0,
                argv=["/bin/sh", "-c", script],
                environment=place.small_environment(),
                folder=place.service_folder("script"),
                answers=ready,
                ready_timeout_s=60.0,
                stop_timeout_s=1.0,
            ),
            place,
        )

    return make


def test_silent_guard_costs_no_other_process(service: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard that says nothing is ended and the start fails; nothing is killed that is not known to be this service:
    group 0 is the caller's own, and a former life's id may be another process by now."""
    killed = list[int]()
    deaf = tmp_path / "deaf.py"
    deaf.write_text("import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)\n")
    made = service("exec sleep 600")
    made.start()
    former = made.pids["service"]
    made.stop()
    monkeypatch.setattr(os, "killpg", lambda group, _number: killed.append(group))
    monkeypatch.setattr(guard, "__file__", str(deaf))
    monkeypatch.setattr(managed_service, "_GUARD_START_TIMEOUT_S", 0.5)
    monkeypatch.setattr(managed_service, "_GUARD_END_TIMEOUT_S", 0.5)
    with pytest.raises(ServiceNotReadyError, match="script was not started by its guard"):
        made.start()
    assert former > 1
    assert killed == []
    assert made.pids == {}
    assert not [child for child in psutil.Process().children() if str(deaf) in child.cmdline()]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a process whose parent died")
def test_start_waits_for_a_service_whose_guard_was_killed(service: Make, tmp_path: Path) -> None:
    """A service whose guard was killed still has the folder while it ends; the next start comes after it."""
    made = service(SLOW_TO_END)
    made.start()
    log = tmp_path / "logs" / "script.log"
    while "began" not in log.read_text():  # the trap is set
        time.sleep(0.01)
    os.kill(made.pids["guard"], signal.SIGKILL)
    while made.pids:
        time.sleep(0.01)
    made.start()
    try:
        while log.read_text().count("began") < 2:
            time.sleep(0.01)
        assert log.read_text().split() == ["began", "ended", "began"]
    finally:
        made.kill()


def test_start_waits_while_the_folder_is_locked_by_the_service_itself(service: Make, tmp_path: Path) -> None:
    """Kafka that finds its data locked by a former life is started again until it has them."""
    made = service(LOCKED_ONCE + "touch running; exec sleep 600", ready=(tmp_path / "script" / "running").exists)
    made.start()
    assert made.pids
    made.kill()


def test_kept_service_without_guard_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`start` does not report a service that is about to end because its guard was killed: it ends it, and starts it
    anew on its port."""
    asked = list[int | None]()
    left = subprocess.Popen(["sleep", "600"])

    def start(_place: Place, *, preferred_port: int | None = None, **_more: bool) -> SimpleNamespace:
        assert left.poll() is not None or preferred_port != 1001
        asked.append(preferred_port)
        return SimpleNamespace(service=GivenService("fake", f"new:{preferred_port}"))

    monkeypatch.setattr(local_kafka, "start_kafka", start)
    monkeypatch.setattr(local_postgres, "start_postgres", start)
    gone, lives = ProcessNote(left.pid, "another boot/1"), ProcessNote(left.pid, identity(left.pid) or "")
    own = ProcessNote(os.getpid(), identity(os.getpid()) or "")
    notes = {
        "kafka": ServiceNote("java", "old:1001", 1001, int(signal.SIGTERM), {"guard": gone, "service": lives}),
        "postgres": ServiceNote("wheel", "old:1002", 1002, int(signal.SIGINT), {"guard": own, "service": own}),
    }
    (tmp_path / "state.json").write_bytes(msgspec.json.encode(State(version=1, services=notes)))
    try:
        state = kept_services.start(tmp_path, {}, print, demo_only_broker_allowed=False)
        assert left.wait(10) == -signal.SIGTERM
    finally:
        left.kill()
        left.wait()
    assert asked == [1001]
    assert {name: note.address for name, note in state.services.items()} == {
        "kafka": "new:1001",
        "postgres": "old:1002",
    }
