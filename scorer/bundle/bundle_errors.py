"""Why a bundle is refused.

BundleError                     (FraudScorerError)
├── BundleContentError          a file is missing, unknown, not a plain file, too large, or has another hash
│   └── BundleFetchError        a URL does not give it: not there, too late, too large
├── BundleManifestError         the manifest cannot be read, or is of another format version
├── BundleMismatchError         two parts contradict each other; the message names both sides
├── BundlePlaceError            it lies where none may be fetched from
├── BundleSignatureError        no trusted key signed it, or a signature does not fit
├── BundleGateError             the compiled model does not give the margins that its source gave
└── BundleExistsError           the output folder exists already
"""

from __future__ import annotations

from scorer.errors import FraudScorerError


class BundleError(FraudScorerError):
    """A bundle cannot be loaded or written."""


class BundleContentError(BundleError):
    """The folder does not hold what its manifest states."""

    exit_code = 3


class BundleFetchError(BundleContentError):
    """The bundle cannot be copied from its URL."""


class BundleManifestError(BundleError):
    """The manifest is not readable as one."""


class BundleMismatchError(BundleError):
    """Parts of the bundle contradict each other."""

    exit_code = 3


class BundleSignatureError(BundleError):
    """No trusted key signed the bundle."""

    exit_code = 3


class BundleGateError(BundleError):
    """The bundle's model does not give the margins that it gave when the bundle was written."""

    exit_code = 3


class BundleExistsError(BundleError):
    """The output exists; bundles are never overwritten."""


class BundlePlaceError(BundleError):
    """The location is not one from which a bundle may be fetched."""
