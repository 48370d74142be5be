"""The accepted payments of a batch by field, whatever they came as: what the feature engine and the policy read.

schemas.placed_payments has those that came as JSON, whose texts stay where they stand in the batch's bytes;
schemas.payment_columns those that came as columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.contract_error import ContractError
from schemas.field_kinds import DEGREES_MAX, TEXT_KINDS, Kind
from schemas.field_table import FIELDS, POSITION_FIELDS, TEXT_FIELDS

TEXTS: Final = frozenset(TEXT_FIELDS)
NUMBERS: Final = frozenset(POSITION_FIELDS)
_TYPES: Final[dict[Kind, Any]] = {
    Kind.TIME: str | int,
    Kind.AMOUNT: int,
    Kind.ATTRIBUTES: dict[str, str | int | float | bool | None],
    **{kind: Annotated[float, msgspec.Meta(ge=-bound, le=bound)] for kind, bound in DEGREES_MAX.items()},
    **dict.fromkeys(TEXT_KINDS, str),
}

if TYPE_CHECKING:

    class PaymentRow(msgspec.Struct):
        """For the type checker, which cannot see fields that are made from a table."""

        def __init__(self, *values: Any, **fields: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...
else:
    PaymentRow = msgspec.defstruct(
        "PaymentRow",
        [
            (field.name, _TYPES[field.kind]) if field.required else (field.name, _TYPES[field.kind] | None, None)
            for field in FIELDS
        ],
        frozen=True,
        gc=False,  # it holds texts, numbers and one flat dict
        forbid_unknown_fields=True,
        module=__name__,
        namespace={"__doc__": "One accepted payment, fields as in the contract."},
    )


class Reject(NamedTuple):
    """A value that the contract refuses: its position in the input given, and why."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used
    error: ContractError


class Placed(NamedTuple):
    """A text field as kernels read it: places int64 [n] of its values in `data` (schemas.payment_screen)."""

    data: npt.NDArray[np.uint8]
    places: npt.NDArray[np.int64]


class PaymentBatch(ABC):
    """The accepted payments of a batch, n of them, and the refused ones. Nothing in it may be changed; `take` gives a
    new batch.

    index: int32 [n], position of each accepted one in the input given · event_time_ms: int64 [n], epoch ms, UTC ·
    amount_minor: int64 [n] · rejects: by ascending index · keys: by index the record's key where a pseudonym stands
    for it
    """

    def __init__(
        self,
        *,
        index: npt.NDArray[np.int32],
        event_time_ms: npt.NDArray[np.int64],
        amount_minor: npt.NDArray[np.int64],
        rejects: list[Reject],
        keys: Mapping[int, bytes],
    ) -> None:
        self.index = index
        self.event_time_ms = event_time_ms
        self.amount_minor = amount_minor
        self.rejects = rejects
        self.keys = keys
        self._columns: dict[str, npt.NDArray[Any]] = {}
        self._texts: dict[str, pa.StringArray] = {}

    def __len__(self) -> int:
        return len(self.index)

    @property
    @abstractmethod
    def rows(self) -> Sequence[PaymentRow]:
        """The payments as rows, made when they are asked for."""

    def column(self, name: str) -> npt.NDArray[Any]:
        """A field of the contract, [n], cached.

        Object (str or None) for texts, float64 (NaN when absent) for positions. Raises KeyError for what is neither;
        times, amounts and attributes have their own members.
        """
        found = self._columns.get(name)
        if found is None:
            if name not in NUMBERS and name not in TEXTS:
                known = ", ".join(sorted(TEXTS | NUMBERS))
                raise KeyError(f"{name} is no text or position field of a payment; there are {known}")
            found = self._numbers_of(name) if name in NUMBERS else as_objects(self.text(name).to_pylist())
            self._columns[name] = found
        return found

    def text(self, name: str) -> pa.StringArray:
        """A text field of the contract as Arrow, [n], null where absent; cached. Raises KeyError for any other."""
        return self.texts((name,))[0]

    def texts(self, names: Sequence[str]) -> list[pa.StringArray]:
        """Several text fields, as `text` gives each."""
        if missing := [name for name in names if name not in self._texts]:
            for name in missing:
                _check_text(name)
            self._texts.update(zip(missing, self._text_arrays(missing), strict=True))
        return [self._texts[name] for name in names]

    def placed(self, name: str) -> Placed:
        """A text field as kernels read it. Raises KeyError for what is no text field."""
        _check_text(name)
        return self._placed(name)

    def attribute(self, name: str) -> npt.NDArray[np.object_]:
        """The attribute `name` of each payment, object [n]: str, int, float, bool, or None where it has none.

        Cached.
        """
        key = f"attributes.{name}"
        found = self._columns.get(key)
        if found is None:
            found = self._columns[key] = self._attributes_of(name)
        return found

    def attribute_numbers(self, name: str) -> npt.NDArray[np.float64]:
        """The attribute `name` of each payment as a number, float64 [n]: a truth value is 0 or 1, NaN stands for a text
        and for none."""
        return as_numbers(self.attribute(name))

    @abstractmethod
    def _text_arrays(self, names: Sequence[str]) -> list[pa.StringArray]: ...
    @abstractmethod
    def _placed(self, name: str) -> Placed: ...
    @abstractmethod
    def _numbers_of(self, name: str) -> npt.NDArray[np.float64]: ...
    @abstractmethod
    def _attributes_of(self, name: str) -> npt.NDArray[np.object_]: ...
    @abstractmethod
    def take(self, order: npt.NDArray[np.integer[Any]]) -> PaymentBatch:
        """The accepted payments at the positions `order`, in that order. The rejects stay."""


def _check_text(name: str) -> None:
    if name not in TEXTS:
        raise KeyError(f"{name} is no text field of a payment; there are {', '.join(sorted(TEXTS))}")


def as_objects(values: Sequence[Any]) -> npt.NDArray[np.object_]:
    """A column of Python objects, object [n]."""
    column = np.empty(len(values), dtype=np.object_)
    column[:] = values
    return column


def as_numbers(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Numbers and truth values of a column of Python objects, float64 [n], NaN for anything else."""
    if values.dtype != object:
        return values.astype(np.float64)
    return np.array([float(v) if isinstance(v, int | float) else np.nan for v in values.tolist()], np.float64)


as_fields: Final = attrgetter(*(field.name for field in FIELDS))
