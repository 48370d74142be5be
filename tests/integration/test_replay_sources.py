"""Replay of what was decided live on several partitions: by offsets, from audit rows, and onto a topic of its own."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.control_record import parse_control_masked
from schemas.label_record import Label
from scorer import kafka
from scorer.bundle import Bundle
from scorer.demo.demo_processes import own_database
from scorer.errors import UsageError
from scorer.local_services import Services
from scorer.operate.replay_topic_output import TopicOutput
from scorer.operate.setup import setup
from scorer.proof import live_trail
from scorer.replay import part_files, replay_output, replay_topic
from scorer.replay.label_ledger import LabelLedger
from scorer.runtime.settings import Settings
from tests.integration.running import TopicReader, process, test_settings, wait_for
from tests.integration.test_audit_commands import POLICY, START_MS, Running
from tests.integration.test_prove import write

PARTITIONS = 3
PAYMENTS = 600
LISTED = POLICY.replace("field: terminal_id", "field: terminal_id, values: [t_4]")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {"decides": write(folder, "decides", seed=5), "other": write(folder, "other", seed=6)}


def payment(number: int) -> tuple[bytes, bytes]:
    """Key and value; some come again, one is no payment, and some are late."""
    again = number - 6 if number % 50 == 49 else number
    customer = f"c_{again % 7}"
    value = {
        "payment_id": f"p_{again}",
        "event_time": START_MS + 60_000 * again - (3_600_000 if number % 60 == 59 else 0),
        "amount_minor": 700 * (again % 151) + 100,
        "currency": "EUR",
        "customer_id": customer,
        "terminal_id": f"t_{again % 5}",
        "channel": "ecom",
    }
    return customer.encode(), b"no payment" if number == 77 else json.dumps(value).encode()


def some_labels() -> list[tuple[str, dict[str, Any]]]:
    """Topic and record, in the order of sending: up to three of a payment, of which what came last on either topic, or
    has the larger offset there, need not be what became known last."""
    chance = random.Random(7)
    made = [
        (chance.choice(("labels", "control")), {"type": "label", "payment_id": f"p_{number}", "fraud": bool(nth % 2)})
        for number in range(10, 60) for nth in range(chance.randrange(4))
    ]  # fmt: skip
    chance.shuffle(made)
    for (_, label), hour in zip(made, chance.sample(range(1_000), len(made)), strict=True):
        label["known_at"] = START_MS + 3_600_000 * hour
    return made


@pytest.fixture(scope="module")
def running(
    services: Services, bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """Payments on three partitions decided live and written to Postgres, with a list that changes in between."""
    name = f"sources_{os.getpid()}"
    folder = tmp_path_factory.mktemp("sources")
    with own_database(services.postgres.url, name) as url:
        settings = test_settings(
            services.kafka.bootstrap_servers, f"{name}-", postgres={"url": url},
            worker={"batch_payments_max": 64}, topics={"payments_partitions": PARTITIONS},
        )  # fmt: skip
        setup(settings)
        trail = Running(settings, folder)
        topics = kafka.Topics.of(settings.kafka)
        with (
            process("sink", [], settings, folder / "sink.log"),
            process("run", ["--bundle", str(bundles["decides"])], settings, folder / "worker.log"),
        ):
            for start in range(0, PAYMENTS, PAYMENTS // 3):
                producer = kafka.plain_producer(settings.kafka)
                for number in range(start, start + PAYMENTS // 3):
                    key, value = payment(number)
                    producer.produce(topics.payments, value, key, partition=number % PARTITIONS)
                assert producer.flush(30) == 0
                seen = start + PAYMENTS // 3
                wait_for(lambda seen=seen: trail.count("decisions") == seen - (seen > 77), 60, "decisions")  # type: ignore[misc]
                trail.send(
                    topics.control,
                    json.dumps({"type": "list_add", "list": "blocked", "value": f"t_{start % 5 + 1}"}).encode(),
                )
            labels = some_labels()
            for topic, label in labels:
                trail.send(getattr(topics, topic), json.dumps(label).encode())
            wait_for(lambda: trail.count("labels") == len(labels), 60, "the labels")
        yield trail


def replayed(running: Running, bundle: Path, source: str, name: str, *more: str) -> pa.Table:
    path = running.folder / f"{name}.parquet"
    running.command("replay", "--bundle", str(bundle), "--input", source, "--output", str(path), *more)
    return pq.read_table(path)


def sent(settings: Settings, topic: str) -> dict[int, list[tuple[bytes | None, bytes | None]]]:
    """Keys and values by partition."""
    reader = TopicReader(settings, topic)
    try:
        reader.read_to_end()
    finally:
        reader.close()
    found: dict[int, list[tuple[bytes | None, bytes | None]]] = {}
    for message in reader.messages:
        found.setdefault(message.partition(), []).append((message.key(), message.value()))
    return found


def rows(table: pa.Table, *without: str) -> list[dict[str, Any]]:
    """Rows to compare; NaN as text, since it is unlike itself."""
    columns = [name for name in table.column_names if name not in without]
    return [{k: str(v) for k, v in row.items()} for row in table.select(columns).to_pylist()]


def test_a_topic_is_replayed_by_offsets(running: Running, bundles: dict[str, Path]) -> None:
    """Ranges of offsets give exactly their decisions out of the whole replay, which has every decision of the trail."""
    whole = replayed(running, bundles["decides"], "topic", "whole")
    assert whole.num_rows == PAYMENTS - 1
    part = replayed(running, bundles["decides"], "topic", "part", "--offsets", "0:20-70", "--offsets", "2:0-50")
    wanted = [
        row for row in rows(whole)
        if (row["partition"] == "0" and 20 <= int(row["offset"]) < 70)
        or (row["partition"] == "2" and int(row["offset"]) < 50)
    ]  # fmt: skip
    assert len(wanted) == 100 - 1  # one of them is no payment
    assert rows(part) == wanted
    for refused in ("7:0-5", "0:5000-6000", "0:9-3", "nonsense"):
        running.command("replay", "--bundle", str(bundles["decides"]), "--input", "topic", "--offsets", refused, code=2)


@pytest.mark.parametrize("bundle", ["decides", "other"])
def test_audit_rows_decide_as_the_topic_does(running: Running, bundles: dict[str, Path], bundle: str) -> None:
    """On the logged features a bundle of the same set decides as it does along the journal, lists and reasons included;
    what is known of labels by now stands beside it."""
    topic = replayed(running, bundles[bundle], "topic", f"topic_{bundle}")
    audit = replayed(running, bundles[bundle], "audit", f"audit_{bundle}")
    unlike = ("label", "label_known_at", "bundle")
    fresh = topic.filter(pa.compute.not_equal(topic["mode"], "duplicate"))
    assert fresh.num_rows < topic.num_rows
    assert rows(audit, *unlike) == rows(fresh, *unlike)
    assert {"late", "normal"} == set(audit["mode"].to_pylist())
    assert {"BLOCKED_TERMINAL"} < {reason for reasons in audit["reasons"].to_pylist() for reason in reasons}
    ledger = LabelLedger()
    ledger.add(audit["payment_id"].to_pylist(), [Label.model_validate(label) for _, label in some_labels()])
    for name, values in zip(("label", "label_known_at"), ledger.columns(), strict=True):
        column = pa.compute.cast(audit[name], pa.int64())
        assert pa.compute.fill_null(column, -1).to_pylist() == values.tolist()


def test_audit_rows_are_not_decided_with_a_masked_list(running: Running, bundles: dict[str, Path]) -> None:
    """A terminal listed by a number that looks like a card's stands masked in the trail: the replay is refused, rather
    than approve what the list had flagged."""
    card = b'{"type":"list_add","list":"blocked","value":"4111111111111111"}'
    masked = json.dumps(parse_control_masked(card).model_dump(mode="json"))
    with psycopg.connect(running.database, autocommit=True) as connection:
        (kept,) = connection.execute('SELECT record::text FROM control_changes WHERE "offset" = 0').fetchone() or ("",)
        connection.execute('UPDATE control_changes SET record = %s WHERE "offset" = 0', (masked,))
        try:
            asked = ("replay", "--bundle", str(bundles["decides"]), "--input", "audit")
            error = running.command(*asked, code=2)["error"]
        finally:
            connection.execute('UPDATE control_changes SET record = %s WHERE "offset" = 0', (kept,))
    assert "list blocked, offset 0 of topic control" in error
    assert "--input topic" in error


def test_times_of_labels_are_read_by_pages(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pages they take, `prove` gets every label of a topic with its offset and time, in order."""
    monkeypatch.setattr(live_trail, "LABELS_PER_PAGE", 7)
    sent: dict[str, list[int]] = {"labels": [], "control": []}
    for topic, label in some_labels():
        sent[topic].append(label["known_at"])
    with live_trail.Trail(running.database) as trail, psycopg.connect(running.database) as connection:
        for topic in ("labels", "control"):
            offsets, known = trail.label_times(topic)
            assert known.tolist() == sent[topic]
            stored = connection.execute(
                'SELECT "offset" FROM labels WHERE topic = %s ORDER BY 1',
                (f"{running.settings.kafka.topic_prefix}{topic}",),
            ).fetchall()
            assert offsets.tolist() == [offset for (offset,) in stored]


