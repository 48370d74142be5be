"""All contracts as JSON Schema, for those who write to the topics or read from them in another language."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from schemas.contract_error import DeadLetterReason
from schemas.control_record import control_adapter
from schemas.dead_letter import DeadLetter
from schemas.decision import Decision
from schemas.fast_decision import FastDecision
from schemas.journal_record import JournalRecord
from schemas.label_record import Label
from schemas.payment import Payment


def json_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schema (2020-12) of each contract by its name.

    What a schema cannot say (Luhn, duplicate names) is in the descriptions.
    """
    from schemas.audit_record import AuditRow  # noqa: PLC0415 - pyarrow is not needed by those who only decode

    models: dict[str, type[BaseModel]] = {
        "payment": Payment,
        "label": Label,
        "decision": Decision,
        "fast_decision": FastDecision,
        "dead_letter": DeadLetter,
        "journal": JournalRecord,
        "audit": AuditRow,
    }
    schemas = {name: model.model_json_schema() for name, model in models.items()}
    schemas["control"] = control_adapter.json_schema()
    reasons = schemas["dead_letter"]["$defs"]["DeadLetterReason"]
    reasons["oneOf"] = [{"const": reason.value, "description": reason.sentence} for reason in DeadLetterReason]
    for name, schema in schemas.items():
        schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
        schema["$id"] = f"urn:fraud-scorer:{name}"
    return schemas
