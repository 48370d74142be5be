"""All checks of a deployment, in the order in which one explains the next."""

from __future__ import annotations

import time
from collections.abc import Callable

from confluent_kafka import TopicPartition

from scorer import kafka
from scorer.kafka.rights import Role, needed
from scorer.operate.doctor.broker_check import check_broker, check_clock, check_rights
from scorer.operate.doctor.bundle_check import check_bundle
from scorer.operate.doctor.diagnosis import Diagnosis, Expected, Part
from scorer.operate.doctor.process_check import check_machine, check_settings
from scorer.operate.doctor.topic_check import check_journal, check_topics_of
from scorer.operate.doctor.tracing_check import check_tracing
from scorer.operate.doctor.trail_check import check_trail
from scorer.runtime.local_folders import local_folders
from scorer.runtime.process_limits import SINK_MEMORY_MIB, WORKER_MEMORY_MIB
from scorer.runtime.settings import Settings


def examine(settings: Settings, expected: Expected, *, epoch_s: Callable[[], float] = time.time) -> Diagnosis:
    """Look at everything that can be looked at. Changes nothing; raises nothing for what is wrong."""
    found = Diagnosis()
    worker, sink = expected.part is not Part.SINK, expected.part is not Part.WORKER
    check_settings(found, settings)
    check_tracing(found, settings)
    bundle = check_bundle(found, settings, expected.bundle) if worker or expected.bundle is not None else None
    feature_set = None if bundle is None else bundle.feature_set
    check_machine(
        found,
        settings,
        folders=local_folders(settings) if worker else (),
        memory_mib=WORKER_MEMORY_MIB if worker else SINK_MEMORY_MIB,
        feature_set=feature_set,
        keys=expected.keys,
        payments=expected.payments,
    )
    facts = None
    reached = check_broker(found, settings)
    if reached is None:
        for part in ("topics", "rights", "clock", "journal"):
            found.skip(part, "no broker answers")
    else:
        client, cluster = reached
        topics = kafka.Topics.of(settings.kafka)
        check_rights(found, settings, [*([Role.WORKER] if worker else []), *([Role.SINK] if sink else [])])
        facts = check_topics_of(
            found,
            settings,
            client,
            cluster,
            seen=topics.all if worker else [acl.name for acl in needed(settings, Role.SINK) if acl.resource == "topic"],
            feature_set=feature_set,
            payments=expected.payments,
        )
        if facts is not None and worker:
            payments = facts[topics.payments]
            places = [TopicPartition(payments.name, partition) for partition in range(payments.partitions)]
            check_clock(found, client, places, producer_timestamps=settings.worker.producer_timestamps, epoch_s=epoch_s)
            check_journal(found, settings, client, facts)
        elif worker:
            for part in ("clock", "journal"):
                found.skip(part, "not every topic is there, or can be seen")
    if sink:
        check_trail(found, settings, facts, None if feature_set is None else feature_set.cards, epoch_s=epoch_s)
    return found
