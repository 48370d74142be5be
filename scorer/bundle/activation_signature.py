"""Ed25519 signatures of activations: who may choose the model, for which deployment, until when.

The signature is over a fixed prefix and the record's canonical JSON, so that a bundle's signature is not valid here.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.control_record import Activate
from schemas.journal_record import Refusal
from scorer.bundle.signature import parse_public, public_name
from scorer.errors import UsageError

_PREFIX = b"fraud-scorer activation v1\n"


def signed_activation(record: Activate, key: Ed25519PrivateKey) -> Activate:
    """The record with the key's name and signature. Raises UsageError without number, expiry or deployment."""
    if None in (record.number, record.expires_ms, record.deployment):
        raise UsageError("an activation is signed with its number, its expiry and its deployment, or not at all")
    unsigned = record.model_copy(update={"public_key": public_name(key.public_key()), "signature": None})
    signature = base64.b64encode(key.sign(_PREFIX + unsigned.signed_bytes)).decode()
    return unsigned.model_copy(update={"signature": signature})


def refusal_of(
    record: Activate, trusted: Collection[str], *, deployment: str, last_number: int, now_ms: float
) -> tuple[Refusal | None, int | None]:
    """Why the record is refused (None: it is not), and the number that it uses up: None where no trusted key signed
    it for this deployment, or the number was used before. `trusted`: public keys as signature.public_name writes them.
    """
    if None in (record.public_key, record.signature) or record.number is None or record.expires_ms is None:
        return "unsigned", None
    if not _signed_by(record, trusted):
        return "untrusted", None
    if record.deployment != deployment:
        return "other_deployment", None
    if record.number <= last_number:
        return "number_used", None
    return ("expired" if now_ms >= record.expires_ms else None), record.number


def _signed_by(record: Activate, known: Collection[str]) -> bool:
    name, signature = record.public_key, record.signature
    if name is None or signature is None or name not in known:
        return False
    try:
        parse_public(name).verify(base64.b64decode(signature, validate=True), _PREFIX + record.signed_bytes)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True
