"""Prometheus on this machine, where one is installed: scrapes what it is given and evaluates the alerts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from scorer.local_services.managed_service import Place, Plan, start_on_free_port
from scorer.runtime import assets

_READY_TIMEOUT_S = 30.0
_ANSWER_TIMEOUT_S = 2.0


@contextlib.contextmanager
def local_prometheus(
    folder: Path,
    ports: Sequence[int],
    *,
    temporary: bool = False,
    environment: Mapping[str, str] | None = None,
    rules: Path | None = None,
) -> Iterator[str | None]:
    """A Prometheus of our own on 127.0.0.1 and a free port, ended with the block or with this process: its address, or
    None where none is on the PATH.

    folder: data and log, below `prometheus` and `logs`. ports: of 127.0.0.1, whose /metrics it scrapes each second.
    temporary: data and log go with it. environment: where PATH is looked up; os.environ by default. rules: the file of
    rules that it evaluates each second; those of deploy/prometheus by default.

    Raises ServicesError when it does not start.
    """
    environment = os.environ if environment is None else environment
    program = shutil.which("prometheus", path=environment.get("PATH", ""))
    if program is None:
        yield None
        return
    place = Place(folder.resolve(), environment, lambda _line: None, temporary)
    place.log_folder.mkdir(parents=True, exist_ok=True)
    own = place.service_folder("prometheus")
    configuration = own / "prometheus.yml"
    configuration.write_text(json.dumps(_configuration(ports, rules)), encoding="utf-8")  # JSON is YAML, too

    def plan(port: int) -> Plan:
        return Plan(
            name="prometheus",
            kind="installed",
            address=f"http://127.0.0.1:{port}",
            port=port,
            argv=[
                program,
                f"--config.file={configuration}",
                f"--storage.tsdb.path={own / 'data'}",
                "--storage.tsdb.retention.time=1d",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            environment=place.small_environment(),
            folder=own,
            answers=lambda: _is_ours(port, own / "data"),
            ready_timeout_s=_READY_TIMEOUT_S,
        )

    service = start_on_free_port(plan, place, None)
    try:
        yield service.address
    finally:
        service.close()


def _configuration(ports: Sequence[int], rules: Path | None) -> dict[str, object]:
    targets = [f"127.0.0.1:{port}" for port in ports]
    return {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(assets.path("deploy/prometheus/alerts.yaml") if rules is None else rules.resolve())],
        "scrape_configs": [{"job_name": "fraud-scorer", "static_configs": [{"targets": targets}]}],
    }


def _is_ours(port: int, data: Path) -> bool:
    """Whether a Prometheus with this folder serves there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=_ANSWER_TIMEOUT_S):
            pass
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}/api/v1/status/flags", timeout=_ANSWER_TIMEOUT_S
        ) as answer:
            flags = json.load(answer)["data"]
    except (urllib.error.URLError, OSError, ValueError, KeyError):
        return False
    return bool(flags.get("storage.tsdb.path") == str(data))
