"""Compiling the worker's kernels in two processes of their own, while the caller starts other things.

Numba compiles under one lock a process, so a second core helps only a second process. The kernel of the windows is
nearly half of the work and depends on no other, so one process compiles that, and how what is refused is masked; the
other one compiles the rest. Then the second one runs the whole warm-up, which reads the cache. A worker that starts
afterwards finds every kernel there.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scorer.errors import FraudScorerError

MODULE = "scorer.operate.kernel_compilation"  # __name__ is __main__ in the processes
WINDOWS = "windows"  # the part of the first process
_LINES_SHOWN = 5


class KernelCompilation:
    """The two processes. `count` serves any thread; leaving the `with` block ends them."""

    def __init__(self, bundle: Path) -> None:
        self.count = 0
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the processes
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE, str(bundle)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # one group with the process that it starts
        )
        self._counting = threading.Thread(target=self._count, name="kernels", daemon=True)
        self._counting.start()

    def _count(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        while line := stream.read1(4096):  # type: ignore[attr-defined]
            self.count += line.count(b"\n")

    def wait(self, seconds: float) -> bool:
        """Whether both have ended, within `seconds`. Raises FraudScorerError with the end of their output when one has
        failed."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        if code != 0:
            self._log.seek(0)
            lines = self._log.read().decode(errors="replace").splitlines()[-_LINES_SHOWN:]
            raise FraudScorerError(f"compiling the kernels ended with {code}:\n" + "\n".join(lines))
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # a compiler cannot be interrupted, and the cache is atomic
            self._process.wait()
        self._counting.join(1.0)
        self._log.close()


def compile_part(bundle: Path, part: str) -> None:
    """What one of the processes does. Prints a line for each kernel that is compiled and not read from the cache."""
    from numba.core import event  # noqa: PLC0415 - before the kernels are declared: some are compiled then

    gc.set_threshold(100_000, 20, 50)  # a compiler's objects live long: a twentieth of its time went into looking
    _compare_flags_quickly()

    class Lines(event.Listener):  # type: ignore[misc]  # numba has no types
        def on_start(self, event: object) -> None: ...

        def on_end(self, event: object) -> None:  # noqa: ARG002 - the base class's signature
            os.write(1, b"\n")

    with event.install_listener("numba:compile", Lines()):
        if part == WINDOWS:
            from features import FeatureSet  # noqa: PLC0415
            from features.window_engine import WindowEngine  # noqa: PLC0415

            engine = WindowEngine(FeatureSet.from_yaml(bundle / "feature_set.yaml"))
            engine.compile()
            engine.close()

            from schemas.card_mask import mask_card_numbers  # noqa: PLC0415

            mask_card_numbers(b"4111 1111 1111 1111")
            return
        with subprocess.Popen([sys.executable, "-m", MODULE, str(bundle), WINDOWS]) as windows:
            from scorer.bundle import Bundle  # noqa: PLC0415
            from scorer.pipeline.warm_up import compile_beside_windows, warm_up  # noqa: PLC0415

            loaded = Bundle.load(bundle)
            compile_beside_windows(loaded)
            _compile_record_access()
            windows.wait()
            warm_up(loaded)  # and what the other process could not compile, should it have failed


def _compare_flags_quickly() -> None:
    """Numba compares a kernel's flags for every function that it looks up, 100,000 times, and reads 30 properties of
    each side for that: a tenth of its time in a profile. Most were never set, and are the same on both sides."""
    from numba.core import targetconfig  # noqa: PLC0415

    flags: Any = targetconfig.TargetConfig  # numba has no types
    compared = flags.__eq__

    def same(mine: Any, other: Any) -> Any:
        if type(mine) is not type(other):
            return compared(mine, other)
        ours, theirs, options = mine._values, other._values, mine.options
        return ours == theirs or all(
            ours.get(name, options[name].default) == theirs.get(name, options[name].default)
            for name in ours.keys() | theirs.keys()
        )

    flags.__eq__ = same


def _compile_record_access() -> None:
    """The kernels over the client library's messages, with clients that know no broker."""
    from confluent_kafka import Consumer, Producer  # noqa: PLC0415 - the process of the windows needs none

    from scorer.kafka.borrowed_library import NotBorrowed  # noqa: PLC0415
    from scorer.kafka.borrowed_reader import BorrowedReader  # noqa: PLC0415
    from scorer.kafka.column_producer import BorrowedColumns  # noqa: PLC0415

    client = {"client.id": MODULE, "bootstrap.servers": "", "log_level": 0}
    with suppress(NotBorrowed):  # then a worker here reads and produces the plain way, which has no kernels
        BorrowedReader(Consumer(client | {"group.id": MODULE}), MODULE).close()
        BorrowedColumns(Producer(client), MODULE).close()


if __name__ == "__main__":
    compile_part(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
