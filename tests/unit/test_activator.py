"""Activations as a shard meets them: in order, one taken a batch, nothing read past a bundle that is on its way."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.control_record import Activate
from schemas.journal_record import ACTIVATIONS_MAX, ActivationVerdict, ControlRange, JournalRecord
from scorer.bundle import Bundle
from scorer.bundle.activation_signature import signed_activation
from scorer.bundle.signature import public_name, sign
from scorer.journal.activated_bundles import Bundles
from scorer.journal.record_queue import RawRecord
from scorer.pipeline import Pipeline
from scorer.pipeline.records import Batch
from scorer.pipeline.warm_up import warm_up
from scorer.runtime.settings import BundleSettings
from scorer.runtime.threads import SYSTEM
from scorer.worker.activator import Activator
from tests.hostile_server import hostile_server
from tests.unit.test_bundle import OTHER_FEATURE_SET, _model_bytes, _write

DEPLOYMENT = "journal@aGJcXuZ8TG2ZNvHdEVzpOQ"
LABEL = b'{"type":"label","payment_id":"p_1","fraud":true,"known_at":"2026-01-09T08:00:00Z"}'


class _Place:
    """Signed bundles below one folder, and activations of them at offsets of the control topic."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.key, model = folder, Ed25519PrivateKey.generate(), _model_bytes()
        for name in ("one", "two", "three"):
            _write(folder / name, model, created_at=name)
            sign(folder / name, self.key, (folder / name / "manifest.json").read_bytes())
        _write(folder / "strange", model, feature_set_yaml=OTHER_FEATURE_SET)
        sign(folder / "strange", self.key, (folder / "strange" / "manifest.json").read_bytes())
        self.one, self.two, self.three = (Bundle.load(folder / name) for name in ("one", "two", "three"))
        warm_up(self.one)  # as a worker has when it comes to activations: their deadline is not for compiling kernels

    def rules(self, **changed: Any) -> BundleSettings:
        keys = [public_name(self.key.public_key())]
        return BundleSettings(**({"trusted_keys": keys, "locations": [str(self.folder)]} | changed))

    def activator(self, number: int = 0, **changed: Any) -> Activator:
        rules = self.rules(**changed)
        fingerprint = self.one.feature_set.fingerprint
        return Activator(
            rules, Bundles(self.one, rules), 0, SYSTEM, deployment=DEPLOYMENT, number=number, fingerprint=fingerprint
        )

    def record(self, name: str, number: int, **changed: Any) -> bytes:
        bundle = Bundle.load(self.folder / name)
        fields = {
            "bundle": bundle.id, "location": str(self.folder / name), "number": number,
            "expires_ms": int(time.time() * 1000) + 60_000, "deployment": DEPLOYMENT,
        }  # fmt: skip
        signed = signed_activation(Activate(**(fields | changed)), self.key)
        return signed.model_dump_json(exclude_none=True).encode()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> _Place:
    return _Place(tmp_path_factory.mktemp("bundles"))


def _control(*values: bytes, first: int = 10) -> list[RawRecord]:
    return [RawRecord(first + n, 0, None, value) for n, value in enumerate(values)]


