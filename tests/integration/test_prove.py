"""`prove` over a real trail: what was decided live, decided again, and each way in which the two can differ by name.

Worker and sink run on Kafka and Postgres; the commands are called as people call them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost as xgb

from scorer import kafka
from scorer.audit.signed.signatures import Signer
from scorer.bundle import write_bundle
from scorer.demo.demo_processes import own_database
from scorer.files.file_reader import read_payments
from scorer.files.mapping import Mapping
from scorer.local_services import Services
from scorer.operate.setup import setup
from scorer.proof.live_trail import LiveBatch, Trail
from scorer.runtime.settings import PREFIX
from tests.golden_rows import golden_rows
from tests.integration.running import process, test_settings, wait_for
from tests.integration.test_audit_commands import FEATURES, POLICY, Running

PAYMENTS = 400
START_MS = 1_767_225_600_000
MAPPING = "payment_id: id\nevent_time: at\namount: paid\ncurrency: {constant: EUR}\ncustomer_id: who\n"
SIGNED = {f"{PREFIX}AUDIT__SIGNING_KEY": Signer.generate().to_pem().decode()}  # one key for all erasures
WITH_LABELS = MAPPING + "label: fraud\nlabel_delay: 1m\n"


def write(folder: Path, name: str, *, seed: int, features: str = FEATURES, width: int = 4) -> Path:
    """A bundle whose model has learnt something, whatever."""
    random = np.random.default_rng(seed)
    X = random.lognormal(3, 2, size=(2000, width)).astype(np.float32)
    y = (X[:, 0] > X[:, 2]).astype(int)
    model = xgb.train({"objective": "binary:logistic", "max_depth": 4, "seed": seed}, xgb.DMatrix(X, y), 20)
    write_bundle(
        folder / name, name=name, created_at="2026-01-01T00:00:00Z", model=bytes(model.save_raw("ubj")),
        feature_set_yaml=features, policy_yaml=POLICY, threshold_score=0.7,
        golden=golden_rows(bytes(model.save_raw("ubj"))),
    )  # fmt: skip
    return folder / name


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    wider = FEATURES + "  - {name: customer_count_7d, entity: customer, aggregate: count, window: 7d}\n"
    return {
        "decides": write(folder, "decides", seed=5),
        "other": write(folder, "other", seed=6),
        "wider": write(folder, "wider", seed=5, features=wider, width=5),
    }


@pytest.fixture(scope="module")
def running(
    services: Services, bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """Payments of a file decided live and written to Postgres, and then a label that says it was known long before."""
    folder = tmp_path_factory.mktemp("prove")
    random = np.random.default_rng(9)
    table = pa.table(
        {
            "id": [f"p_{i}" for i in range(PAYMENTS)],
            "at": pa.array(START_MS + 60_000 * np.arange(PAYMENTS), pa.timestamp("ms")),
            "paid": np.round(random.lognormal(3, 1, PAYMENTS), 2),
            "who": [f"c_{i % 7}" for i in range(PAYMENTS)],
            "fraud": pa.array([1 if i == 30 else None for i in range(PAYMENTS)], pa.int8()),
        }
    )
    pq.write_table(table, folder / "payments.parquet")
    (folder / "mapping.yaml").write_text(MAPPING)
    (folder / "with_labels.yaml").write_text(WITH_LABELS)
    name = f"prove_{os.getpid()}"
    with own_database(services.postgres.url, name) as url:
        settings = test_settings(
            services.kafka.bootstrap_servers, f"{name}-", postgres={"url": url},
            worker={"batch_payments_max": 64}, topics={"payments_partitions": 1},
        )  # fmt: skip
        setup(settings)
        trail = Running(settings, folder)
        topics = kafka.Topics.of(settings.kafka)
        with (
            process("sink", [], settings, folder / "sink.log"),
            process("run", ["--bundle", str(bundles["decides"])], settings, folder / "worker.log"),
        ):
            (block,) = read_payments(folder / "payments.parquet", Mapping.from_yaml(MAPPING))
            trail.send(topics.payments, *block.values)
            wait_for(lambda: trail.count("decisions") == PAYMENTS, 60, "the decisions")
            label = {"type": "label", "payment_id": "p_30", "fraud": True, "known_at": START_MS + 31 * 60_000}
            trail.send(topics.labels, json.dumps(label).encode())
            # A batch that takes the label in, as a repeated payment.
            trail.send(topics.payments, block.values[7])
            wait_for(lambda: trail.count("labels") == 1, 60, "the label")
            wait_for(lambda: trail.count("decisions") == PAYMENTS + 1, 60, "the last decision")
        yield trail


def prove(running: Running, bundle: Path, *more: str, code: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The result, and every difference."""
    path = running.folder / "differences.jsonl"
    result = running.command("prove", "--bundle", str(bundle), "--differences", str(path), *more, code=code)
    return result, [json.loads(line) for line in path.read_text().splitlines()]


