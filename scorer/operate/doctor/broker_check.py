"""The brokers: whether they answer, their limits beside the settings, rights, and their clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec, ResourceType

from scorer import kafka
from scorer.errors import UsageError
from scorer.kafka import rights
from scorer.operate.doctor.diagnosis import Diagnosis
from scorer.runtime.settings import PREFIX, Settings

TIMEOUT_S: Final = 10.0
# How far the clocks may be apart: deadlines and latencies are tens of milliseconds, and NTP keeps clocks within them.
SKEW_S_MAX: Final = 1.0
# So long a new record is waited for, whose age shows the other direction.
TRAFFIC_S: Final = 3.0
_LOOK_S: Final = 0.1


def check_broker(found: Diagnosis, settings: Settings) -> tuple[AdminClient, Any] | None:
    """A client and the cluster's metadata; None where no broker answers."""
    found.checked.append("brokers")
    try:
        client = kafka.admin(settings.kafka)
        cluster = client.list_topics(timeout=TIMEOUT_S)
    except UsageError as exc:
        found.error("brokers", str(exc), f"correct {PREFIX}KAFKA__SECURITY")
        return None
    except KafkaException as exc:
        found.error(
            "brokers",
            f"{settings.kafka.bootstrap_servers} does not answer within {TIMEOUT_S:.0f} s: {kafka.describe(exc)}",
            f"start the brokers, or correct {PREFIX}KAFKA__BOOTSTRAP_SERVERS and {PREFIX}KAFKA__SECURITY",
        )
        return None
    _check_limits(found, settings, client, next(iter(cluster.brokers)))
    return client, cluster


def _check_limits(found: Diagnosis, settings: Settings, client: AdminClient, broker: int) -> None:
    """The bounds that the brokers set for what clients ask for."""
    limits = _broker_settings(client, broker)
    worker = settings.worker
    timeout, longest = worker.transaction_timeout_ms, limits.get("transaction.max.timeout.ms")
    if longest is not None and timeout > longest:
        found.error(
            "brokers",
            f"{PREFIX}WORKER__TRANSACTION_TIMEOUT_MS is {timeout}, the brokers' transaction.max.timeout.ms {longest}: "
            "no transaction can begin",
            "lower the setting, or raise the brokers'",
        )
    least, most = limits.get("group.min.session.timeout.ms"), limits.get("group.max.session.timeout.ms")
    session = worker.session_timeout_ms
    if worker.group_protocol == "classic" and (
        (least is not None and session < least) or (most is not None and session > most)
    ):
        found.error(
            "brokers",
            f"{PREFIX}WORKER__SESSION_TIMEOUT_MS is {session}, the brokers allow {least} to {most}: "
            "no worker gets into its group",
            "set it within that range",
        )
    missed, beats = limits.get("group.consumer.session.timeout.ms"), limits.get("group.consumer.heartbeat.interval.ms")
    if worker.group_protocol == "consumer" and missed is not None and beats is not None and missed > session:
        found.warning(
            "brokers",
            f"with {PREFIX}WORKER__GROUP_PROTOCOL=consumer the brokers say when a killed worker is missed: after "
            f"group.consumer.session.timeout.ms={missed}, while {PREFIX}WORKER__SESSION_TIMEOUT_MS is {session}; and "
            f"a standby hears of an owner that ends within group.consumer.heartbeat.interval.ms={beats}",
            "lower both for the workers' group (deploy/docs/pages/operations/running.md; what is set for one group is "
            "not seen here), or use the classic protocol",
        )


def _broker_settings(client: AdminClient, broker: int) -> dict[str, int]:
    """The whole-number settings of a broker; none where this client may not see them."""
    resource = ConfigResource(ResourceType.BROKER, str(broker))
    try:
        asked = client.describe_configs([resource], request_timeout=TIMEOUT_S)
        entries: Mapping[str, Any] = kafka.answer_of(asked[resource], TIMEOUT_S)
    except (KafkaException, kafka.Away):
        return {}
    return {name: int(entry.value) for name, entry in entries.items() if str(entry.value).isdecimal()}


def check_rights(found: Diagnosis, settings: Settings, roles: Iterable[rights.Role]) -> None:
    """What the brokers' authoriser does not allow this client."""
    found.checked.append("rights")
    for role in roles:
        try:
            lacking = rights.missing(settings, role)
        except (kafka.KafkaFailure, KafkaException) as exc:
            found.skip("rights", str(exc))
            return
        if lacking:
            found.error(
                "rights",
                f"the {role.value} lacks {', '.join(map(str, lacking))}",
                f"`fraud-scorer acls {role.value}` prints the commands that grant it",
            )


def check_clock(
    found: Diagnosis,
    client: AdminClient,
    partitions: list[TopicPartition],
    *,
    producer_timestamps: bool,
    epoch_s: Callable[[], float],
) -> None:
    """This machine's clock beside the broker's, by the timestamps that the broker gives records as they come.

    A record that is newer than this clock when the broker has answered shows that it is behind. One that is ahead shows
    in a record that is not older than the question before it and yet as old as that by this clock: so that direction
    needs traffic; without any it is not checked. However long an answer takes, it makes no clock wrong.
    """
    if producer_timestamps:
        found.skip("clock", "payments have their producers' timestamps, not the broker's")
        return
    known: float | None = None  # the newest record of the question before, which was asked at `asked_s`
    asked_s, until = 0.0, time.monotonic() + TRAFFIC_S
    while True:
        asks_s = epoch_s()
        newest = _newest_s(client, partitions)
        if newest is not None:
            behind = newest - epoch_s()
            if behind > SKEW_S_MAX:
                _skewed(found, "behind", behind)
                return
            if known is not None and newest > known:
                found.checked.append("clock")
                if asked_s - newest > SKEW_S_MAX:
                    _skewed(found, "ahead of", asked_s - newest)
                return
            known, asked_s = newest, asks_s
        if time.monotonic() > until:
            break
        time.sleep(_LOOK_S)
    found.skip("clock", f"no payment came within {TRAFFIC_S:.0f} s; only a record that has just come shows the clock")


def _skewed(found: Diagnosis, direction: str, seconds: float) -> None:
    if "clock" not in found.checked:
        found.checked.append("clock")
    found.error(
        "clock",
        f"this machine's clock is {direction} the broker's by {seconds:.1f} s or more: deadlines and latencies are "
        "counted between the two",
        "run an NTP client (chrony) on both machines",
    )


def _newest_s(client: AdminClient, partitions: list[TopicPartition]) -> float | None:
    """The largest timestamp of the partitions, epoch seconds, -inf when they are empty; None without an answer."""
    futures = client.list_offsets(dict.fromkeys(partitions, OffsetSpec.max_timestamp()), request_timeout=TIMEOUT_S)
    try:
        stamps = [kafka.answer_of(future, TIMEOUT_S).timestamp for future in futures.values()]
    except (KafkaException, kafka.Away):
        return None
    newest = max((stamp for stamp in stamps if stamp is not None), default=-1)
    return newest / 1000.0 if newest >= 0 else -math.inf
