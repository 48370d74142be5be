"""The library's engine: payments in, a matrix of features out, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from features.engine_state import KNOWN_BYTES
from features.feature_set import FeatureSet
from features.hashing import hash_strings
from features.window_engine import WindowEngine
from schemas.payment_batch import PaymentBatch
from schemas.payment_decoder import decode_payments


class FeatureEngine:
    """Rolling features of a stream of payments, exact: what the live worker computes, without Kafka.

        import json
        from features import FeatureEngine, FeatureSet

        engine = FeatureEngine(FeatureSet.from_yaml('''
            name: cards
            currency: EUR
            entities: {card: [card_token]}
            features:
              - {name: amount, payment: amount}
              - {name: card_count_1h, entity: card, aggregate: count, window: 1h, include_current: true}
        '''))
        records = [json.dumps(payment).encode() for payment in (
            {"payment_id": "p1", "event_time": "2026-01-01T12:00:00Z", "amount_minor": 950, "currency": "EUR",
             "card_token": "tok_a"},
            {"payment_id": "p2", "event_time": "2026-01-01T12:20:00Z", "amount_minor": 120, "currency": "EUR",
             "card_token": "tok_a"},
        )]
        engine.apply(records)        # float32 [2, 2]: [[9.5, 1.0], [1.2, 2.0]]

    The windows live in memory, or, with `folder`, the payments inside them in files there, which only this engine may
    use. Close the engine, or use it in a `with` statement, to delete the files. Not thread-safe.
    Raises SegmentError when the folder cannot be used.
    """

    def __init__(
        self, feature_set: FeatureSet, *, folder: str | Path | None = None, pseudonym_key: bytes | None = None
    ) -> None:
        if not isinstance(feature_set, FeatureSet):
            raise TypeError(
                f"feature_set is of type {type(feature_set).__name__}, wanted a FeatureSet: FeatureSet.from_yaml(text) "
                "or FeatureSet.from_yaml(Path(file))"
            )
        self._engine = WindowEngine(feature_set, folder=None if folder is None else Path(folder))
        self._base_currency = feature_set.currency
        self._cards = feature_set.cards.with_key(pseudonym_key)

    @property
    def feature_set(self) -> FeatureSet:
        """What the engine computes."""
        return self._engine.feature_set

    @property
    def names(self) -> list[str]:
        """The columns of the matrix, in order."""
        return self._engine.feature_set.names

    @property
    def stream_time_ms(self) -> int | None:
        """Largest event time so far, epoch ms; windows end here. None before the first payment."""
        return self._engine.stream_time_ms

    def apply(self, batch: PaymentBatch | Sequence[bytes]) -> npt.NDArray[np.float32]:
        """The features of each payment, float32 [n, F], and the windows moved on.

        `batch`: JSON payments in order of arrival (`fraud-scorer schemas payment` prints the contract), or what
        schemas.decode_payments has made of them; then refused records are left out. Each payment sees those before it,
        in this batch and in earlier ones; how the stream is cut changes no value. A payment id must not come
        twice: the windows would count it twice. A payment later than the set's `allowed_lateness` gets its features
        and changes no window.

        Raises ValueError for a record that is not a payment, for a currency without exchange rate and on a closed
        engine, TypeError for what is no sequence of bytes, and SegmentError when the disk is full; then nothing has
        changed.
        """
        payments = batch if isinstance(batch, PaymentBatch) else decode_payments(batch, cards=self._cards)
        if payments is not batch and payments.rejects:
            first = payments.rejects[0]
            raise ValueError(
                f"record {first.index} is not a payment ({first.error}); {len(payments.rejects)} of {len(batch)} are "
                f"not: repair or leave them out"
            )
        amount, convertible = self._engine.convert(payments)
        if not convertible.all():
            raise ValueError(
                f"record {int(payments.index[int(np.argmin(convertible))])}: currency: the feature set has no exchange "
                f"rate to {self._base_currency} for it; add it under `rates`, or leave such payments out"
            )
        ids, _ = hash_strings(payments.text("payment_id"), self._engine.hash_key)
        features, _ = self._engine.apply(payments, amount, ids)
        return features

    def add_label(self, payment_id: str, *, fraud: bool, known_at_ms: int) -> None:
        """Whether a payment was fraud; features see it from stream time `known_at_ms` on, not earlier.

        Of several labels of a payment the one with the largest `known_at_ms` counts, in whichever order they are given;
        of equal ones the one that was given last.

        Raises TypeError for a value of another type, ValueError for a time before 1970.
        """
        for name, value, kind in (
            ("payment_id", payment_id, str),
            ("fraud", fraud, bool | np.bool_),
            ("known_at_ms", known_at_ms, int | np.integer),
        ):
            if not isinstance(value, kind):
                raise TypeError(f"{name} is of type {type(value).__name__}, wanted {getattr(kind, '__name__', kind)}")
        if not 0 <= known_at_ms < 1 << 8 * KNOWN_BYTES:
            raise ValueError(f"known_at_ms {known_at_ms} is no time in milliseconds from 1970 on")
        self._engine.add_label(payment_id, fraud=fraud, known_at_ms=known_at_ms)

    def close(self) -> None:
        """Delete the files in `folder`. The engine cannot be used afterwards."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
