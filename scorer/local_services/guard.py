"""A small process that keeps one service and lets none outlive its caller.

    caller ──pipe──▶ guard ──▶ service (Kafka, Postgres …)

The guard reads its standard input, the end of a pipe whose other end only the caller holds. However the caller dies,
SIGKILL included, the kernel closes the pipe, the guard stops the service and exits. A caller that wants its service to
outlive it writes so to the pipe, once it has noted where to find it. SIGTERM stops the service too. Guard and
service have sessions of their own: Ctrl-C in the caller's terminal reaches neither, so a worker can drain before its
broker goes.

Runs as a plain file (`python -I -S guard.py`) on the standard library alone, so it starts at once and stays small.
It lives exactly as long as its service: to wait for the guard is to wait for the service.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import selectors
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

KEEP = b"keep"  # what a caller writes that leaves its service running
LOG_BYTES_MAX = 16 * 1024 * 1024  # per service, and as much again for the part rotated away
_LOG_CHECK_INTERVAL_S = 5.0
_DISCARD_TIMEOUT_S = 60.0
_PR_SET_PDEATHSIG = 1
_EXIT_NOT_STARTED = 127


class Spec(TypedDict):
    """One service, as the caller describes it to the guard: a line of JSON, the first on the guard's standard input.
    Not in its argument list, which every user of the machine can read: an environment holds secrets."""

    argv: list[str]
    environment: dict[str, str]
    folder: str  # working directory of the service
    log: str
    lock: int | None  # descriptor of the folder's lock; the service holds it too, and may outlive the guard by a moment
    user: list[int] | None  # uid and gid to run as; only root may ask
    stop_signal: int
    stop_timeout_s: float
    memory_bytes_max: int | None  # Linux: RLIMIT_DATA, for a service that has no such setting of its own
    discard: list[str]  # files and folders that go with the caller
    discard_empty: list[str]  # folders shared with other services: the last to go takes them
    discard_argv: list[str]  # a command that does what removing files cannot


def discard(spec: Spec) -> None:
    """Remove what belongs to the service alone; never raises, since no caller is left to catch it."""
    if spec["discard_argv"]:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            quiet = subprocess.DEVNULL
            subprocess.run(
                spec["discard_argv"],
                env=spec["environment"],
                stdin=quiet,
                stdout=quiet,
                stderr=quiet,
                timeout=_DISCARD_TIMEOUT_S,
                check=False,
            )
    for name in spec["discard"]:
        path = Path(name)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    for name in spec["discard_empty"]:
        with contextlib.suppress(OSError):
            Path(name).rmdir()


def _limits(spec: Spec) -> Callable[[], None]:
    """What the service does to itself between fork and exec."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def apply() -> None:
        os.umask(0o077)
        if libc is not None:
            # Should the guard itself be killed, the kernel asks the service to stop.
            libc.prctl(_PR_SET_PDEATHSIG, spec["stop_signal"])
            if spec["memory_bytes_max"] is not None:
                resource.setrlimit(resource.RLIMIT_DATA, (spec["memory_bytes_max"], spec["memory_bytes_max"]))

    return apply


def _start(spec: Spec, log: int) -> subprocess.Popen[bytes]:
    user, group = spec["user"] or (None, None)
    return subprocess.Popen(
        spec["argv"],
        env=spec["environment"],
        cwd=spec["folder"],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        user=user,
        group=group,
        extra_groups=[] if user is not None else None,
        pass_fds=() if spec["lock"] is None else (spec["lock"],),
        start_new_session=True,
        preexec_fn=_limits(spec),  # noqa: PLW1509 -- the guard has one thread
    )


def _stop(service: subprocess.Popen[bytes], spec: Spec) -> None:
    service.send_signal(spec["stop_signal"])
    try:
        service.wait(spec["stop_timeout_s"])
    except subprocess.TimeoutExpired:
        # The group is the service's own session. Postgres' children leave it; they end when their parent has.
        os.killpg(service.pid, signal.SIGKILL)
        service.wait()


def _bound_log(log: Path) -> None:
    """Copy and truncate, since the service keeps its descriptor. A line written in between may be lost."""
    with contextlib.suppress(FileNotFoundError):  # the log was removed; the service goes on writing
        if log.stat().st_size > LOG_BYTES_MAX:
            shutil.copyfile(log, log.with_name(log.name + ".1"))
            os.truncate(log, 0)


def main(spec: Spec) -> int:
    """Start, watch and stop one service. Returns 0 when it was stopped as asked, 1 when it ended by itself."""
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: asked.append(received))
    # A handler rather than SIG_IGN: ignoring would be inherited by the service, and Postgres stops on SIGINT.
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, lambda _received, _frame: None)

    log = os.open(spec["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        service = _start(spec, log)
    except (OSError, subprocess.SubprocessError) as error:
        os.write(log, f"{spec['argv'][0]} could not be started: {error}\n".encode())
        return _EXIT_NOT_STARTED
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps({"pid": service.pid}).encode() + b"\n")
    os.dup2(log, 1)
    os.dup2(log, 2)

    kept = False
    caller_gone = False
    ended_by_itself = False
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            selector.register(woken, selectors.EVENT_READ)
            while not (ended_by_itself or caller_gone or asked):
                for key, _ in selector.select(_LOG_CHECK_INTERVAL_S):
                    if os.read(key.fd, 4096):
                        kept = kept or key.fd == 0
                    else:  # only the caller's pipe can end
                        selector.unregister(0)
                        caller_gone = not kept
                _bound_log(Path(spec["log"]))
                ended_by_itself = service.poll() is not None
    finally:
        if service.poll() is None:
            _stop(service, spec)
    if caller_gone:
        discard(spec)
    return 1 if ended_by_itself else 0


def read_spec() -> Spec:
    """The first line of standard input, read byte by byte: what comes after it is not ours yet."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            sys.exit(_EXIT_NOT_STARTED)  # the caller is gone already
        line += byte
    spec: Spec = json.loads(line)
    return spec


if __name__ == "__main__":
    sys.exit(main(read_spec()))
