"""Dockerfile, compose file and their scripts: valid, and agreeing with the programs that they start."""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from schemas.kernel_cache import VARIABLE
from scorer.local_services import local_kafka, local_postgres
from scorer.model.vector.jit_compiler import CACHE_VARIABLE
from scorer.runtime.local_folders import local_folders
from scorer.runtime.settings import HttpSettings
from tests.metrics_table import ROOT
from tests.programs import check_command, settings_of

FOLDER = ROOT / "deploy/images"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
# The Compose Specification's own schema, at its commit 170098b (Apache-2.0).
SCHEMA = json.loads((ROOT / "tests/data/compose-spec.json").read_text())
SCRIPTS = ("base", "rehearse", "stand_in/start_kafka", "stand_in/start_postgres")
PORTS = {"worker": HttpSettings().worker_port, "sink": HttpSettings().sink_port}


def programs() -> dict[str, dict[str, Any]]:
    """The services that run our image."""
    found = {name: service for name, service in COMPOSE["services"].items() if "SCORER_IMAGE" in service["image"]}
    assert set(found) == {"setup", "worker-1", "worker-2", "sink", "command"}
    return found


def stages() -> list[list[tuple[str, str]]]:
    """The Dockerfile's instructions by stage; before the first FROM: stage 0."""
    text = (FOLDER / "Dockerfile").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found: list[list[tuple[str, str]]] = [[]]
    for line in filter(None, text.splitlines()):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            found.append([])
        found[-1].append((instruction, re.sub(r"\s+", " ", rest.strip())))
    return found


def environment(stage: list[tuple[str, str]]) -> dict[str, str]:
    pairs = [pair for instruction, rest in stage if instruction == "ENV" for pair in rest.split()]
    return {name: value.strip('"') for name, _, value in (pair.partition("=") for pair in pairs)}


def test_compose_is_valid() -> None:
    """The file keeps to the Compose Specification's schema, and has each volume, network and secret that it names."""
    jsonschema.Draft7Validator(SCHEMA).validate(COMPOSE)
    for service in COMPOSE["services"].values():
        named = {volume.split(":")[0] for volume in service.get("volumes", []) if volume[0] not in "./"}
        assert named <= set(COMPOSE["volumes"])
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
        assert set(service.get("depends_on", {})) <= set(COMPOSE["services"])


