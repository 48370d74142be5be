"""Sending an activation: one control record, which every shard reads at one position of its journal."""

from __future__ import annotations

from typing import Any

from confluent_kafka import KafkaException

from schemas.control_record import Activate
from scorer import kafka
from scorer.errors import FraudScorerError
from scorer.runtime.settings import Settings

_DELIVERY_TIMEOUT_S = 30.0


class ActivationError(FraudScorerError):
    """The control record did not reach the topic; nothing was activated."""


def send_activation(settings: Settings, bundle: str, location: str) -> int:
    """Put the activation on the control topic and wait until it is there; gives its offset. Raises ActivationError.

    The caller has verified the bundle: a worker loads and checks it again, and refuses what is unfit.
    """
    topics = kafka.Topics.of(settings.kafka)
    kafka.partition_count(kafka.admin(settings.kafka), topics.control)  # names `setup` when the topic does not exist
    producer = kafka.plain_producer(settings.kafka)
    seen: list[tuple[Any, Any]] = []
    record = Activate(bundle=bundle, location=location)
    try:
        producer.produce(
            topics.control, value=record.model_dump_json().encode(), key=b"activate", partition=0,
            on_delivery=lambda error, message: seen.append((error, message)),
        )  # fmt: skip
        producer.flush(_DELIVERY_TIMEOUT_S)
    except (KafkaException, BufferError) as exc:
        raise ActivationError(f"the activation of {bundle} was not sent: {exc}") from exc
    if not seen:
        raise ActivationError(f"the activation of {bundle} was not acknowledged within {_DELIVERY_TIMEOUT_S:.0f} s")
    error, message = seen[0]
    if error is not None:
        raise ActivationError(f"the activation of {bundle} was refused by the broker: {error}")
    return int(message.offset())
