"""Ed25519 signatures over a manifest: a detached manifest.sig, any number of signers, trust by public key.

The manifest carries the hash of every other file, so what signs it signs them all. What is signed is a fixed prefix and
the manifest's bytes: a signature made for another purpose is not valid here. A public key is written as "ed25519:" and
its 32 bytes in base64.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scorer.bundle.bundle_errors import BundleContentError, BundleSignatureError
from scorer.bundle.bundle_folder import listing, read, sync_folder
from scorer.bundle.manifest import MANIFEST, SIGNATURE
from scorer.errors import UsageError

_PREFIX = b"fraud-scorer bundle manifest v1\n"
_KEY = "ed25519:"
_KEY_BYTES = 32


class _Signature(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    public_key: str = Field(max_length=64)
    signature: str = Field(max_length=128)


class _Signatures(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    signatures: list[_Signature] = Field(min_length=1, max_length=16)


def public_name(key: Ed25519PublicKey) -> str:
    """How a public key is written in settings and in manifest.sig."""
    return _KEY + base64.b64encode(key.public_bytes_raw()).decode()


def parse_public(text: str) -> Ed25519PublicKey:
    """The public key of "ed25519:BASE64", or of a PEM file's text. Raises UsageError."""
    stripped = text.strip()
    try:
        if stripped.startswith("-----"):
            loaded = serialization.load_pem_public_key(stripped.encode())
            if isinstance(loaded, Ed25519PublicKey):
                return loaded
        elif stripped.startswith(_KEY):
            raw = base64.b64decode(stripped[len(_KEY) :], validate=True)
            if len(raw) == _KEY_BYTES:
                return Ed25519PublicKey.from_public_bytes(raw)
    except (ValueError, binascii.Error, UnsupportedAlgorithm) as error:
        raise UsageError("a trusted key is neither 'ed25519:BASE64' nor an Ed25519 public key in PEM") from error
    raise UsageError("a trusted key is neither 'ed25519:BASE64' nor an Ed25519 public key in PEM")


def new_private_key(path: Path) -> Ed25519PrivateKey:
    """Make a key and write it to a new file that only this user reads (PKCS 8, PEM). Raises UsageError if the file
    exists.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise UsageError(f"the key {path} cannot be written: {error.strerror}") from error
    with os.fdopen(handle, "wb") as file:
        file.write(pem)
    return key


def read_private_key(path: Path, password: bytes | None = None) -> Ed25519PrivateKey:
    """The Ed25519 key of a PEM file. Raises UsageError; the key's text is never part of the message."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path} is not a readable private key in PEM ({type(error).__name__})") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} is not an Ed25519 key; make one with: fraud-scorer bundle sign --new-key")
    return key


def signers(manifest: bytes, raw: bytes) -> list[str]:
    """The public keys whose signatures in `raw` (manifest.sig) fit. Raises BundleSignatureError for one that does not
    fit.
    """
    try:
        found = _Signatures.model_validate(json.loads(raw))
    except (ValidationError, ValueError, RecursionError) as error:
        raise BundleSignatureError(
            f"{SIGNATURE} cannot be read ({type(error).__name__}); sign the bundle again"
        ) from error
    names = []
    for item in found.signatures:
        try:
            parse_public(item.public_key).verify(base64.b64decode(item.signature, validate=True), _PREFIX + manifest)
        except (InvalidSignature, UsageError, ValueError, binascii.Error) as error:
            raise BundleSignatureError(
                f"the signature of {item.public_key[:60]} does not fit {MANIFEST}: one of the two was changed"
            ) from error
        names.append(item.public_key)
    return names


def require_trusted(manifest: bytes, raw: bytes | None, trusted: Iterable[str]) -> str:
    """The trusted key that signed the manifest. Raises BundleSignatureError when there is none."""
    known = {public_name(parse_public(text)) for text in trusted}
    if raw is None:
        raise BundleSignatureError(
            f"the bundle is not signed, and {len(known)} trusted keys are set; sign it with: fraud-scorer bundle sign"
        )
    names = signers(manifest, raw)
    for name in names:
        if name in known:
            return name
    raise BundleSignatureError(f"the bundle is signed by {names[0]}, which is none of the {len(known)} trusted keys")


def sign(folder: Path, key: Ed25519PrivateKey, manifest: bytes) -> str:
    """Add a signature over `manifest`, the bytes that the caller has verified, and give the public key's name.

    The file is replaced in one step; a signature by the same key is replaced. Raises BundleContentError, also
    when the folder's manifest is not the one that was verified, or BundleSignatureError.
    """
    if read(folder, MANIFEST) != manifest:
        raise BundleContentError(f"{MANIFEST} in {folder} was changed after it was verified; nothing was signed")
    name = public_name(key.public_key())
    kept: list[_Signature] = []
    if SIGNATURE in listing(folder):
        raw = read(folder, SIGNATURE)
        signers(manifest, raw)
        kept = [item for item in _Signatures.model_validate(json.loads(raw)).signatures if item.public_key != name]
    made = _Signature(public_key=name, signature=base64.b64encode(key.sign(_PREFIX + manifest)).decode())
    document = _Signatures(signatures=[*kept, made]).model_dump(mode="json")
    temporary = folder.parent / f".{folder.name}.{SIGNATURE}.{os.getpid()}"
    temporary.write_bytes((json.dumps(document, indent=2, sort_keys=True) + "\n").encode())
    temporary.replace(folder / SIGNATURE)
    sync_folder(folder)
    return name