def test_a_replay_onto_a_topic_equals_the_live_decisions(running: Running, bundles: dict[str, Path]) -> None:
    """Interrupted and gone on with, a topic of its own holds the live decisions byte by byte, each once; a live topic,
    and one that holds another replay, are refused."""
    settings, topics = running.settings, kafka.Topics.of(running.settings.kafka)
    bundle, name = Bundle.load(bundles["decides"]), f"{settings.kafka.topic_prefix}candidate"

    def stop(count: int) -> None:
        if count > 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay_topic(bundle, settings, lambda _, about: TopicOutput(settings, name, about), progress=stop)
    assert 200 < sum(map(len, sent(settings, name).values())) < PAYMENTS - 1
    command = ["replay", "--input", "topic", "--output", f"topic:{name}", "--bundle"]
    running.command(*command, str(bundles["decides"]))
    running.command(*command, str(bundles["decides"]))  # nothing is left to do
    assert sent(settings, name) == sent(settings, topics.decisions)
    running.command(*command, str(bundles["other"]), code=2)
    for live in topics.all:
        with pytest.raises(UsageError, match="topic of the live engine"):
            TopicOutput(settings, live, {})
        running.command(
            "replay", "--input", "topic", "--output", f"topic:{live}", "--bundle", str(bundles["decides"]), code=2
        )


def test_a_topic_goes_on_in_a_folder(
    running: Running, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted replay of topic or audit rows into a folder goes on there and ends with all of its rows."""
    monkeypatch.setattr(replay_output, "PART_PAYMENTS", 150)
    for source in ("topic", "audit"):
        whole = replayed(running, bundles["decides"], source, f"again_{source}")
        folder = running.folder / f"by_day_{source}"
        command = ["replay", "--bundle", str(bundles["decides"]), "--input", source, "--output", str(folder)]
        running.command(*command)
        files = part_files(folder)
        # As if it had been interrupted before the third part.
        state = json.loads((folder / "_replay.json").read_text())
        (folder / "_replay.json").write_text(json.dumps(state | {"parts": 2, "decisions": 300, "complete": False}))
        kept = {path: path.stat().st_mtime_ns for path in files if path.name < "part-00002"}
        for path in files:
            if path not in kept:
                path.unlink()
        running.command(*command)
        assert part_files(folder) == files
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        together = pa.concat_tables([pq.ParquetFile(path).read() for path in files])
        key = ("partition", "offset")
        assert sorted(rows(together), key=lambda r: [int(r[k]) for k in key]) == sorted(
            rows(whole), key=lambda r: [int(r[k]) for k in key]
        )
