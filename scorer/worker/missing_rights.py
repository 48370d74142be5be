"""Rights at Kafka that were taken from a shard: waited for, within a bound, and named in the log meanwhile."""

from __future__ import annotations

import structlog

from scorer import kafka
from scorer.runtime.settings import Settings
from scorer.runtime.threads import Event
from scorer.worker.ports import Ports

log = structlog.get_logger()

# How often the broker is asked whether a right that it refused is back.
DENIED_RETRY_S = 2.0


class MissingRights:
    """The wait of one shard. It begins anew once a batch was committed in between."""

    def __init__(self, settings: Settings, shard: int, ports: Ports) -> None:
        self._patience_s = settings.worker.denied_s
        self._shard = shard
        self._clients = ports.clients
        self._threads = ports.threads
        self._since: tuple[float, int] | None = None  # since when, and how many batches had been committed by then

    def outlasted(self, denial: kafka.Denied, batches_committed: int, stop: Event) -> kafka.Denied | None:
        """Wait until the broker says that nothing is missing, as far as it can be asked, or until `stop`.

        Gives the failure where the wait took too long. Nothing is tried meanwhile: a transaction that is bound to fail
        would make this worker look ready for a moment.
        """
        if self._since is None or self._since[1] != batches_committed:
            self._since = self._threads.monotonic(), batches_committed
        until = self._since[0] + self._patience_s
        while not stop.wait(DENIED_RETRY_S):
            lacking = self._clients.lacking_rights()
            reason = lacking or str(denial)
            if self._threads.monotonic() > until:
                return kafka.Denied(f"{reason}. Waited {self._patience_s:g} s for it")
            log.error(
                "shard.denied", shard=self._shard, reason=reason, ends_in_s=round(until - self._threads.monotonic(), 1)
            )
            if not lacking:
                break
        return None
