"""What can go wrong with the local services.

ServicesError
├── NoWayToStartError         nothing on this machine can run the service; the message names the ways out
├── AddressSilentError        the address given does not answer
├── DownloadError             Maven could not bring Kafka's jars
└── ServiceNotReadyError      it died while starting, or its deadline passed; shows the tail of its log
    └── PortTakenError        another process took the port first; try another one
"""

from __future__ import annotations

from scorer.errors import FraudScorerError


class ServicesError(FraudScorerError):
    """A local Kafka or Postgres cannot be had."""


class NoWayToStartError(ServicesError):
    """Nothing on this machine can run the service."""


class AddressSilentError(ServicesError):
    """The address given by the environment does not answer."""


class DownloadError(ServicesError):
    """Kafka's jars could not be fetched."""


class ServiceNotReadyError(ServicesError):
    """The service died or did not answer before its deadline."""


class PortTakenError(ServiceNotReadyError):
    """The port was free a moment ago and is not any more."""
