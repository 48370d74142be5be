"""Signed documents: canonical JSON with an Ed25519 signature, for anchors, tombstones and erasures.

    {"body":{…},"key":"first 16 hex digits of the public key's SHA-256","signature":"base64"}

The signature is over the canonical bytes of `body` (sorted keys, no spaces, UTF-8). Without a key `key` and `signature`
are null.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from scorer.errors import UsageError


class SignatureBroken(ValueError):
    """A document is not what the key signed."""


def canonical(body: dict[str, Any]) -> bytes:
    """The bytes that are signed and hashed."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class Signer:
    """A private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.verifier = Verifier(key.public_key())

    @classmethod
    def from_pem(cls, pem: str) -> Signer:
        """From PKCS 8 PEM. Raises UsageError."""
        try:
            key = serialization.load_pem_private_key(pem.encode(), password=None)
        except (ValueError, TypeError) as exc:
            raise UsageError(
                f"audit.signing_key is not an unencrypted PEM private key ({type(exc).__name__})"
            ) from None
        if not isinstance(key, Ed25519PrivateKey):
            raise UsageError("audit.signing_key is not an Ed25519 key; `fraud-scorer audit keygen` makes one")
        return cls(key)

    @classmethod
    def generate(cls) -> Signer:
        """A new key."""
        return cls(Ed25519PrivateKey.generate())

    def to_pem(self) -> bytes:
        """PKCS 8, not encrypted."""
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def sign(self, body: dict[str, Any]) -> str:
        """The document, one line of JSON."""
        signature = base64.b64encode(self._key.sign(canonical(body))).decode()
        return canonical({"body": body, "key": self.verifier.key_id, "signature": signature}).decode()


class Verifier:
    """A public key."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.key_id = hashlib.sha256(raw).hexdigest()[:16]

    @classmethod
    def from_pem(cls, pem: str) -> Verifier:
        """From SubjectPublicKeyInfo PEM. Raises UsageError."""
        try:
            key = serialization.load_pem_public_key(pem.encode())
        except ValueError as exc:
            raise UsageError(f"audit.public_key is not a PEM public key ({type(exc).__name__})") from None
        if not isinstance(key, Ed25519PublicKey):
            raise UsageError("audit.public_key is not an Ed25519 key")
        return cls(key)

    def to_pem(self) -> bytes:
        """SubjectPublicKeyInfo."""
        return self._key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    def open(self, document: str) -> dict[str, Any]:
        """The body. Raises SignatureBroken unless this key signed it."""
        parsed = _parse(document)
        if parsed["signature"] is None:
            raise SignatureBroken("it is not signed")
        try:
            self._key.verify(base64.b64decode(parsed["signature"], validate=True), canonical(parsed["body"]))
        except (InvalidSignature, ValueError, TypeError):
            raise SignatureBroken(f"key {self.key_id} did not sign it") from None
        return dict(parsed["body"])


def unsigned(body: dict[str, Any]) -> str:
    """A document without a signature."""
    return canonical({"body": body, "key": None, "signature": None}).decode()


def body_of(document: str, verifier: Verifier | None) -> dict[str, Any]:
    """The body, checked against `verifier` when there is one. Raises SignatureBroken."""
    return dict(_parse(document)["body"]) if verifier is None else verifier.open(document)


def _parse(document: str) -> dict[str, Any]:
    try:
        parsed = json.loads(document)
        if not isinstance(parsed["body"], dict) or parsed.keys() != {"body", "key", "signature"}:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise SignatureBroken("it is not a signed document") from None
    return dict(parsed)
