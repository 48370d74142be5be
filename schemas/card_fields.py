"""Which fields may hold a card number, and what a door does with it: declared by the feature set, the same everywhere.

    opaque     an id of the house or of a network: never tested, so that none is refused for looking like a card number
    token      may be a card number: every value is replaced by its pseudonym before anything else sees it
    refuse     must not be one: a value that is or holds a card number is refused

A card number cannot be distinguished from a long numeric id: one in ten of those passes the Luhn check. So the field
decides. Without a declaration the ids that payment systems and networks assign are opaque, and all else is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from schemas.pseudonym import PseudonymKeyError, is_pseudonym, pseudonym, ungrouped

KEY: Final = "key"  # the record's key, beside the names of fields
ATTRIBUTE: Final = "attributes."
LIST: Final = "lists."


class CardRule(StrEnum):
    """What is done with a value that looks like a card number."""

    OPAQUE = "opaque"
    TOKEN = "token"  # noqa: S105 - the name of the rule
    REFUSE = "refuse"


# An IMEI passes the Luhn check always, an acquirer's reference or a merchant's number one time in ten.
DEFAULTS: Final[Mapping[str, CardRule]] = dict.fromkeys(
    ("payment_id", "merchant_id", "terminal_id", "device_id"), CardRule.OPAQUE
)


@dataclass(frozen=True)
class CardFields:
    """The declarations, and the key for the pseudonyms of `token` fields.

    declared: by field, attributes.NAME, lists.NAME (a list of the policy) or key (the record's), in order of names ·
    ibans_spared: whether a text that certainly is an IBAN is none that holds a card number
    """

    declared: tuple[tuple[str, CardRule], ...] = ()
    pseudonym_key: bytes | None = field(default=None, repr=False)
    ibans_spared: bool = True

    @classmethod
    def of(cls, declared: Mapping[str, str]) -> CardFields:
        """From names and rules. Raises ValueError for a rule that is none."""
        return cls(tuple(sorted((name, CardRule(rule)) for name, rule in declared.items())))

    def with_key(self, key: bytes | None) -> CardFields:
        """The same declarations with a key."""
        return replace(self, pseudonym_key=key)

    def before_0_2(self) -> CardFields:
        """As releases before 0.2 tested records: every field, IBANs too."""
        return replace(self.with_rules(dict.fromkeys(DEFAULTS, CardRule.REFUSE)), ibans_spared=False)

    def with_rules(self, rules: Mapping[str, CardRule]) -> CardFields:
        """The same declarations and these, which win."""
        return replace(self, declared=tuple(sorted((dict(self.declared) | dict(rules)).items())))

    def rule(self, name: str) -> CardRule:
        """What holds for a field, an attribute (attributes.NAME) or a list (lists.NAME)."""
        for declared, rule in self.declared:
            if declared == name:
                return rule
        return DEFAULTS.get(name, CardRule.REFUSE)

    @property
    def key_rule(self) -> CardRule | None:
        """What is declared of the record's key; None: the rule of the field whose value it is."""
        return dict(self.declared).get(KEY)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The fields and attributes that are declared as token; the key and lists are not among them."""
        return tuple(
            name for name, rule in self.declared if rule is CardRule.TOKEN and name != KEY and not name.startswith(LIST)
        )

    @property
    def need_key(self) -> bool:
        """Whether anything is replaced by a pseudonym."""
        return any(rule is CardRule.TOKEN for _, rule in self.declared)

    def replaced(self, value: str | int | float) -> str:
        """The pseudonym of a value of a token field. Raises PseudonymKeyError without a key."""
        if self.pseudonym_key is None:
            raise PseudonymKeyError("a field is declared as token, and no key was given to replace its values with")
        return pseudonym(self.pseudonym_key, token_text(value))

    def is_value(self, text: str, value: str, rule: CardRule) -> bool:
        """Whether `text`, such as a record's key, is the `value` of a field of this rule: of a token field in any
        grouping, and also where its pseudonym came in."""
        if rule is not CardRule.TOKEN or text == value:
            return text == value
        if is_pseudonym(value):
            return self.pseudonym_key is not None and self.replaced(text) == value
        return ungrouped(text) == ungrouped(value)


def token_text(value: str | int | float) -> str:
    """A value of a token field as text: a whole number is its digits, whatever type it came as."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else str(value)


UNDECLARED: Final = CardFields()
