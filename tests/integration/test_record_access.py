"""Records read through the client library's C interface are those that its Python objects give, whatever is written,
assigned, paused, cut off or broken; and what does not prove itself is not used."""

from __future__ import annotations

import ctypes
import gc
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import NewTopic
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.byte_column import ByteColumn
from scorer import kafka
from scorer.kafka import borrowed_library, record_access
from scorer.kafka.borrowed_library import NotBorrowed
from scorer.kafka.borrowed_reader import BorrowedReader
from scorer.kafka.record_access import RecordAccess
from scorer.kafka.record_blocks import RecordBlock
from scorer.local_services import Services
from scorer.runtime.settings import Settings
from tests.integration.running import test_settings, wait_for

PARTITIONS = 3
HEADER = "deadline"
Place = tuple[str, int]
Reader = kafka.FlatReader


class Topic:
    """A topic of three partitions, and transactions on it."""

    def __init__(self, where: Settings, name: str, timestamps: str = "LogAppendTime") -> None:
        self.settings, self.name = where, name
        self.client = kafka.admin(where.kafka)
        made = NewTopic(
            name, PARTITIONS, 1, config={"message.timestamp.type": timestamps, "max.message.bytes": "2000000"}
        )
        self.client.create_topics([made])[name].result(30)
        self.producer = Producer(
            {
                "bootstrap.servers": where.kafka.bootstrap_servers,
                "transactional.id": name,
                "message.max.bytes": 2_000_000,
            }
        )
        self.producer.init_transactions(30)

    @property
    def places(self) -> list[TopicPartition]:
        return [TopicPartition(self.name, p, 0) for p in range(PARTITIONS)]

    def send(self, records: Sequence[Record], *, commit: bool = True) -> None:
        self.producer.begin_transaction()
        for partition, key, value, headers in records:
            self.producer.produce(self.name, value, key=key, partition=partition, headers=headers)
        self.producer.flush(30)
        if commit:
            self.producer.commit_transaction(30)
        else:
            self.producer.abort_transaction(30)
        # The markers come a moment after the answer.
        wait_for(
            lambda: kafka.stable_ends(self.client, self.places) == kafka.ends(self.client, self.places), 30, "them"
        )

    def ends(self) -> dict[int, int]:
        return dict(enumerate(kafka.ends(self.client, self.places)))

    def consumer(self, on_error: Callable[[KafkaError], None] | None = None) -> Consumer:
        return kafka.reader(self.settings.kafka, group=f"{self.name}-reader", on_error=on_error)

    def plain(self) -> Reader:
        return kafka.PlainReader(self.consumer())

    def borrowed(self) -> Reader:
        return BorrowedReader(self.consumer(), self.settings.kafka.client_id)


Record = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]


@pytest.fixture
def where(services: Services, topics_prefix: str) -> Settings:
    return test_settings(services.kafka.bootstrap_servers, topics_prefix)


@pytest.fixture
def topic(where: Settings) -> Topic:
    return Topic(where, f"{where.kafka.topic_prefix}read")


def read(
    reader: Reader, places: Sequence[TopicPartition], ends: dict[int, int], *, room: int = 4096, seconds: float = 30.0
) -> tuple[dict[Place, RecordBlock], dict[Place, set[int]]]:
    """Everything up to `ends`, by partition, and the offsets at which an end of the partition was shown."""
    blocks: dict[Place, list[RecordBlock]] = {}
    shown: dict[Place, set[int]] = {(p.topic, p.partition): set() for p in places}
    reader.assign(list(places))
    deadline = time.monotonic() + seconds
    while any(ends[p.partition] not in shown[p.topic, p.partition] for p in places):
        assert time.monotonic() < deadline, (shown, ends)
        found = reader.read(0.2, room)
        for block in found.blocks:
            blocks.setdefault((block.topic, block.partition), []).append(block)
        for event in found.events:
            assert event.error().code() == KafkaError._PARTITION_EOF, event.error()
            shown[event.topic(), event.partition()].add(event.offset())
    return {place: RecordBlock.concatenated(parts) for place, parts in blocks.items()}, shown


