"""Limits of the process, read where the system keeps them."""

from __future__ import annotations

from pathlib import Path

import pytest

from scorer.errors import UsageError
from scorer.runtime import process_limits


@pytest.mark.parametrize(("text", "expected"), [("268435456\n", 268_435_456), ("max\n", None), (None, None)])
def test_the_memory_limit_of_the_own_cgroup_is_found(tmp_path: Path, text: str | None, expected: int | None) -> None:
    """The number of bytes; none where there is no limit, or no such file."""
    own, group = tmp_path / "cgroup", tmp_path / "system.slice" / "worker.service"
    own.write_text("0::/system.slice/worker.service\n")
    group.mkdir(parents=True)
    if text is not None:
        (group / "memory.max").write_text(text)
    assert process_limits.cgroup_memory(own, tmp_path) == expected


def test_a_container_that_is_too_small_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names both sizes and what to raise."""
    monkeypatch.setattr(process_limits, "cgroup_memory", lambda: 100 * 1024 * 1024)
    with pytest.raises(UsageError, match="100 MiB of memory and it needs 256: raise the container's memory limit"):
        process_limits.check(256)
