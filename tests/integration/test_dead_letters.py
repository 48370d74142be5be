"""Dead letters on real Kafka: listed by filter, sent again once, seen when they come back."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from schemas.contract_error import ContractError, DeadLetterReason
from schemas.dead_letter import dead_letter_record
from scorer import kafka
from scorer.cli import app
from scorer.errors import UsageError
from scorer.local_services import Services
from scorer.operate import dead_letters
from scorer.operate.dead_letters import COUNT, FROM, Filter, Letter, redrive
from scorer.operate.setup import create_topics
from scorer.runtime.settings import PREFIX, Settings
from tests.integration.running import TopicReader, test_settings

CARD = b"4111111111111111"


class Dead:
    """An application whose worker refuses what the test says: the records and dead letters that it would write."""

    def __init__(self, settings: Settings) -> None:
        create_topics(settings)
        self.settings, self.topics = settings, kafka.Topics.of(settings.kafka)
        self._producer = kafka.plain_producer(settings.kafka)
        self._offsets: dict[int, int] = {}

    def refuse(
        self, value: bytes | None, reason: str = "not_json", key: bytes = b"k", partition: int = 0, topic: str = ""
    ) -> None:
        """One record, read at the next offset and refused."""
        origin = topic or self.topics.payments
        if not topic:
            self._producer.produce(origin, value, key=key, partition=partition)
            assert self._producer.flush(30) == 0
        offset = self._offsets.get(partition, -1) + 1
        self._offsets[partition] = offset
        self.refused_at(offset, value, reason, key, partition, origin)

    def refused_at(
        self, offset: int, value: bytes | None, reason: str, key: bytes, partition: int, origin: str = ""
    ) -> None:
        error = ContractError(DeadLetterReason(reason), None, "for the test")
        letter = dead_letter_record(origin or self.topics.payments, partition, offset, key, value, error)
        self._producer.produce(
            self.topics.dead_letters, letter[1], key=letter[0], headers=letter[2], partition=partition
        )
        assert self._producer.flush(30) == 0

    def payments(self) -> list[tuple[int, int, bytes | None, bytes | None, dict[str, bytes]]]:
        """(partition, offset, key, value, headers) of all that a reader of committed records sees."""
        reader = TopicReader(self.settings, self.topics.payments)
        reader.read_to_end()
        reader.close()
        return [(m.partition(), m.offset(), m.key(), m.value(), dict(m.headers() or [])) for m in reader.messages]


@pytest.fixture
def dead(services: Services, topics_prefix: str) -> Dead:
    return Dead(test_settings(services.kafka.bootstrap_servers, topics_prefix, topics={"payments_partitions": 2}))


def test_a_dead_letter_goes_back_where_it_came_from_once_and_is_seen_when_it_returns(dead: Dead) -> None:
    """Raw bytes and key go back to the partition they came from; a second run sends nothing; a record that comes back
    again and again is left alone in the end."""
    dead.refuse(b"\x00broken", key=b"customer-7", partition=1)
    dead.refuse(b"other", partition=0)
    fates: list[str] = []
    wanted = Filter(partition=1)
    assert redrive(dead.settings, wanted, dry_run=True).sent == 1
    assert len(dead.payments()) == 2  # a dry run sends nothing
    assert redrive(dead.settings, wanted, dry_run=False).sent == 1
    again = [p for p in dead.payments() if FROM in p[4]]
    assert [(p[0], p[2], p[3]) for p in again] == [(1, b"customer-7", b"\x00broken")]
    assert again[0][4] == {FROM: f"{dead.topics.dead_letters}/1/0".encode(), COUNT: b"1"}

    done = redrive(dead.settings, wanted, dry_run=False, on_letter=lambda _, fate: fates.append(fate))
    assert (done.sent, done.already, fates) == (0, 1, ["already sent again"])

    for times in (1, 2):  # refused again, and sent again
        offset = max(p[1] for p in dead.payments() if p[0] == 1)
        dead.refused_at(offset, b"\x00broken", "not_json", b"customer-7", 1)
        done = redrive(dead.settings, wanted, dry_run=False, times_max=2)
        assert (done.sent, done.refused.total()) == ((1, 0) if times == 1 else (0, 1))
    assert max(int(p[4].get(COUNT, b"0")) for p in dead.payments()) == 2


def test_what_is_not_whole_or_not_ours_is_never_sent_again(dead: Dead) -> None:
    """Masked and cut letters, and those of a stranger's topic, stay where they are, each with its reason."""
    dead.refuse(b'{"merchant_id":"' + CARD + b'"}', "card_number")
    dead.refuse(b"x" * 300_000, "too_large")
    dead.refuse(b"x", topic="elsewhere")
    fates: dict[int, str] = {}
    done = redrive(dead.settings, Filter(), dry_run=False, on_letter=lambda d, fate: fates.update({d.place[1]: fate}))
    assert done.sent == 0
    assert [fates[i].split(":")[0] for i in range(3)] == [
        "masked",
        "truncated",
        "its topic is not one of this application's inputs",
    ]


