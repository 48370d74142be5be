"""The clients that the owner of a shard writes with, and the limits of what they write: made when the shard is taken
up, or before that by a standby.

A new idempotent producer asks for its id before it knows a broker, and asks again after half a second; a standby's have
theirs, and know the topics. Nothing is written or fenced before `fencing_producer`.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog
from confluent_kafka import KafkaException

from scorer import kafka
from scorer.runtime.settings import Settings
from scorer.worker.order_log import RECORD_OVERHEAD_BYTES
from scorer.worker.ports import Ports

INIT_TIMEOUT_S = 60.0
# So often a standby's clients use their connections, which are closed when they are idle for longer.
KEPT_S = 60.0


class OwnerClients:
    """Of one shard. Each producer is given away once, and its taker ends it."""

    def __init__(self, settings: Settings, ports: Ports, shard: int) -> None:
        self._settings, self._ports, self.shard = settings, ports, shard
        self._topics = kafka.Topics.of(settings.kafka)
        self._limits: Mapping[str, int] | None = None  # that the producers below were made for
        self._log: kafka.LogProducer | None = None
        self._transactional: kafka.TransactionalProducer | None = None
        self._kept_at = float("-inf")

    def prepare(self) -> None:
        """Make the producers now. Raises KafkaFailure."""
        limits = self.limits()
        if self._settings.worker.fast_decisions:
            self._log = self._new_log(limits)
        self._transactional = self._new_transactional(limits)

    def keep(self) -> None:
        """Use their connections, if they were not used for a minute. A broker that does not answer is asked again."""
        now = self._ports.threads.monotonic()
        if now - self._kept_at < KEPT_S:
            return
        self._kept_at = now
        log, transactional = self._log, self._transactional  # another thread may take them meanwhile
        try:
            if log is not None:
                self._ports.clients.connect(log, (self._topics.order, self._topics.decisions_fast))
            if transactional is not None:
                self._ports.clients.connect(transactional, (self._topics.journal, self._topics.decisions))
        except kafka.KafkaFailure as exc:  # the state that was followed must not be lost for that
            structlog.get_logger().debug("standby.clients_not_connected", reason=str(exc))

    def limits(self) -> Mapping[str, int]:
        """The largest record that each topic takes now which the shard writes to. Raises KafkaFailure."""
        # By a client of its own: one that is days old may ask a node that is gone, which it takes for the controller.
        broker = self._ports.clients.broker()
        try:
            limits = broker.record_bytes_max(self._topics.outputs)
        finally:
            broker.close()
        if limits != self._limits:  # a producer's batches are as large as the smallest allows
            self._log = self._transactional = None
            self._limits = limits
        return limits

    def log_producer(self) -> kafka.LogProducer:
        """For the order log."""
        producer, self._log = self._log, None
        return producer or self._new_log(self._limits or {})

    def fencing_producer(self) -> kafka.TransactionalProducer:
        """For transactions: from here on the former owner's can do nothing any more. Raises KafkaFailure."""
        producer, self._transactional = self._transactional, None
        producer = producer or self._new_transactional(self._limits or {})
        try:
            producer.init_transactions(INIT_TIMEOUT_S)
        except KafkaException as exc:
            del producer  # the error keeps this frame, and the client's threads would live as long
            name = kafka.transactional_id(self._settings, f"shard-{self.shard}")
            raise kafka.failure(exc, needs=f"Write on transactional-id {name}") from exc
        return producer

    def close(self) -> None:
        """End what was not given away."""
        self._log = self._transactional = None

    def _new_log(self, limits: Mapping[str, int]) -> kafka.LogProducer:
        return self._ports.clients.log_producer(batch_bytes_max=_batch_bytes_max(limits))

    def _new_transactional(self, limits: Mapping[str, int]) -> kafka.TransactionalProducer:
        return self._ports.clients.transactional_producer(
            f"shard-{self.shard}", batch_bytes_max=_batch_bytes_max(limits)
        )


def _batch_bytes_max(limits: Mapping[str, int]) -> int:
    """The broker's limit of a record is one of such a batch."""
    return max(1, min(limits.values(), default=kafka.BATCH_BYTES_MAX) - RECORD_OVERHEAD_BYTES)
