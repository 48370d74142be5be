"""The settings beside each other, and the machine: limits of the process, folders, disk, memory."""

from __future__ import annotations

import ipaddress
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from features.feature_description import describe
from features.feature_set import FeatureSet
from scorer.audit.signed.signatures import Signer, Verifier
from scorer.bundle.signature import parse_public
from scorer.errors import FraudScorerError, UsageError
from scorer.operate.doctor.diagnosis import Diagnosis
from scorer.runtime import process_limits
from scorer.runtime.health import Access
from scorer.runtime.local_folders import LocalFolder
from scorer.runtime.machine_metrics import certificate_expiry_s
from scorer.runtime.settings import PREFIX, Settings

FREE_BYTES_MIN: Final = 1 << 30  # of each folder, beside what is expected: logs, spills and kernels of a day
EXPIRY: Final = timedelta(days=21)  # of certificates: two rounds of whoever renews them weekly
_MIB: Final = 1 << 20


def check_settings(found: Diagnosis, settings: Settings) -> None:
    """What each setting alone does not show: keys that cannot be read, and settings that do not fit each other."""
    found.checked.append("settings")
    for name, look in _readable(settings):
        try:
            look()
        except (FraudScorerError, ValueError) as exc:
            found.error("settings", f"{name}: {exc}", "give what the message asks for")
    if settings.http.certificate is not None:
        _check_expiry(found, settings.http.certificate)
    bundle = settings.bundle
    if bundle.locations and not bundle.trusted_keys and not bundle.unsigned_activations:
        found.warning(
            "settings",
            f"{PREFIX}BUNDLE__LOCATIONS is set and {PREFIX}BUNDLE__TRUSTED_KEYS is not: no activation will be taken",
            "set the public keys that sign activations (`fraud-scorer bundle sign --new-key` makes one)",
        )
    if bundle.unsigned_activations and not bundle.trusted_keys:
        found.warning(
            "settings",
            f"{PREFIX}BUNDLE__UNSIGNED_ACTIVATIONS: whoever may write to the control topic chooses the model",
            f"set {PREFIX}BUNDLE__TRUSTED_KEYS and sign activations",
        )
    if settings.audit.anchors is not None and settings.audit.signing_key is None and settings.audit.public_key is None:
        found.warning(
            "settings",
            f"{PREFIX}AUDIT__ANCHORS is set without a key: whoever can write that file can forge anchors",
            f"set {PREFIX}AUDIT__SIGNING_KEY_FILE (`fraud-scorer audit keygen` makes one)",
        )
    _check_encryption(found, settings)


def _readable(settings: Settings) -> Iterator[tuple[str, Callable[[], object]]]:
    yield f"{PREFIX}CARDS__KEYS", lambda: settings.pseudonym_keys
    yield f"{PREFIX}HTTP", lambda: Access.of(settings.http)
    yield f"{PREFIX}POSTGRES__URL", lambda: settings.postgres_url
    for key in settings.bundle.trusted_keys:
        yield f"{PREFIX}BUNDLE__TRUSTED_KEYS", lambda key=key: parse_public(key)  # type: ignore[misc]
    signing, public = settings.audit.signing_key, settings.audit.public_key
    if signing is not None:
        yield f"{PREFIX}AUDIT__SIGNING_KEY", lambda: Signer.from_pem(signing.get_secret_value())
    if public is not None:
        yield f"{PREFIX}AUDIT__PUBLIC_KEY", lambda: Verifier.from_pem(public)


def _check_expiry(found: Diagnosis, path: Path) -> None:
    try:
        until = datetime.fromtimestamp(certificate_expiry_s(path), UTC)
    except (OSError, ValueError):
        return  # reported by Access.of
    left = until - datetime.now(UTC)
    if left < timedelta(0):
        found.error("settings", f"the certificate {path} expired on {until:%Y-%m-%d}", "renew it")
    elif left < EXPIRY:
        found.warning("settings", f"the certificate {path} expires on {until:%Y-%m-%d}", "renew it")


