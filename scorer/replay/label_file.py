"""Labels in a file of their own, as control records: one JSON object a line, as `fraud-scorer simulate --labels` writes
them and the control topic carries them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from schemas.card_fields import UNDECLARED, CardFields
from schemas.contract_error import ContractError
from schemas.control_record import parse_control
from schemas.label_record import Label
from scorer.errors import UsageError
from scorer.files.file_columns import DecodedBlock
from scorer.pipeline.records import ControlRecord

_Labels = dict[str, list[tuple[Label, bytes]]]


def read_labels(path: Path, cards: CardFields = UNDECLARED) -> _Labels:
    """The label records of each payment, in the file's order; the ids are as `cards` has them in payments. Raises
    UsageError naming the line."""
    found: _Labels = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                raw = line.strip()
                if not raw:
                    continue
                try:
                    record = parse_control(raw, cards=cards)
                except ContractError as error:
                    raise UsageError(f"--labels {path}:{number}: {error}") from error
                if not isinstance(record, Label):
                    raise UsageError(f"--labels {path}:{number}: a record of type {record.type!r}, wanted label")
                found.setdefault(record.payment_id, []).append((record, raw))
    except OSError as error:
        raise UsageError(f"--labels {path} cannot be read: {error.strerror}") from error
    if not found:
        raise UsageError(f"--labels {path} holds no label")
    return found


def with_labels(
    blocks: Iterable[DecodedBlock],
    path: Path,
    cards: CardFields = UNDECLARED,
    unmatched: Callable[[int], None] = lambda _: None,
) -> Iterator[DecodedBlock]:
    """The blocks with the labels of the file `path`, each beside the first record of its payment.

    `cards`: of whoever decides the blocks, for a payment that it takes has to be found here too. `unmatched` is called
    with how many labelled payments were in no block. Raises UsageError for a file whose payments have labels already,
    or when no label is of a payment of the file.
    """
    labels = read_labels(path, cards)
    count = len(labels)
    for block in blocks:
        if (block.label >= 0).any():
            raise UsageError(f"--labels {path}: the mapping names a label too; leave one of the two out")
        payments = block.records.decode(cards)
        label, known_at = block.label.copy(), block.label_known_at_ms.copy()
        control: list[ControlRecord] = []
        for row, payment_id in zip(payments.index.tolist(), payments.column("payment_id").tolist(), strict=True):
            records = labels.pop(payment_id, ())
            for record, raw in records:
                control.append(ControlRecord(len(control), None, raw))
                if record.known_at_ms >= known_at[row]:
                    label[row], known_at[row] = int(record.fraud), record.known_at_ms
        yield replace(block, labels=control, label=label, label_known_at_ms=known_at)
    if len(labels) == count:
        raise UsageError(f"--labels {path}: none of the {count:,} payments there is one of the payments read")
    if labels:
        unmatched(len(labels))
