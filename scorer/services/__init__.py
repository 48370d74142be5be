"""Kafka and Postgres on this machine, for the demo and the tests: `with local_services() as services: …`."""

from __future__ import annotations

from scorer.services.errors import AddressSilentError, NoWayToStartError, ServiceNotReadyError, ServicesError
from scorer.services.kafka import Kafka
from scorer.services.local import Services, local_services
from scorer.services.postgres import Postgres

__all__ = [
    "AddressSilentError",
    "Kafka",
    "NoWayToStartError",
    "Postgres",
    "ServiceNotReadyError",
    "Services",
    "ServicesError",
    "local_services",
]
