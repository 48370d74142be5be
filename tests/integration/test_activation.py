"""Activations on real Kafka: signed, numbered, expiring; a swap at one place of the journal, refusals, a roll-back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.control_record import Activate
from schemas.journal_record import JournalRecord
from scorer import kafka
from scorer.bundle import Bundle, write_bundle
from scorer.bundle.activation_signature import signed_activation
from scorer.bundle.signature import new_private_key, public_name, sign
from scorer.local_services import Services
from scorer.operate.activation import new_activation, send_activation
from scorer.operate.record_sender import Outgoing, Sender
from scorer.operate.setup import setup
from scorer.replay import replay_topic
from scorer.runtime.settings import PREFIX
from tests.hostile_server import hostile_server
from tests.integration.handbook import handbook
from tests.integration.running import (
    TopicReader,
    environment,
    metrics,
    process,
    readiness,
    test_settings,
    wait_for,
)
from tests.ports import free_ports

BLOCK = 5_000
FEW = 400
# Fetching a good bundle, its golden rows and a first compilation included, is bounded by it too.
FETCH_TIMEOUT_S, SHORT_FETCH_TIMEOUT_S = 60.0, 15.0


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


class _Deployment:
    """Topics of a test's own, a trusted key, two signed bundles below one allowed folder."""

    def __init__(
        self, bootstrap: str, prefix: str, database: str, bundle: Path, folder: Path, *places: str, fetch_s: float
    ) -> None:
        self.first_folder, self.second_folder = folder / "bundles" / "first", folder / "bundles" / "second"
        shutil.copytree(bundle, self.first_folder)
        _twin(bundle, self.second_folder)
        self.key_file = folder / "signing.pem"
        self.key = new_private_key(self.key_file)
        for one in (self.first_folder, self.second_folder):
            sign(one, self.key, (one / "manifest.json").read_bytes())
        self.first, self.second = Bundle.load(self.first_folder), Bundle.load(self.second_folder)
        rules: dict[str, Any] = {
            "trusted_keys": [public_name(self.key.public_key())],
            "locations": [str(folder / "bundles"), *places],
            "fetch_timeout_s": fetch_s,
        }
        self.settings = test_settings(
            bootstrap, prefix, postgres={"url": database}, worker={"batch_payments_max": 512}, bundle=rules
        )
        self.variables = {f"{PREFIX}BUNDLE__{name.upper()}": _written(value) for name, value in rules.items()}
        setup(self.settings)
        self.decisions = TopicReader(self.settings, kafka.Topics.of(self.settings.kafka).decisions)
        self.sent = 0

    def send(self, payments: Any, seconds: float = 120) -> float:
        """Send payments and wait for their decisions; gives the seconds it took."""
        started = time.monotonic()
        self.sent += len(payments.values)
        Sender(self.settings).run([payments], stop=threading.Event(), rate=20_000)
        wait_for(lambda: self.decisions.fill() >= self.sent, seconds, "the decisions")
        return time.monotonic() - started

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "scorer", *arguments]
        env = environment(self.settings, **self.variables)
        return subprocess.run(command, env=env, check=False, capture_output=True, text=True, timeout=120)

    def activation(self, bundle: Bundle, location: str, **changed: Any) -> Activate:
        record = new_activation(self.settings, bundle.id, location, None).model_copy(update=changed)
        return signed_activation(record, self.key)

    def bundles(self) -> list[str]:
        """Ids of the bundles that decided, in the order of one partition, each once in a row."""
        found: dict[int, list[str]] = {}
        for message, decided in zip(self.decisions.messages, self.decisions.json(), strict=True):
            ids = found.setdefault(message.partition(), [])
            if not ids or ids[-1] != decided["bundle"]:
                ids.append(decided["bundle"])
        assert len(set(map(tuple, found.values()))) == 1
        return next(iter(found.values()))

    def journal(self) -> list[JournalRecord]:
        reader = TopicReader(self.settings, kafka.Topics.of(self.settings.kafka).journal)
        try:
            reader.read_to_end()
            return [JournalRecord.from_bytes(message.value()) for message in reader.messages]
        finally:
            reader.close()


