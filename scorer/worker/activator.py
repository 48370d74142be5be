"""Judges a shard's activations: signature, number, expiry, place; has bundles fetched while payments are decided.

A control record is not read past an activation whose bundle is on its way, so that labels, lists and activations keep
their order; payments do not wait. What became of it is a field of the journal record of the batch that reads it, and
the bundle decides from that batch on. Recovery and replay read the verdict and judge nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from schemas.control_record import Activate
from schemas.journal_record import ACTIVATIONS_MAX, ActivationVerdict, ControlRange, Refusal
from scorer.bundle import Bundle
from scorer.bundle.activation_signature import refusal_of
from scorer.bundle.signature import parse_public, public_name
from scorer.journal.activated_bundles import Bundles, activation
from scorer.journal.bundle_fetch import Fetch, Refused
from scorer.journal.record_queue import RawRecord
from scorer.runtime.settings import BundleSettings
from scorer.runtime.threads import Threads
from scorer.worker import worker_metrics

log = structlog.get_logger()


@dataclass
class _Waiting:
    """An activation whose bundle is on its way."""

    number: int | None
    fetch: Fetch


class Activator:
    """Of one owned shard, from its recovery on. All calls from the shard's own thread."""

    def __init__(
        self,
        settings: BundleSettings,
        bundles: Bundles,
        shard: int,
        threads: Threads,
        *,
        deployment: str,
        number: int,
        fingerprint: str,
    ) -> None:
        """`number`: the largest that was used so far. `fingerprint`: of the feature set that the shard computes."""
        self._bundles, self._threads = bundles, threads
        self._trusted = frozenset(public_name(parse_public(text)) for text in settings.trusted_keys)
        self._unsigned_allowed = settings.unsigned_activations
        self._shard, self._log = shard, log.bind(shard=shard)
        self._deployment, self._number, self._fingerprint = deployment, number, fingerprint
        self._searched = -1  # offset up to which control records were searched for activations
        self._found: deque[tuple[int, Activate]] = deque()
        self._verdicts: dict[int, tuple[ActivationVerdict, Bundle | None]] = {}
        self._waiting: _Waiting | None = None

    def takeable(self, records: Sequence[RawRecord]) -> int:
        """How many of the buffered control records the next batch may take: all before an activation whose bundle is
        on its way, or before the second one that is taken.
        """
        self._search(records)
        taken = 0
        for place, (offset, record) in enumerate(self._found):
            if place >= ACTIVATIONS_MAX:
                return _before(records, offset)
            known = self._verdicts.get(offset) or self._judge(offset, record)
            if known is None:
                return _before(records, offset)
            if known[1] is not None:
                taken += 1
                if taken > 1:
                    return _before(records, offset)
        return len(records)

    def of(self, control: ControlRange) -> tuple[list[ActivationVerdict], Bundle | None]:
        """What became of the activations that a batch has read, and the bundle that decides from it on, if another."""
        verdicts, chosen = [], None
        while self._found and self._found[0][0] < control.end:
            offset, _ = self._found.popleft()
            verdict, bundle = self._verdicts.pop(offset)
            verdicts.append(verdict)
            chosen = bundle or chosen
        return verdicts, chosen

    def _search(self, records: Sequence[RawRecord]) -> None:
        new = []
        for raw in reversed(records):
            if raw.offset <= self._searched:
                break
            new.append(raw)
        for raw in reversed(new):
            record = activation(raw.value)
            if record is not None:
                self._found.append((raw.offset, record))
            self._searched = raw.offset

    def _judge(self, offset: int, record: Activate) -> tuple[ActivationVerdict, Bundle | None] | None:
        """The verdict, which is final; None while the bundle is on its way."""
        if self._waiting is None:
            refused, number = self._right(record)
            if refused is not None:
                return self._refused(offset, record, number, refused, "")
            got = self._bundles.begin(record.bundle, record.location)
            if not isinstance(got, Fetch):
                place = self._bundles.location(got.id) if isinstance(got, Bundle) else ""
                return self._proved(offset, record, number, got, place)
            self._log.info("bundle.fetching", bundle=record.bundle, control_offset=offset)
            self._waiting = _Waiting(number, got)
        waiting = self._waiting
        result = waiting.fetch.result()
        if result is None:
            return None
        self._waiting = None
        return self._proved(offset, record, waiting.number, result, waiting.fetch.location)

    def _proved(
        self, offset: int, record: Activate, number: int | None, got: Bundle | Refused, place: str
    ) -> tuple[ActivationVerdict, Bundle | None]:
        """The verdict on an activation that may choose the model; `got` is what `place`, as it was opened, gave."""
        if isinstance(got, Refused):
            return self._refused(offset, record, number, got.reason, got.detail)
        if got.feature_set.fingerprint != self._fingerprint:
            detail = (
                f"bundle {got.id} has feature set {got.feature_set.fingerprint[:12]}, this shard computes "
                f"{self._fingerprint[:12]}; a new feature set needs a new shard or a rebuild"
            )
            return self._refused(offset, record, number, "unfit", detail)
        return self._noted(ActivationVerdict(offset=offset, bundle=got.id, number=number, location=place), got)

    def _right(self, record: Activate) -> tuple[Refusal | None, int | None]:
        """Why the record may not choose the model, if so; and the number that it uses up."""
        now_ms = self._threads.epoch_s() * 1000.0
        if self._trusted:
            return refusal_of(
                record, self._trusted, deployment=self._deployment, last_number=self._number, now_ms=now_ms
            )
        if not self._unsigned_allowed:
            return "unsigned", None
        expired = record.expires_ms is not None and now_ms >= record.expires_ms
        if not expired:
            self._log.warning(
                "activation.unsigned", bundle=record.bundle,
                reason="taken without a signature: FRAUD_SCORER_BUNDLE__UNSIGNED_ACTIVATIONS is set",
            )  # fmt: skip
        return ("expired" if expired else None), None

    def _refused(
        self, offset: int, record: Activate, number: int | None, reason: Refusal, detail: str
    ) -> tuple[ActivationVerdict, Bundle | None]:
        worker_metrics.BUNDLES_REFUSED.labels(str(self._shard), reason).inc()
        self._log.error(
            "bundle.refused", bundle=record.bundle, control_offset=offset, refused=reason,
            reason=detail or REASONS[reason],
        )  # fmt: skip
        verdict = ActivationVerdict(offset=offset, bundle=record.bundle, number=number, refused=reason)
        return self._noted(verdict, None)

    def _noted(self, verdict: ActivationVerdict, bundle: Bundle | None) -> tuple[ActivationVerdict, Bundle | None]:
        self._number = max(self._number, verdict.number or 0)
        self._verdicts[verdict.offset] = verdict, bundle
        return verdict, bundle


REASONS: dict[Refusal, str] = {
    "unsigned": "no key signed it: `fraud-scorer bundle activate --key`, with a key of "
    "FRAUD_SCORER_BUNDLE__TRUSTED_KEYS",
    "untrusted": "no trusted key signed it, or it was changed afterwards",
    "other_deployment": "it was signed for another deployment: another journal topic, or one that was made anew",
    "number_used": "its number, or a larger one, was used before: it was sent again, or two operators sent at once",
    "expired": "it was read after its expiry",
}


def _before(records: Sequence[RawRecord], offset: int) -> int:
    for place, raw in enumerate(records):
        if raw.offset >= offset:
            return place
    return len(records)
