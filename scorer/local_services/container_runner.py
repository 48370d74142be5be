"""One container as a foreground process, stopped and removed on SIGTERM. Uses testcontainers alone.

    container_runner.py ping | run ORDER | remove-volume NAME

testcontainers' own KafkaContainer is for another vendor's images; the official one needs nothing but its environment.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from typing import Any, cast

import docker.errors  # type: ignore[import-untyped]
from docker.types import LogConfig  # type: ignore[import-untyped]
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient

_ENGINE_TIMEOUT_S = 10
_ENGINE_LOG = {"max-size": "16m", "max-file": "2"}
_CONTAINER_STOP_TIMEOUT_S = 25


class _Stopped(BaseException):
    """SIGTERM arrived: unwind, whatever was under way."""


def _stop(_number: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the unwinding must not be interrupted
    raise _Stopped


def ping() -> None:
    """Return when an engine on this machine answers; its ports are then on this machine's 127.0.0.1."""
    client = DockerClient(timeout=_ENGINE_TIMEOUT_S).client
    client.ping()
    if not str(client.api.base_url).startswith("http+docker"):
        sys.exit("its engine is on another machine; give that Kafka or Postgres by its address")


def run(order: dict[str, Any]) -> None:
    """Run the container until it ends or SIGTERM comes."""
    client = DockerClient().client
    with contextlib.suppress(docker.errors.NotFound):  # left by a runner that was killed
        client.containers.get(order["name"]).remove(force=True)
    container = (
        DockerContainer(order["image"])
        .with_name(order["name"])
        .with_volume_mapping(order["name"], order["data"], "rw")
        .with_kwargs(mem_limit=order["memory_bytes_max"], log_config=LogConfig(type="json-file", config=_ENGINE_LOG))
    )
    for name, value in order["variables"].items():
        container.with_env(name, value)
    if order["command"]:
        container.with_command(order["command"])
    # with_bind_ports knows no host address and would open the port to the network.
    cast("dict[str, Any]", container.ports)[f"{order['container_port']}/tcp"] = ("127.0.0.1", order["port"])
    signal.signal(signal.SIGTERM, _stop)
    try:
        container.start()
        for chunk in container.get_wrapped_container().logs(stream=True, follow=True):
            sys.stdout.buffer.write(chunk)
            sys.stdout.flush()
    except _Stopped:
        with contextlib.suppress(docker.errors.NotFound):
            client.containers.get(order["name"]).stop(timeout=_CONTAINER_STOP_TIMEOUT_S)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        container.stop()  # and its unnamed volumes; the named one, its data, stays


def remove_volume(name: str) -> None:
    """Remove a container's data."""
    with contextlib.suppress(docker.errors.NotFound):
        DockerClient(timeout=_ENGINE_TIMEOUT_S).client.volumes.get(name).remove(force=True)


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    try:
        if verb == "ping":
            ping()
        elif verb == "run":
            run(json.loads(arguments[0]))
        else:
            remove_volume(arguments[0])
    except docker.errors.DockerException as error:
        sys.exit(str(error))
