"""Kafka, Postgres and Prometheus on this machine, for the demo and the tests: `with local_services() as services: …`.

It may start processes and containers and write to its own folders; it knows no payment, and no serving process
imports it.
"""

from __future__ import annotations

from scorer.local_services.local_kafka import Kafka
from scorer.local_services.local_postgres import Postgres
from scorer.local_services.local_prometheus import local_prometheus
from scorer.local_services.service_errors import (
    AddressSilentError,
    NoWayToStartError,
    ServiceNotReadyError,
    ServicesError,
)
from scorer.local_services.services import Services, local_services

__all__ = [
    "AddressSilentError",
    "Kafka",
    "NoWayToStartError",
    "Postgres",
    "ServiceNotReadyError",
    "Services",
    "ServicesError",
    "local_prometheus",
    "local_services",
]
