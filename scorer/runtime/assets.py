"""Files that are data, not code (migrations, deploy/), found the same way from a checkout and from an installed wheel.

The wheel carries them under `scorer/_assets/`; in a checkout they stand at the top level beside the packages.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGED = Path(__file__).resolve().parents[1] / "_assets"
_CHECKOUT = Path(__file__).resolve().parents[2]


def path(relative: str) -> Path:
    """The file or folder `relative` (such as "deploy/kafka/pom.xml"). Raises FileNotFoundError naming both places."""
    for root in (_PACKAGED, _CHECKOUT):
        candidate = root / relative
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"{relative} is neither in {_PACKAGED} nor in {_CHECKOUT}; reinstall fraud-scorer")
