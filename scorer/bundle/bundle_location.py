"""Loading a bundle from its location: a local folder directly, any other URL through a temporary folder."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from scorer.bundle.bundle import Bundle
from scorer.bundle.bundle_transfer import Transfer

# An operator waits for the bundle of a start; a store that does not answer must not look like a start.
START_TIMEOUT_S = 600.0


def load_bundle(
    location: str | Path,
    *,
    trusted_keys: Sequence[str] = (),
    wanted: str | None = None,
    transfer: Transfer | None = None,
) -> Bundle:
    """Load and check the bundle at a folder or a URL such as s3://bundles/cards-3f9c2a11d07b.

    With `trusted_keys` one of them must have signed it; with `wanted` it must have that id. Raises BundleError;
    everything that Bundle.load checks is checked of the copy that was fetched.
    """
    text = str(location)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" not in text:
        return Bundle.load(text, trusted_keys=trusted_keys, wanted=wanted)
    copy = transfer or Transfer(seconds=START_TIMEOUT_S)
    with tempfile.TemporaryDirectory(prefix="fraud-scorer-bundle-") as folder:
        copy.run(text, Path(folder), trusted_keys=tuple(trusted_keys), wanted=wanted)
        return Bundle.load(folder, trusted_keys=trusted_keys, wanted=wanted)