def rows(block: RecordBlock) -> list[tuple[object, ...]]:
    """The records, each as a tuple."""
    numbers = ["none"] * len(block) if block.numbers is None else [repr(number) for number in block.numbers]
    traces = [block.traces.get(offset) for offset in block.offset.tolist()]
    return list(
        zip(
            block.offset.tolist(), block.timestamp_ms.tolist(), block.created.tolist(), block.epoch.tolist(),
            block.keys, block.values, numbers, traces, strict=True,
        )
    )  # fmt: skip


def both(topic: Topic, places: Sequence[TopicPartition], *, room: int = 4096) -> dict[Place, list[tuple[object, ...]]]:
    """What both ways give, which has to be equal."""
    found = []
    for reader in (topic.plain(), topic.borrowed()):
        reader.number_header(topic.name, HEADER)
        reader.trace_headers(topic.name)
        try:
            blocks, _ = read(reader, places, topic.ends(), room=room)
        finally:
            reader.close()
        found.append({place: rows(block) for place, block in blocks.items()})
    assert found[0] == found[1]
    return found[1]


@pytest.mark.parametrize("way", ["plain", "borrowed"])
def test_a_header_whose_name_is_no_text_ends_no_reader(topic: Topic, way: str) -> None:
    """Whoever may write payments may write such a header, which the client's Python objects cannot show: the record
    comes without a number where they read it, and those around it as they are; also where the code that reads headers
    has run a hundred times before."""
    producer = Producer({"bootstrap.servers": topic.settings.kafka.bootstrap_servers, "client.id": topic.name})
    handle = borrowed_library.handle_of(producer, topic.name)
    send = borrowed_library.library()._symbol("producev")
    ends, named, of_topic, of_partition, of_value, of_header = 0, ctypes.c_void_p(handle), 1, 3, 4, 9
    names = [HEADER.encode()] * 100 + [b"\xff\xfe", HEADER.encode()]
    for name in names:
        refused = send(
            named, of_topic, ctypes.c_char_p(topic.name.encode()), of_partition, ctypes.c_int32(0),
            of_value, ctypes.c_char_p(b"v"), ctypes.c_size_t(1),
            of_header, ctypes.c_char_p(name), ctypes.c_char_p(b"7"), ctypes.c_ssize_t(1), ends,
        )  # fmt: skip
        assert refused == 0
    assert producer.flush(30) == 0
    reader = topic.plain() if way == "plain" else topic.borrowed()
    reader.number_header(topic.name, HEADER)
    reader.trace_headers(topic.name)
    blocks, _ = read(reader, [TopicPartition(topic.name, 0, 0)], topic.ends())
    reader.close()
    numbers = blocks[topic.name, 0].numbers
    assert numbers is not None
    assert [repr(number) for number in numbers.tolist()] == ["7.0"] * 100 + ["nan", "7.0"]


@pytest.mark.parametrize("count", [31, 32, 33, 20_000])
def test_headers_of_one_name_without_number_and_end(topic: Topic, count: int) -> None:
    """Both ways look at the first ones of a name alone, whatever stands behind them."""
    empty: list[tuple[str, bytes | None]] = [(name, None) for name in (HEADER, "tracestate") for _ in range(count)]
    last: list[tuple[str, bytes | None]] = [("traceparent", b"t" * 55), ("tracestate", b"a=1"), (HEADER, b"7")]
    topic.send([(0, None, b"v", empty + last)])
    ((record,),) = both(topic, [TopicPartition(topic.name, 0, 0)]).values()
    number, carried = record[6:]
    assert ("7.0" in str(number), "nan" in str(number)) == (count < 32, count >= 32)
    assert carried is not None
    assert carried.tracestate == (b"a=1" if count < 32 else b"")  # type: ignore[attr-defined]


