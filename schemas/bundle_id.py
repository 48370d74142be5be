"""A bundle's id: its name, and what its manifest says."""

from __future__ import annotations

import hashlib


def bundle_id(name: str, manifest: bytes) -> str:
    """`name`, as the manifest has it, with the beginning of the SHA-256 of the manifest's bytes."""
    return f"{name}-{hashlib.sha256(manifest).hexdigest()[:12]}"
