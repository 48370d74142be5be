"""Dead letters looked at and sent again: read from their topic, filtered, put back where they came from, each once.

Sending again is one transaction per chunk: the raw bytes to the origin's topic and partition under the same key, and
for each a note in the dead-letter topic (a record with the header `fraud_scorer.redriven` and no value). A letter with
a note is not sent again, so a redrive that was interrupted or is run twice goes on where it stood, whatever its filter.
A note names the offset that the record got; when that record comes back as a dead letter, it is known how often it did.

    fraud_scorer.redriven_from    on the record sent again: dead-letters/PARTITION/OFFSET of its letter
    fraud_scorer.redrives         on the record sent again: how many times it has been sent again by now
    fraud_scorer.redriven         on the note: PARTITION/OFFSET of the letter
    fraud_scorer.redriven_to      on the note: TOPIC/PARTITION/OFFSET of the record sent again
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from schemas.contract_error import DeadLetterReason
from schemas.dead_letter import REDRIVEN, DeadLetter
from scorer import kafka
from scorer.errors import FraudScorerError, UsageError
from scorer.runtime.settings import Settings

FROM, COUNT = "fraud_scorer.redriven_from", "fraud_scorer.redrives"
NOTE, NOTE_TO = REDRIVEN, "fraud_scorer.redriven_to"
CHUNK: Final = 500
NOTES_MAX: Final = 1_000_000  # some 200 MB; beyond it the topic's retention is too long for this command
TRANSACTION_S = 30.0

Place = tuple[int, int]  # partition and offset in the dead-letter topic
Origin = tuple[str, int, int]  # topic, partition, offset


@dataclass(frozen=True)
class Letter:
    """A dead letter as it lies in its topic."""

    place: Place
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    about: DeadLetter

    @property
    def origin(self) -> Origin:
        return self.about.topic, self.about.partition, self.about.offset


@dataclass(frozen=True)
class Filter:
    """Which letters are meant; None means any. Ranges are half open; offsets are those of the refused record."""

    reasons: frozenset[DeadLetterReason] = frozenset()
    topic: str | None = None
    partition: int | None = None
    from_offset: int | None = None
    until_offset: int | None = None
    from_ms: int | None = None
    until_ms: int | None = None
    key: bytes | None = None

    def takes(self, letter: Letter) -> bool:
        about = letter.about
        return (
            (not self.reasons or about.reason in self.reasons)
            and self.topic in (None, about.topic)
            and self.partition in (None, about.partition)
            and (self.from_offset is None or about.offset >= self.from_offset)
            and (self.until_offset is None or about.offset < self.until_offset)
            and (self.from_ms is None or letter.timestamp_ms >= self.from_ms)
            and (self.until_ms is None or letter.timestamp_ms < self.until_ms)
            and self.key in (None, letter.key)
        )


@dataclass
class History:
    """What the notes say: letters sent again, and how often the records behind them have been."""

    sent: dict[Place, Origin] = field(default_factory=dict)
    _before: dict[Origin, Place] = field(default_factory=dict)
    _origins: dict[Place, Origin] = field(default_factory=dict)

    def note(self, place: Place, to: Origin) -> None:
        if len(self.sent) >= NOTES_MAX:
            raise FraudScorerError(
                f"over {NOTES_MAX:,} notes of letters sent again in the dead-letter topic: shorten its retention"
            )
        self.sent[place] = to
        self._before[to] = place

    def letter(self, letter: Letter) -> None:
        """Remember where a letter that was sent again came from: only those matter to the count."""
        if letter.place in self.sent or letter.origin in self._before:
            self._origins[letter.place] = letter.origin

    def times(self, letter: Letter) -> int:
        """How many times the record behind this letter has been sent again before it came back as this letter."""
        count, origin = 0, letter.origin
        while (place := self._before.get(origin)) is not None:
            count += 1
            if place not in self._origins:
                break
            origin = self._origins[place]
        return count


Progress = Callable[[int, int], None]


@dataclass
class Redriven:
    """What a redrive did, or would do."""

    sent: int = 0
    already: int = 0
    refused: Counter[str] = field(default_factory=Counter)


def read(
    settings: Settings, *, no_progress_s: float = 60.0, progress: Progress = lambda _done, _all: None
) -> Iterator[Letter | tuple[Place, Origin]]:
    """Everything committed in the dead-letter topic up to its end now: letters, and notes as (letter, sent to).
    `progress` is called with the number of offsets passed, and of all.

    Partition by partition in offset order. Raises KafkaFailure, also when reading makes no progress.
    """
    topic = kafka.Topics.of(settings.kafka).dead_letters
    client = kafka.admin(settings.kafka)
    partitions = [TopicPartition(topic, p) for p in range(kafka.partition_count(client, topic))]
    bounds = list(zip(partitions, kafka.starts(client, partitions), kafka.ends(client, partitions), strict=True))
    total, before = sum(end - start for _, start, end in bounds), 0
    consumer = kafka.reader(settings.kafka, group=f"{settings.kafka.topic_prefix}fraud-scorer-letters")
    try:
        for partition, start, end in bounds:
            place = TopicPartition(topic, partition.partition, start)
            for message in kafka.read_range(consumer, place, end, no_progress_s=no_progress_s):
                progress(before + kafka.present(message.offset(), "offset") + 1 - start, total)
                yield _read_one(message)
            before += end - start
    finally:
        consumer.close()


def _read_one(message: Message) -> Letter | tuple[Place, Origin]:
    place = kafka.present(message.partition(), "partition"), kafka.present(message.offset(), "offset")
    headers: Any = kafka.headers_of(message)
    if headers is None:
        raise FraudScorerError(f"{message.topic()}/{place[0]}, offset {place[1]}: a header's name is no UTF-8")
    known = dict(headers)
    if NOTE in known:
        partition, offset = known[NOTE].decode().split("/")
        topic, to_partition, to_offset = known[NOTE_TO].decode().rsplit("/", 2)
        return (int(partition), int(offset)), (topic, int(to_partition), int(to_offset))
    try:
        about = DeadLetter.from_headers(headers)
    except ValueError as exc:
        raise FraudScorerError(f"{message.topic()}/{place[0]}, offset {place[1]}: {exc}") from exc
    return Letter(place, message.timestamp()[1], message.key(), message.value(), about)


def history(settings: Settings, progress: Progress = lambda _done, _all: None) -> History:
    """All notes, and the origins of letters that they concern."""
    found = History()
    for item in read(settings, progress=progress):
        if not isinstance(item, Letter):
            found.note(*item)
    if found.sent:
        for item in read(settings, progress=progress):
            if isinstance(item, Letter):
                found.letter(item)
    return found


def letters(settings: Settings, wanted: Filter, progress: Progress = lambda _done, _all: None) -> Iterator[Letter]:
    """The letters that `wanted` takes."""
    return (item for item in read(settings, progress=progress) if isinstance(item, Letter) and wanted.takes(item))


def obstacle(letter: Letter, times: int, *, times_max: int, topics: kafka.Topics) -> str | None:
    """Why a letter cannot be sent again, for people; None when it can."""
    if letter.about.masked:
        return "masked: it held a card number, and the digits are gone"
    if letter.about.truncated:
        return "truncated: only its beginning was kept"
    if letter.about.topic not in topics.inputs:
        return "its topic is not one of this application's inputs"
    if times >= times_max:
        return f"it came back after being sent again {times} times"
    return None


def redrive(
    settings: Settings,
    wanted: Filter,
    *,
    dry_run: bool,
    limit: int | None = None,
    times_max: int = 3,
    on_letter: Callable[[Letter, str], None] = lambda _letter, _fate: None,
    progress: Progress = lambda _done, _all: None,
) -> Redriven:
    """Send the letters that `wanted` takes back to where they came from, each at most once.

    `on_letter` is called with each letter and its fate: "sent", "would be sent", "already sent again", or the reason.
    Raises KafkaFailure; chunks that were committed before stay noted, and running it again goes on after them.
    """
    topics = kafka.Topics.of(settings.kafka)
    # Sending to a topic that does not exist would make it, where the broker does that.
    kafka.topic_facts(kafka.admin(settings.kafka), topics.inputs)
    known, result = history(settings, progress), Redriven()

    def chosen() -> Iterator[tuple[Letter, int]]:
        for letter in letters(settings, wanted, progress):
            times = known.times(letter)
            if letter.place in known.sent:
                result.already += 1
                on_letter(letter, "already sent again")
            elif (reason := obstacle(letter, times, times_max=times_max, topics=topics)) is not None:
                result.refused[reason.split(":")[0]] += 1
                on_letter(letter, reason)
            else:
                yield letter, times

    todo = islice(chosen(), limit)
    if dry_run:
        for letter, _ in todo:
            result.sent += 1
            on_letter(letter, "would be sent")
        return result
    producer = kafka.transactional_producer(settings, "redrive")
    try:
        producer.init_transactions(TRANSACTION_S)
        while chunk := list(islice(todo, CHUNK)):
            _send(producer, topics, chunk)
            result.sent += len(chunk)
            for letter, _ in chunk:
                on_letter(letter, "sent")
    except KafkaException as exc:
        raise kafka.KafkaFailure(
            f"sending again failed after {result.sent} letters ({kafka.describe(exc)}); run it again to go on"
        ) from exc
    return result


def _send(producer: Producer, topics: kafka.Topics, chunk: Iterable[tuple[Letter, int]]) -> None:
    """One transaction: the records, then the notes that name the offsets they got."""
    notes: list[tuple[Letter, Origin]] = []
    producer.begin_transaction()
    for letter, times in chunk:

        def delivered(error: KafkaError | None, message: Message, letter: Letter = letter) -> None:
            if error is None:
                partition, offset = message.partition(), message.offset()
                where = letter.about.topic, kafka.present(partition, "partition"), kafka.present(offset, "offset")
                notes.append((letter, where))

        producer.produce(
            letter.about.topic,
            letter.value,
            key=letter.key,
            partition=letter.about.partition,
            headers=[
                (FROM, f"{topics.dead_letters}/{letter.place[0]}/{letter.place[1]}".encode()),
                (COUNT, str(times + 1).encode()),
            ],
            on_delivery=delivered,
        )
    producer.flush(TRANSACTION_S)
    for letter, (topic, partition, offset) in notes:
        producer.produce(
            topics.dead_letters,
            None,
            key=letter.key,
            partition=letter.place[0],
            headers=[
                (NOTE, f"{letter.place[0]}/{letter.place[1]}".encode()),
                (NOTE_TO, f"{topic}/{partition}/{offset}".encode()),
            ],
        )
    # A record that was not delivered makes the commit fail: nothing of the chunk is sent then.
    producer.commit_transaction(TRANSACTION_S)


def reasons(names: Iterable[str]) -> frozenset[DeadLetterReason]:
    """Reasons by their names. Raises UsageError with the known ones."""
    found = set()
    for name in names:
        try:
            found.add(DeadLetterReason(name))  # type: ignore[call-arg]  # by value: Enum.__call__
        except ValueError:
            known = ", ".join(reason.value for reason in DeadLetterReason)
            raise UsageError(f"--reason {name}: not a reason of a dead letter; known are {known}") from None
    return frozenset(found)