def _until(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _range(records: list[RawRecord], count: int) -> ControlRange:
    return ControlRange(start=records[0].offset, end=records[0].offset + count)


def test_labels_before_an_activation_do_not_wait_and_those_behind_keep_their_order(place: _Place) -> None:
    """What stands before an activation is taken while its bundle is on its way, what stands behind it is not."""
    with hostile_server(place.folder / "two") as server:
        activator = place.activator(locations=[server.url], fetch_timeout_s=0.5)
        records = _control(LABEL, LABEL, place.record("two", 1, location=f"{server.url}/slow"), LABEL)
        assert activator.takeable(records) == 2
        assert activator.of(_range(records, 2)) == ([], None)
        _until(lambda: activator.takeable(records) == 4)
        verdicts, bundle = activator.of(_range(records, 4))
        assert bundle is None
        assert [(v.offset, v.refused, v.number) for v in verdicts] == [(12, "unreachable", 1)]


def test_one_activation_is_taken_in_a_batch(place: _Place) -> None:
    """Two activations that follow each other decide one after the other, each from a batch of its own on."""
    activator = place.activator()
    records = _control(place.record("two", 1), LABEL, place.record("three", 2), LABEL)
    _until(lambda: activator.takeable(records) == 2 and activator._waiting is None)
    verdicts, bundle = activator.of(_range(records, 2))
    assert bundle is not None
    assert (bundle.id, verdicts[0].location) == (place.two.id, str(place.folder / "two"))
    rest = records[2:]
    _until(lambda: activator.takeable(rest) == 2)
    _, bundle = activator.of(_range(rest, 2))
    assert bundle is not None
    assert bundle.id == place.three.id


def test_an_activation_is_not_taken_twice_also_by_a_new_owner(place: _Place) -> None:
    """One that was refused or taken uses its number up; who takes the shard over knows it from the journal."""
    records = _control(place.record("strange", 5), place.record("two", 5), place.record("two", 4))
    for activator in (place.activator(), place.activator(number=5)):
        _until(lambda a=activator: a.takeable(records) == 3)  # type: ignore[misc]
        verdicts, bundle = activator.of(_range(records, 3))
        assert bundle is None
        assert [v.refused for v in verdicts[1:]] == ["number_used"] * 2
    assert verdicts[0].refused == "number_used"


def test_unsigned_activations_are_taken_only_where_a_setting_allows_it(place: _Place) -> None:
    """Without trusted keys none is taken from the topic, signed or not, unless the setting is there; with keys an
    unsigned one never is."""
    unsigned = Activate(bundle=place.two.id, location=str(place.folder / "two")).model_dump_json(exclude_none=True)
    records = _control(unsigned.encode())
    for rules, refused in (
        ({"trusted_keys": []}, "unsigned"),
        ({"unsigned_activations": True}, "unsigned"),
        ({"trusted_keys": [], "unsigned_activations": True}, None),
        ({"trusted_keys": [], "unsigned_activations": True, "locations": []}, "place"),
    ):
        activator = place.activator(**rules)
        _until(lambda a=activator: a.takeable(records) == 1)  # type: ignore[misc]
        verdicts, _ = activator.of(_range(records, 1))
        assert [v.refused for v in verdicts] == [refused], rules


def test_a_flood_of_activations_is_read_in_pieces(place: _Place) -> None:
    """A journal record holds a bounded number of verdicts; the rest follow in the next batches."""
    activator = place.activator()
    records = _control(*[b'{"type":"activate","bundle":"b-1","location":"/b"}'] * 150)
    counts = []
    while records:
        count = activator.takeable(records)
        verdicts, _ = activator.of(_range(records, count))
        assert len(verdicts) == count
        counts.append(count)
        records = records[count:]
    assert counts == [ACTIVATIONS_MAX, ACTIVATIONS_MAX, 150 - 2 * ACTIVATIONS_MAX]


def test_verdicts_stand_in_the_journal_and_the_number_goes_on(place: _Place) -> None:
    """The journal record names what became of each activation; its number stays in every record after it, also where
    an operator lets the state begin anew."""
    verdict = ActivationVerdict(offset=7, bundle="cards-1", number=41, refused="expired")
    pipeline = Pipeline(place.one)
    empty = Batch.of_payments([])
    assert b"activation" not in pipeline.run(empty).journal.to_bytes()  # as in releases without them
    one = pipeline.run(Batch(empty.records, (), (), ControlRange(start=7, end=8), activations=(verdict,))).journal
    assert JournalRecord.from_bytes(one.to_bytes()) == one
    assert (one.activations, one.activation_number, one.taken) == ((verdict,), 41, None)
    assert pipeline.run(empty).journal.activation_number == 41
    follower = Pipeline(place.one)
    follower.begin_at(one)
    assert follower.activation_number == 41
