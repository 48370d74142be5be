"""Services in Docker: whether an engine is there, and the plan for one container."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from scorer.local_services.managed_service import Place, Plan

# Run as a file, not as a module of this package: it needs testcontainers and nothing of ours.
_RUNNER = [sys.executable, "-P", str(Path(__file__).with_name("container_runner.py"))]
_ENGINE_ANSWER_TIMEOUT_S = 15.0
_READY_TIMEOUT_S = 600.0  # the first start fetches the image: some 400 MB


def reason_absent(place: Place) -> str:
    """Why no container can be had here, or "" when an engine on this machine answers."""
    if importlib.util.find_spec("testcontainers") is None:
        return "the package testcontainers is not installed; pip install 'fraud-scorer[local]'"
    try:
        asked = subprocess.run(
            [*_RUNNER, "ping"],
            env=dict(place.environment),
            capture_output=True,
            text=True,
            timeout=_ENGINE_ANSWER_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"its engine did not answer within {_ENGINE_ANSWER_TIMEOUT_S:.0f} s"
    if asked.returncode == 0:
        return ""
    last = asked.stderr.strip().splitlines()[-1:] or ["its engine does not answer"]
    return last[0][:200]


def plan(
    place: Place,
    *,
    name: str,
    image: str,
    address: str,
    port: int,
    container_port: int,
    variables: dict[str, str],
    command: list[str],
    data: str,
    memory_bytes_max: int,
    answers: Callable[[], bool],
) -> Plan:
    """A container as a process of ours: the runner ends it on SIGTERM. Its data is a named volume."""
    folder = place.service_folder(name)
    unique = f"fraud-scorer-{name}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]}"
    order = {
        "name": unique,
        "image": image,
        "port": port,
        "container_port": container_port,
        "variables": variables,
        "command": command,
        "data": data,
        "memory_bytes_max": memory_bytes_max,
    }
    return Plan(
        name=name,
        kind="docker",
        address=address,
        port=port,
        argv=[*_RUNNER, "run", json.dumps(order)],
        environment=dict(place.environment),
        folder=folder,
        answers=answers,
        ready_timeout_s=_READY_TIMEOUT_S,
        stop_timeout_s=45.0,  # longer than the runner gives the container
        discard_argv=[*_RUNNER, "remove-volume", unique],
    )
