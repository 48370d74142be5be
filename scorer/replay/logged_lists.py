"""The live lists at a position of the control topic, made of the changes that the audit trail keeps.

The sink knows no declarations of card numbers, and masks every value of a list that looks like one. What the worker did
with the value follows from the rule of the list's field:

    refuse     a value that looks like a card number made a dead letter, and no change
    token      any value was replaced by its pseudonym; that of a masked one cannot be made
    opaque     the value is on the list as it came; a masked one is not known
"""

from __future__ import annotations

from bisect import bisect_right

import psycopg

from schemas.card_fields import CardRule
from schemas.card_mask import mask_digits
from schemas.card_numbers import DIGITS_MIN
from schemas.pseudonym import PseudonymKeys
from scorer.bundle import Bundle
from scorer.errors import UsageError
from scorer.pipeline.card_keys import cards_of


class LoggedLists:
    """`values`: by the name of each of the policy's lists, at the position that `advance` named last."""

    def __init__(
        self, connection: psycopg.Connection, bundle: Bundle, *, shard: int, control_end: int, keys: PseudonymKeys
    ) -> None:
        """The changes before offset `control_end`. Raises UsageError where one cannot be known."""
        self.values: dict[str, set[str]] = {item.name: set(item.values) for item in bundle.policy.lists}
        self._changes: list[tuple[int, str, str, str]] = []
        self._next = 0
        rules = {item.name: bundle.feature_set.cards.rule(item.field) for item in bundle.policy.lists}
        changes = connection.execute(
            "SELECT \"offset\", type, record->>'list', record->>'value' FROM control_changes "
            "WHERE type IN ('list_add', 'list_remove') AND record->>'list' = ANY (%s) AND \"offset\" < %s "
            'ORDER BY "offset"',
            (list(rules), control_end),
        ).fetchall()
        unknown = [(offset, name) for offset, _, name, value in changes if _unknown(value, rules[name])]
        if unknown:
            offset, name = unknown[0]
            raise UsageError(
                f"{len(unknown)} changes of the policy's lists hold a value that looks like a card number, which the "
                f"trail keeps masked (the first one of list {name}, offset {offset} of topic control): use --input "
                "topic"
            )
        tokens = None
        for offset, kind, name, value in changes:
            if rules[name] is CardRule.TOKEN:
                tokens = tokens or _Tokens(connection, bundle, shard, keys)
                self._changes.append((offset, kind, name, tokens.pseudonym(offset, value)))
            elif not is_masked(value):
                self._changes.append((offset, kind, name, value))

    def advance(self, control_end: int) -> None:
        """Apply the changes before this offset."""
        while self._next < len(self._changes) and self._changes[self._next][0] < control_end:
            _, kind, name, value = self._changes[self._next]
            if kind == "list_add":
                self.values[name].add(value)
            else:
                self.values[name].discard(value)
            self._next += 1


def is_masked(value: str) -> bool:
    """Whether a value of table control_changes is one whose digits the sink has masked."""
    return value.count("*") >= DIGITS_MIN and mask_digits(value.encode("utf-8", "surrogatepass")) == value.encode(
        "utf-8", "surrogatepass"
    )


def _unknown(value: str, rule: CardRule) -> bool:
    return rule is not CardRule.REFUSE and is_masked(value)


class _Tokens:
    """Values of lists of tokens as the worker replaced them: with the key of the batch that read each change."""

    def __init__(self, connection: psycopg.Connection, bundle: Bundle, shard: int, keys: PseudonymKeys) -> None:
        self._bundle, self._keys = bundle, keys
        read = connection.execute(
            "SELECT (journal->'control'->>'end')::bigint, journal->>'pseudonym_key' FROM batches WHERE shard = %s "
            "AND journal->'control'->>'end' <> journal->'control'->>'start' ORDER BY sequence",
            (shard,),
        ).fetchall()
        self._ends, self._key_ids = [end for end, _ in read], [key_id for _, key_id in read]

    def pseudonym(self, offset: int, value: str) -> str:
        """What stands for the value of the change at `offset`. Raises UsageError without its key."""
        place = bisect_right(self._ends, offset)
        key_id = self._key_ids[place] if place < len(self._key_ids) else None
        return cards_of(self._bundle.feature_set, self._keys, key_id).replaced(value)
