"""What ends an owned shard's thread, at moments that no broker can be made to choose."""

from __future__ import annotations

from typing import Any

import pytest

from scorer import kafka
from scorer.runtime.settings import load
from scorer.worker.ports import Ports
from scorer.worker.shard_thread import ShardThread


class _FencedShard:
    """Its commit is fenced: the broker has ended the transaction after its time-out, say."""

    batches_committed = 0

    def __init__(self, *, asked_to_end: bool) -> None:
        self._asked_to_end = asked_to_end

    def run(self, stop: Any, _standby: Any) -> None:
        if self._asked_to_end:
            stop.set()
        raise kafka.Fenced("another worker owns this shard now")


class _NoAnswer:
    """A group that does not confirm: it is another's, or the thread was asked to end while it was asked."""

    def confirmed(self, _shard: int, _stop: Any) -> bool:
        return False


@pytest.mark.parametrize("asked_to_end", [True, False])
def test_a_fence_is_no_failure_of_a_shard_that_is_being_given_up(asked_to_end: bool) -> None:
    """What is not committed is decided by the next owner: a worker that is asked to end exits 0, and one that gives a
    shard to another goes on with its others."""
    settings = load()
    thread = ShardThread(
        settings,
        _FencedShard(asked_to_end=asked_to_end),  # type: ignore[arg-type]
        0,
        _NoAnswer(),  # type: ignore[arg-type]
        None,
        Ports.real(settings),
    )
    thread._thread.join(20)
    assert isinstance(thread.failure, kafka.Fenced) is not asked_to_end
