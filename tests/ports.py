"""Ports for processes that are yet to bind them."""

from __future__ import annotations

import random
import socket

# Below what a system gives to outgoing connections and to port 0 (Linux from 32768), and beside what brokers of tests
# get (20,000 to 32,000): nothing else takes one between the probe and the moment when the process binds it.
_PROCESSES = range(10_000, 20_000)
BROKERS = range(20_000, 32_000)


def free_ports(count: int, among: range = _PROCESSES) -> list[int]:
    """Different ports of 127.0.0.1 that are free now."""
    choice, found = random.SystemRandom(), list[int]()
    for _ in range(1_000):
        port = choice.choice(among)
        if port not in found and _is_free(port):
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError(f"no {count} free ports between {among.start} and {among.stop}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
