"""What a process shows of its machine at each scrape: room on its disks, when its certificate expires, when the file of
the anchors changed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from scorer.runtime.local_folders import LocalFolder
from scorer.runtime.settings import Settings


def certificate_expiry_s(path: Path) -> float:
    """When the first certificate of a PEM file expires, epoch seconds. Raises OSError or ValueError."""
    from cryptography import x509  # noqa: PLC0415 - only a port with a certificate needs it

    return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()


class MachineMetrics(Collector):
    """Registered until closed."""

    def __init__(
        self, settings: Settings, folders: Iterable[LocalFolder] = (), registry: CollectorRegistry = REGISTRY
    ) -> None:
        """`folders`: those that the process writes to. Without any, nothing is served of disks."""
        self._folders = list(folders)
        self._certificate = settings.http.certificate
        anchors = settings.audit.anchors
        self._anchors = None if anchors is None or "://" in anchors else Path(anchors)
        self._registry = registry
        registry.register(self)

    def close(self) -> None:
        """Show nothing any more."""
        self._registry.unregister(self)

    def collect(self) -> Iterable[Metric]:
        """A folder or certificate that cannot be read now has no value."""
        free = GaugeMetricFamily(
            "fraud_scorer_disk_free_bytes", "Bytes free where a folder of this process lies.", labels=["folder"]
        )
        for folder in self._folders:
            with suppress(OSError):
                free.add_metric([folder.use], shutil.disk_usage(folder.there).free)
        if self._folders:
            yield free
        expiry = GaugeMetricFamily(
            "fraud_scorer_certificate_expiry_timestamp_seconds",
            "When the certificate of this port expires, epoch seconds; 0 without one.",
        )
        with suppress(OSError, ValueError):
            expiry.add_metric([], 0.0 if self._certificate is None else certificate_expiry_s(self._certificate))
        yield expiry
        anchors = GaugeMetricFamily(
            "fraud_scorer_anchors_changed_timestamp_seconds",
            "When the local file of FRAUD_SCORER_AUDIT__ANCHORS was last appended to, epoch seconds; 0 without one.",
        )
        with suppress(OSError):
            anchors.add_metric([], 0.0 if self._anchors is None else self._anchors.stat().st_mtime)
        yield anchors