def _check_encryption(found: Diagnosis, settings: Settings) -> None:
    given = settings.kafka.security.get("security.protocol")
    protocol = "PLAINTEXT" if given is None else given.get_secret_value().upper()
    away = [server for server in settings.kafka.bootstrap_servers.split(",") if not is_here(server.strip())]
    if away and protocol.endswith("PLAINTEXT"):
        found.warning(
            "settings",
            f"payments go to {away[0]} by {protocol}: whoever is on the network reads them",
            f"set security.protocol to SASL_SSL or SSL in {PREFIX}KAFKA__SECURITY",
        )


def is_here(server: str) -> bool:
    """Whether `server`, host:port or a host alone, is this machine by its name or address."""
    host = (urlsplit(f"//{server}").hostname or "").strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_machine(
    found: Diagnosis,
    settings: Settings,
    *,
    folders: Iterable[LocalFolder],
    memory_mib: int,
    feature_set: FeatureSet | None,
    keys: int,
    payments: int,
) -> None:
    """Limits, folders, disk and memory. `folders`: those that the process writes to. `keys`: live keys expected in all
    entities of a shard; `payments`: payments in the longest window. 0: nothing is expected of them."""
    folders = list(folders)
    found.checked += ["process", *(["disk"] if folders else []), "memory"]
    try:
        process_limits.check(memory_mib)
    except UsageError as exc:
        found.error("process", str(exc), "raise the limit")
    key_bytes = row_bytes = 0
    if feature_set is not None:
        key_bytes, row_bytes = state_bytes(feature_set, keys, payments)
        if keys > feature_set.keys_max:
            found.error(
                "memory",
                f"{keys:,} keys are expected and the feature set's keys_max is {feature_set.keys_max:,}: "
                "keys beyond it get no features",
                "raise keys_max in the feature set",
            )
    in_memory = key_bytes + (0 if settings.worker.log_folder is not None else row_bytes)
    _check_memory(found, memory_mib * _MIB + in_memory, memory_mib)
    # Of snapshots there is one more than is kept, while the next is written.
    needed = {"log": row_bytes, "snapshots": (settings.snapshots.kept + 1) * (key_bytes + row_bytes)}
    for folder in folders:
        _check_folder(found, folder, needed.get(folder.use, 0))


def state_bytes(feature_set: FeatureSet, keys: int, payments: int) -> tuple[int, int]:
    """Bytes of `keys` keys, shared out evenly among the entities, and of `payments` payments in the event log, as
    `features explain` counts them. Further payments of a key can take more (minima, medians, distinct values)."""
    cost = describe(feature_set)
    of_keys = cost.bytes_per_key.values()
    return (keys * sum(of_keys) // len(of_keys) if of_keys else 0), payments * cost.bytes_per_payment


def _check_memory(found: Diagnosis, needed: int, memory_mib: int) -> None:
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    here = min(machine, process_limits.cgroup_memory() or machine)
    if needed > here:
        found.error(
            "memory",
            f"at least {needed // _MIB:,} MiB are needed ({memory_mib} MiB for the process itself, the rest for the "
            f"expected keys and payments), and there are {here // _MIB:,} MiB",
            f"give it more memory, more shards, or the event log a folder ({PREFIX}WORKER__LOG_FOLDER)",
        )


def _check_folder(found: Diagnosis, folder: LocalFolder, needed: int) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder.there):
            pass
        free = shutil.disk_usage(folder.there).free
    except OSError as exc:
        found.error(
            "disk",
            f"{folder.path} cannot be written to ({exc.strerror})",
            f"set {folder.setting} to a folder that can be written",
        )
        return
    if free < needed + FREE_BYTES_MIN:
        found.error(
            "disk",
            f"{folder.path} has {free // _MIB:,} MiB free, and {(needed + FREE_BYTES_MIN) // _MIB:,} MiB are wanted",
            f"free some, or set {folder.setting} to a larger disk",
        )
