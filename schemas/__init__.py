"""The contracts: everything that crosses a topic, a file or a table, and how it is read and checked.

The package may touch bytes and values that it is given; it knows no file, client, clock or logger, and no other
package of this repository.

    batch = schemas.decode_payments([b'{"payment_id": "p_1", ...}'])      # PaymentBatch: columns, rows, rejects

`decode_payments` takes many payments at once, `Payment.from_json` one with the same outcome. A refused record is a
`ContractError` with a `DeadLetterReason`. `Label` and `Decision` are the records of a verdict and of a decision.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from schemas import kernel_cache

if TYPE_CHECKING:
    from schemas.contract_error import ContractError, DeadLetterReason
    from schemas.decision import Decision
    from schemas.label_record import Label
    from schemas.payment import Payment
    from schemas.payment_batch import PaymentBatch, Reject
    from schemas.payment_decoder import decode_payments

__all__ = [
    "ContractError",
    "DeadLetterReason",
    "Decision",
    "Label",
    "Payment",
    "PaymentBatch",
    "Reject",
    "decode_payments",
]

kernel_cache.ensure()  # before any kernel is declared

# Loaded when asked for: most programs import single modules, and need neither pydantic nor pyarrow for them.
_MODULES: Final = {
    "ContractError": "contract_error",
    "DeadLetterReason": "contract_error",
    "Decision": "decision",
    "Label": "label_record",
    "Payment": "payment",
    "PaymentBatch": "payment_decoder",
    "Reject": "payment_decoder",
    "decode_payments": "payment_decoder",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'schemas' has no attribute {name!r}; public are {', '.join(__all__)}")
    return getattr(import_module(f"schemas.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
