"""TCP ports of 127.0.0.1: one that is free, and whether one answers."""

from __future__ import annotations

import random
import socket

from scorer.local_services.service_errors import ServicesError

# Below what systems hand out to outgoing connections (Linux from 32768, macOS from 49152): a broker that was stopped
# finds its port free again when it starts.
_PORT_MIN, _PORT_MAX = 20_000, 32_000


def free_port(other_than: int = 0) -> int:
    """A TCP port free on 127.0.0.1 at this moment."""
    choice = random.SystemRandom()
    for _ in range(100):
        port = choice.randrange(_PORT_MIN, _PORT_MAX)
        if port == other_than:
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServicesError(f"no free TCP port on 127.0.0.1 between {_PORT_MIN} and {_PORT_MAX}")


def port_open(port: int) -> bool:
    """Whether anything accepts connections on 127.0.0.1:port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