TEXT = st.none() | st.just(b"") | st.binary(max_size=40)
DIGITS = st.integers(0, 2**53).map(lambda n: str(n).encode())
TRACED = st.tuples(
    st.sampled_from(["traceparent", "tracestate"]),
    st.sampled_from([None, b"", b"x" * 128, b"x" * 129, b"y" * 512, b"y" * 256]) | st.binary(max_size=60),
)
HEADERS = st.lists(
    TRACED
    | st.tuples(
        st.sampled_from([HEADER, "deadline-2", "other"]),
        st.none()
        | st.just(b"")
        | DIGITS
        | DIGITS.map(lambda n: b"000" + n)
        | st.sampled_from([b"-1", b"1.5", b"1e3", b" 1", b"\xb2"]),
    ),
    max_size=4,
)
RECORDS = st.lists(st.tuples(st.integers(0, PARTITIONS - 1), TEXT, TEXT, HEADERS), max_size=12)


@pytest.mark.parametrize("timestamps", ["LogAppendTime", "CreateTime"])
def test_both_ways_give_the_same_records(where: Settings, timestamps: str) -> None:
    """Keys and values that are missing or empty, headers, several partitions, aborted transactions and the offsets
    that they and markers take: columns, ends and the numbers of headers are the same, and are what was sent."""
    topic = Topic(where, f"{where.kafka.topic_prefix}generated", timestamps)

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(RECORDS, st.booleans()), max_size=4), st.integers(1, 20))
    def equal(transactions: list[tuple[list[Record], bool]], room: int) -> None:
        begin = topic.ends()
        sent: list[tuple[int, bytes | None, bytes | None]] = []
        for records, commit in transactions:
            topic.send(records, commit=commit)
            if commit:
                sent += [record[:3] for record in records]
        places = [TopicPartition(topic.name, p, begin[p]) for p in range(PARTITIONS)]
        found = both(topic, places, room=room)
        for p in range(PARTITIONS):
            have = found.get((topic.name, p), [])
            assert [row[4:6] for row in have] == [(key, value) for q, key, value in sent if q == p]
            assert {row[2] for row in have} <= {timestamps == "CreateTime"}

    equal()


def test_large_records_and_thousands_of_them_are_read_whole(topic: Topic) -> None:
    """A value of 1.5 MB among 20,000 small ones of three partitions, each in its place."""
    small = [(n % PARTITIONS, b"k%d" % n, b"v" * (n % 300), []) for n in range(20_000)]
    large = (1, b"large", secrets.token_bytes(1_500_000), [])
    topic.send([*small[:9_000], large, *small[9_000:]])  # type: ignore[list-item]
    found = both(topic, topic.places)
    for p in range(PARTITIONS):
        want = [(key, value) for q, key, value, _ in [*small[:9_000], large, *small[9_000:]] if q == p]
        assert [row[4:6] for row in found[topic.name, p]] == want


def test_what_is_assigned_anew_is_read_from_there(topic: Topic) -> None:
    """Other offsets, other partitions and the same ones again, while records of the assignment before wait in the
    queue: each time exactly what the places ask for comes, and nothing of before."""
    topic.send([(n % PARTITIONS, None, b"%d" % n, []) for n in range(9_000)])
    reader, ends = topic.borrowed(), topic.ends()
    try:
        for turn in range(30):
            start = 37 * turn
            places = [TopicPartition(topic.name, p, start) for p in range(PARTITIONS) if (turn + p) % 4 or not p]
            reader.assign(places)
            for _ in range(turn % 3):
                reader.read(0.05, 100)  # what comes is left behind
            blocks, _ = read(reader, places, ends)
            assert {p for _, p in blocks} == {p.partition for p in places}
            for (_, p), block in blocks.items():
                assert block.offset.tolist() == list(range(start, 3_000))
                assert list(block.values) == [b"%d" % (3 * n + p) for n in range(start, 3_000)]
    finally:
        reader.close()


