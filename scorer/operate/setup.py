"""`fraud-scorer setup`: topics and tables, idempotent. What exists is checked, and not changed unasked."""

from __future__ import annotations

from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from scorer import kafka
from scorer.errors import UsageError
from scorer.runtime.settings import Settings
from scorer.trail.audit_database import migrate

HOUR_MS = 3_600_000
# A record's timestamp is the broker's, whatever its producer's clock says.
APPEND_TIME = {"message.timestamp.type": kafka.APPEND_TIME}
TIMEOUT_S = 30.0
# Of an order log only what the journal does not hold yet is needed, and the record that it names last: 2 x 256 batches
# and two records at most, each below 1 MiB. So the newest 1 GiB is enough whatever the settings are, and however long a
# shard is idle; by time it must not be bounded, for then an idle shard would lose that last record.
ORDER_KEPT_BYTES = 1024 * 1024 * 1024
ORDER_SEGMENT_BYTES = 128 * 1024 * 1024


@dataclass(frozen=True)
class TopicPlan:
    """A topic as it should be. `why` is shown to people."""

    name: str
    partitions: int  # when it is made
    config: dict[str, str]
    why: str
    partitions_free: bool = False  # one that exists may have any number of them


def topic_plans(settings: Settings) -> list[TopicPlan]:
    """All topics with partitions and configuration, from settings."""
    topics, wanted, shards = kafka.Topics.of(settings.kafka), settings.topics, settings.worker.shards

    def config(hours: int, **more: str) -> dict[str, str]:
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(-1 if hours < 0 else hours * HOUR_MS),
            "min.insync.replicas": str(wanted.min_insync_replicas),
            # What is kept for ever is so by size as well, whatever the brokers' default; but for topic order.
            **({"retention.bytes": "-1"} if hours < 0 else {}),
            **more,
        }

    return [
        TopicPlan(
            topics.payments,
            wanted.payments_partitions,
            config(wanted.payments_retention_hours, **APPEND_TIME),
            "input; kept as long as the longest window",
        ),
        TopicPlan(
            topics.decisions,
            wanted.payments_partitions,
            config(wanted.decisions_retention_hours),
            "one per payment, same key and partition number",
        ),
        TopicPlan(
            topics.audit,
            shards,
            config(wanted.audit_retention_hours),
            "one partition per shard; kept as long as Postgres may be away",
        ),
        # Until there are snapshots, the journal's beginning is needed to recover.
        TopicPlan(
            topics.journal, shards, config(-1), "one partition per shard; owning it is owning the shard; kept for ever"
        ),
        TopicPlan(
            topics.order,
            shards,
            config(-1, **{"retention.bytes": str(ORDER_KEPT_BYTES), "segment.bytes": str(ORDER_SEGMENT_BYTES)}),
            "one partition per shard; the order of batches whose decisions may have left; kept: the newest 1 GiB",
        ),
        TopicPlan(
            topics.decisions_fast,
            wanted.payments_partitions,
            config(wanted.decisions_retention_hours),
            "decisions as soon as their order is durable; may repeat, as decisions otherwise",
        ),
        # One partition each: every shard reads them in the same order.
        TopicPlan(
            topics.control,
            1,
            config(-1, **APPEND_TIME),
            "lists, activations; one partition, read by every shard; kept for ever",
        ),
        TopicPlan(
            topics.labels,
            1,
            config(-1, **APPEND_TIME),
            "labels; one partition, read by every shard; kept for ever",
        ),
        TopicPlan(
            topics.dead_letters,
            wanted.payments_partitions,
            config(wanted.dead_letters_retention_hours),
            "what could not be decided, with origin and reason; any number of partitions",
            partitions_free=True,
        ),
    ]


