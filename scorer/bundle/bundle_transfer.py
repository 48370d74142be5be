"""A bundle copied from a URL to a folder: the manifest first, then the files that it names; counted, with a deadline.

Nothing is listed and no announced size is trusted: what was read is counted. The manifest must have the id that is
wanted and the signature that is demanded before anything else is read. No message has anything of what a server
answered but its status.
"""

from __future__ import annotations

import contextlib
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import IO, Any, Protocol

import fsspec

from scorer.bundle.bundle import parse_manifest
from scorer.bundle.bundle_errors import BundleFetchError
from scorer.bundle.bundle_folder import bytes_max
from scorer.bundle.bundle_places import shown
from scorer.bundle.manifest import MANIFEST, SIGNATURE
from scorer.bundle.signature import require_trusted

# A bundle is a handful of files; a wrong URL must not fill the disk.
BYTES_MAX = 2 << 30
CHUNK_BYTES = 1 << 18
# Of one connect, and of one wait for the next bytes.
SOCKET_TIMEOUT_S = 10.0


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Transfer:
    """One copy. `abort` ends it from another thread."""

    def __init__(
        self, *, seconds: float, bytes_max: int = BYTES_MAX, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._monotonic = monotonic
        self._deadline = monotonic() + seconds
        self._seconds = seconds
        self._bytes_left = bytes_max
        self._aborted = False
        self._sockets: list[socket.socket] = []

    @property
    def late(self) -> bool:
        """Whether its time is over."""
        return self._aborted or self._monotonic() > self._deadline

    def abort(self) -> None:
        """End what runs: a socket that waits is shut down, anything else ends with its next chunk."""
        self._aborted = True
        for each in list(self._sockets):
            with contextlib.suppress(OSError):  # ended meanwhile
                each.shutdown(socket.SHUT_RDWR)

    def _connected(self, made: socket.socket) -> None:
        self._sockets.append(made)
        if self._aborted:
            raise TimeoutError("aborted")

    def run(self, url: str, folder: Path, *, trusted_keys: tuple[str, ...] = (), wanted: str | None = None) -> None:
        """Copy the bundle at `url` into `folder`; with `wanted` it must have that id. Raises BundleError."""
        opened = self._http(url) if url.startswith(("http://", "https://")) else _fsspec(url)
        raw = self._copy(opened, url, MANIFEST, folder)
        signature = self._copy(opened, url, SIGNATURE, folder, optional=True)
        if raw is None:
            raise BundleFetchError(f"there is no bundle at {shown(url)}: it holds no {MANIFEST}")
        if trusted_keys:
            require_trusted(raw, signature, trusted_keys)
        for name in parse_manifest(raw, Path(shown(url)), wanted=wanted).files:
            if self._copy(opened, url, name, folder) is None:
                raise BundleFetchError(f"{shown(url)} lacks {name!r}, which its manifest names")

    def _copy(
        self, opened: Callable[[str], AbstractContextManager[_Readable]], url: str, name: str, folder: Path,
        *, optional: bool = False,
    ) -> bytes | None:  # fmt: skip
        """Copy one file; its bytes where it is small. None when it is not there, or not readable and `optional`."""
        limit = bytes_max(name)
        small = name in (MANIFEST, SIGNATURE)
        kept = bytearray()
        taken = 0
        try:
            with opened(name) as source, (folder / name).open("xb") as target:
                while chunk := source.read(CHUNK_BYTES):
                    taken += len(chunk)
                    self._bytes_left -= len(chunk)
                    self._check(url, name, taken, limit)
                    target.write(chunk)
                    if small:
                        kept += chunk
                self._check(url, name, taken, limit)
        except FileNotFoundError:
            return None
        except PermissionError as exc:  # what an object store answers for a missing object where listing is denied
            if optional:
                return None
            raise _failed(url, name, exc) from None
        except (OSError, ValueError, ImportError, HTTPException) as exc:
            self._check(url, name, taken, limit)
            raise _failed(url, name, exc) from None
        return bytes(kept)

    def _check(self, url: str, name: str, taken: int, limit: int) -> None:
        if taken > limit or self._bytes_left < 0:
            raise BundleFetchError(f"{name!r} at {shown(url)} is larger than a bundle's may be: {taken} bytes so far")
        if self.late:
            raise BundleFetchError(f"{name!r} at {shown(url)} was not read within {self._seconds:g} s")

    def _http(self, url: str) -> Callable[[str], AbstractContextManager[_Readable]]:
        """Opens files below an HTTP URL; a redirect is an error, for it may lead anywhere."""
        opener = urllib.request.OpenerDirector()
        handlers: tuple[urllib.request.BaseHandler, ...] = (
            urllib.request.ProxyHandler(), _Http(self._connected), _Https(self._connected),
            urllib.request.HTTPErrorProcessor(), urllib.request.HTTPDefaultErrorHandler(),
        )  # fmt: skip
        for handler in handlers:
            opener.add_handler(handler)

        @contextmanager
        def opened(name: str) -> Iterator[_Readable]:
            request = urllib.request.Request(  # noqa: S310 - http or https by the caller's test
                f"{url.rstrip('/')}/{name}", headers={"Accept-Encoding": "identity", "Connection": "close"}
            )
            try:
                answer: IO[bytes] | None = opener.open(request, timeout=SOCKET_TIMEOUT_S)
            except urllib.error.HTTPError as exc:
                exc.close()
                if exc.code in (404, 410):
                    raise FileNotFoundError(name) from None
                raise
            if answer is None:
                raise OSError("no handler")
            with answer:
                yield answer

        return opened


class _Http(urllib.request.HTTPHandler):
    """Shows its sockets, so that they can be shut down."""

    def __init__(self, connected: Callable[[socket.socket], None]) -> None:
        super().__init__()
        self._connected = connected

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_showing(HTTPConnection, self._connected), req)


class _Https(urllib.request.HTTPSHandler):
    """As _Http, with TLS as the machine's certificates have it."""

    def __init__(self, connected: Callable[[socket.socket], None]) -> None:
        super().__init__()
        self._connected = connected

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_showing(HTTPSConnection, self._connected), req)


def _showing(kind: type[HTTPConnection], connected: Callable[[socket.socket], None]) -> Any:
    """A class of connections that call `connected` with their socket, which the answer takes over later."""

    class Showing(kind):  # type: ignore[misc, valid-type]
        def connect(self) -> None:
            super().connect()
            connected(self.sock)

    return Showing


def _fsspec(url: str) -> Callable[[str], AbstractContextManager[_Readable]]:
    """Opens files below any other URL that fsspec knows."""
    try:
        fs, root = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError, OSError) as exc:
        # Texts of fsspec itself, which name a protocol or a package.
        detail = f": {exc}" if isinstance(exc, ImportError) else ""
        raise BundleFetchError(f"the bundle at {shown(url)} cannot be fetched ({type(exc).__name__}{detail})") from None
    fs.invalidate_cache()
    return lambda name: fs.open(f"{root.rstrip('/')}/{name}", "rb")  # type: ignore[no-any-return]


def _failed(url: str, name: str, exc: Exception) -> BundleFetchError:
    status = f" {exc.code}" if isinstance(exc, urllib.error.HTTPError) else ""
    return BundleFetchError(f"{name!r} at {shown(url)} cannot be fetched ({type(exc).__name__}{status})")
