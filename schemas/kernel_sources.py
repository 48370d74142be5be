"""The digest of all that decides about compiled kernels: sources of this release, compiler, Python.

Numba keeps a kernel by the content of its own file alone; a kernel compiled with a function or constant of another file
would stay after that one changed. So the digest is over the files with kernels and every file that they import, in
turn.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

PACKAGES: Final = ("schemas", "features", "scorer")
# What makes the code, or a constant in it (the list of currencies).
_VERSION_FILES: Final = (
    ("numba", "_version.py"),
    ("llvmlite", "_version.py"),
    ("numpy", "version.py"),
    ("iso4217", ""),
)
_DECLARES_KERNELS: Final = (b"cache=True", b"kernel_decorators")
_IMPORT: Final = re.compile(
    rb"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)|import[ \t]+([\w.]+))", re.MULTILINE
)
_NAME: Final = re.compile(rb"\w+")


def digest(root: Path) -> str:
    """32 hex digits over the sources of the packages below `root` and the versions of what compiles them.

    Takes 10 ms (310 files of 1.5 MB); compiling takes minutes.
    """
    sources = _sources(root)
    total = hashlib.sha256(f"{sys.implementation.cache_tag}\n".encode())
    for package, name in _VERSION_FILES:
        total.update(f"{package} {_version(package, name)}\n".encode())
    for module in sorted(_with_imports(sources)):
        total.update(f"{module} {hashlib.sha256(sources[module]).hexdigest()}\n".encode())
    return total.hexdigest()[:32]


def _sources(root: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for package in PACKAGES:
        for folder, _, names in os.walk(root / package):
            parts = Path(folder).relative_to(root).parts
            for name in names:
                if name.endswith(".py"):
                    with open(f"{folder}/{name}", "rb") as file:  # noqa: PTH123 - twice as fast, over 300 files
                        found[".".join(parts if name == "__init__.py" else (*parts, name[:-3]))] = file.read()
    return found


def _with_imports(sources: dict[str, bytes]) -> set[str]:
    """The modules that declare kernels and all they import, in turn."""
    waiting = [module for module, text in sources.items() if any(mark in text for mark in _DECLARES_KERNELS)]
    reached: set[str] = set()
    while waiting:
        if (module := waiting.pop()) in reached:
            continue
        reached.add(module)
        for origin, names, plain in _IMPORT.findall(sources[module]):
            base = (origin or plain).decode()
            wanted = [base, *(f"{base}.{name.decode()}" for name in _NAME.findall(names))]
            waiting += [name for name in wanted if name in sources and name not in reached]
    return reached


def _version(package: str, name: str) -> str:
    """The digest of the file that names a library's version, or the folder when it has none. Nothing is imported."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return "absent"
    folder = Path(spec.origin).parent
    files = [folder / name] if name else sorted(entry for entry in folder.iterdir() if entry.is_file())
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.exists())).hexdigest()