def test_filters_take_what_they_say(dead: Dead) -> None:
    """Reason, topic, partition, offsets, time and key each choose, and all of them together."""
    for i, (reason, key) in enumerate([("not_json", b"a"), ("null_value", b"b"), ("not_json", b"b")]):
        dead.refuse(None if reason == "null_value" else b"x%d" % i, reason, key)

    def offsets(**wanted: object) -> list[int]:
        return [letter.about.offset for letter in dead_letters.letters(dead.settings, Filter(**wanted))]  # type: ignore[arg-type]

    assert offsets() == [0, 1, 2]
    assert offsets(reasons=frozenset({DeadLetterReason.NOT_JSON})) == [0, 2]
    assert offsets(key=b"b") == [1, 2]
    assert offsets(from_offset=1, until_offset=2) == [1]
    assert offsets(partition=1) == []
    assert offsets(topic=dead.topics.control) == []
    assert offsets(topic=dead.topics.payments, key=b"b", reasons=frozenset({DeadLetterReason.NOT_JSON})) == [2]
    third = next(d for d in dead_letters.letters(dead.settings, Filter(from_offset=2)))
    assert offsets(until_ms=third.timestamp_ms + 1) == [0, 1, 2]
    assert offsets(from_ms=third.timestamp_ms + 1) == []
    with pytest.raises(UsageError, match=r"known are .*not_json"):
        dead_letters.reasons(["no_such"])


def test_a_redrive_that_was_cut_off_goes_on_where_it_stood(dead: Dead, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended between two chunks, or inside one, a redrive run again sends the rest, and nothing twice."""
    for i in range(7):
        dead.refuse(b"x%d" % i)
    monkeypatch.setattr(dead_letters, "CHUNK", 2)

    class CutOff(Exception):
        pass

    def until_the_fourth(letter: Letter, _fate: str) -> None:
        if letter.place[1] == 3:
            raise CutOff

    with pytest.raises(CutOff):
        redrive(dead.settings, Filter(), dry_run=False, on_letter=until_the_fourth)
    assert redrive(dead.settings, Filter(), dry_run=False, limit=2).sent == 2
    done = redrive(dead.settings, Filter(), dry_run=False)
    assert (done.sent, done.already) == (1, 6)
    assert sorted(p[3] for p in dead.payments() if FROM in p[4]) == [b"x%d" % i for i in range(7)]


def test_the_commands_show_origins_and_never_contents(dead: Dead, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dead-letters list` gives place and reason, not the bytes; `redrive` without a filter wants --all."""
    monkeypatch.setenv(f"{PREFIX}KAFKA__BOOTSTRAP_SERVERS", dead.settings.kafka.bootstrap_servers)
    monkeypatch.setenv(f"{PREFIX}KAFKA__TOPIC_PREFIX", dead.settings.kafka.topic_prefix)
    dead.refuse(b"a customer's secret")
    listed = CliRunner().invoke(app, ["dead-letters", "list", "--json"])
    assert listed.exit_code == 0, listed.output
    found = json.loads(listed.stdout.strip().splitlines()[-1])
    assert found["by_reason"] == {"not_json": 1}
    assert (found["letters"][0]["origin_offset"], found["letters"][0]["sent_again"]) == (0, False)
    assert "secret" not in listed.output
    refused = CliRunner().invoke(app, ["dead-letters", "redrive"])
    assert isinstance(refused.exception, UsageError)
    dry = CliRunner().invoke(app, ["dead-letters", "redrive", "--all", "--dry-run", "--json"])
    assert json.loads(dry.stdout.strip().splitlines()[-1])["would_be_sent"] == 1
    done = CliRunner().invoke(app, ["dead-letters", "redrive", "--reason", "not_json", "--json"])
    assert json.loads(done.stdout.strip().splitlines()[-1])["sent"] == 1
    assert "1" in CliRunner().invoke(app, ["dead-letters", "list"]).stdout
