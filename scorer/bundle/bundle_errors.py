"""What can be wrong with a bundle.

BundleError                     (FraudScorerError)
├── BundleContentError          a file is missing, unknown, not a plain file, too large, or has another hash
├── BundleManifestError         the manifest cannot be read, or is of another format version
├── BundleMismatchError         two parts contradict each other; the message names both sides
├── BundleSignatureError        no trusted key signed it, or a signature does not fit
├── BundleGateError             the compiled model does not give the margins that its source gave
└── BundleExistsError           something stands where the bundle is to be written
"""

from __future__ import annotations

from scorer.errors import FraudScorerError


class BundleError(FraudScorerError):
    """A bundle cannot be loaded or written."""


class BundleContentError(BundleError):
    """The folder does not hold what its manifest says."""

    exit_code = 3


class BundleManifestError(BundleError):
    """The manifest is not readable as one."""


class BundleMismatchError(BundleError):
    """Parts of the bundle contradict each other."""

    exit_code = 3


class BundleSignatureError(BundleError):
    """The bundle is not signed by anybody who is trusted."""

    exit_code = 3


class BundleGateError(BundleError):
    """The bundle's model does not do what it did when the bundle was made."""

    exit_code = 3


class BundleExistsError(BundleError):
    """The place to write to is taken; bundles are never overwritten."""
