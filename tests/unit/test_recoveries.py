"""What `fraud-scorer recover` reads of each shard, and what it keeps open."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from typing import Any

import pytest

from scorer.errors import UsageError
from scorer.kafka import Topics
from scorer.operate import loss_acceptance
from scorer.operate.loss_acceptance import Loss, Recoveries, by_shard
from scorer.runtime.settings import load


def test_each_journal_is_read_once_and_each_client_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose loss of topic control it is takes the journals of all shards, which may be long; who accepts it goes on
    with what was read."""
    read, closed = Counter[int](), Counter[int]()

    class Read:
        def __init__(self, settings: Any, shard: int, **_: Any) -> None:
            read[shard] += 1
            self._shard = shard

        def lost_of_all(self) -> list[Loss]:
            return [Loss("control", 0, 2 + self._shard % 2, 9)]

        def close(self) -> None:
            closed[self._shard] += 1

    monkeypatch.setattr(loss_acceptance, "Recovery", Read)
    with closing(Recoveries(load(worker={"shards": 3}))) as recoveries:
        losses = by_shard([Loss("control", 0, 2, 9), Loss("control", 0, 3, 9)], recoveries)
        assert {shard: [loss.start for loss in of_shard] for shard, of_shard in losses.items()} == {
            0: [2],
            2: [2],
            1: [3],
        }
        for shard in losses:
            recoveries.of(shard)
    assert read == closed == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize(
    "text",
    ["payments:²:1-2", "payments:0:1-²", "payments:0:٣-٤", f"payments:0:1-{'9' * 5000}", f"payments:{'9' * 19}:1-2"],
)
def test_digits_that_are_no_offset_are_refused_with_what_a_loss_is(text: str) -> None:
    """Digits of other scripts and numbers of any length are a mistake of the operator, not a traceback."""
    topics = Topics.of(load().kafka)
    with pytest.raises(UsageError, match="a loss is TOPIC:PARTITION:FROM-TO"):
        Loss.parse(text, topics)
    assert Loss.parse("payments:0:1200-1350", topics) == Loss(topics.payments, 0, 1200, 1350)
