"""The bundles that a shard decides with, one after the other: the first, and those that activations name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.contract_error import ContractError
from schemas.control_record import Activate, parse_control
from scorer.bundle import Bundle
from scorer.bundle.bundle_location import load_bundle
from scorer.errors import UsageError
from scorer.pipeline.records import Batch, ControlRecord


@dataclass
class Bundles:
    """The bundles a shard may need: the one it was started with, and those that control records name."""

    initial: Bundle
    trusted_keys: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._known = {self.initial.id: self.initial}
        self._locations: dict[str, str] = {}

    def activation(self, control: Sequence[ControlRecord]) -> Bundle | None:
        """The bundle that the last activation among `control` names, loaded and checked; None without one.

        Raises BundleError or UsageError when it cannot be used.
        """
        wanted: Activate | None = None
        for raw in control:
            if not _may_activate(raw.value):
                continue
            try:
                record = parse_control(raw.value)
            except ContractError:
                continue  # a dead letter by the pipeline's own judgement
            wanted = record if isinstance(record, Activate) else wanted
        if wanted is None:
            return None
        if wanted.bundle not in self._known:
            bundle = load_bundle(wanted.location, trusted_keys=self.trusted_keys)
            if bundle.id != wanted.bundle:
                raise UsageError(f"{wanted.location} holds bundle {bundle.id}, the activation names {wanted.bundle}")
            self._known[bundle.id] = bundle
            self._locations[bundle.id] = wanted.location
        return self._known[wanted.bundle]

    def location(self, bundle_id: str) -> str:
        """Where an activated bundle was loaded from; empty for the one given at the start."""
        return self._locations.get(bundle_id, "")

    def at(self, bundle_id: str, location: str) -> Bundle:
        """The bundle that a snapshot's state decided with. Raises BundleError or UsageError when it cannot be had."""
        if bundle_id not in self._known and location:
            bundle = load_bundle(location, trusted_keys=self.trusted_keys)
            self._known[bundle.id] = bundle
            self._locations[bundle.id] = location
        if bundle_id not in self._known:
            raise UsageError(
                f"bundle {bundle_id} is neither the one given ({self.initial.id}) nor at {location or 'a known place'}"
            )
        return self._known[bundle_id]

    def of(self, bundle_id: str, batch: Batch) -> Bundle:
        """The bundle that the journal names for `batch`."""
        if bundle_id not in self._known:
            self.activation(batch.control)
        if bundle_id not in self._known:
            raise UsageError(
                f"the journal goes on with bundle {bundle_id}, which is neither the one given ({self.initial.id}) "
                "nor activated by a control record: start with --bundle naming it"
            )
        return self._known[bundle_id]


def _may_activate(value: bytes | None) -> bool:
    """Whether it is worth parsing: nearly all control records are labels. A text may be written in JSON's escapes."""
    return value is not None and (b"activate" in value or b"\\u" in value)
