"""Sending an activation: one control record, which every shard reads at one position of its journal."""

from __future__ import annotations

from typing import Any

from confluent_kafka import KafkaException
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.control_record import Activate
from scorer import kafka
from scorer.bundle.activation_signature import signed_activation
from scorer.errors import FraudScorerError
from scorer.journal.journal_reader import deployment_of
from scorer.runtime.settings import Settings
from scorer.runtime.threads import SYSTEM

_DELIVERY_TIMEOUT_S = 30.0
VALID_S = 3600.0


class ActivationError(FraudScorerError):
    """The control record did not reach the topic; nothing was activated."""


def new_activation(
    settings: Settings,
    bundle: str,
    location: str,
    key: Ed25519PrivateKey | None,
    *,
    number: int | None = None,
    valid_s: float = VALID_S,
) -> Activate:
    """An activation for the deployment that `settings` name; signed where there is a key.

    `number`: the time in ms without, which rises by itself. Raises KafkaFailure when the topics are not there.
    """
    topics = kafka.Topics.of(settings.kafka)
    facts = kafka.RealClients(settings).broker().topic_facts([topics.journal])
    now_ms = int(SYSTEM.epoch_s() * 1000)
    record = Activate(
        bundle=bundle,
        location=location,
        number=now_ms if number is None else number,
        expires_ms=now_ms + int(valid_s * 1000),
        deployment=deployment_of(facts, topics),
    )
    return record if key is None else signed_activation(record, key)


def send_activation(settings: Settings, record: Activate) -> int:
    """Put the activation on the control topic and wait until it is there; gives its offset. Raises ActivationError.

    The caller has verified the bundle: a worker loads and checks it again, and refuses what is unfit.
    """
    topics = kafka.Topics.of(settings.kafka)
    kafka.partition_count(kafka.admin(settings.kafka), topics.control)  # names `setup` when the topic does not exist
    producer = kafka.plain_producer(settings.kafka)
    seen: list[tuple[Any, Any]] = []
    try:
        producer.produce(
            topics.control, value=record.model_dump_json(exclude_none=True).encode(), key=b"activate", partition=0,
            on_delivery=lambda error, message: seen.append((error, message)),
        )  # fmt: skip
        producer.flush(_DELIVERY_TIMEOUT_S)
    except (KafkaException, BufferError) as exc:
        raise ActivationError(f"the activation of {record.bundle} was not sent: {exc}") from exc
    if not seen:
        raise ActivationError(
            f"the activation of {record.bundle} was not acknowledged within {_DELIVERY_TIMEOUT_S:.0f} s"
        )
    error, message = seen[0]
    if error is not None:
        raise ActivationError(f"the activation of {record.bundle} was refused by the broker: {error}")
    return int(message.offset())
