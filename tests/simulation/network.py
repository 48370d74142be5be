"""What lies between a client's call and the broker: requests are lost, answered late or never, or held up."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from confluent_kafka import KafkaError

from tests.simulation.broker import Refused, TimedOut
from tests.simulation.scheduler import Process, Scheduler

THROTTLED_S_MAX = 1.5
WAITED_S_MAX = 2.0  # for an answer that does not come: less than clients wait, so that little else happens meanwhile
AWAY_WAITED_S_MAX = 5.0


class Network:
    """Every request goes through `call`."""

    def __init__(
        self, scheduler: Scheduler, note: Callable[[Process | None, str], None], *, faults: float, throttled: float
    ) -> None:
        """`faults`, `throttled`: the share of requests that fail, and that a quota holds up."""
        self._scheduler, self._note = scheduler, note
        self.faults, self.throttled = faults, throttled
        self.away_until_s = self.denied_until_s = 0.0
        self._late: list[tuple[Callable[[], Any], str]] = []

    @property
    def away(self) -> bool:
        """Whether the broker does not answer anybody now."""
        return self._scheduler.now_s < self.away_until_s

    @property
    def denied(self) -> bool:
        """Whether the authoriser refuses what workers ask for now."""
        return self._scheduler.now_s < self.denied_until_s

    def call(self, function: Callable[[], Any], name: str) -> Any:
        """A request: done and answered; lost; done but the answer lost; or done later. Raises TimedOut, Refused."""
        scheduler = self._scheduler
        scheduler.pause()
        if self.throttled and scheduler.random() < self.throttled:
            scheduler.sleep(THROTTLED_S_MAX * scheduler.random())
        if self.away:
            scheduler.sleep(min(AWAY_WAITED_S_MAX, 2.0 * (self.away_until_s - scheduler.now_s)) * scheduler.random())
            if self.away:
                raise TimedOut
        if self.denied and not name.startswith("snapshot"):
            raise Refused(KafkaError.TOPIC_AUTHORIZATION_FAILED)
        chance = scheduler.random()
        if chance >= self.faults:
            result = function()
            if scheduler.random() < 0.1:  # the answer is on its way
                scheduler.pause()
            return result
        kind = int(3 * chance / self.faults)
        assert scheduler.current is not None
        self._note(scheduler.current.process, f"{name} is {('lost', 'done without an answer', 'late')[kind]}")
        if kind == 1:
            with suppress(Refused):
                function()
        elif kind == 2:
            self._late.append((function, name))
        scheduler.sleep(WAITED_S_MAX * scheduler.random())
        raise TimedOut

    def deliver_late(self) -> None:
        """One of the late requests arrives."""
        if self._late:
            function, name = self._late.pop(int(self._scheduler.random() * len(self._late)))
            self._note(None, f"{name} arrives late")
            with suppress(Refused):
                function()

    def heal(self) -> None:
        """From here on every request is done and answered; late ones still arrive."""
        self.faults = self.throttled = self.away_until_s = self.denied_until_s = 0.0
