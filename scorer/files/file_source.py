"""Where payments are read from: a file, a folder, a pattern, an object store or stdin, as local files with safe names.

What the database reads are links in a folder of our own, so no name of a user's file is ever a pattern or SQL. What is
not a local file of UTF-8 text is copied into that folder first.
"""

from __future__ import annotations

import codecs
import glob
import io
import re
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

import fsspec
import numpy as np
import pyarrow as pa

from scorer.errors import FraudScorerError

Kind = Literal["parquet", "csv", "json"]
STDIN = "-"
# What a text is decoded as where it is not UTF-8 and the mapping does not say.
FALLBACK_ENCODING = "cp1252"

_SUFFIXES: dict[str, Kind] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
}
_PACKED = {".gz": "gzip", ".zst": "zstd"}
_MAGIC = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"))
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_CHUNK = 1 << 20
_NEWLINE, _RETURN = 10, 13
_PIECE = 16 << 20  # of a line, at most


class FileError(FraudScorerError):
    """The file cannot be read to its end as payments; the message says where and why."""


class Workspace:
    """A folder of our own, removed with all that is in it by `close`, or when nothing refers to it any more."""

    def __init__(self, parent: Path | None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fraud-scorer-", dir=parent)).resolve()
        self.close = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Opened:
    """Files to read as one: `paths` are in the folder of `workspace`.

    `encoding`: what the text was decoded from, None where it is UTF-8. `shown`: what a user calls each of `paths`.
    `guesses`: sentences about files whose encoding the mapping does not name.
    """

    name: str
    kind: Kind
    paths: tuple[Path, ...]
    workspace: Workspace
    encoding: str | None
    bytes_total: int
    shown: tuple[str, ...]
    guesses: tuple[str, ...] = ()


def is_url(source: str | Path) -> bool:
    """Whether it is an address of an object store, such as s3://bucket/payments.parquet."""
    return isinstance(source, str) and "://" in source


def open_source(
    source: str | Path, *, encoding: str | None = None, temp_folder: Path | None = None, as_bytes: bool = False
) -> Opened:
    """What `source` names, ready to be read. `encoding` is that of a text file; `as_bytes`: text stays as it is.

    Raises FileError.
    """
    name = "stdin" if str(source) == STDIN else str(source)
    workspace = Workspace(temp_folder)
    folder = workspace.folder
    try:
        found = _found(source, name, folder)
        kinds = {_kind(path, shown) for path, shown in found}
        if len(kinds) > 1:
            raise FileError(f"{name}: holds files of different types ({', '.join(sorted(kinds))}); name one of them")
        (one,) = kinds
        if name == "stdin" and one == "csv":
            one = _guessed(found[0][0])
        paths, encodings, guesses = [], set(), []
        for number, (path, shown) in enumerate(found):
            as_it_is = one == "parquet" or as_bytes
            used, guess = (None, None) if as_it_is else _encoding(path, shown, encoding)
            paths.append(_ready(path, folder, number, one, used, guessed=guess is not None))
            encodings.add(used)
            guesses += [guess] if guess is not None else []
        total, names = sum(path.stat().st_size for path, _ in found), tuple(shown for _, shown in found)
        decoded_from = next(iter(encodings - {None}), None)
        return Opened(name, one, tuple(paths), workspace, decoded_from, total, names, tuple(guesses))
    except OSError as exc:
        workspace.close()
        raise FileError(f"{name}: cannot be read: {exc.strerror or exc.__class__.__name__}") from exc
    except BaseException:
        workspace.close()
        raise


def identity(source: str | Path) -> dict[str, object]:
    """Name, size and time of change of what `source` names, as far as they are known without reading it."""
    if is_url(source) or str(source) == STDIN:
        return {"source": str(source), "source_bytes": None, "source_changed_ns": None}
    stats = [path.stat() for path in _local(str(source))]
    return {
        "source": Path(source).name,
        "source_bytes": sum(stat.st_size for stat in stats),
        "source_changed_ns": max(stat.st_mtime_ns for stat in stats),
    }


def lines(name: str, paths: Sequence[Path], line_bytes_max: int) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, without their ends, with their numbers from 1. Raises FileError naming `name`."""
    number = 0
    for path in paths:
        try:
            with unpacked(path) as raw:
                while line := raw.readline(line_bytes_max + 1):
                    number += 1
                    if len(line) > line_bytes_max:
                        raise FileError(
                            f"{name}: line {number} is longer than {line_bytes_max} bytes; a payment a line"
                        )
                    if line := line.strip(b" \t\r\n"):
                        yield number, line
        except (OSError, EOFError, pa.ArrowException) as exc:
            raise FileError(f"{name}: after line {number}: cannot be read; is the file complete?") from exc


def _found(source: str | Path, name: str, folder: Path) -> list[tuple[Path, str]]:
    """Local files and their names, in the order in which they are read."""
    if str(source) == STDIN:
        return [(_copied(sys.stdin.buffer, folder / "stdin"), name)]
    if is_url(source):
        return _fetched(str(source), folder)
    return [(path, str(path)) for path in _local(str(source))]


def _local(source: str) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and _by_suffix(p.name) and not _hidden(p, path))
        if not found:
            raise FileError(f"{source}: the folder has no file of payments; known are {', '.join(_SUFFIXES)}")
        return found
    if path.exists() or not glob.has_magic(source):
        if not path.is_file():
            raise FileError(f"{source}: no such file")
        return [path]
    found = sorted(Path(match) for match in glob.glob(source, recursive=True) if Path(match).is_file())  # noqa: PTH207
    if not found:
        raise FileError(f"{source}: no file has a name of this pattern")
    return found


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.relative_to(root).parts)


def _fetched(url: str, folder: Path) -> list[tuple[Path, str]]:
    try:
        system, path = fsspec.core.url_to_fs(url)
        if glob.has_magic(path):
            names = sorted(system.glob(path))
        elif system.isdir(path):
            names = sorted(n for n in system.find(path) if _by_suffix(Path(n).name))
        else:
            names = [path]
        if not names:
            raise FileError(f"{url}: there is no file of payments")
        found = []
        for number, name in enumerate(names):
            with system.open(name, "rb") as remote:
                found.append((_copied(remote, folder / f"fetched-{number}"), str(name)))
    except (OSError, ValueError, ImportError) as exc:
        # The message of a client may hold a key.
        raise FileError(
            f"{url}: cannot be read: {exc.__class__.__name__}; is the place right, and its fsspec package installed?"
        ) from exc
    return found


def _copied(raw: BinaryIO, to: Path) -> Path:
    with to.open("wb") as out:
        shutil.copyfileobj(raw, out, _CHUNK)
    return to


def _by_suffix(name: str) -> Kind | None:
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    if suffixes and suffixes[-1] in _PACKED:
        suffixes = suffixes[:-1]
    return _SUFFIXES.get(suffixes[-1]) if suffixes else None


def _kind(path: Path, name: str) -> Kind:
    with path.open("rb") as raw:
        start = raw.read(4)
    if start == b"PAR1":
        return "parquet"
    by_name = _by_suffix(name)
    if by_name == "parquet":
        raise FileError(f"{name}: not readable as parquet: it does not begin as one")
    if by_name is None and name != "stdin":
        raise FileError(
            f"{name}: the suffix tells no file type; known are {', '.join(_SUFFIXES)}, and .gz or .zst after them"
        )
    return by_name or "csv"


def _guessed(path: Path) -> Kind:
    """Text without a name is JSON when it begins so."""
    return "json" if begins_with(path) in (b"{", b"[") else "csv"


def begins_with(path: Path) -> bytes:
    """The first byte of a text that is no blank and no byte order mark; none where there is none."""
    with unpacked(path) as raw:
        while chunk := raw.read(4096):
            if found := chunk.lstrip(b"\xef\xbb\xbf \t\r\n"):
                return found[:1]
    return b""


def _packing(path: Path) -> str | None:
    with path.open("rb") as raw:
        start = raw.read(4)
    return next((packing for magic, packing in _MAGIC if start.startswith(magic)), None)


def unpacked(path: Path) -> BinaryIO:
    """The bytes of a file of text, without its packing."""
    raw = pa.input_stream(str(path), compression=_packing(path))
    return cast(BinaryIO, io.BufferedReader(raw, _CHUNK))


def _ready(path: Path, folder: Path, number: int, kind: Kind, used: str | None, *, guessed: bool) -> Path:
    """A link to the file, or its text as UTF-8 where it is decoded from `used`."""
    packing = None if kind == "parquet" else _packing(path)
    suffix = {None: "", "gzip": ".gz", "zstd": ".zst"}[packing]
    to = folder / f"{number:06d}.{kind}{suffix}"
    if used is None:
        to.symlink_to(path.resolve())
        return to
    to = folder / f"{number:06d}.{kind}"
    decoder = codecs.getincrementaldecoder(used)()
    try:
        with unpacked(path) as raw, to.open("wb") as out:
            while chunk := raw.read(_CHUNK):
                out.write(decoder.decode(chunk).encode("utf-8"))
            out.write(decoder.decode(b"", final=True).encode("utf-8"))
    except UnicodeError as exc:
        where = "the text is neither UTF-8 nor" if guessed else "the text is not"
        raise FileError(f"{path.name}: {where} {used}; write its encoding into the mapping (encoding: NAME)") from exc
    return to


def _encoding(path: Path, shown: str, encoding: str | None) -> tuple[str | None, str | None]:
    """What to decode the text from, None where it is UTF-8 without a mark; and a sentence where this is a guess.

    Raises FileError where some of the text is UTF-8 and some is not."""
    with unpacked(path) as raw:
        start = raw.read(4)
        for bom, name in _BOMS:
            if start.startswith(bom):
                return name, None
        if encoding is not None:
            return None if encoding in ("utf-8", "ascii") else encoding, None
        decoder = codecs.getincrementaldecoder("utf-8")()
        chunk: bytes = start
        try:
            while chunk:
                decoder.decode(chunk)
                chunk = raw.read(_CHUNK)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return FALLBACK_ENCODING, _guess(path, shown)
        except (OSError, EOFError, pa.ArrowException) as exc:
            raise FileError(f"{path.name}: cannot be read; is the file complete?") from exc
    return None, None


# Letters that texts of payments have. Two letters of another encoding that happen to be UTF-8 are seldom any of these:
# NESCAFÉ® in cp1252 is one letter of the phonetic alphabet.
_UNUSUAL = re.compile("[\u0080-\u009f\u0180-\u036f\u0700-\u08ff]")


def _guess(path: Path, shown: str) -> str:
    """What a user has to know of a text that is not UTF-8. Raises FileError where no fewer lines of it are than are
    not: one wrong byte would change every letter of them."""
    first, lines = {True: 0, False: 0}, {True: 0, False: 0}  # by whether it is UTF-8
    with unpacked(path) as raw:
        for number, line in enumerate(iter(lambda: raw.readline(_PIECE), b""), 1):
            if line.isascii():
                continue
            try:
                if _UNUSUAL.search(line.decode("utf-8")) is not None:
                    continue
                is_utf8 = True
            except UnicodeDecodeError:
                is_utf8 = False
            lines[is_utf8] += 1
            first[is_utf8] = first[is_utf8] or number
    if lines[True] >= lines[False] > 0:
        raise FileError(
            f"{shown}: line {first[False]} is not UTF-8, and line {first[True]} is; correct the first, or write into"
            " the mapping what all of the text is (encoding: NAME)"
        )
    return (
        f"{shown} is not UTF-8 (line {first[False]}); it is read as {FALLBACK_ENCODING}. If it is that, write encoding:"
        f" {FALLBACK_ENCODING} into the mapping, else its own encoding"
    )


def lines_of(opened: Opened) -> int | None:
    """How many lines the texts have that are not blank; None where lines end with a carriage return alone."""
    total = 0
    for path in opened.paths:
        ends, last = 0, b"\n\n"
        with unpacked(path) as raw:
            while chunk := raw.read(_CHUNK):
                data = np.frombuffer(last + chunk, dtype=np.uint8)
                at = np.flatnonzero(data[2:] == _NEWLINE) + 2
                before, further = data[at - 1], data[at - 2]
                blank = (before == _NEWLINE) | ((before == _RETURN) & (further == _NEWLINE))
                ends += len(at)
                total += int(np.count_nonzero(~blank))
                last = data[-2:].tobytes()
        if not ends and last != b"\n\n":
            return None
        total += not last.endswith(b"\n")
    return total


def names_of(paths: Sequence[Path]) -> str:
    """The paths as a list of SQL texts."""
    return "[" + ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths) + "]"