def _few(block: Outgoing, number: int) -> Outgoing:
    rows = slice(number * FEW, (number + 1) * FEW)
    return Outgoing(block.keys[rows], block.values[rows], block.event_time_ms[rows], [])


@contextmanager
def _started(arguments: list[str], app: _Deployment, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`fraud-scorer run`, not waited for; killed at the end."""
    (port,) = free_ports(1)
    env = environment(app.settings, **app.variables, **{f"{PREFIX}HTTP__WORKER_PORT": str(port)})
    with log.open("ab") as out:
        child = subprocess.Popen([sys.executable, "-m", "scorer", "run", *arguments], env=env, stdout=out, stderr=out)
    try:
        yield child, port
    finally:
        child.kill()
        child.wait()


def _written(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list) else str(value)


def _refused(port: int) -> dict[str, int]:
    """Refused activations by reason, those that there were."""
    name = "fraud_scorer_bundles_refused_total"
    return {
        key.partition('reason="')[2].partition('"')[0]: int(value)
        for key, value in metrics(port).items()
        if key.startswith(name) and value
    }


def test_bundles_are_swapped_refused_and_rolled_back_while_payments_flow(
    services: Services, topics_prefix: str, database: str, bundle: Path, tmp_path: Path
) -> None:
    """A signed activation takes effect between two batches; one that is unsigned, changed, expired, read before, of
    another deployment or place never does; an older bundle comes back by a new one; and a replay that knows only the
    first bundle follows the journal through all of it, as does the proof of one payment."""
    servers = services.kafka.bootstrap_servers
    app = _Deployment(servers, topics_prefix, database, bundle, tmp_path, fetch_s=FETCH_TIMEOUT_S)
    settings, place = app.settings, str(app.second_folder)
    unfit = tmp_path / "bundles" / "unfit"
    shutil.copytree(app.second_folder, unfit)
    (unfit / "golden.f32").write_bytes(b"")
    outside = tmp_path / "outside"
    shutil.copytree(app.second_folder, outside)
    blocks = handbook(4 * BLOCK)
    key = ["--key", str(app.key_file), "--json"]
    now_ms = int(time.time() * 1000)
    with process("run", ["--bundle", str(app.first_folder)], settings, tmp_path / "worker.log", **app.variables) as one:
        port = one.port  # type: ignore[attr-defined]
        app.send(blocks[0])
        swap = app.activation(app.second, place)
        send_activation(settings, swap)
        app.send(blocks[1])
        done = app.command("bundle", "activate", str(unfit), *key)
        assert done.returncode == 3
        assert "golden.f32" in done.stderr
        done = app.command("bundle", "activate", str(app.first_folder), "--json")
        assert done.returncode == 2
        assert "--key" in done.stderr
        hostile = [
            new_activation(settings, app.first.id, str(app.first_folder), None),
            app.activation(app.first, str(app.first_folder)).model_copy(update={"location": place}),
            signed_activation(
                new_activation(settings, app.first.id, str(app.first_folder), None), Ed25519PrivateKey.generate()
            ),
            app.activation(app.first, str(app.first_folder), deployment="journal@another"),
            app.activation(app.first, str(app.first_folder), number=now_ms - 10_000),
            swap,
            app.activation(app.first, str(outside)),
            app.activation(app.first, f"{app.first_folder}/../../outside"),
            app.activation(app.first, "data:text/plain,x"),
            app.activation(app.first, "https://user:hunter2@127.0.0.1/b"),
            app.activation(app.first, str(unfit)),
            app.activation(app.first, str(tmp_path / "bundles" / "nowhere")),
            app.activation(app.first, str(app.first_folder), expires_ms=now_ms - 1),
        ]
        for record in hostile:
            send_activation(settings, record)
        app.send(blocks[2])
        wait_for(lambda: sum(_refused(port).values()) >= len(hostile), 60, "the refusals to be counted")
        assert _refused(port) == {
            "unsigned": 1, "untrusted": 2, "other_deployment": 1, "number_used": 2, "place": 4, "unfit": 2, "expired": 1
        }  # fmt: skip
        done = app.command("bundle", "activate", str(app.first_folder), *key)
        assert done.returncode == 0, done.stderr
        app.send(blocks[3])
    assert app.bundles() == [app.first.id, app.second.id, app.first.id]
    log = (tmp_path / "worker.log").read_text()
    assert "hunter2" not in log
    verdicts = [verdict for record in app.journal() for verdict in record.activations]
    assert [verdict.refused is None for verdict in verdicts] == [True, *[False] * len(hostile), True]
    numbers = [record.activation_number for record in app.journal()]
    assert numbers == sorted(numbers)
    assert numbers[-1] == max(verdict.number or 0 for verdict in verdicts)
    of_second = next(one["payment_id"] for one in app.decisions.json() if one["bundle"] == app.second.id)
    app.decisions.close()
    tried: list[subprocess.CompletedProcess[str]] = []

    def explained() -> bool:
        asked = ("audit", "explain", of_second, "--bundle", str(app.first_folder), "--replay")
        tried.append(app.command(*asked))
        return tried[-1].returncode != 1

    with process("sink", [], settings, tmp_path / "sink.log"):
        wait_for(explained, 120, "its row")
    assert tried[-1].returncode == 0, tried[-1].stderr
    assert f"bundle {app.second.id}" in tried[-1].stdout
    verified = app.command("audit", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    report = replay_topic(app.first, settings, tmp_path / "replay.parquet")
    assert report.decisions == 4 * BLOCK
    assert report.batches_checked > 4


def test_a_hostile_place_costs_no_payment_and_a_lost_bundle_is_waited_for(
    services: Services, topics_prefix: str, database: str, bundle: Path, tmp_path: Path
) -> None:
    """While a bundle is fetched from a slow, endless or lying server payments are decided, and each is refused and
    counted; one that decides and cannot be had at the next start is waited for, by name, and no other decides."""
    with hostile_server(None) as server:
        servers, fetch_s = services.kafka.bootstrap_servers, SHORT_FETCH_TIMEOUT_S
        app = _Deployment(servers, topics_prefix, database, bundle, tmp_path, server.url, fetch_s=fetch_s)
        server.folder = app.second_folder
        settings = app.settings
        block = handbook(BLOCK)[0]
        payments = [_few(block, n) for n in range(9)]
        arguments = ["--bundle", str(app.first_folder)]
        log = tmp_path / "worker.log"
        with process("run", arguments, settings, log, **app.variables) as one:
            port = one.port  # type: ignore[attr-defined]
            app.send(payments[0])
            for number, kind in enumerate(("slow", "headers", "endless", "more", "redirect", "broken"), start=1):
                asked_at = time.monotonic()
                send_activation(settings, app.activation(app.second, f"{server.url}/{kind}"))
                app.send(payments[number])
                if kind in ("slow", "headers"):
                    wait_for(lambda kind=kind: any(kind in path for path in server.asked), 60, "the fetch")  # type: ignore[misc]
                    # Decided before the fetch was given up; nothing is proved where this machine needed longer for it.
                    refused, took_s = sum(_refused(port).values()), time.monotonic() - asked_at
                    assert refused == number - 1 or took_s > fetch_s, f"{kind}: {took_s}"
                wait_for(lambda n=number: sum(_refused(port).values()) == n, 180, f"{kind} to be refused")  # type: ignore[misc]
            assert set(_refused(port)) <= {"unreachable", "unfit"}
            assert server.sent < 50 << 20
            send_activation(settings, app.activation(app.second, f"{server.url}/good"))
            wait_for(
                lambda: metrics(port).get(f'fraud_scorer_bundle_info{{bundle="{app.second.id}",shard="0"}}') == 1,
                180, "the swap",
            )  # fmt: skip
            app.send(payments[7])
            assert one.poll() is None
        assert "hunter2" not in log.read_text()
        server.folder = None
        with _started(arguments, app, log) as (child, port):
            wait_for(lambda: app.second.id in readiness(port), 60, "readiness to name the bundle")
            Sender(settings).run([payments[8]], stop=threading.Event(), rate=20_000)
            time.sleep(1.0)
            assert app.decisions.fill() == app.sent
            server.folder = app.second_folder
            app.sent += FEW
            wait_for(lambda: app.decisions.fill() >= app.sent, 60, "the decisions once it can be had")
            assert child.poll() is None
        assert app.bundles() == [app.first.id, app.second.id]
        app.decisions.close()
