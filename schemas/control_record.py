"""The control topic: changes of lists, activations of bundles; distinguished by `type`. And the topic of labels.

Labels have a topic of their own, so that who may send them may send nothing else. The control topic takes them too:
those that were sent there before, and those of senders that were not changed yet.
"""

from __future__ import annotations

import json
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints, TypeAdapter

from schemas.card_fields import LIST, UNDECLARED, CardFields, CardRule
from schemas.card_mask import mask_digits
from schemas.contract_error import ContractError, DeadLetterReason, shape
from schemas.field_types import Contract, Identifier, check_contract
from schemas.json_document import VALUE_BYTES_MAX, parse_object
from schemas.label_record import Label

ListName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
Location = Annotated[str, StringConstraints(min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f\x7f]*$")]


class ListAdd(Contract):
    """Put a value on a list of the policy."""

    type: Literal["list_add"] = Field(default="list_add", description="Kind of control record.")
    list: ListName = Field(description="Name of the list, as in the policy.", examples=["blocked_terminals"])
    value: Identifier = Field(description="The value, as it stands in the payment's field.", examples=["t_3311"])


class ListRemove(Contract):
    """Take a value off a list of the policy. Taking off what is not there changes nothing."""

    type: Literal["list_remove"] = Field(default="list_remove", description="Kind of control record.")
    list: ListName = Field(description="Name of the list, as in the policy.", examples=["blocked_terminals"])
    value: Identifier = Field(description="The value, as it stands in the payment's field.", examples=["t_3311"])


class Activate(Contract):
    """Decide with another bundle from here on, provided that it passes its gate."""

    type: Literal["activate"] = Field(default="activate", description="Kind of control record.")
    bundle: Identifier = Field(
        description="Id of the bundle; the one found at `location` must have it.", examples=["cards-3f9c2a11d07b"]
    )
    location: Location = Field(
        description="Folder or object-store URL of the bundle, without credentials.",
        examples=["s3://bundles/cards-3f9c2a11d07b"],
    )
    number: int | None = Field(
        default=None,
        ge=1,
        lt=2**53,
        description="Rises with every activation of a deployment: one that was read once is never taken again.",
        examples=[1_767_225_600_000],
    )
    expires_ms: int | None = Field(
        default=None, ge=0, lt=2**53, description="Not taken after this time, epoch ms.", examples=[1_767_312_000_000]
    )
    deployment: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9._@-]{1,300}$",
        description="Whose activation it is: name of the journal topic, @, its id. Others refuse it.",
        examples=["journal@aGJcXuZ8TG2ZNvHdEVzpOQ"],
    )
    public_key: str | None = Field(
        default=None,
        pattern=r"^ed25519:[A-Za-z0-9+/]{43}=$",
        description='The key that signed, "ed25519:" and base64; one of the trusted keys.',
    )
    signature: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9+/]{86}==$",
        description="Ed25519 signature over all other fields but the key, base64.",
    )

    @property
    def signed_bytes(self) -> bytes:
        """What the signature is over: canonical JSON of all fields but `public_key` and `signature`."""
        fields = self.model_dump(mode="json", exclude={"public_key", "signature"})
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


Control = Label | ListAdd | ListRemove | Activate
control_adapter: TypeAdapter[Control] = TypeAdapter(Annotated[Control, Field(discriminator="type")])

_TYPES: Final[dict[str, type[Label] | type[ListAdd] | type[ListRemove] | type[Activate]]] = {
    "label": Label,
    "list_add": ListAdd,
    "list_remove": ListRemove,
    "activate": Activate,
}
# Integers of 13 digits that are no card numbers: see check_contract.
_TIMES: Final = frozenset({"event_time", "known_at", "number", "expires_ms"})


def parse_label(raw: bytes | None, *, value_bytes_max: int = VALUE_BYTES_MAX, cards: CardFields = UNDECLARED) -> Label:
    """The label in a value of topic labels. Raises ContractError, with reason not_a_label for any other record."""
    document = parse_object(raw, value_bytes_max)
    kind = document.get("type", "label")
    if kind != "label":
        raise ContractError(
            DeadLetterReason.NOT_A_LABEL, "type", f"expected label, found {shape(kind)}; lists and activations go to "
            "topic control"
        )  # fmt: skip
    return check_contract(Label, document, cards=cards)


def parse_control(
    raw: bytes | None, *, value_bytes_max: int = VALUE_BYTES_MAX, cards: CardFields = UNDECLARED
) -> Control:
    """The record in a control message's value. Raises ContractError.

    `cards`: what payment ids and the values of lists (lists.NAME) are; a value of a list of tokens is replaced.

    Its reasons are those of schemas.json_document, then invalid_control, then those of schemas.field_types.
    """
    document = parse_object(raw, value_bytes_max)
    kind = document.get("type")
    contract = _TYPES.get(kind) if isinstance(kind, str) else None
    if contract is None:
        raise ContractError(
            DeadLetterReason.INVALID_CONTROL, "type", f"expected one of {', '.join(_TYPES)}, found {shape(kind)}"
        )
    if contract not in (ListAdd, ListRemove):
        return check_contract(contract, document, _TIMES, cards)
    name = document.get("list")
    rule = cards.rule(f"{LIST}{name}")
    listed = check_contract(contract, document, _TIMES, cards.with_rules({"value": rule}))
    if rule is CardRule.TOKEN and isinstance(listed, ListAdd | ListRemove):
        return listed.model_copy(update={"value": cards.replaced(listed.value)})
    return listed


def parse_control_masked(raw: bytes | None) -> Control:
    """As `parse_control`, for a place that knows no declarations: a value of a list that looks like a card number is
    masked, not refused. Raises ContractError."""
    try:
        return parse_control(raw)
    except ContractError as error:
        if error.reason is not DeadLetterReason.CARD_NUMBER or error.field != "value":
            raise
    document = parse_object(raw)
    document["value"] = mask_digits(str(document["value"]).encode("utf-8", "surrogatepass")).decode()
    return check_contract(_TYPES[document["type"]], document, _TIMES)
