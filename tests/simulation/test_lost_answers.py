"""The broker has a record and its answer is lost: the request is sent again, and answered without the record's offset,
as a broker answers that does not know any more where the first one stands."""

from __future__ import annotations

import random
from typing import Any
from unittest.mock import patch

from tests.simulation import log_producer
from tests.simulation.broker import TimedOut
from tests.simulation.invariants import Violation
from tests.simulation.network import Network
from tests.simulation.rules import product
from tests.simulation.world import World

SCHEDULES = 100
MET_MIN = 8
LOST = 0.1  # share of appends to order logs whose answer is lost
UNKNOWN = 0.5  # share of repeated requests whose answer names no offset


class _NoOffset:
    """A report of a record that is there, somewhere."""

    def __init__(self, **place: Any) -> None:
        pass

    def offset(self) -> None:
        return None


class Directed:
    """Schedules of chance, in which requests that were done without an answer are answered without an offset."""

    def __init__(self) -> None:
        self.met = 0  # answers without an offset

    def violation(self, seed: int) -> Violation | None:
        """What the schedule breaks."""
        rng, arrive, message = random.Random(seed), log_producer._Request.arrive, log_producer.Message
        call, repeated = Network.call, False

        def calling(network: Network, function: Any, name: str) -> Any:
            found = call(network, function, name)
            if name == "append to order" and not world._healed and rng.random() < LOST:
                raise TimedOut
            return found

        def arriving(request: Any, world: World) -> int:
            nonlocal repeated
            repeated = request.first is not None and rng.random() < UNKNOWN
            return arrive(request, world)

        def reported(**place: Any) -> Any:
            nonlocal repeated
            if not repeated:
                return message(**place)
            self.met += 1
            return _NoOffset()

        with (
            product() as use,
            patch.object(Network, "call", calling),
            patch.object(log_producer._Request, "arrive", arriving),
            patch.object(log_producer, "Message", reported),
        ):
            use(world := World(seed))
            return world.violation()


def test_an_order_whose_offset_is_not_known_is_not_published() -> None:
    """Whoever does not know where its claim or its order stands begins anew: all promises hold."""
    directed = Directed()
    assert [(seed, found) for seed in range(SCHEDULES) if (found := directed.violation(seed))] == []
    assert directed.met >= MET_MIN
