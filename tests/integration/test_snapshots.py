"""Recovery from snapshots: quick when the newest is good, right when it is not."""

from __future__ import annotations

import hashlib
import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.journal_record import JournalRecord
from scorer import kafka
from scorer.bundle import Bundle
from scorer.local_services import Services
from scorer.operate.record_sender import Sender
from scorer.operate.setup import setup
from scorer.replay import replay_topic
from tests.integration.handbook import handbook
from tests.integration.running import TopicReader, metrics, process, test_settings, wait_for

pytestmark = pytest.mark.usefixtures("one_decision_each")

PAYMENTS = 15_000


def forge(manifest: Path) -> None:
    """Another snapshot in its place: a bundle from elsewhere, and a right checksum."""
    body = json.loads(json.loads(manifest.read_bytes())["body"])
    body["meta"]["bundle_location"] = "http://127.0.0.1:9/bundle"
    text = json.dumps(body)
    manifest.write_text(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "body": text}))


def test_a_killed_worker_goes_on_from_the_newest_good_snapshot(
    services: Services, topics_prefix: str, database: str, bundle: Path, tmp_path: Path
) -> None:
    """Killed after snapshots were taken, a successor re-runs only what came later. With the newest one edited by
    whoever can write to the store, its checksum made right, it takes the one before; with all of them damaged it
    rebuilds from the journal. Every digest is equal on replay."""
    settings = test_settings(
        services.kafka.bootstrap_servers, topics_prefix, postgres={"url": database}, worker={"batch_payments_max": 256}
    )
    setup(settings)
    store = tmp_path / "snapshots"
    more = {
        "FRAUD_SCORER_SNAPSHOTS__URL": store.as_uri(),
        "FRAUD_SCORER_SNAPSHOTS__EVERY_PAYMENTS": "500",
        "FRAUD_SCORER_WORKER__STANDBY_SHARDS_MAX": "0",
        "FRAUD_SCORER_WORKER__LOG_FOLDER": str(tmp_path / "log"),
    }
    decisions = TopicReader(settings, kafka.Topics.of(settings.kafka).decisions)
    journal = TopicReader(settings, kafka.Topics.of(settings.kafka).journal)
    blocks = handbook(PAYMENTS, rows=2_500)
    third = len(blocks) // 3
    sent = 0

    def named() -> list[int]:
        """Sequences of the snapshots that the journal names."""
        journal.fill()
        records = [JournalRecord.from_bytes(message.value()) for message in journal.messages]
        return [record.snapshot.sequence for record in records if record.snapshot is not None]

    written = 'fraud_scorer_snapshots_total{shard="0"}'

    def settled(port: int, log: Path, snapshots_min: int) -> Callable[[], bool]:
        """Whether so many are there and no more come: one that is being written when the last payment is decided is
        finished, and named by the journal, without further payments."""
        seen: dict[tuple[float, int], float] = {}

        def still() -> bool:
            now = metrics(port).get(written, 0.0), log.read_text().count("snapshot.written")
            return now[0] >= snapshots_min and time.monotonic() - seen.setdefault(now, time.monotonic()) > 3.0

        return still

    def generation(number: int, snapshots_min: int) -> tuple[str, dict[str, float]]:
        """One worker: decides a third of the payments, writes its snapshots and is killed."""
        nonlocal sent
        log = tmp_path / f"worker-{number}.log"
        with process("run", ["--bundle", str(bundle)], settings, log, **more) as worker:
            part = blocks[number * third : (number + 1) * third]
            port = worker.port  # type: ignore[attr-defined]
            # A snapshot that takes as long as all these payments is the only one of them: each has payments of its own.
            portions = max(1, snapshots_min)
            for portion in range(portions):
                some = part[portion * len(part) // portions : (portion + 1) * len(part) // portions]
                Sender(settings).run(some, stop=threading.Event(), rate=3000)
                sent += sum(len(block.values) for block in some)
                wait_for(lambda due=sent: decisions.fill() >= due, 120, "the decisions")
                wait_for(settled(port, log, min(snapshots_min, portion + 1)), 180, "the snapshots")
                wait_for(lambda least=portion + 1: len(named()) >= min(snapshots_min, least), 120, "the journal")
            counted = metrics(port)
            worker.send_signal(signal.SIGKILL)
            worker.wait()
        return log.read_text(), counted

    generation(0, 2)
    # Of two that are written before the journal's next record, it names the later one: the other is never used.
    journal.read_to_end()
    before, newest = named()[-2:]

    forge(next(store.rglob(f"manifests/{newest:020d}.json")))
    text, counted = generation(1, 1)
    assert "snapshot.restored" in text
    assert counted['fraud_scorer_snapshots_refused_total{shard="0"}'] == 1
    assert "is not the one that the journal names" in text
    restored = next(json.loads(line) for line in text.splitlines() if "snapshot.restored" in line)
    assert restored["sequence"] == before

    for block in next(store.rglob("blocks")).iterdir():
        content = bytearray(block.read_bytes())
        content[len(content) // 2] ^= 1
        block.write_bytes(bytes(content))
    text, counted = generation(2, 0)
    assert "snapshot.restored" not in text
    assert counted['fraud_scorer_snapshots_refused_total{shard="0"}'] >= 2

    decisions.read_to_end()
    ids = [decided["payment_id"] for decided in decisions.json()]
    assert len(ids) == len(set(ids)) == sent
    report = replay_topic(Bundle.load(bundle), settings, None)
    assert (report.payments, report.decisions) == (sent, sent)
    decisions.close()
    journal.close()
