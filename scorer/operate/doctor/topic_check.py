"""The topics: whether they exist, fit each other and the settings, are kept long enough, and are the journal's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from features.feature_set import FeatureSet
from schemas.journal_record import JournalError, JournalRecord
from scorer import kafka
from scorer.errors import UsageError
from scorer.journal import journal_reader
from scorer.kafka import topic_limits
from scorer.operate.doctor.diagnosis import Diagnosis
from scorer.operate.setup import HOUR_MS, ORDER_KEPT_BYTES, TopicPlan, topic_plans
from scorer.runtime.settings import PREFIX, Settings
from scorer.worker.follower import check_append_time, check_topics
from scorer.worker.pending_commits import ahead_max

TIMEOUT_S: Final = 10.0
REPLICAS_WANTED: Final = 3
# A decision takes up to 8 KiB, an audit record one row at least: below this a batch of one payment may not fit.
RECORD_BYTES_MIN: Final = 65_536
# Records at a journal's end that are read: markers of transactions stand between them.
_TAIL: Final = 64
_DAY_MS: Final = 24 * HOUR_MS
_PAYMENT_BYTES: Final = 200  # at least, of a payment on the topic: a dozen fields, compressed
_SETTINGS: Final = (
    "cleanup.policy",
    "retention.ms",
    "retention.bytes",
    "min.insync.replicas",
    "unclean.leader.election.enable",
    "message.timestamp.type",
    "max.message.bytes",
)


def check_topics_of(
    found: Diagnosis,
    settings: Settings,
    client: AdminClient,
    cluster: Any,
    *,
    seen: Iterable[str],
    feature_set: FeatureSet | None,
    payments: int,
) -> Mapping[str, kafka.TopicFacts] | None:
    """Each topic of `seen`, which this client may see, by its own settings, then, where these are all, beside each
    other. Their facts; None where one is missing.

    `payments`: expected in the longest window; 0: not known.
    """
    found.checked.append("topics")
    wanted = set(seen)
    plans = [plan for plan in topic_plans(settings) if plan.name in wanted]
    there = [plan for plan in plans if plan.name in cluster.topics]
    for plan in plans:
        if plan not in there:
            found.error(
                "topics",
                f"topic {plan.name} does not exist, or this client may not see it",
                "run `fraud-scorer setup`",
            )
    try:
        configured = topic_limits.topic_settings(client, [plan.name for plan in there], _SETTINGS, timeout_s=TIMEOUT_S)
        for plan in there:
            if configured[plan.name]:
                _check_one(found, settings, plan, configured[plan.name], feature_set, payments)
            else:
                found.skip(f"settings of topic {plan.name}", "this client may not see them (the right DescribeConfigs)")
            _check_replicas(found, plan.name, cluster.topics[plan.name], configured[plan.name], len(cluster.brokers))
        if len(there) < len(plans):
            return None
        facts = kafka.topic_facts(client, [plan.name for plan in plans], timeout_s=TIMEOUT_S)
    except kafka.KafkaFailure as exc:
        found.skip("topics", str(exc))
        return None
    if wanted.issuperset(kafka.Topics.of(settings.kafka).all):
        _check_together(found, settings, client, cluster, facts, configured)
    return facts


def _check_one(
    found: Diagnosis,
    settings: Settings,
    plan: TopicPlan,
    configured: Mapping[str, str],
    feature_set: FeatureSet | None,
    payments: int,
) -> None:
    name = plan.name
    if "compact" in configured.get("cleanup.policy", ""):
        found.error(
            "topics",
            f"topic {name} is compacted: records vanish from its middle",
            f"kafka-configs.sh --alter --topic {name} --add-config cleanup.policy=delete",
        )
    if configured.get("unclean.leader.election.enable") == "true":
        found.error(
            "topics",
            f"topic {name} has unclean.leader.election.enable=true: after one, committed records are gone",
            f"kafka-configs.sh --alter --topic {name} --add-config unclean.leader.election.enable=false",
        )
    size = int(configured.get("max.message.bytes", RECORD_BYTES_MIN))
    if size < RECORD_BYTES_MIN:
        found.error(
            "topics",
            f"topic {name} takes records of {size} bytes: a batch of one payment may not fit",
            f"kafka-configs.sh --alter --topic {name} --add-config max.message.bytes={topic_limits.RECORD_BYTES_MAX}",
        )
    wanted, least = settings.topics.min_insync_replicas, int(configured.get("min.insync.replicas", 1))
    if least < wanted:
        found.warning(
            "topics",
            f"topic {name} has min.insync.replicas={least}, {PREFIX}TOPICS__MIN_INSYNC_REPLICAS is {wanted}: "
            "a commit may be on fewer replicas than meant",
            f"kafka-configs.sh --alter --topic {name} --add-config min.insync.replicas={wanted}",
        )
    _check_retention(found, settings, plan, configured, feature_set, payments)


def _check_retention(
    found: Diagnosis,
    settings: Settings,
    plan: TopicPlan,
    configured: Mapping[str, str],
    feature_set: FeatureSet | None,
    payments: int,
) -> None:
    name, kept_ms = plan.name, int(configured.get("retention.ms", -1))
    if name == kafka.Topics.of(settings.kafka).order:
        _check_order_retention(found, settings, name, configured, kept_ms)
        return
    if plan.config["retention.ms"] == "-1" and name != kafka.Topics.of(settings.kafka).payments:
        if kept_ms >= 0 or int(configured.get("retention.bytes", -1)) >= 0:
            found.error(
                "topics",
                f"topic {name} is kept for {_length(kept_ms)}"
                f"{'' if kept_ms >= 0 else ' and a number of bytes'}, and is needed from its beginning",
                f"kafka-configs.sh --alter --topic {name} --add-config retention.ms=-1,retention.bytes=-1",
            )
        return
    if name != kafka.Topics.of(settings.kafka).payments:
        return
    _check_bytes(found, name, configured, payments / plan.partitions)
    if feature_set is None or kept_ms < 0:
        return
    longest_ms = longest_window_ms(feature_set)
    if kept_ms < longest_ms:
        found.error(
            "topics",
            f"topic {name} is kept for {_length(kept_ms)}, the longest window is {_length(longest_ms)}: "
            "without a snapshot the windows cannot be computed again",
            f"kafka-configs.sh --alter --topic {name} --add-config retention.ms={longest_ms + _DAY_MS}",
        )


def _check_order_retention(
    found: Diagnosis, settings: Settings, name: str, configured: Mapping[str, str], kept_ms: int
) -> None:
    """By size alone, and by more than a new owner may need."""
    if kept_ms >= 0:
        found.error(
            "topics",
            f"topic {name} is kept for {_length(kept_ms)}: a shard that is idle for longer cannot be started any more",
            f"kafka-configs.sh --alter --topic {name} --add-config retention.ms=-1",
        )
    size = int(configured.get("max.message.bytes", topic_limits.RECORD_BYTES_MAX))
    kept, needed = int(configured.get("retention.bytes", -1)), (ahead_max(settings.worker).batches + 2) * size
    if 0 <= kept < needed:
        found.error(
            "topics",
            f"topic {name} is kept for retention.bytes={kept} a partition, and a new owner may need {needed}",
            f"kafka-configs.sh --alter --topic {name} --add-config retention.bytes={max(needed, ORDER_KEPT_BYTES)}",
        )


def _check_bytes(found: Diagnosis, name: str, configured: Mapping[str, str], payments: float) -> None:
    """`payments`: expected in the longest window, of one partition; 0: not known."""
    kept, needed = int(configured.get("retention.bytes", -1)), round(payments * _PAYMENT_BYTES)
    if 0 <= kept < needed:
        found.error(
            "topics",
            f"topic {name} is kept for retention.bytes={kept} a partition, and the payments expected in the longest "
            f"window take {needed} or more",
            f"kafka-configs.sh --alter --topic {name} --add-config retention.bytes=-1",
        )


def longest_window_ms(feature_set: FeatureSet) -> int:
    """How far back a feature looks, with its delay; 0 without windows."""
    return max((f.window + f.delay for f in feature_set.features if f.window is not None), default=0)


def _length(ms: int) -> str:
    return "ever" if ms < 0 else f"{ms / _DAY_MS:.3g} d"


def _check_replicas(found: Diagnosis, name: str, topic: Any, configured: Mapping[str, str], brokers: int) -> None:
    """Leaders, replicas in sync, and how many there are of the brokers."""
    least = int(configured.get("min.insync.replicas", 1))
    for partition in topic.partitions.values():
        place, replicas, in_sync = f"{name}/{partition.id}", len(partition.replicas), len(partition.isrs)
        if partition.leader < 0:
            found.error("topics", f"{place} has no leader", "start the brokers that are missing")
        elif in_sync < min(least, replicas):
            found.error(
                "topics",
                f"{place} has {in_sync} of {replicas} replicas in sync, and its min.insync.replicas is {least}: "
                "nothing can be committed",
                "start the brokers that are missing",
            )
        elif in_sync < replicas:
            found.warning(
                "topics",
                f"{place} has {in_sync} of {replicas} replicas in sync",
                "look for the broker that is away or slow",
            )
    fewest = min((len(partition.replicas) for partition in topic.partitions.values()), default=0)
    if fewest < min(REPLICAS_WANTED, brokers):
        found.warning(
            "topics",
            f"topic {name} has {fewest} of {brokers} brokers as replicas: a broker that is lost takes records with it",
            f"kafka-reassign-partitions.sh to {min(REPLICAS_WANTED, brokers)} replicas; for new topics "
            f"{PREFIX}TOPICS__REPLICATION_FACTOR",
        )
    elif least >= fewest > 1:
        found.warning(
            "topics",
            f"topic {name} has min.insync.replicas={least} of {fewest} replicas: one broker away stops every commit",
            f"kafka-configs.sh --alter --topic {name} --add-config min.insync.replicas={fewest - 1}",
        )


def _check_order(found: Diagnosis, settings: Settings, client: AdminClient, brokers: int) -> None:
    """As workers ask at their start. With one broker and no wish for more, nothing is to be had."""
    refused = settings.worker.fast_on_one_broker == "refuse"
    try:
        reason = topic_limits.forgettable(client, kafka.Topics.of(settings.kafka).decided_from)
    except kafka.KafkaFailure as exc:
        found.skip("replicas of the order log", str(exc))
        return
    if not reason or (brokers == 1 and not refused):
        return
    (found.error if refused else found.warning)(
        "topics",
        f"a decision on decisions-fast could be taken back. {reason}",
        f"do that, or set {PREFIX}WORKER__FAST_DECISIONS=false",
    )


def _check_together(
    found: Diagnosis,
    settings: Settings,
    client: AdminClient,
    cluster: Any,
    facts: Mapping[str, kafka.TopicFacts],
    configured: Mapping[str, Mapping[str, str]],
) -> None:
    """As workers check them at their start, and `setup` before it creates."""
    topics = kafka.Topics.of(settings.kafka)
    if settings.worker.fast_decisions and "min.insync.replicas" in configured[topics.order]:
        _check_order(found, settings, client, len(cluster.brokers))
    types = {
        name: values["message.timestamp.type"]
        for name, values in configured.items()
        if "message.timestamp.type" in values
    }
    for name in topics.inputs:
        try:
            check_append_time(settings, {name: types[name]} if name in types else {})
        except UsageError as exc:
            found.error("topics", str(exc), "run `fraud-scorer setup --append-time`")
    try:
        check_topics(settings, facts)
    except UsageError as exc:
        found.error("topics", str(exc), "make settings and partition counts fit")
    wanted, payments = settings.topics.payments_partitions, facts[topics.payments].partitions
    if payments != wanted:
        found.warning(
            "topics",
            f"topic {topics.payments} has {payments} partitions, {PREFIX}TOPICS__PAYMENTS_PARTITIONS is {wanted}: "
            "`fraud-scorer setup` refuses that",
            f"set it to {payments}",
        )


def check_journal(found: Diagnosis, settings: Settings, client: AdminClient, facts: Mapping[str, Any]) -> None:
    """Whether each journal belongs to the topics that are there now, and which keys its newest records need."""
    found.checked.append("journal")
    topics = kafka.Topics.of(settings.kafka)
    now = journal_reader.sources_of(facts, topics)
    try:
        known = settings.pseudonym_keys
    except UsageError:
        known = None  # reported with the settings
    try:
        for record in _newest(found, settings, client, range(facts[topics.journal].partitions)):
            what = f"batch {record.sequence} of shard {record.shard}"
            if record.sources is not None:
                journal_reader.check_sources(record.sources, now, what)
            if record.pseudonym_key is not None and known is not None:
                _check_key(found, record.pseudonym_key, known.named, what)
    except kafka.SourceChanged as exc:
        found.error("journal", str(exc), "`fraud-scorer recover` shows what is missing and what can be accepted")
    except JournalError as exc:
        found.error("journal", f"topic {topics.journal}: {exc}", "find out who else writes to it")
    except (kafka.KafkaFailure, kafka.NoProgress) as exc:
        found.skip("journal", str(exc))


def _check_key(found: Diagnosis, key_id: str, named: Any, what: str) -> None:
    try:
        named(key_id)
    except ValueError as exc:
        found.error("keys", f"{what}: {exc}", f"add the key to {PREFIX}CARDS__KEYS_FILE")


def _newest(
    diagnosis: Diagnosis, settings: Settings, client: AdminClient, partitions: Iterable[int]
) -> Iterable[JournalRecord]:
    """The newest record of each journal partition that has one. What no worker has written there is a warning."""
    topic = kafka.Topics.of(settings.kafka).journal
    places = [TopicPartition(topic, partition) for partition in partitions]
    starts, ends = kafka.starts(client, places), kafka.stable_ends(client, places)
    reader = kafka.reader(settings.kafka, group=f"{settings.kafka.topic_prefix}fraud-scorer-doctor")
    try:
        for place, start, end in zip(places, starts, ends, strict=True):
            place.offset = max(start, end - _TAIL)
            newest, foreign = None, list[int]()
            for message in kafka.read_range(reader, place, end, no_progress_s=TIMEOUT_S):
                try:
                    newest = JournalRecord.from_bytes(message.value() or b"")
                except JournalError as exc:
                    if not exc.foreign:
                        raise
                    foreign.append(kafka.present(message.offset(), "offset"))
            if foreign:
                unseen = "" if newest is not None else f", and its last {_TAIL} offsets hold no batch to look at"
                diagnosis.warning(
                    "journal",
                    f"topic {topic}/{place.partition}: {len(foreign)} records from offset {foreign[0]} on are no "
                    f"journal records; workers pass over them{unseen}",
                    "find out who else writes to it, and take that right away",
                )
            if newest is not None:
                yield newest
    finally:
        reader.close()