def of_file(running: Running, mapping: str) -> list[str]:
    return ["--input", str(running.folder / "payments.parquet"), "--mapping", str(running.folder / mapping)]


def test_what_was_decided_live_comes_out_again(running: Running, bundles: dict[str, Path]) -> None:
    """Along the journal and from the file, every decision is equal in every column, and the command exits 0."""
    result, found = prove(running, bundles["decides"])
    assert (result["compared"], result["equal"], result["holds"], found) == (PAYMENTS + 1, PAYMENTS + 1, True, [])
    result, found = prove(running, bundles["decides"], *of_file(running, "mapping.yaml"))
    assert (result["compared"], result["equal"], found) == (PAYMENTS, PAYMENTS, [])
    result, _ = prove(running, bundles["decides"], "--from", "2026-01-01T01:00:00Z", "--until", "2026-01-01T02:00:00Z")
    assert result["compared"] == 60


def test_a_file_of_which_nothing_is_compared_proves_nothing(running: Running, bundles: dict[str, Path]) -> None:
    """Refused and repeated rows are counted; where too many are refused, or no payment is left, the command fails."""
    table = pq.read_table(running.folder / "payments.parquet")
    last = table.slice(PAYMENTS - 1)
    wrong = last.set_column(table.schema.get_field_index("paid"), "paid", pa.array([-1.0]))
    wrong = wrong.set_column(table.schema.get_field_index("id"), "id", pa.array(["p_wrong"]))
    path = running.folder / "some.parquet"
    pq.write_table(pa.concat_tables([table, last, last, wrong]), path)
    more = ["--input", str(path), "--mapping", str(running.folder / "mapping.yaml")]
    result, _ = prove(running, bundles["decides"], *more)
    assert (result["payments"], result["compared"], result["duplicates"]) == (PAYMENTS + 3, PAYMENTS, 2)
    assert (result["dead_letters"], [one["rows"] for one in result["refusals"]]) == (1, [1])

    pq.write_table(wrong, path)
    failed, _ = prove(running, bundles["decides"], *more, code=1)
    assert failed["compared"] == 0
    result, _ = prove(
        running, bundles["decides"], *of_file(running, "mapping.yaml"), "--from", "2031-01-01T00:00:00Z", code=1
    )
    assert result["compared"] == 0


def test_a_late_label_is_named(running: Running, bundles: dict[str, Path]) -> None:
    """A label that came after the decisions it would have changed is the cause of exactly those differences."""
    result, found = prove(running, bundles["decides"], *of_file(running, "with_labels.yaml"))
    same_customer = {f"p_{i}" for i in range(31, PAYMENTS) if i % 7 == 30 % 7}
    assert {row["payment_id"] for row in found} == same_customer
    assert {row["cause"] for row in found} == {"late_label"}
    assert all("customer_frauds_7d" in row["columns"] for row in found)
    assert {(row["live"]["customer_frauds_7d"], row["replayed"]["customer_frauds_7d"]) for row in found} == {(0.0, 1.0)}
    assert result["late_label"] == len(same_customer)
    assert result["equal"] == PAYMENTS - len(same_customer)


@pytest.mark.parametrize("bundle", ["other", "wider"])
def test_another_bundle_is_named(running: Running, bundles: dict[str, Path], bundle: str) -> None:
    """Differences of a bundle that did not decide carry its name as their cause; nothing is broken."""
    cause = {"other": "other_bundle", "wider": "other_feature_set"}[bundle]
    for more in ([], of_file(running, "mapping.yaml")):
        result, found = prove(running, bundles[bundle], *more)
        assert found
        assert {row["cause"] for row in found} == {cause}
        assert "margin" in found[0]["columns"]
        assert found[0]["live"]["margin"] != found[0]["replayed"]["margin"]
        assert result["equal"] + result[cause] == result["compared"]


@pytest.mark.parametrize("bundle", ["decides", "other"])
def test_an_edited_row_is_named(running: Running, bundles: dict[str, Path], bundle: str) -> None:
    """One edited row is found by payment and column, exit 3, whichever bundle the proof is made with."""
    with psycopg.connect(running.database, autocommit=True) as connection:
        connection.execute("UPDATE decisions SET score = score / 2 WHERE payment_id = 'p_123'")
        try:
            _, found = prove(running, bundles[bundle], code=3)
            _, of_a_file = prove(running, bundles[bundle], *of_file(running, "mapping.yaml"), code=3)
        finally:
            connection.execute("UPDATE decisions SET score = score * 2 WHERE payment_id = 'p_123'")
    tampered = [row for row in found if row["cause"] == "tampered"]
    assert [(row["payment_id"], row["columns"]) for row in tampered] == [("p_123", ["score"])]
    assert "p_123" in {row["payment_id"] for row in of_a_file if row["cause"] == "tampered"}
    assert {row["cause"] for row in found} <= {"tampered", "other_bundle"}


