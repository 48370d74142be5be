"""A mapping: which column of a file is which field of the payment contract. Read from YAML, checked by pydantic.

payment_id: TRANSACTION_ID
event_time: TX_DATETIME           # timestamps (naive ones are UTC), text, or epoch seconds, ms, us, ns
amount: TX_AMOUNT                 # major units, exact; or amount_minor
currency: {constant: EUR}
customer_id: CUSTOMER_ID
label: TX_FRAUD                   # 0 or 1; nothing where unknown
label_delay: 7d                   # a label becomes known that long after its payment
attributes: {basket: ITEMS}

Attributes keep the type that the file gives them. CSV has no types: there a cell that is a JSON number, true or false
is that value, and any other text is text. So 3, -0.5 and 1e3 are numbers; 007, +1, True and whole numbers beyond 64
bits stay text. Each cell is judged by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator

from features.yaml_model import read_yaml_model
from schemas.durations import parse_duration_ms
from schemas.field_table import FIELD_NAMES
from schemas.field_types import ATTRIBUTE_NAME, ATTRIBUTES_MAX
from schemas.verification_names import FORBIDDEN, is_verification_column, is_verification_name
from scorer.errors import UsageError

LABEL_DELAY_MS = 7 * 86_400_000


class MappingError(UsageError):
    """The mapping, or the file that it is used on, lacks something; the message names it and the way out."""


class Constant(BaseModel):
    """The same value in every row."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    constant: str | bool | int | float


def _source(value: object) -> object:
    if isinstance(value, dict) and set(value) == {"constant"}:
        return Constant.model_validate(value)
    if not isinstance(value, str | Constant) or value == "":
        raise ValueError("name a column, or write {constant: VALUE} for the same value in every row")
    return value


def _column(value: object) -> object:
    if not isinstance(value, str) or value == "":
        raise ValueError("name a column; a constant makes no sense here")
    return value


def _duration_ms(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("a duration is text such as 7d, 24h or 0s")
    if isinstance(value, int):
        raise ValueError(f"{value} has no unit; write {value}s, {value}m, {value}h or {value}d")
    return parse_duration_ms(value)


def _attribute_names(value: dict[str, str | Constant]) -> dict[str, str | Constant]:
    for name in value:
        if not ATTRIBUTE_NAME.fullmatch(name):
            raise ValueError(
                f"attribute name {name[:64]!r}: letters, digits, _ and . with a letter first, at most 64 characters"
            )
        if is_verification_name(name):
            raise ValueError(f"attribute {name!r} is {FORBIDDEN}")
    return value


ColumnOrConstant = Annotated[str | Constant, BeforeValidator(_source)]
Column = Annotated[str, BeforeValidator(_column)]


def _sources() -> dict[str, Any]:
    """A source for each field of the contract, optional unless Mapping says more; `amount` stands before
    `amount_minor`."""
    names = [name for field in FIELD_NAMES for name in (("amount", field) if field == "amount_minor" else (field,))]
    return dict.fromkeys(names, (ColumnOrConstant | None, None))


if TYPE_CHECKING:
    _Sources = BaseModel
else:
    _Sources = create_model("_Sources", **_sources())


class Mapping(_Sources):
    """Where each field of a payment comes from: the name of a column, or a Constant. Exactly one of amount and
    amount_minor.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    payment_id: Column
    event_time: Column
    amount: ColumnOrConstant | None = None
    amount_minor: ColumnOrConstant | None = None
    currency: ColumnOrConstant
    attributes: Annotated[dict[str, ColumnOrConstant], AfterValidator(_attribute_names)] = Field(
        default_factory=dict, max_length=ATTRIBUTES_MAX
    )
    label: Column | None = None
    # YAML gives text such as 7d; code that builds a Mapping writes `label_delay="7d"` too. Held in milliseconds.
    label_delay: Annotated[int, BeforeValidator(_duration_ms)] = LABEL_DELAY_MS

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: object) -> object:
        if isinstance(data, dict):
            unknown = sorted(str(name) for name in data if name not in cls.model_fields)
            if unknown:
                raise ValueError(f"unknown field {unknown[0][:64]!r}; known are {', '.join(cls.model_fields)}")
            missing = [name for name in ("payment_id", "event_time", "currency") if name not in data]
            if missing:
                raise ValueError(f"{missing[0]} is missing: say which column holds it")
        return data

    @model_validator(mode="after")
    def _one_amount(self) -> Mapping:
        if self.amount is not None and self.amount_minor is not None:
            raise ValueError(
                "amount and amount_minor are both given; keep amount (major units, 12.34) or amount_minor (1234)"
            )
        if self.amount is None and self.amount_minor is None:
            raise ValueError("neither amount (major units, 12.34) nor amount_minor (minor units, 1234) is given")
        for column in self.columns:
            if is_verification_column(column):
                raise ValueError(f"column {column[:64]!r} is {FORBIDDEN}")
        if "label_delay" in self.model_fields_set and self.label is None:
            raise ValueError("label_delay is given without label: name the label's column too")
        return self

    @property
    def columns(self) -> list[str]:
        """Every column that the mapping reads, each once, in the contract's order."""
        sources: list[object] = [
            getattr(self, name) for name in type(self).model_fields if name not in ("attributes", "label_delay")
        ]
        sources += self.attributes.values()
        return list(dict.fromkeys(source for source in sources if isinstance(source, str)))

    @classmethod
    def from_yaml(cls, source: str | Path) -> Mapping:
        """Read a mapping from YAML text, or from a file when a Path is given. Raises MappingError."""
        where = str(source) if isinstance(source, Path) else "mapping"
        try:
            text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
        except (OSError, UnicodeDecodeError) as exc:
            raise MappingError(f"{where}: cannot be read: {exc.__class__.__name__}") from exc
        return read_yaml_model(cls, text, where=where, error=MappingError)
