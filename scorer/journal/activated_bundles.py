"""The bundles that a shard decides with, one after the other: the first, and those that activations name."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from schemas.contract_error import ContractError
from schemas.control_record import Activate, parse_control
from schemas.journal_record import LOCATION_MAX, BatchOrder
from scorer.bundle import Bundle
from scorer.bundle.bundle_errors import BundlePlaceError
from scorer.errors import FraudScorerError, UsageError
from scorer.journal.bundle_fetch import THREADS_MAX, Fetch, Refused, Rules, refusal
from scorer.pipeline.records import Batch
from scorer.pipeline.warm_up import warm_up
from scorer.runtime.settings import BundleSettings
from scorer.runtime.threads import SYSTEM, Threads

# Of those that are not decided with now: going back to the last few fetches nothing.
KEPT_MAX = 8
_POLL_S = 0.02


class BundleUnavailable(FraudScorerError):
    """The bundle that the journal goes on with cannot be had. Nothing may be decided with another."""


class Bundles:
    """The bundles a process may need: the one it was started with, and those that activations name. For any thread."""

    def __init__(self, initial: Bundle, settings: BundleSettings, threads: Threads = SYSTEM) -> None:
        """Raises UsageError for settings that cannot be read."""
        self.initial = initial
        self._rules = Rules.of(settings)
        self._threads = threads
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[Bundle, str]] = OrderedDict()  # with the location
        self._fetches: list[Fetch] = []

    def known(self, bundle_id: str) -> Bundle | None:
        """One that needs no fetching."""
        if bundle_id == self.initial.id:
            return self.initial
        with self._lock:
            found = self._known.get(bundle_id)
            if found is None:
                return None
            self._known.move_to_end(bundle_id)
            return found[0]

    def begin(self, bundle_id: str, location: str) -> Bundle | Refused | Fetch:
        """The bundle, where it was loaded from there before; else a fetch that is on its way, or why there is none."""
        try:
            place = self._rules.places.of(location)
        except BundlePlaceError as exc:
            return refusal(exc)
        if len(place.text) > LOCATION_MAX:
            return Refused("place", f"a place of {len(place.text)} characters; the journal holds {LOCATION_MAX}")
        with self._lock:
            found = self._known.get(bundle_id)
            if found is not None and found[1] == place.text:  # from elsewhere a new owner may not have it
                self._known.move_to_end(bundle_id)
                return found[0]
            self._fetches = [fetch for fetch in self._fetches if fetch.running or fetch.result() is None]
            for fetch in self._fetches:
                if (fetch.bundle_id, fetch.location) == (bundle_id, place.text) and fetch.result() is None:
                    return fetch
            if len(self._fetches) >= THREADS_MAX:
                return Refused("unreachable", f"{len(self._fetches)} fetches are on their way or hang")
            self._fetches.append(Fetch(bundle_id, place.text, self._rules, self._threads, self._ready))
            return self._fetches[-1]

    def _ready(self, bundle: Bundle, location: str) -> None:
        """On the fetching thread: let the bundle decide something, so that nothing is compiled or found out later."""
        if bundle.feature_set.fingerprint == self.initial.feature_set.fingerprint:
            warm_up(bundle)
        with self._lock:
            self._known[bundle.id] = bundle, location
            self._known.move_to_end(bundle.id)
            while len(self._known) > KEPT_MAX:
                self._known.popitem(last=False)

    def location(self, bundle_id: str) -> str:
        """Where an activated bundle was loaded from; empty for the one given at the start."""
        with self._lock:
            return self._known[bundle_id][1] if bundle_id in self._known else ""

    def at(self, bundle_id: str, location: str, stopped: Callable[[], bool] = lambda: False) -> Bundle:
        """The bundle that the past went on with, fetched where it is not known, under the rules for any other.

        Raises BundleUnavailable, also once `stopped` gives True.
        """
        found = self.known(bundle_id)
        if found is not None:
            return found
        if not location:
            raise BundleUnavailable(
                f"bundle {bundle_id} is not the one given ({self.initial.id}), and where it lies is not known: start "
                "with --bundle naming it"
            )
        got = self.begin(bundle_id, location)
        if isinstance(got, Fetch):
            got = self._awaited(got, stopped)
        if isinstance(got, Refused):
            raise BundleUnavailable(f"bundle {bundle_id}, with which the journal goes on, cannot be had: {got.detail}")
        return got

    def _awaited(self, fetch: Fetch, stopped: Callable[[], bool]) -> Bundle | Refused:
        while True:
            got = fetch.result()
            if got is not None:
                return got
            if stopped():
                raise BundleUnavailable(f"stopped while bundle {fetch.bundle_id} was fetched")
            self._threads.sleep(_POLL_S)

    def of(self, record: BatchOrder, batch: Batch) -> Bundle:
        """The bundle that the journal names for `batch`. Raises BundleUnavailable or UsageError."""
        found = self.known(record.bundle)
        if found is not None:
            return found
        taken = record.taken
        location = taken.location if taken is not None else _named(record.bundle, batch)
        if not location:
            raise UsageError(
                f"the journal goes on with bundle {record.bundle}, which is neither the one given ({self.initial.id}) "
                "nor activated by a control record: start with --bundle naming it"
            )
        return self.at(record.bundle, location)


def _named(bundle_id: str, batch: Batch) -> str | None:
    """The location in an activation among the batch's control records: journals of before 0.3 have no verdicts."""
    for raw in reversed(batch.control):
        record = activation(raw.value)
        if record is not None and record.bundle == bundle_id:
            return record.location
    return None


def activation(value: bytes | None) -> Activate | None:
    """The activation that a control record holds, if it does."""
    # Nearly all control records are labels. A text may be written in JSON's escapes.
    if value is None or (b"activate" not in value and b"\\u" not in value):
        return None
    try:
        record = parse_control(value)
    except ContractError:
        return None  # a dead letter by the pipeline's own judgement
    return record if isinstance(record, Activate) else None