@pytest.mark.parametrize("borrowed", [False, True], ids=["plain", "borrowed"])
def test_an_error_of_the_places_before_is_not_shown_of_the_new_ones(topic: Topic, borrowed: bool) -> None:
    """Assigned outside the log and, once the errors wait, inside of it: records come and no error, as an operator who
    accepts a loss needs it. Without a partition whose error is the first, the client itself drops none."""
    topic.send([(n % PARTITIONS, None, b"%d" % n, []) for n in range(30)])
    known, consumer = borrowed_library.library(), topic.consumer()
    length, client_queue = known._library.rd_kafka_queue_length, known._library.rd_kafka_queue_get_consumer
    length.argtypes, length.restype = [ctypes.c_void_p], ctypes.c_size_t
    client_queue.argtypes, client_queue.restype = [ctypes.c_void_p], ctypes.c_void_p
    client_id = topic.settings.kafka.client_id
    reader: Reader = BorrowedReader(consumer, client_id) if borrowed else kafka.PlainReader(consumer)
    try:
        reader.assign([TopicPartition(topic.name, p, 777) for p in range(PARTITIONS)])
        main = client_queue(borrowed_library.handle_of(consumer, client_id))
        own = reader._queue if isinstance(reader, BorrowedReader) else None
        # An error may come by the main queue, when its partition was not forwarded yet.
        wait_for(lambda: length(main) + (length(own) if own else 0) >= PARTITIONS, 30, "the errors")
        known.queue_destroy(main)
        blocks, _ = read(reader, [TopicPartition(topic.name, p, 4) for p in (1, 2)], topic.ends())
    finally:
        reader.close()
    assert {p: block.offset.tolist() for (_, p), block in blocks.items()} == {p: list(range(4, 10)) for p in (1, 2)}


