"""What a process shows of its machine."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from scorer.operate.doctor import broker_check
from scorer.operate.doctor.diagnosis import Expected, Part
from scorer.operate.doctor.examination import examine
from scorer.runtime.local_folders import local_folders
from scorer.runtime.machine_metrics import MachineMetrics
from scorer.runtime.settings import load

NAME = "fraud_scorer_anchors_changed_timestamp_seconds"


def test_a_sink_shows_no_disk(tmp_path: Path) -> None:
    """A worker shows the room of its folders; a sink writes to none, and the disk below its image is not its own."""
    registry, settings = CollectorRegistry(), load(cache=tmp_path)
    with closing(MachineMetrics(settings, registry=registry)):
        assert "fraud_scorer_disk_free_bytes" not in {family.name for family in registry.collect()}
    with closing(MachineMetrics(settings, local_folders(settings), registry)):
        assert registry.get_sample_value("fraud_scorer_disk_free_bytes", {"folder": "cache"})


def test_doctor_asks_no_folder_of_a_sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container with a read-only root file system `doctor --part sink` finds nothing wrong with folders, and
    `doctor --part worker` does."""
    monkeypatch.setattr(broker_check, "TIMEOUT_S", 0.1)  # there is no broker
    settings = load(cache=Path("/proc/fraud-scorer"), kafka={"bootstrap_servers": "127.0.0.1:1"})
    for part, wanted in ((Part.SINK, set()), (Part.WORKER, {"disk"})):
        found = examine(settings, Expected(part=part, bundle=str(tmp_path)))
        assert {finding.part for finding in found.findings} & {"disk"} == wanted
        assert ("disk" in found.checked) is bool(wanted)


@pytest.mark.parametrize(
    ("anchors", "expected"), [(None, 0.0), ("s3://bucket/anchors", 0.0), ("there", 1_700_000_000.0), ("gone", None)]
)
def test_the_age_of_the_anchors_is_that_of_their_file(
    anchors: str | None, expected: float | None, tmp_path: Path
) -> None:
    """Set to a local file: when it changed, and no value while it is missing; else 0."""
    (tmp_path / "there").write_text("{}\n")
    os.utime(tmp_path / "there", (1_700_000_000, 1_700_000_000))
    if anchors in ("there", "gone"):
        anchors = str(tmp_path / anchors)
    registry = CollectorRegistry()
    with closing(MachineMetrics(load(audit={"anchors": anchors}), registry=registry)):
        assert registry.get_sample_value(NAME) == expected
