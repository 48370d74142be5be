"""An error of the client has one meaning, wherever it surfaces."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError, KafkaException

from scorer import kafka
from scorer.kafka.failures import Kind

E = KafkaError
MEANINGS = {
    kafka.Away: [
        E._TRANSPORT, E._ALL_BROKERS_DOWN, E._TIMED_OUT, E._MSG_TIMED_OUT, E.REQUEST_TIMED_OUT,
        E.NOT_LEADER_FOR_PARTITION, E.LEADER_NOT_AVAILABLE, E.COORDINATOR_NOT_AVAILABLE, E.NOT_COORDINATOR,
        E.COORDINATOR_LOAD_IN_PROGRESS,
        E.CONCURRENT_TRANSACTIONS, E.NETWORK_EXCEPTION, E._AUTHENTICATION, E.SASL_AUTHENTICATION_FAILED,
    ],
    kafka.Denied: [
        E.TOPIC_AUTHORIZATION_FAILED, E.GROUP_AUTHORIZATION_FAILED, E.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        E.CLUSTER_AUTHORIZATION_FAILED,
    ],
    kafka.Fenced: [E._FENCED, E.PRODUCER_FENCED, E.INVALID_PRODUCER_EPOCH, E.FENCED_INSTANCE_ID],
    kafka.Unfit: [
        E.MSG_SIZE_TOO_LARGE, E.RECORD_LIST_TOO_LARGE, E.NOT_ENOUGH_REPLICAS, E.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        E.POLICY_VIOLATION,
    ],
    kafka.KafkaFailure: [
        E.INVALID_TRANSACTION_TIMEOUT, E.INVALID_SESSION_TIMEOUT, E.INCONSISTENT_GROUP_PROTOCOL, E.UNSUPPORTED_VERSION,
    ],
    kafka.Rebuild: [
        E.UNKNOWN_TOPIC_OR_PART, E._FATAL, E._STATE, E.UNKNOWN_PRODUCER_ID, E.INVALID_PRODUCER_ID_MAPPING,
        E.INVALID_TXN_STATE, E.TRANSACTION_ABORTABLE, E.OUT_OF_ORDER_SEQUENCE_NUMBER, E.ILLEGAL_GENERATION,
        E.REBALANCE_IN_PROGRESS, E.UNKNOWN_MEMBER_ID, E.UNKNOWN,
    ],
}  # fmt: skip
EACH = [(code, kind) for kind, codes in MEANINGS.items() for code in codes]


@pytest.mark.parametrize(("code", "expected"), EACH, ids=[E(code).name() for code, _ in EACH])
def test_a_call_and_a_report_mean_the_same(code: int, expected: type[kafka.KafkaFailure]) -> None:
    """The exception of a call and the error of a delivery report give the same failure, with its name in it."""
    raised, reported = kafka.failure(KafkaException(KafkaError(code))), kafka.failure(KafkaError(code))
    assert type(raised) is type(reported) is expected
    assert KafkaError(code).name() in str(raised)


def test_each_code_stands_in_one_row() -> None:
    """No code has two meanings, and each meaning is used."""
    from scorer.kafka import failures  # noqa: PLC0415 - the table itself

    codes = [code for row in failures._CODES.values() for code in row]
    assert len(codes) == len(set(codes))
    assert failures._CODES.keys() | {Kind.UNKNOWN} == set(Kind)


def test_a_setting_that_is_refused_each_time_is_named() -> None:
    """What trying again cannot repair names the setting to change, and is no rebuild."""
    failed = kafka.failure(KafkaError(KafkaError.INVALID_TRANSACTION_TIMEOUT))
    assert "FRAUD_SCORER_WORKER__TRANSACTION_TIMEOUT_MS" in str(failed)
    assert not isinstance(failed, kafka.Rebuild)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (E.OFFSET_OUT_OF_RANGE, kafka.OutOfRange),
        (E._AUTO_OFFSET_RESET, kafka.OutOfRange),
        (E.UNKNOWN_TOPIC_OR_PART, kafka.Away),
        (E._TRANSPORT, kafka.Away),
        (E.UNKNOWN, kafka.Away),  # the broker's own trouble: the client fetches again
        (E.INCONSISTENT_TOPIC_ID, kafka.Away),
        (E.TOPIC_AUTHORIZATION_FAILED, kafka.Denied),
        (E.INVALID_MSG, kafka.KafkaFailure),
    ],
)
def test_what_a_reader_meets(code: int, expected: type[kafka.KafkaFailure]) -> None:
    """For whoever reads, a position outside the log and a topic that is not known yet have different meanings."""
    assert type(kafka.read_failure(KafkaError(code), "payments/0")) is expected


def test_a_log_that_was_cut_differs_from_records_that_are_gone() -> None:
    """With auto.offset.reset=error the client has one code for both, and the cause stands in its text."""
    cut = "Partition log truncation detected at offset 160: Local: Partition log truncation detected (broker 2)"
    assert kafka.log_was_cut(E(E._AUTO_OFFSET_RESET, cut))
    assert kafka.log_was_cut(E(E._LOG_TRUNCATION))
    assert not kafka.log_was_cut(E(E._AUTO_OFFSET_RESET, "fetch failed: Broker: Offset out of range (broker 2)"))
