"""Hash tables are keyed by a secret of each state: chosen ids do not collide, and no value depends on the key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from features.feature_set import FeatureSet
from features.hash_table import Table, grown, new_table, put
from features.hashing import PUBLIC_KEY, HashKey, hash_strings
from features.window_engine import WindowEngine
from schemas.payment_decoder import decode_payments
from scorer.bundle import Bundle
from scorer.pipeline import Pipeline
from scorer.pipeline.records import Batch
from scorer.pipeline.state_image import ShardCapture, facts, restored
from tests.faults.payments import FEATURES, make_bundle, payments

SET = FeatureSet.from_yaml(FEATURES)
IDS, PLACES = 1_500, 4_096


def longest_run(table: Table) -> int:
    """The longest row of full places: what a lookup may have to pass."""
    empty = np.flatnonzero(table[:, 2] == 0)
    return int(np.diff(np.concatenate([empty, [empty[0] + len(table)]])).max()) - 1


def chosen(low: np.ndarray) -> np.ndarray:
    """Numbers of keys that an attacker chooses by their first words: those with the same place in a table."""
    return np.flatnonzero(low % np.uint64(PLACES) == 7)[:IDS]


@pytest.fixture(scope="module")
def candidates() -> list[str]:
    return [f"p{n}" for n in range(IDS * PLACES * 11 // 10)]


def table_of(ids: list[str], key: HashKey) -> Table:
    table = grown(new_table(), 0, len(ids))
    for n, (low, high) in enumerate(hash_strings(ids, key)[0]):
        put(table, low, high, n)
    return table


def test_ids_chosen_to_collide_do_not_under_a_secret_key(candidates: list[str]) -> None:
    """Ids that share one place under a key that the attacker knows lie apart under a state's own key."""
    found = chosen(hash_strings(candidates, PUBLIC_KEY)[0][:, 0])
    ids = [candidates[n] for n in found.tolist()]
    assert len(ids) == IDS
    assert longest_run(table_of(ids, PUBLIC_KEY)) >= IDS - 1
    for _ in range(3):
        assert longest_run(table_of(ids, HashKey.new())) < 100


def test_customers_chosen_to_collide_lie_apart_in_the_key_table() -> None:
    """The same for the keys of entities, which are mixed from the hashes of their fields."""
    low0 = np.uint64(0x9E3779B97F4A7C15)

    def runs(key: HashKey, names: list[str]) -> int:
        engine = WindowEngine(SET, hash_key=key)
        batch = decode_payments(
            [
                b'{"payment_id":"p%d","event_time":1767225600000,"amount_minor":1,"currency":"EUR","customer_id":"%s"}'
                % (n, name.encode())
                for n, name in enumerate(names)
            ]
        )
        engine.apply(batch, batch.amount_minor, hash_strings(batch.text("payment_id"), key)[0])
        assert engine.counts().keys == len(names)
        return longest_run(engine.state.keys)

    names = [f"c{n}" for n in range(1_000_000)]
    with np.errstate(over="ignore"):
        x = low0 ^ hash_strings(names, PUBLIC_KEY)[0][:, 0]
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        low = (x ^ (x >> np.uint64(31))) + ~low0
    taken = [names[n] for n in chosen(low).tolist()]
    assert len(taken) > 200
    assert runs(PUBLIC_KEY, taken) >= len(taken) - 1
    assert runs(HashKey.new(), taken) < 60


def test_another_key_gives_the_same_decisions(tmp_path: Path) -> None:
    """Two states of other keys, one of them restored half-way, give the same digest for every batch."""
    bundle = Bundle.load(make_bundle(tmp_path / "bundle"))
    given = [value for _, value in payments(7, 1_500)]
    one, other = Pipeline(bundle), Pipeline(bundle)
    assert one.engine.hash_key != other.engine.hash_key
    for start in range(0, len(given), 250):
        batch = Batch.of_payments(given[start : start + 250], first_offset=start)
        assert one.run(batch).journal.head == other.run(batch).journal.head
        capture = ShardCapture(other)
        capture.copy()
        parts = capture.finish()
        assert parts is not None
        other = restored(bundle, facts(other), parts)
    assert "secret" in repr(one.engine.hash_key)