@pytest.mark.parametrize("name", programs())
def test_each_program_reads_the_settings_of_its_service(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every variable is a setting of this version; addresses are those of the other services; secrets are files."""
    service = programs()[name]
    settings = settings_of(service["environment"], tmp_path, monkeypatch)
    host, port = settings.kafka.bootstrap_servers.split(":")
    assert f"{host}:{port}" in COMPOSE["services"]["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    if "FRAUD_SCORER_POSTGRES__URL" in service["environment"]:
        postgres = COMPOSE["services"]["postgres"]["environment"]
        url = settings.postgres.url.get_secret_value()
        assert url == f"postgresql://{postgres['POSTGRES_USER']}@postgres:5432/{postgres['POSTGRES_DB']}"
        file = service["environment"]["FRAUD_SCORER_POSTGRES__PASSWORD_FILE"]
        assert file == postgres["POSTGRES_PASSWORD_FILE"] == f"/run/secrets/{service['secrets'][0]}"
    writable = [volume.split(":")[1] for volume in service.get("volumes", [])]
    if writable:
        for folder in local_folders(settings):
            assert any(folder.path.is_relative_to(place) for place in writable), folder


@pytest.mark.parametrize("name", programs())
def test_each_program_is_confined(name: str) -> None:
    """No root, no capability, a read-only root file system with a temporary folder, and time to drain."""
    service = programs()[name]
    assert service["user"] == "10001:10001"
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["stop_grace_period"] == "60s"


def test_commands_and_ports_exist() -> None:
    """Services run commands of this version, health checks and Prometheus ask the ports that they open."""
    for name, service in programs().items():
        if "command" in service:
            check_command(service["command"])
        if "healthcheck" in service:
            port = PORTS[name.split("-")[0]]
            assert f"http://127.0.0.1:{port}/livez" in service["healthcheck"]["test"][-1]
    scraped = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"][0]["static_configs"]
    expected = [f"{name}:{PORTS[name.split('-')[0]]}" for name in ("worker-1", "worker-2", "sink")]
    assert scraped[0]["targets"] == expected
    for line in re.findall(r"^tool (.*)$", (FOLDER / "rehearse").read_text(), re.MULTILINE):
        check_command([word.strip('"') for word in line.split(" > ")[0].split()])


def test_every_service_that_runs_on_is_checked() -> None:
    """`docker compose ps` shows of each service whether it works: all but those that end have a health check, which
    asks a port that the service opens, and has a verdict before three minutes are over."""
    ends = {name for service in COMPOSE["services"].values() for name, waits in service.get("depends_on", {}).items()
            if waits["condition"] == "service_completed_successfully"}  # fmt: skip
    ends |= {name for name, service in COMPOSE["services"].items() if "tools" in service.get("profiles", [])}
    assert ends == {"setup", "command"}
    kafka = COMPOSE["services"]["kafka"]["environment"]
    ports = {"kafka": kafka["KAFKA_ADVERTISED_LISTENERS"].split(",")[0].rpartition(":")[2], "postgres": "5432"}
    ports |= {"prometheus": COMPOSE["services"]["prometheus"]["ports"][0].rpartition(":")[2]}
    for name, service in COMPOSE["services"].items():
        assert ("healthcheck" in service) is (name not in ends), name
        if name in ends:
            continue
        check = service["healthcheck"]
        port = ports.get(name) or str(PORTS[name.split("-")[0]])
        assert re.search(rf"127\.0\.0\.1[:/]{port}\b", check["test"][-1]), name
        assert check["test"][0] == "CMD"  # no shell: the image of a program has one, those of others need not
        assert int(check.get("start_period", "0s")[:-1]) + int(check["interval"][:-1]) * check["retries"] < 180
        for other, waits in service.get("depends_on", {}).items():
            if waits["condition"] == "service_healthy":
                assert "healthcheck" in COMPOSE["services"][other]


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
@pytest.mark.parametrize("name", ["worker-1", "worker-2", "sink"])
def test_a_program_is_healthy_while_its_port_says_so(name: str, status: int | None, healthy: bool) -> None:
    """The check itself, run: 200 from /livez is healthy, another answer and none are not."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status or 0)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    if status is None:
        server.server_close()
    else:
        threading.Thread(target=server.handle_request, daemon=True).start()
    own = f":{PORTS[name.split('-', maxsplit=1)[0]]}/"
    _, program, *arguments = COMPOSE["services"][name]["healthcheck"]["test"]
    assert program == "python"
    assert own in arguments[-1]
    arguments[-1] = arguments[-1].replace(own, f":{server.server_port}/")
    done = subprocess.run([sys.executable, *arguments], capture_output=True, timeout=600, check=False)
    server.server_close()
    assert (done.returncode == 0) is healthy


def test_kafka_and_postgres_are_those_of_the_tests() -> None:
    """The versions that the compose file starts are those that the tests and the demo run on."""
    services = COMPOSE["services"]
    assert services["kafka"]["image"] == f"${{KAFKA_IMAGE:-{local_kafka.IMAGE}}}"
    assert services["postgres"]["image"] == f"${{POSTGRES_IMAGE:-{local_postgres.IMAGE}}}"


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    """`promtool check config` accepts it with the alerts beside it, where the compose file mounts both."""
    volumes = [volume.split(":") for volume in COMPOSE["services"]["prometheus"]["volumes"]]
    mounted = {place: FOLDER / source for source, place, *_ in volumes if source.startswith(".")}
    assert set(mounted) == {"/etc/prometheus/prometheus.yml", "/etc/prometheus/alerts.yaml"}
    for place, source in mounted.items():
        shutil.copy(source, tmp_path / Path(place).name)
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    done = subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"], cwd=tmp_path, capture_output=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_everything_is_installed_by_hash() -> None:
    """Each package of the image comes by its sha256 as a wheel; fraud-scorer itself is built without the network."""
    runs = [rest for stage in stages() for instruction, rest in stage if instruction == "RUN"]
    parts = [part for run in runs for part in re.split(r"\s+&&\s+", run)]
    commands = [part for part in parts if re.search(r"pip .*\b(install|wheel)\b", part)]
    assert len(commands) == 4
    locked = [command for command in commands if "-r " in command]
    assert [re.search(r"-r (\S+)", command)[1] for command in locked] == [  # type: ignore[index]
        "deploy/locks/build.lock", "deploy/locks/serving.lock",
    ]  # fmt: skip
    assert all("--require-hashes" in command and "--only-binary :all:" in command for command in locked)
    assert '-r deploy/locks/serving.lock ${EXTRA_LOCK:+-r "$EXTRA_LOCK"}' in locked[1]
    assert all("--no-index --" in c or "--no-index /" in c for c in commands if c not in locked)
    assert all("--no-deps" in command for command in commands if command not in locked)


def test_the_last_stage_has_kernels_and_no_compiler() -> None:
    """The last stage takes what the first one compiled, under the variables with which the program looks for it, ends
    where the base has a compiler or where a kernel is missing, and runs as a user who is not root."""
    _, build, last = stages()
    assert ("FROM", "${BASE} AS build") in build
    assert ("FROM", "${BASE}") in last
    for name in (VARIABLE, CACHE_VARIABLE, "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"):
        assert environment(build)[name] == environment(last)[name]
    assert ("COPY", "--from=build /opt /opt") in last
    runs = " ".join(rest for instruction, rest in last if instruction == "RUN")
    assert "for tool in cc gcc g++ c++ clang ld as" in runs
    assert not re.search(r"apt-get|pip\b", runs)
    module = re.search(r"python -m (\S+) /opt/bundle", runs)
    assert module is not None
    assert importlib.util.find_spec(module[1]) is not None
    assert [rest for instruction, rest in last if instruction == "USER"] == ["10001:10001"]
    assert ("ENTRYPOINT", '["fraud-scorer"]') in last
    assert ("EXPOSE", f"{PORTS['worker']} {PORTS['sink']}") in last


def test_a_check_of_kernels_that_fails_ends_the_build(tmp_path: Path) -> None:
    """The last check ends with an error when a kernel is missing, and when the check itself fails."""
    (check,) = [rest for instruction, rest in stages()[2] if instruction == "RUN" and "kernel_compilation" in rest]
    python = tmp_path / "python"
    for script, good in (("exit 0", True), ("echo one", False), ("exit 1", False)):
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        done = subprocess.run(
            ["/bin/sh", "-c", check], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, timeout=600, check=False
        )
        assert (done.returncode == 0) is good


def test_the_build_is_given_what_it_copies() -> None:
    """What the wheel is made of reaches the build; tests, .git and environments do not."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]

    def given(path: str) -> bool:
        taken = True
        for rule in rules:
            pattern = rule.removeprefix("!")
            if fnmatch.fnmatch(path, pattern) or path.startswith(f"{pattern}/"):
                taken = rule.startswith("!")
        return taken

    needed = ["pyproject.toml", "README.md", "LICENSE", "scorer/cli/__init__.py", "features/series.py"]
    needed += ["schemas/payment.py", "migrations/env.py", "deploy/locks/build.lock", "deploy/prometheus/alerts.yaml"]
    assert given("bundles/cards/manifest.json")  # a site's own: --build-arg BUNDLE=bundles/cards
    assert [path for path in needed if not (ROOT / path).exists() or not given(path)] == []
    assert [path for path in (".git/config", "tests/programs.py", ".venv/bin/python", ".ci/run") if given(path)] == []
    copied = [rest.split() for instruction, rest in stages()[1] if instruction == "COPY"]
    sources = [path for words in copied for path in words[:-1] if "$" not in path and path != "."]
    assert sources
    assert all((ROOT / path).exists() and given(path) for path in sources)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_scripts(name: str) -> None:
    """Each can be run, is read by its shell without an error, and stops at the first failure."""
    script = FOLDER / name
    assert script.stat().st_mode & 0o111 == 0o111
    text = script.read_text()
    shell = "bash" if "bash" in text.splitlines()[0] else "sh"
    subprocess.run([shell, "-n", str(script)], check=True, timeout=600)
    assert re.search(r"^set -eu", text, re.MULTILINE)
