"""Where an activated bundle may lie: below folders and URLs that a setting names, and nowhere else.

A location is data from a topic. So it is one of a few schemes, holds no credentials, query, fragment, chain ("::") or
"..", and is compared with the places part by part; a folder is compared after its symlinks are followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from scorer.bundle.bundle_errors import BundlePlaceError
from scorer.errors import UsageError

# Those that read files and nothing else. fsspec knows many more: some run requests of others (reference, github),
# unpack archives (zip, tar), or hold the data themselves (data, memory).
SCHEMES = ("file", "https", "http", "s3", "gs", "gcs", "abfs", "abfss", "az")
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:")
_PATH = re.compile(r"^[A-Za-z0-9._~@=+ /-]*$")
_HOST = re.compile(r"^[A-Za-z0-9._@-]+(:[0-9]{1,5})?$|^\[[0-9a-fA-F:.]+\](:[0-9]{1,5})?$")
# abfss://container@account.dfs.core.windows.net: what stands before the @ is no credential.
_CONTAINERS = ("abfs", "abfss")


@dataclass(frozen=True)
class Place:
    """A folder (empty scheme) or a URL, taken apart."""

    scheme: str
    host: str
    parts: tuple[str, ...]

    @property
    def text(self) -> str:
        """As it is opened, stored and shown."""
        path = "/".join(self.parts)
        return f"/{path}" if not self.scheme else f"{self.scheme}://{self.host}/{path}"

    @classmethod
    def parse(cls, text: str) -> Place:
        """Raises BundlePlaceError; the message has nothing of `text` but its scheme."""
        if text.startswith("/"):
            return cls._folder(text)
        if not _URL.match(text):
            raise BundlePlaceError("the location is neither an absolute path nor a URL")
        try:
            found = urlsplit(text)
        except ValueError:
            raise BundlePlaceError("the location cannot be read as a URL") from None
        scheme = found.scheme.lower()
        if scheme not in SCHEMES:
            raise BundlePlaceError(f"the scheme {scheme[:20]!r} is not taken; {', '.join(SCHEMES)} are")
        user = "@" in found.netloc and (scheme not in _CONTAINERS or ":" in found.netloc)
        if user or found.query or found.fragment or "?" in text or "#" in text:
            raise BundlePlaceError("the location holds credentials, a query or a fragment; give it without")
        if scheme == "file":
            if found.netloc:
                raise BundlePlaceError("a file URL is written file:///folder")
            return cls._folder(found.path)
        if not _HOST.match(found.netloc):
            raise BundlePlaceError("the location's host or bucket is not readable as one")
        return cls(scheme, found.netloc.lower(), _parts(found.path))

    @classmethod
    def _folder(cls, path: str) -> Place:
        if "\x00" in path or "::" in path or ".." in path.split("/"):
            raise BundlePlaceError('the location holds "..", "::" or a NUL')
        try:
            real = Path(path).resolve()
        except (OSError, RuntimeError, UnicodeError):  # a loop of symlinks; half a character
            raise BundlePlaceError("the folder's path cannot be followed") from None
        return cls("", "", real.parts[1:])

    def holds(self, other: Place) -> bool:
        """Whether `other` is this place, or lies below it."""
        same = (self.scheme, self.host) == (other.scheme, other.host)
        return same and other.parts[: len(self.parts)] == self.parts


class Places:
    """The places that a setting allows."""

    def __init__(self, allowed: Iterable[str]) -> None:
        """Raises UsageError for one that is not readable as a place."""
        self._allowed = []
        for number, text in enumerate(allowed, start=1):
            try:
                self._allowed.append(Place.parse(text))
            except BundlePlaceError as exc:
                raise UsageError(f"setting FRAUD_SCORER_BUNDLE__LOCATIONS, entry {number}: {exc}") from exc

    def of(self, location: str) -> Place:
        """The place that `location` names. Raises BundlePlaceError when it lies below none that is allowed."""
        place = Place.parse(location)
        if any(allowed.holds(place) for allowed in self._allowed):
            return place
        raise BundlePlaceError(
            f"a {place.scheme or 'folder'} location that lies below none of the {len(self._allowed)} allowed: see "
            "setting FRAUD_SCORER_BUNDLE__LOCATIONS"
        )


def shown(location: str) -> str:
    """A location for people: without anything that may be a secret."""
    try:
        return Place.parse(location).text
    except BundlePlaceError:
        scheme = _URL.match(location)
        if "@" in location:  # a password may hold any character: where it ends is not certain
            return f"{scheme[0] if scheme else ''}…"
        return re.split(r"[?#]", location)[0][:200]


def _parts(path: str) -> tuple[str, ...]:
    if not _PATH.match(path):
        raise BundlePlaceError("the location's path has characters other than letters, digits and . _ ~ @ = + - /")
    parts = tuple(part for part in path.split("/") if part)
    if any(part in (".", "..") for part in parts):
        raise BundlePlaceError('the location\'s path holds "." or ".."')
    return parts
