"""The feature set's declaration of what may hold a card number, with the key for its tokens."""

from __future__ import annotations

from typing import Final

from features.feature_set import FeatureSet
from schemas.card_fields import CardFields
from schemas.pseudonym import PseudonymKeyError, PseudonymKeys
from scorer.errors import UsageError

NO_KEYS: Final = PseudonymKeys()


def cards_of(feature_set: FeatureSet, keys: PseudonymKeys, key_id: str | None = None) -> CardFields:
    """What a door needs: the declarations, and the key of that id (None: the first) where a field is a token.

    Raises UsageError when there is none.
    """
    cards = feature_set.cards
    if not cards.need_key:
        return cards
    try:
        return cards.with_key(keys.current() if key_id is None else keys.named(key_id))
    except PseudonymKeyError as exc:
        raise UsageError(str(exc)) from exc
