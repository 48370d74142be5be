"""Activations on real Kafka: a swap at one place of the journal, a refusal, a roll-back, and a replay of all three."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

from scorer import kafka
from scorer.bundle import Bundle, write_bundle
from scorer.local_services import Services
from scorer.operate.activation import send_activation
from scorer.operate.record_sender import Sender
from scorer.operate.setup import setup
from scorer.replay import replay_topic
from scorer.runtime.settings import Settings
from tests.integration.handbook import handbook
from tests.integration.running import TopicReader, environment, metrics, process, test_settings, wait_for

BLOCK = 5_000


def _twin(bundle: Path, output: Path) -> Bundle:
    """The same model and policy as another bundle: only the time of its making differs."""
    one = Bundle.load(bundle)
    assert one.golden is not None
    return write_bundle(
        output,
        name="handbook",
        created_at="2026-02-02T00:00:00Z",
        model=(bundle / one.manifest.model_file).read_bytes(),
        feature_set_yaml=(bundle / "feature_set.yaml").read_text(),
        policy_yaml=(bundle / "policy.yaml").read_text(),
        threshold_score=one.manifest.threshold_score,
        calibration=one.manifest.calibration,
        golden=(one.golden[:, :-1], one.golden[:, -1]),
    )


def _activate(folder: Path, settings: Settings) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scorer", "bundle", "activate", str(folder), "--json"]
    return subprocess.run(command, env=environment(settings), check=False, capture_output=True, text=True, timeout=120)


def _explained(payment_id: str, bundle: Path, settings: Settings) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scorer", "audit", "explain", payment_id, "--bundle", str(bundle), "--replay"]
    return subprocess.run(command, env=environment(settings), check=False, capture_output=True, text=True, timeout=120)


def test_bundles_are_swapped_refused_and_rolled_back_while_payments_flow(
    services: Services, topics_prefix: str, database: str, bundle: Path, tmp_path: Path
) -> None:
    """An activation takes effect between two batches, an unfit bundle never does, an older one comes back, and a replay
    that knows only the first bundle follows the control topic through all of it, as does the proof of one payment."""
    settings = test_settings(
        services.kafka.bootstrap_servers, topics_prefix, postgres={"url": database}, worker={"batch_payments_max": 512}
    )
    setup(settings)
    first, second = Bundle.load(bundle), _twin(bundle, tmp_path / "second")
    unfit = tmp_path / "unfit"
    shutil.copytree(tmp_path / "second", unfit)
    (unfit / "golden.f32").write_bytes(b"")
    blocks = handbook(4 * BLOCK)
    decisions = TopicReader(settings, kafka.Topics.of(settings.kafka).decisions)

    def send(number: int) -> None:
        Sender(settings).run([blocks[number]], stop=threading.Event(), rate=20_000)
        wait_for(lambda: decisions.fill() >= (number + 1) * BLOCK, 120, f"the decisions of block {number}")

    with process("run", ["--bundle", str(bundle)], settings, tmp_path / "worker.log") as worker:
        send(0)
        done = _activate(tmp_path / "second", settings)
        assert done.returncode == 0, done.stderr
        send(1)
        done = _activate(unfit, settings)
        assert done.returncode == 3
        assert "golden.f32" in done.stderr
        send_activation(settings, "handbook-0123456789ab", str(unfit))  # sent without passing the gate
        send(2)
        wait_for(
            lambda: any(
                name.startswith("fraud_scorer_bundles_refused_total") and value == 1
                for name, value in metrics(worker.port).items()  # type: ignore[attr-defined]
            ),
            60,
            "the refusal to be counted",
        )
        done = _activate(bundle, settings)
        assert done.returncode == 0, done.stderr
        send(3)
    by_partition: dict[int, list[str]] = {}
    for message, decided in zip(decisions.messages, decisions.json(), strict=True):
        by_partition.setdefault(message.partition(), []).append(decided["bundle"])
    for ids in by_partition.values():
        changes = [one for k, one in enumerate(ids) if k == 0 or ids[k - 1] != one]
        assert changes == [first.id, second.id, first.id]
    of_second = next(one["payment_id"] for one in decisions.json() if one["bundle"] == second.id)
    decisions.close()
    tried: list[subprocess.CompletedProcess[str]] = []

    def explained() -> bool:
        tried.append(_explained(of_second, bundle, settings))
        return tried[-1].returncode != 1

    with process("sink", [], settings, tmp_path / "sink.log"):
        wait_for(explained, 120, "its row")
    assert tried[-1].returncode == 0, tried[-1].stderr
    assert f"bundle {second.id}" in tried[-1].stdout
    report = replay_topic(first, settings, tmp_path / "replay.parquet")
    assert report.decisions == 4 * BLOCK
    assert report.batches_checked > 4
