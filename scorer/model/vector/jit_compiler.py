"""Compiling IR for the host's own CPU, and keeping the object code on disk: the only file access of the model package.

The cache holds code, so it is trusted like the installation itself: files of this user or root, in a folder where no
other user may write, nor in those above it (`schemas.folder_trust`), or no cache at all. A kernel is a function of its
text, LLVM's version, the CPU and the passes; the file's name is the hash of all four, and the file begins with the hash
of its content, so a torn write is compiled again. So is code that does not load.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from schemas import folder_trust

CACHE_VARIABLE = "FRAUD_SCORER_KERNEL_CACHE"
"""Environment variable: folder of the compiled kernels; empty turns the cache off."""
_HASH_BYTES = 32
_OPTIMISE = 3
_UNROLL = False  # what should be unrolled is written unrolled
# What decides about the code besides its text, LLVM and the CPU; part of the file's name.
_OPTIONS = f"speed={_OPTIMISE} unroll={_UNROLL} reloc=pic codemodel=jitdefault"


class JitUnavailableError(RuntimeError):
    """LLVM cannot compile or load code here; the plain evaluator serves instead."""


@dataclass(frozen=True)
class Host:
    """The CPU that kernels are compiled for."""

    triple: str
    cpu: str
    features: str

    @property
    def permutes(self) -> bool:
        """Whether a 512-bit register can be looked up by index."""
        return self.triple.startswith("x86_64") and "+avx512f" in self.features and "+avx512bw" in self.features

    @property
    def permutes_bytes(self) -> bool:
        """Whether 128 bytes in two registers can be looked up by index (AVX-512 VBMI)."""
        return self.permutes and "+avx512vbmi," in f"{self.features},"


# Two threads that meet an unknown kernel both load it, and both copies are right: no lock is needed.
_loaded: dict[str, dict[str, int]] = {}
_numbers = itertools.count()
# Code stays for the life of the process: an evaluator may hold its address, and there are few kernels (one per depth).
_kept: list[Any] = []


def host() -> Host:
    """The CPU of this machine, as LLVM names it. Raises JitUnavailableError."""
    try:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        return Host(llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())
    except (RuntimeError, OSError) as error:
        raise JitUnavailableError(f"LLVM does not know this CPU: {error}") from error


def addresses(source: str, names: tuple[str, ...], machine: Host) -> dict[str, int]:
    """The addresses of functions `names` in the module `source`, compiled once per process and once per cache.

    Raises JitUnavailableError.
    """
    key = _key(source, machine)
    if key not in _loaded:
        try:
            _loaded[key] = _load(key, source, names, machine)
        except (RuntimeError, OSError, AttributeError) as error:
            raise JitUnavailableError(f"LLVM cannot compile the kernels here: {error}") from error
    return _loaded[key]


def _key(source: str, machine: Host) -> str:
    llvm_version = (llvmlite.__version__, str(llvm.llvm_version_info))
    stamp = "\n".join((source, machine.triple, machine.cpu, machine.features, *llvm_version, _OPTIONS))
    return hashlib.sha256(stamp.encode()).hexdigest()


def _target_machine(machine: Host) -> Any:
    target = llvm.Target.from_triple(machine.triple)
    return target.create_target_machine(
        cpu=machine.cpu, features=machine.features, opt=_OPTIMISE, reloc="pic", codemodel="jitdefault", jit=True
    )


def _load(key: str, source: str, names: tuple[str, ...], machine: Host) -> dict[str, int]:
    folder = _folder()
    code = _read(folder, key)
    if code is not None:
        # Whole as it was written, and yet no code that loads here: made by another build, say. It is replaced.
        with contextlib.suppress(RuntimeError, OSError, AttributeError, LookupError):
            return _link(key, code, names, machine)
    code = _compile(source, machine)
    _write(folder, key, code)
    return _link(key, code, names, machine)


def _link(key: str, code: bytes, names: tuple[str, ...], machine: Host) -> dict[str, int]:
    compiler = llvm.create_lljit_compiler(_target_machine(machine))
    builder = llvm.JITLibraryBuilder().add_object_img(code).add_current_process()
    for name in names:
        builder.export_symbol(name)
    library = builder.link(compiler, f"kernels-{key[:16]}-{next(_numbers)}")
    _kept.extend((compiler, library))
    return {name: int(library[name]) for name in names}


def _compile(source: str, machine: Host) -> bytes:
    module = llvm.parse_assembly(source)
    module.verify()
    target = _target_machine(machine)
    options = llvm.create_pipeline_tuning_options(speed_level=_OPTIMISE)
    options.loop_unrolling = _UNROLL
    builder = llvm.create_pass_builder(target, options)
    builder.getModulePassManager().run(module, builder)
    return bytes(target.emit_object(module))


def _folder() -> Path | None:
    named = os.environ.get(CACHE_VARIABLE)
    if named == "":
        return None
    try:
        folder = (Path(named) if named else _default_folder()).resolve()
        if folder_trust.unsafe_reason(folder) is None:
            folder_trust.make_private(folder)
        return folder if folder_trust.unsafe_reason(folder) is None else None
    except (OSError, RuntimeError):
        return None  # a read-only or unknown home: compile in memory


def _private(found: os.stat_result) -> bool:
    """Whether what was found belongs to this user or root, and no other user may write to it."""
    return folder_trust.trusted_owner(found) and not found.st_mode & folder_trust.OTHERS_WRITE


def _default_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fraud-scorer" / "kernels"


def _read(folder: Path | None, key: str) -> bytes | None:
    if folder is None:
        return None
    try:
        # Looked at through the open file, so that what was checked is what is read; a link would lead elsewhere.
        handle = os.open(folder / f"{key}.o", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not (stat.S_ISREG(found.st_mode) and _private(found)):
                return None
            data = file.read()
    except OSError:
        return None
    code = data[_HASH_BYTES:]
    return code if hashlib.sha256(code).digest() == data[:_HASH_BYTES] else None


def _write(folder: Path | None, key: str, code: bytes) -> None:
    if folder is None:
        return
    with contextlib.suppress(OSError):  # a full disk costs the next start 0.4 s, nothing else
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".", suffix=".o")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            Path(temporary).replace(folder / f"{key}.o")
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
