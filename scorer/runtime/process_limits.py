"""Limits that the system sets for a process, compared with what it needs before it begins."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Final

from scorer.errors import UsageError

# A worker with one shard has some 45 files and sockets open on one broker, and each further broker or shard adds to
# them; a client that meets the limit loses connections one by one, without an error that names it.
FILES_MIN: Final = 256
FILES_WANTED: Final = 8192
# Libraries, kernels and Kafka's buffers, before the first payment; state comes on top.
WORKER_MEMORY_MIB: Final = 512
SINK_MEMORY_MIB: Final = 256
# Address space, of which threads and allocators reserve far more than they use: about 3 GiB where they are free to.
ADDRESS_SPACE_MIB_MIN: Final = 2048
_CGROUPS = Path("/sys/fs/cgroup")
_MIB = 1024 * 1024


def check(memory_mib: int) -> None:
    """Raise the soft limit of open files as far as allowed. Raises UsageError naming a limit that is too low."""
    _check_files()
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY and space < ADDRESS_SPACE_MIB_MIN * _MIB:
        raise UsageError(
            f"this process may use {space // _MIB} MiB of address space and needs {ADDRESS_SPACE_MIB_MIN}: raise "
            "`ulimit -v` (LimitAS= in a systemd unit); memory itself is best limited by a cgroup"
        )
    memory = cgroup_memory()
    if memory is not None and memory < memory_mib * _MIB:
        raise UsageError(
            f"the cgroup of this process may use {memory // _MIB} MiB of memory and it needs {memory_mib}: raise "
            "the container's memory limit (MemoryMax= in a systemd unit)"
        )


def _check_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(FILES_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft != resource.RLIM_INFINITY and soft < FILES_MIN:
        raise UsageError(
            f"this process may open {soft} files and sockets and needs {FILES_MIN}: raise `ulimit -n` "
            "(LimitNOFILE= in a systemd unit, nofile in a container)"
        )


def cgroup_memory(own: Path = Path("/proc/self/cgroup"), groups: Path = _CGROUPS) -> int | None:
    """Bytes that this process's cgroup (version 2) may use; None without a limit, or where it cannot be read."""
    try:
        place = own.read_text(encoding="utf-8").strip().rpartition("::")[2].lstrip("/")
        text = (groups / place / "memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
