"""Workers that start in a moment: one process has imported, compiled and warmed everything, and forks them.

A worker of it is `fraud-scorer run` in a process of its own, with the real main thread, signals and exit code. Forking
is safe here because the nursery has made no client and no thread.

    nursery.py BUNDLE        orders on stdin: {"start": environment, "log": path} | {"ask": pid}
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.waits import WaitEnded

CLOCK_AHEAD = "TEST_CLOCK_AHEAD_S"  # a worker's wall clock runs ahead by so much


class Child:
    """A worker. `code` is what Popen.returncode would be."""

    def __init__(self, nursery: Nursery, pid: int, port: int, log: Path) -> None:
        self._nursery = nursery
        self.pid = pid
        self.port = port
        self.log = log
        self.code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            self.code = self._nursery.ask({"ask": self.pid})["code"]
        return self.code

    def signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float) -> int:
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise WaitEnded(f"worker {self.pid} did not end within {seconds} s\n{self.log_end()}")
            time.sleep(0.02)
        assert self.code is not None
        return self.code

    def log_end(self) -> str:
        """The end of its log."""
        return self.log.read_text()[-4000:] if self.log.exists() else ""


class Nursery:
    """Holds the nursery process; its workers end with it."""

    def __init__(self, bundle: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery", str(bundle)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ask({"ask": 0})

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the nursery has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def start(self, environment: dict[str, str], port: int, log: Path) -> Child:
        """A worker with exactly this environment; its metrics are on `port`, and its log exists from now on."""
        log.touch()
        return Child(self, self.ask({"start": environment, "log": str(log)})["pid"], port, log)

    def __enter__(self) -> Nursery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        if self._process.stdout is not None:
            self._process.stdout.close()


def _child(order: dict[str, Any], bundle: str) -> None:
    """In the fork: become `fraud-scorer run`."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: never outlive the nursery
    os.environ.clear()
    os.environ.update(order["start"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    from scorer.runtime import fault_points  # noqa: PLC0415

    importlib.reload(fault_points)  # it reads the environment when it is imported
    from scorer.cli import main  # noqa: PLC0415

    if CLOCK_AHEAD in os.environ:
        ahead, real = float(os.environ[CLOCK_AHEAD]), time.time
        time.time = lambda: real() + ahead
    sys.argv = ["fraud-scorer", "run", "--bundle", bundle]
    code = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - what the interpreter would do: print it, exit 1
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve(bundle: str) -> None:
    from scorer.bundle import Bundle  # noqa: PLC0415
    from scorer.pipeline.warm_up import warm_up  # noqa: PLC0415
    from scorer.worker.worker import Worker  # noqa: F401, PLC0415 - imported once, for all

    warm_up(Bundle.load(Path(bundle)))
    ended: dict[int, int] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "start" in order:
            pid = os.fork()
            if pid == 0:
                _child(order, bundle)
            ended.pop(pid, None)  # of an earlier worker, whose number the system has given again
            print(json.dumps({"pid": pid}), flush=True)
            continue
        pid = order["ask"]
        if pid and pid not in ended:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                ended[pid] = os.waitstatus_to_exitcode(status)
        print(json.dumps({"code": ended.get(pid)}), flush=True)
    os._exit(0)  # children go by PR_SET_PDEATHSIG


if __name__ == "__main__":
    _serve(sys.argv[1])
