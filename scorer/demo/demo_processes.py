"""Our own commands as processes, their environment, ports and answers, and a database of the demo's own."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from scorer.runtime.settings import PREFIX

ANSWER_TIMEOUT_S = 2.0
# Straight to this machine, whatever proxy the environment names.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextmanager
def command(
    name: str, arguments: list[str], environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """One of our own long-running commands in a process of its own;
    drained by SIGTERM at the end, killed if it does not end."""
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "scorer", name, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes], seconds: float = 40.0) -> int:
    """SIGTERM, then SIGKILL after `seconds`; gives the exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return process.returncode


@contextmanager
def own_database(url: str, name: str) -> Iterator[str]:
    """A database of the demo's own on the server at `url`, dropped at the end:
    audit rows of a given server are never touched."""
    with psycopg.connect(url, autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(sql.Identifier(name)))
    try:
        yield make_conninfo(url, dbname=name)
    finally:
        with psycopg.connect(url, autocommit=True) as server:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def environment_of(settings: dict[str, str]) -> Iterator[dict[str, str]]:
    """This process's environment with `settings` (names without prefix) in it, as worker and sink get it as well.

    The password that replaces one in the URL goes: the demo's URL is complete.
    """
    before = dict(os.environ)
    changed = before | {PREFIX + name: value for name, value in settings.items()}
    for name in ("POSTGRES__PASSWORD", "POSTGRES__PASSWORD_FILE", *(f"{name}_FILE" for name in settings)):
        changed.pop(PREFIX + name, None)
    _replace_environment(changed)
    try:
        yield changed
    finally:
        _replace_environment(before)


def _replace_environment(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    for item in sockets:
        item.bind(("127.0.0.1", 0))
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


def answer(address: str) -> str | None:
    """What a port of this machine answers to GET; None where it does not, or refuses."""
    try:
        with _OPENER.open(address, timeout=ANSWER_TIMEOUT_S) as response:
            return str(response.read().decode())
    except (urllib.error.URLError, OSError, http.client.HTTPException, ValueError):  # cut short, say
        return None
