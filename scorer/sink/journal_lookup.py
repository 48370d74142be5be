"""Whether the worker wrote a journal record: asked of the journal topic, which the worker alone may write.

An audit record names its journal record whole. One that comes too early is either forged, and then no journal holds it,
or batches before it are missing.
"""

from __future__ import annotations

import time
from contextlib import closing

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from schemas.journal_record import JournalError, JournalRecord
from scorer import kafka
from scorer.runtime.settings import KafkaSettings
from scorer.sink.sink_errors import KafkaUnavailable, kafka_errors

_SETTLED_S = 15.0  # the markers of a transaction are written to its partitions one after another
_PROGRESS_S = 10.0


class JournalLookup:
    """Looks records up by their sequence, which rises with the offset: about 20 reads of one record each."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._topic = kafka.Topics.of(settings).journal

    def holds(self, record: JournalRecord) -> bool | None:
        """Whether the journal of the record's shard holds these very bytes; None when it cannot be known: no such
        topic, no right to read it, or its beginning is gone. Raises KafkaUnavailable.
        """
        client = kafka.admin(self._settings)
        try:
            if record.shard >= kafka.partition_count(client, self._topic):
                return False
            place = TopicPartition(self._topic, record.shard)
            start, end = kafka.starts(client, [place])[0], self._settled_end(client, place)
        except (kafka.Away, kafka.Fatal) as exc:
            raise KafkaUnavailable(str(exc)) from exc
        except kafka.KafkaFailure:
            return None
        group = f"{self._settings.topic_prefix}fraud-scorer-sink"
        with kafka_errors(), closing(kafka.reader(self._settings, group=group)) as consumer:
            first = self._at(consumer, start, end, record.shard)
            if first is None or first[1].sequence > record.sequence:
                return None if start else False
            low, high = first[0], end  # the record, if it is there, stands in [low, high)
            while low < high:
                middle = (low + high) // 2
                found = self._at(consumer, middle, high, record.shard)
                if found is None or found[1].sequence > record.sequence:
                    high = middle
                elif found[1].sequence < record.sequence:
                    low = found[0] + 1
                else:
                    return found[1].to_bytes() == record.to_bytes()
        return False

    def _settled_end(self, client: AdminClient, place: TopicPartition) -> int:
        """The end of the journal now, with no transaction open before it."""
        end = kafka.ends(client, [place])[0]
        until = time.monotonic() + _SETTLED_S
        while kafka.stable_ends(client, [place])[0] < end:
            if time.monotonic() > until:
                raise KafkaUnavailable(f"{place.topic}/{place.partition} has an open transaction")
            time.sleep(0.05)
        return end

    def _at(self, consumer: Consumer, offset: int, end: int, shard: int) -> tuple[int, JournalRecord] | None:
        """The first record in [offset, end), with its offset; None when there is none."""
        place = TopicPartition(self._topic, shard, offset)
        for message in kafka.read_range(consumer, place, end, messages_max=1, no_progress_s=_PROGRESS_S):
            try:
                return kafka.present(message.offset(), "offset"), JournalRecord.from_bytes(message.value() or b"")
            except JournalError as exc:
                if not exc.foreign:
                    raise KafkaUnavailable(f"{self._topic}/{shard}: {exc}") from exc
        return None