@pytest.mark.parametrize(
    ("table", "column", "change", "where"),
    [
        ("batches", "threshold", "threshold = 0.5", "sequence = 1"),
        ("decisions", "features", "features[4] = NULL", "payment_id = 'p_5'"),
    ],
)
def test_what_else_can_be_changed(
    running: Running, bundles: dict[str, Path], table: str, column: str, change: str, where: str
) -> None:
    """A batch whose threshold was changed, and a feature that became null, are tampering though little else shows."""
    with psycopg.connect(running.database, autocommit=True) as connection:
        kept = connection.execute(f"SELECT {column} FROM {table} WHERE {where}").fetchone()
        connection.execute(f"UPDATE {table} SET {change} WHERE {where}")
        try:
            result, found = prove(running, bundles["decides"], code=3)
        finally:
            connection.execute(f"UPDATE {table} SET {column} = %s WHERE {where}", kept)
    assert [row["cause"] for row in found] == ["tampered"]
    assert result["tampered"] == 1


def test_what_has_no_cause_is_said_so(running: Running, bundles: dict[str, Path]) -> None:
    """A file that begins later than the topic did gives other windows, for which there is no cause: exit 3."""
    table = pq.read_table(running.folder / "payments.parquet").slice(PAYMENTS // 2)
    pq.write_table(table, running.folder / "half.parquet")
    more = ["--input", str(running.folder / "half.parquet"), "--mapping", str(running.folder / "mapping.yaml")]
    result, found = prove(running, bundles["decides"], *more, code=3)
    assert {row["cause"] for row in found} == {"unexplained"}
    assert all("customer_count_1d" in row["columns"] for row in found)
    assert result["compared"] == PAYMENTS // 2


def _after_batches(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """`act` runs once, when the batches were read and not yet compared."""
    real, done = Trail.batches, []

    def batches(self: Trail, shard: int, first: int, last: int) -> dict[int, LiveBatch]:
        result = real(self, shard, first, last)
        if not done:
            done.append(True)
            act()
        return result

    monkeypatch.setattr(Trail, "batches", batches)


def test_batches_that_come_meanwhile_are_not_written_yet(
    running: Running, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the sink writes while the proof goes on counts as not written yet, and is no tampering."""
    tables = ("decisions", "batches")
    with psycopg.connect(running.database, autocommit=True) as connection:
        for table in tables:
            connection.execute(
                f"CREATE TABLE held_{table} AS SELECT * FROM {table} WHERE sequence >= (SELECT max(sequence) - 1 FROM "
                "batches)"
            )
        for table in tables:
            connection.execute(f"DELETE FROM {table} WHERE sequence >= (SELECT min(sequence) FROM held_batches)")
        (held,) = connection.execute("SELECT count(*) FROM held_decisions").fetchone() or (0,)

        def write() -> None:
            for table in tables:
                connection.execute(f"INSERT INTO {table} SELECT * FROM held_{table}")

        _after_batches(monkeypatch, write)
        result, found = prove(running, bundles["decides"])
        assert (result["equal"], result["behind"], found) == (PAYMENTS + 1 - held, held, [])
        monkeypatch.undo()
        for table in tables:
            connection.execute(f"DROP TABLE held_{table}")
    assert prove(running, bundles["decides"])[0]["equal"] == PAYMENTS + 1


def test_a_person_erased_meanwhile_is_no_difference(
    running: Running, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An erasure between the reading of a batch and of its rows leaves the cause of its differences as it is."""
    _after_batches(monkeypatch, lambda: running.command("audit", "erase", "--customer", "c_6", **SIGNED))
    result, found = prove(running, bundles["other"])
    assert {row["cause"] for row in found} == {"other_bundle"}
    assert result["erased"] > 0


def test_an_erased_person_is_no_difference(running: Running, bundles: dict[str, Path]) -> None:
    """Rows whose person was erased are compared in all columns but the pseudonyms, and counted."""
    erased = running.command("audit", "erase", "--customer", "c_3", **SIGNED)
    result, found = prove(running, bundles["decides"])
    assert (result["equal"], found) == (PAYMENTS + 1, [])
    assert result["erased"] >= erased["rows"] > 0


def test_rows_that_are_gone_are_named(running: Running, bundles: dict[str, Path]) -> None:
    """A deleted row is tampering along the journal, and missing for a file that has its payment; both exit 3."""
    with psycopg.connect(running.database) as connection:
        connection.execute("DELETE FROM decisions WHERE payment_id = 'p_200'")
        connection.commit()
        _, found = prove(running, bundles["decides"], code=3)
        _, of_a_file = prove(running, bundles["decides"], *of_file(running, "mapping.yaml"), code=3)
    assert "p_200" in {row["payment_id"] for row in found}
    assert {row["cause"] for row in found} == {"tampered"}
    assert [row["cause"] for row in of_a_file if row["payment_id"] == "p_200"] == ["missing"]
