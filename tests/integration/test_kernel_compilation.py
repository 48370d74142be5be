"""Kernels that two processes compile beside a start are those that the worker needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scorer.demo import demo_bundle
from scorer.errors import FraudScorerError
from scorer.operate.kernel_compilation import KernelCompilation

COMPILED_BY_A_WORKER = r"""
import sys
from pathlib import Path
import scorer
from numba.core import event

class Names(event.Listener):
    names = []
    def on_start(self, event): self.names.append(str(event.data["dispatcher"]))
    def on_end(self, event): pass

with event.install_listener("numba:compile", Names()):
    from schemas.byte_column import ByteColumn
    from schemas.dead_letter import dead_letter_record
    from schemas.fast_decision_bytes import placed
    from scorer.bundle import Bundle
    from scorer.pipeline import Pipeline
    from scorer.pipeline.records import Batch
    from scorer.pipeline.warm_up import warm_up
    from scorer.worker.answers import answers_of

    bundle = Bundle.load(Path(sys.argv[1]))
    warm_up(bundle)
    payment = (
        b'{"payment_id":"p%d","event_time":"2026-01-01T00:00:00Z","amount_minor":%d,"currency":"EUR",'
        b'"customer_id":"c_1","terminal_id":"t_1","attributes":{"a":"b"}}'
    )
    values = [payment % (i, i + 1) for i in range(40)] + [payment % (3, 9), payment % (99, -5)]
    values += [b"garbage", b"4111 1111 1111 1111", b"\xff\xfe", b'{"payment_id":"\\u0034111111111111111"}', b"", b"[1]"]
    pipeline = Pipeline(bundle)
    for part in (values, values[:1], values[-3:]):
        outcomes = pipeline.run(Batch.of_payments(ByteColumn.of(part)))
        answers = answers_of(outcomes)
        placed(answers.values, 0, 0).take(answers.partition[:1].astype("int64"))
        for item in outcomes.rejected:
            dead_letter_record("t", 0, 0, b"5500 0000 0000 0004", part[item.index], item.error, cards=outcomes.cards)
print(len(Names.names), *Names.names)
"""


def test_a_worker_finds_every_kernel_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From an empty cache: the processes compile, and a worker that starts afterwards compiles nothing, whatever comes:
    good payments, repeated ones, garbage, card numbers, in batches of one and of many."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    with KernelCompilation(demo_bundle()) as kernels:
        assert kernels.wait(600.0)
    assert kernels.count > 100
    command = [sys.executable, "-c", COMPILED_BY_A_WORKER, str(demo_bundle())]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "0", done.stdout


def test_a_bundle_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    """A compilation that fails ends with what its process wrote, not with an exit code alone."""
    with KernelCompilation(tmp_path) as kernels, pytest.raises(FraudScorerError, match=r"feature_set|manifest"):
        kernels.wait(120.0)
