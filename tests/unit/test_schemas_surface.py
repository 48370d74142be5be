"""What `import schemas` offers, and that the payment's fields stand in one place."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import schemas
from features.filters import KEY_FIELDS
from schemas.decision import DECISIONS, MODES, Decision
from schemas.field_table import FIELD_NAMES, POSITION_FIELDS, REQUIRED_FIELDS, TEXT_FIELDS
from schemas.payment import Payment
from schemas.payment_batch import PaymentRow
from scorer.files.mapping import Mapping

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = [
    "ContractError", "DeadLetterReason", "Decision", "Label", "Payment", "PaymentBatch", "Reject", "decode_payments",
]  # fmt: skip
# A copy of the packages in which the contract has one line more. Run as a program: kernels and classes are made anew.
NEW_FIELD = '    wallet_id: Identifier | None = Field(default=None, description="Wallet.", examples=["w_1"])\n'
PROGRAM = """
import json, sys
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
from features.filters import is_field
from schemas.payment_decoder import decode_payments
from scorer.files.file_columns import decoded_blocks
from scorer.files.mapping import Mapping
from scorer.pipeline.warm_up import _PAYMENT
good = {"payment_id": "p", "event_time": 1767225600000, "amount_minor": 1, "currency": "EUR", "wallet_id": "w_9"}
batch = decode_payments([json.dumps(good).encode(), json.dumps(good | {"wallet_id": "4111.1111.1111.1111"}).encode()])
assert batch.column("wallet_id").tolist() == ["w_9"], batch
assert [(r.index, r.error.field) for r in batch.rejects] == [(1, "wallet_id")]
pq.write_table(pa.table({name: [value] for name, value in good.items()}), "one.parquet")
mapping = Mapping.model_validate({name: name for name in good})
(block,) = decoded_blocks(Path("one.parquet"), mapping, 10)
assert block.records.decode().rows[0].wallet_id == "w_9"
assert is_field("wallet_id") and _PAYMENT["wallet_id"] == "w_1"
"""


def test_the_public_names_are_pinned() -> None:
    """Programs that import these names from `schemas` go on working: each is there, typed and documented."""
    assert schemas.__all__ == PUBLIC
    assert all(getattr(schemas, name).__doc__ for name in PUBLIC)
    assert (ROOT / "schemas" / "py.typed").is_file()


def test_a_batch_is_decoded_with_public_names_alone() -> None:
    """A program without the rest of the repository decodes payments, and reads why one was refused."""
    good = b'{"payment_id":"p_1","event_time":"2026-01-01T12:30:00Z","amount_minor":5716,"currency":"EUR"}'
    batch = schemas.decode_payments([good, good.replace(b"5716", b"-1")])
    assert (len(batch), batch.column("currency").tolist(), batch.amount_minor.tolist()) == (1, ["EUR"], [5716])
    (reject,) = batch.rejects
    assert (reject.index, reject.error.reason) == (1, schemas.DeadLetterReason.AMOUNT_NEGATIVE)
    assert schemas.Payment.from_json(good).payment_id == batch.rows[0].payment_id


def test_every_list_of_fields_is_the_contracts() -> None:
    """Rows, kernel tables, mapping and filters know exactly the fields of the contract, in its order."""
    names = tuple(Payment.model_fields)
    assert FIELD_NAMES == PaymentRow.__struct_fields__ == names
    mapped = [name for name in Mapping.model_fields if name != "amount"]
    assert tuple(mapped[: mapped.index("label")]) == names
    assert {*TEXT_FIELDS, *POSITION_FIELDS, "event_time", "amount_minor", "attributes"} == set(names)
    assert set(KEY_FIELDS) == set(TEXT_FIELDS)
    assert REQUIRED_FIELDS == ("payment_id", "event_time", "amount_minor", "currency")


def test_a_new_field_is_one_line(tmp_path: Path) -> None:
    """One line in `Payment` and the field is decoded, screened for cards, mapped from files and filtered by."""
    for name in ("schemas", "features", "scorer"):
        for source in (ROOT / name).rglob("*.py"):
            copy = tmp_path / source.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
    contract = tmp_path / "schemas" / "payment.py"
    text = contract.read_text()
    before = "    attributes: Attributes | None"
    assert text.count(before) == 1
    contract.write_text(text.replace(before, NEW_FIELD + before))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_modes_and_decisions_stand_in_one_place() -> None:
    """The names in published schemas are those whose positions the columns carry."""
    published = Decision.model_json_schema()["properties"]
    assert (tuple(published["decision"]["enum"]), tuple(published["mode"]["enum"])) == (DECISIONS, MODES)
    assert (
        json.dumps([*DECISIONS, *MODES]) == '["approve", "flag", "normal", "degraded", "duplicate", "late", "refused"]'
    )