def create_topics(settings: Settings, *, append_time: bool = False) -> list[tuple[TopicPlan, bool]]:
    """Create what is missing; give each topic's plan and whether it was made now. Every broker knows them by then.

    `append_time`: set LogAppendTime on the topics that want it and exist without. Raises UsageError when one exists
    with other partitions, is compacted, or keeps the timestamps of producers, Away when a broker does not hear of a
    topic in time.
    """
    client = kafka.admin(settings.kafka)
    plans = topic_plans(settings)
    try:
        existing = client.list_topics(timeout=kafka.METADATA_TIMEOUT_S).topics
    except KafkaException as exc:
        raise kafka.KafkaFailure(
            f"Kafka at {settings.kafka.bootstrap_servers} does not answer: {kafka.describe(exc)}"
        ) from exc
    for plan in plans:
        found = existing.get(plan.name)
        if found is not None and len(found.partitions) != plan.partitions and not plan.partitions_free:
            raise UsageError(
                f"topic {plan.name} has {len(found.partitions)} partitions, settings say {plan.partitions}. "
                "Partitions decide which payments share a shard: change the setting, or start with other topics "
                "(FRAUD_SCORER_KAFKA__TOPIC_PREFIX)"
            )
    missing = [plan for plan in plans if plan.name not in existing]
    made = (
        client.create_topics(
            [
                NewTopic(plan.name, plan.partitions, settings.topics.replication_factor, config=plan.config)
                for plan in missing
            ],
            operation_timeout=TIMEOUT_S,
            request_timeout=TIMEOUT_S,
        )
        if missing
        else {}
    )
    for name, future in made.items():
        try:
            kafka.answer_of(future, TIMEOUT_S)
        except KafkaException as exc:
            if exc.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # made by another setup in this moment
                raise kafka.KafkaFailure(f"topic {name} cannot be made: {kafka.describe(exc)}") from exc
    if append_time:
        _set_append_time(client, [plan for plan in plans if plan not in missing])
    if missing:
        kafka.wait_until_visible(settings.kafka, {plan.name: plan.partitions for plan in missing}, timeout_s=TIMEOUT_S)
    _check_config(client, plans)
    return [(plan, plan in missing) for plan in plans]


def _check_config(client: AdminClient, plans: list[TopicPlan]) -> None:
    """A compacted or short-lived journal would lose what recovery needs: refuse it now, not after the loss."""
    resources = {ConfigResource(ResourceType.TOPIC, plan.name): plan for plan in plans}
    for resource, future in client.describe_configs(list(resources), request_timeout=TIMEOUT_S).items():
        try:
            found = kafka.answer_of(future, TIMEOUT_S)
        except KafkaException:
            continue  # not allowed to look, or a broker that cannot answer; the worker checks offsets itself
        kind = found.get("message.timestamp.type")
        wanted = resources[resource].config.get("message.timestamp.type")
        if wanted is not None and kind is not None and kind.value not in (None, wanted):
            raise UsageError(
                f"topic {resource.name} has message.timestamp.type={kind.value}, from before fraud-scorer asked for "
                f"{wanted}: a producer could write any timestamp. {kafka.APPEND_TIME_WAY_OUT}"
            )
        policy = found.get("cleanup.policy")
        if policy is not None and policy.value is not None and "compact" in policy.value:
            raise UsageError(
                f"topic {resource.name} is compacted ({policy.value}): records would vanish from its middle. "
                "Set cleanup.policy=delete"
            )


def _set_append_time(client: AdminClient, plans: list[TopicPlan]) -> None:
    entries = [ConfigEntry(name, value) for name, value in APPEND_TIME.items()]
    for entry in entries:
        entry.incremental_operation = AlterConfigOpType.SET
    resources = [
        ConfigResource(ResourceType.TOPIC, plan.name, incremental_configs=entries)
        for plan in plans
        if APPEND_TIME.items() <= plan.config.items()
    ]
    for resource, future in client.incremental_alter_configs(resources, request_timeout=TIMEOUT_S).items():
        try:
            kafka.answer_of(future, TIMEOUT_S)
        except KafkaException as exc:
            name = resource.name
            raise kafka.failure(
                exc, f"topic {name} cannot be given LogAppendTime", needs=f"AlterConfigs on topic {name}"
            ) from exc


def setup(settings: Settings, *, postgres: bool = True, append_time: bool = False) -> list[tuple[TopicPlan, bool]]:
    """Topics, then tables. Safe to run again, and by two at once."""
    made = create_topics(settings, append_time=append_time)
    if postgres:
        migrate(settings.postgres_url)
    return made