def test_records_that_come_by_the_main_queue_are_read_in_their_order(
    topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partition that the client has made anew sends its records to the main queue: they are read from there, it is
    forwarded again, and no record is lost, repeated or before its turn."""
    topic.send([(n % PARTITIONS, None, b"%d" % n, []) for n in range(30_000)])
    reader, ends = BorrowedReader(topic.consumer(), topic.settings.kafka.client_id), topic.ends()
    with monkeypatch.context() as patched:
        patched.setattr(reader, "_forward", lambda topic, partition: None)
        reader.assign(topic.places)
    assert not reader._forwarded
    monkeypatch.setattr(reader, "assign", lambda places: None)
    try:
        blocks, _ = read(reader, topic.places, ends)
    finally:
        reader.close()
    assert {p for _, p in reader._forwarded} == set(range(PARTITIONS))
    assert {p: block.offset.tolist() for (_, p), block in blocks.items()} == {
        p: list(range(10_000)) for p in range(PARTITIONS)
    }


def test_a_paused_partition_is_read_on_where_it_stood(topic: Topic) -> None:
    """Paused and resumed at any moment, each record comes once and in its order; a paused one gives nothing."""
    topic.send([(n % PARTITIONS, None, b"%d" % n, []) for n in range(30_000)])
    reader, got = topic.borrowed(), {p: [] for p in range(PARTITIONS)}  # type: ignore[var-annotated]
    first = topic.places[0]
    try:
        reader.assign(topic.places)
        turn, deadline = 0, time.monotonic() + 60
        while sum(map(len, got.values())) < 30_000:
            assert time.monotonic() < deadline, {p: len(offsets) for p, offsets in got.items()}
            if turn % 4 == 1:
                reader.pause([first])
            before = len(got[0])
            for block in reader.read(0.05, 700).blocks:
                got[block.partition] += block.offset.tolist()
            if turn % 4 in (1, 2):
                assert len(got[0]) == before
            if turn % 4 == 2:
                reader.resume([first])
            turn += 1
    finally:
        reader.close()
    assert got == {p: list(range(10_000)) for p in range(PARTITIONS)}


@pytest.mark.parametrize("way", [Topic.plain, Topic.borrowed], ids=["plain", "borrowed"])
def test_an_offset_outside_the_log_is_an_error_that_names_its_partition(
    topic: Topic, way: Callable[[Topic], Reader]
) -> None:
    """Beyond the end, and before the beginning of a log whose records were deleted."""
    topic.send([(0, None, b"value", [])] * 10)
    topic.client.delete_records([TopicPartition(topic.name, 0, 5)])[TopicPartition(topic.name, 0)].result(30)
    for place in (TopicPartition(topic.name, 0, 3), TopicPartition(topic.name, 1, 77)):
        reader = way(topic)
        try:
            reader.assign([place])
            events: list[Message] = []
            wait_for(lambda: bool(events.extend(reader.read(0.2, 10).events) or events), 30, "the error")  # noqa: B023
        finally:
            reader.close()
        (event,) = events
        assert event.error().code() == KafkaError._AUTO_OFFSET_RESET
        assert (event.topic(), event.partition(), event.offset()) == (topic.name, place.partition, place.offset)
        assert "out of range" in event.error().str().lower()


def test_a_log_that_was_cut_is_told_by_the_leader_epoch(topic: Topic) -> None:
    """A position whose record before it would be of a later epoch than the log has: both ways say that it was
    cut, in the same words."""
    topic.send([(0, None, b"value", [])] * 10)
    found = []
    for reader in (topic.plain(), topic.borrowed()):
        try:
            reader.assign([TopicPartition(topic.name, 0, 12, leader_epoch=0)])
            events: list[Message] = []
            wait_for(lambda: bool(events.extend(reader.read(0.2, 10).events) or events), 30, "what is wrong")  # noqa: B023
        finally:
            reader.close()
        found.append((events[0].error().code(), events[0].error().str(), kafka.log_was_cut(events[0].error())))
    assert found[0] == found[1]


def test_callbacks_run_while_the_broker_is_away(own_services: Services, topics_prefix: str) -> None:
    """The broker stops and starts while records are read: the client's error callback is called, by confluent-kafka
    alone, the process lives, and reading goes on at the next record. Served by our call it would end the process."""
    where = test_settings(own_services.kafka.bootstrap_servers, topics_prefix)
    topic, errors = Topic(where, f"{topics_prefix}stopped"), list[KafkaError]()
    topic.send([(0, None, b"%d" % n, []) for n in range(10)])
    consumer = kafka.reader(
        where.kafka,
        group="stopped",
        on_error=errors.append,
        **{"statistics.interval.ms": 50, "stats_cb": lambda _: None},
    )
    reader = BorrowedReader(consumer, where.kafka.client_id)
    offsets: list[int] = []

    def come(count: int) -> Callable[[], bool]:
        def has_come() -> bool:
            for block in reader.read(0.1, 100).blocks:
                offsets.extend(block.offset.tolist())
            return len(offsets) >= count

        return has_come

    try:
        reader.assign([TopicPartition(topic.name, 0, 0)])
        wait_for(come(10), 30, "the first records")
        own_services.kafka.stop()
        wait_for(lambda: come(0)() and len(errors) > 1, 30, "the client's errors")
        own_services.kafka.start()
        again = kafka.plain_producer(where.kafka)
        again.produce(topic.name, b"after", partition=0)
        assert again.flush(60) == 0
        wait_for(come(11), 60, "the record after it")
    finally:
        reader.close()
    assert offsets[:10] == list(range(10))
    assert len(offsets) == 11


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's own figures")
def test_reading_for_long_takes_no_more_memory(topic: Topic) -> None:
    """Fifty times the same 20 MB, assigned anew each time, from readers that are closed, and dropped: what was read is
    given back, records left in a queue are too. The bound is a quarter of what the records left in a queue would keep;
    allocators and what earlier tests left to be freed move the process by some 80 MB."""
    topic.send([(n % PARTITIONS, b"key", b"v" * 1_000, [(HEADER, b"1")]) for n in range(20_000)])
    ends = topic.ends()

    def round_(turns: int) -> None:
        for turn in range(turns):
            reader = topic.borrowed()
            reader.number_header(topic.name, HEADER)
            for _ in range(3):
                read(reader, topic.places, ends)
            reader.assign(topic.places)
            reader.read(0.5, 10)  # the rest waits in the queue
            if turn % 2:
                reader.close()
            else:
                del reader
        gc.collect()

    round_(10)
    before = _resident_bytes()
    round_(40)
    assert _resident_bytes() - before < 200_000_000


@pytest.fixture
def access(where: Settings) -> Iterator[RecordAccess]:
    return RecordAccess(plain=False, client_id=where.kafka.client_id)


def test_the_first_records_are_read_both_ways_and_then_one(topic: Topic, access: RecordAccess) -> None:
    """The borrowed way serves once the first records were equal, which costs one consumer more and only once."""
    topic.send([(0, None, b"", []), (1, b"", None, [])])
    made: list[Consumer] = []

    def make(on_error: Callable[[KafkaError], None]) -> Consumer:
        made.append(topic.consumer(on_error))
        return made[-1]

    for consumers in (2, 3):
        reader = access.reader(make)
        blocks, _ = read(reader, topic.places, topic.ends())
        assert (reader.way, len(blocks), len(made)) == ("borrowed", 2, consumers)
        reader.close()


def test_what_reads_otherwise_is_not_used(topic: Topic, access: RecordAccess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library whose functions mean something else gives other records: the plain way then gives them all, and
    serves every later reader as well."""
    topic.send([(n % PARTITIONS, None, b"%d" % n, []) for n in range(3_000)])
    known = borrowed_library.library()
    wrong = known.addresses._replace(timestamp=known.addresses.leader_epoch)
    monkeypatch.setattr(known, "addresses", wrong)
    reader = access.reader(topic.consumer)
    assert reader.way == "borrowed"
    blocks, _ = read(reader, topic.places, topic.ends())
    reader.close()
    assert reader.way == "plain"
    assert {p: block.offset.tolist() for (_, p), block in blocks.items()} == {
        p: list(range(1_000)) for p in range(PARTITIONS)
    }
    assert all((block.timestamp_ms > 0).all() for block in blocks.values())
    later = access.reader(topic.consumer)
    assert later.way == "plain"
    later.close()


def test_what_reads_otherwise_writes_no_more(
    topic: Topic, access: RecordAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker's producers are made before its first record is read. What that record refutes serves none of them from
    then on."""
    topic.send([(0, None, b"value", [])])
    where = topic.settings.kafka
    producer = Producer({"bootstrap.servers": where.bootstrap_servers, "client.id": where.client_id})
    columns = access.columns(producer)
    assert columns.way == "borrowed"
    known = borrowed_library.library()
    monkeypatch.setattr(known, "addresses", known.addresses._replace(timestamp=known.addresses.leader_epoch))
    reader = access.reader(topic.consumer)
    read(reader, topic.places, topic.ends())
    reader.close()
    assert (reader.way, columns.way) == ("plain", "plain")
    columns.produce(topic.name, ByteColumn.of([b"later"]), ByteColumn.of([None]), np.zeros(1, np.int32))
    columns.close()
    assert producer.flush(30) == 0


def test_a_proof_that_has_no_answer_is_none(
    topic: Topic, access: RecordAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that is not read a second time in time: this reader reads all by the plain way, the next one tries."""
    topic.send([(0, None, b"value", [])])
    monkeypatch.setattr(record_access, "PROOF_TIMEOUT_S", 0.0)
    reader = access.reader(topic.consumer)
    blocks, _ = read(reader, topic.places, topic.ends())
    reader.close()
    assert reader.way == "plain"
    assert list(blocks[topic.name, 0].values) == [b"value"]
    monkeypatch.undo()
    reader = access.reader(topic.consumer)
    read(reader, topic.places, topic.ends())
    reader.close()
    assert reader.way == "borrowed"


def test_a_handle_with_another_name_is_not_borrowed(topic: Topic) -> None:
    """What stands where the handle is known to be must have the client's own name and kind."""
    consumer = topic.consumer()
    with pytest.raises(NotBorrowed, match="another-name#consumer-"):
        BorrowedReader(consumer, "another-name")
    consumer.close()
    with pytest.raises(NotBorrowed, match="not where it is known to be"):
        borrowed_library.handle_of(consumer, topic.settings.kafka.client_id)


def test_the_setting_chooses_the_plain_way(topic: Topic) -> None:
    """FRAUD_SCORER_KAFKA__RECORD_ACCESS=plain: no C interface is looked for."""
    plain = topic.settings.model_copy(
        update={"kafka": topic.settings.kafka.model_copy(update={"record_access": "plain"})}
    )
    reader = kafka.RealClients(plain).flat_reader("plain")
    assert reader.way == "plain"
    reader.close()
    assert kafka.RealClients(topic.settings).flat_reader("auto").way == "borrowed"
