"""A broker's refusals as librdkafka gives them to whoever called it."""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException

# After these the transaction can be aborted and the producer used again.
_ABORTABLE = {KafkaError.ILLEGAL_GENERATION, KafkaError.UNKNOWN_MEMBER_ID, KafkaError._MSG_TIMED_OUT}
_FENCED = {KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED}


def no_answer() -> KafkaException:
    return KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer", retriable=True))


def as_exception(code: int) -> KafkaException:
    """Of a transactional call, or of a commit of the group's offsets."""
    if code in _FENCED:
        return KafkaException(KafkaError(KafkaError._FENCED, "a newer producer has this id", fatal=True))
    return KafkaException(KafkaError(code, "refused", txn_requires_abort=code in _ABORTABLE))
