"""CPU by stage of a worker in this process: wraps the functions that each stage is, and adds up their threads' CPU.

What a stage calls that is a stage of its own counts there alone. `other` is the process's CPU outside of them: threads
of the Kafka client, the group, the garbage collector, and Python between the stages.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any


class Stages:
    """CPU seconds by stage, from all threads."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._open = threading.local()

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        """Count the calls of `owner.name` as `stage`."""
        inner = getattr(owner, name)
        setattr(owner, name, self._counted(inner, stage))

    def _counted(self, inner: Callable[..., Any], stage: str) -> Callable[..., Any]:
        @functools.wraps(inner)
        def counted(*args: Any, **kwargs: Any) -> Any:
            stack = self._open.__dict__.setdefault("stack", [])
            stack.append(0.0)
            began = time.thread_time()
            try:
                return inner(*args, **kwargs)
            finally:
                spent = time.thread_time() - began
                within = stack.pop()
                if stack:
                    stack[-1] += spent
                with self._lock:
                    self._seconds[stage] += spent - within

        return counted

    def seconds(self) -> dict[str, float]:
        """What each stage has taken so far."""
        with self._lock:
            return dict(self._seconds)


def of_worker() -> Stages:
    """The stages of a worker, from the broker's bytes to the commit. To be called before the worker is made."""
    from features.window_engine import WindowEngine  # noqa: PLC0415 - the echo must not carry the worker's memory
    from scorer.journal.partition_buffers import ShardInputs  # noqa: PLC0415
    from scorer.kafka import column_producer  # noqa: PLC0415
    from scorer.model.compiled_model import CompiledModel  # noqa: PLC0415
    from scorer.pipeline import enrichment, pipeline  # noqa: PLC0415
    from scorer.pipeline.records import Records  # noqa: PLC0415
    from scorer.worker import answers, batcher, order_log, publisher, shard  # noqa: PLC0415
    from scorer.worker.batcher import Batcher  # noqa: PLC0415

    stages = Stages()
    for owner, name, stage in (
        (ShardInputs, "fill", "read"),
        (Batcher, "next", "batch, the rest"),
        (Batcher, "_choose", "choose"),
        (batcher, "event_times", "event times"),
        (ShardInputs, "batch", "batch"),
        (Records, "decode", "decode"),
        (enrichment.Enricher, "enrich", "order and repeats"),
        (WindowEngine, "apply", "features"),
        (CompiledModel, "margins", "model"),
        (pipeline, "explained", "policy"),
        (pipeline.Pipeline, "_journal", "digests"),
        (pipeline.Pipeline, "run", "pipeline, the rest"),
        (answers, "encode_decisions", "encode"),
        (order_log.OrderLog, "append", "order"),
        (order_log.OrderLog, "appended", "order"),
        (order_log.OrderLog, "publish", "publish"),
        (column_producer.BorrowedColumns, "produce", "produce"),
        (column_producer.PlainColumns, "produce", "produce"),
        (publisher.Publisher, "_audit", "audit"),
        (publisher.Publisher, "_commit", "transaction"),
        (shard.Shard, "run", "shard, the rest"),
    ):
        stages.wrap(owner, name, stage)
    return stages
