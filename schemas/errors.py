"""The one error of the contracts: a record that cannot be accepted, with the reason that its dead letter carries.

    ContractError       an outcome, not a failure: the record becomes a dead letter and the next one is read

A message names the field and the value's shape, never the value: it could be a card number or a secret. Names of
fields that the contract does not know are payload too, and are not repeated either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schemas.dead_letter import DeadLetterReason


class ContractError(Exception):
    """A record that its contract refuses. Two errors are equal when reason, field and message are."""

    def __init__(self, reason: DeadLetterReason, field: str | None, message: str) -> None:
        super().__init__(reason, field, message)  # as args, so that it pickles
        self.reason = reason
        self.field = field
        self.message = message

    def __str__(self) -> str:
        return (
            f"{self.reason.value}: {self.message}"
            if self.field is None
            else f"{self.reason.value}: {self.field}: {self.message}"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ContractError) and self.args == other.args

    def __hash__(self) -> int:
        return hash(self.args)


def without_frames(error: ContractError) -> ContractError:
    """The same error without traceback and context, for one that is kept: those hold the frames that it came through,
    their texts and tables, which made a batch of refusals cost seven times as much in the collector as in deciding."""
    error.__traceback__ = error.__context__ = None
    return error


def shape(value: object) -> str:
    """What kind of JSON value this is and how large, without any part of it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, int):
        # schemas.documents writes 10^40 for everything that is longer.
        return (
            f"an integer of {len(str(abs(value)))} digits"
            if abs(value) < 10**40
            else "an integer of more than 40 digits"
        )
    if isinstance(value, float):
        return "a number with a fraction or exponent"
    if isinstance(value, str):
        return f"a string of {len(value)} characters"
    if isinstance(value, dict):
        return f"an object of {len(value)} names"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return f"a {type(value).__name__}"
