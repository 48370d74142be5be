"""Fetching an activated bundle on a thread of its own, so that deciding goes on meanwhile and nothing that the fetch
raises, or never returns from, is more than a refusal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from scorer.bundle import Bundle
from scorer.bundle.bundle_errors import BundleFetchError, BundlePlaceError
from scorer.bundle.bundle_location import load_bundle
from scorer.bundle.bundle_places import Places
from scorer.bundle.bundle_transfer import Transfer
from scorer.errors import FraudScorerError
from scorer.runtime.settings import BundleSettings
from scorer.runtime.threads import Threads

# A copy that does not end with its deadline (a name server, say, that does not answer) keeps its thread.
THREADS_MAX = 4


@dataclass(frozen=True)
class Refused:
    """Why a bundle was not loaded: for the journal, and in words."""

    reason: Literal["place", "unreachable", "unfit"]
    detail: str


@dataclass(frozen=True)
class Rules:
    """Where from, signed by whom and within which time a bundle may be fetched."""

    places: Places
    trusted_keys: tuple[str, ...] = ()
    timeout_s: float = 30.0

    @classmethod
    def of(cls, settings: BundleSettings) -> Rules:
        """Raises UsageError for a place that cannot be read as one."""
        return cls(Places(settings.locations), tuple(settings.trusted_keys), settings.fetch_timeout_s)


class Fetch:
    """One bundle on its way."""

    def __init__(
        self, bundle_id: str, location: str, rules: Rules, threads: Threads, loaded: Callable[[Bundle, str], None]
    ) -> None:
        """`location`: one of the allowed places. `loaded` is called with the bundle on the fetching thread; what it
        raises is a refusal as well.
        """
        self.bundle_id, self.location = bundle_id, location
        self._rules, self._loaded = rules, loaded
        self._transfer = Transfer(seconds=rules.timeout_s, monotonic=threads.monotonic)
        self._results: list[Bundle | Refused] = []  # the first counts: the thread may end after its deadline
        self._thread = threads.spawn(self._run, name="bundle-fetch")

    @property
    def running(self) -> bool:
        """Whether its thread is there still, also beyond the deadline."""
        return self._thread.is_alive()

    def result(self) -> Bundle | Refused | None:
        """What came of it; None while it is on its way."""
        if not self._results and self._transfer.late:
            self._transfer.abort()
            self._results.append(
                Refused("unreachable", f"{self.location} was not loaded within {self._rules.timeout_s:g} s")
            )
        return self._results[0] if self._results else None

    def _run(self) -> None:
        try:
            found = load_bundle(
                self.location, trusted_keys=self._rules.trusted_keys, wanted=self.bundle_id, transfer=self._transfer
            )
            self._loaded(found, self.location)
        except FraudScorerError as exc:
            self._results.append(refusal(exc))
        except BaseException as exc:  # noqa: BLE001 - whatever a hostile bundle raises is a refusal, never a worker's end
            # The text may hold anything, the type's name does not.
            self._results.append(Refused("unfit", f"{self.location} made {type(exc).__name__}"))
        else:
            self._results.append(found)


def refusal(exc: FraudScorerError) -> Refused:
    """What an error of the bundle room comes to."""
    if isinstance(exc, BundlePlaceError):
        return Refused("place", str(exc))
    return Refused("unreachable" if isinstance(exc, BundleFetchError) else "unfit", str(exc))
