"""The Helm chart: rendered by helm itself, accepted by Kubernetes' own schemas, and agreeing with the programs."""

from __future__ import annotations

import http.client
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from scorer.runtime.health import HealthServer
from scorer.runtime.local_folders import local_folders
from scorer.runtime.settings import PREFIX
from scorer.worker.ports import store_of
from tests.metrics_table import ROOT, documented
from tests.programs import check_command, settings_of

CHART = ROOT / "deploy/charts/fraud-scorer"
LEAST = "kafka: {bootstrapServers: 'kafka:9092'}\npostgres: {url: 'postgresql://sink@db/fraud'}\n"
# Everything that the chart can do, at once.
MOST = """
image: {digest: "sha256:0000000000000000000000000000000000000000000000000000000000000000"}
imagePullSecrets: [{name: pull}]
settings: {LOG_LEVEL: warning, KAFKA__CLIENT_ID: cards, TOPICS__PAYMENTS_PARTITIONS: 12, TOPICS__REPLICATION_FACTOR: 3}
kafka:
  bootstrapServers: kafka-0:9093,kafka-1:9093
  topicPrefix: cards-
  security: {security.protocol: SASL_SSL, sasl.mechanism: SCRAM-SHA-512, sasl.username: fraud}
  secret: {name: kafka, saslPassword: password, sslKeyPassword: key-password, oauthClientSecret: client-secret}
  tlsSecret: kafka-ca
postgres:
  url: postgresql://sink@db:5432/fraud?sslmode=verify-full&sslrootcert=/run/secrets/postgres-tls/ca.crt
  secret: {name: sink, key: password}
  tlsSecret: postgres-ca
setup: {postgres: {url: "postgresql://owner@db:5432/fraud", secret: {name: owner, key: password}}}
worker:
  kafka: {security: {sasl.username: fraud-worker}, secret: {name: kafka-worker}}
  shards: 4
  shardKey: [customer_id]
  bundle:
    folder: /bundles/cards
    volume: {persistentVolumeClaim: {claimName: bundles, readOnly: true}}
    trustedKeys: ["ed25519:AAAA"]
    locations: [/bundles, "s3://bundles/cards"]
  storage: {size: 100Gi, className: fast}
  settings: {WORKER__DEADLINE_MS: 80, SNAPSHOTS__EVERY_PAYMENTS: 2000000, WORKER__FAST_ON_ONE_BROKER: refuse}
  nodeSelector: {disk: nvme}
  tolerations: [{key: fraud, operator: Exists}]
  affinity: {}
sink: {replicas: 4, settings: {LOG_LEVEL: debug}}
snapshots: {url: "s3://bucket/snapshots", secret: {name: snapshots, key: hmac}, credentialsSecret: object-store}
cards: {secret: {name: cards, key: keys}}
tracing:
  enabled: true
  endpoint: https://collector.monitoring:4318/v1/traces
  secret: {name: collector, key: headers}
  tlsSecret: collector-ca
  clientCertificate: true
  ratio: 0.001
http: {tlsSecret: port, user: prometheus, passwordSecret: {name: metrics, key: password}}
networkPolicy:
  metricsFrom: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]
  kafka: {ports: [9093], to: [{ipBlock: {cidr: 10.0.0.0/24}}]}
  postgres: {ports: [5432], to: [{podSelector: {matchLabels: {app: postgres}}}]}
  tracing: {to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]}
  workerEgress: [{ports: [{protocol: TCP, port: 443}]}]
keda: {enabled: true, prometheus: "http://prometheus.monitoring:9090", authentication: prometheus}
podMonitor: {enabled: true, labels: {release: monitoring}, endpoint: {tlsConfig: {insecureSkipVerify: true}}}
"""
# The example of the page.
README = re.findall(r"```yaml\n(.*?)```", (ROOT / "deploy/charts/README.md").read_text(), re.DOTALL)
VALUES = {"least": LEAST, "most": MOST, "readme": README[0]}
# Objects whose schema is not Kubernetes' own.
FOREIGN = {"keda.sh/v1alpha1", "monitoring.coreos.com/v1"}


def helm(*arguments: str, values: str) -> subprocess.CompletedProcess[str]:
    """Run helm with values from stdin; skipped only where it is absent: `.ci/run` installs it beside Python."""
    beside = Path(sys.executable).parent / "helm"
    found = str(beside) if beside.is_file() else shutil.which("helm")
    if found is None:
        pytest.skip("helm is not installed: .ci/helm puts it into .venv")
    command = [found, *arguments, str(CHART), "--values", "-"]
    return subprocess.run(command, input=values, capture_output=True, text=True, timeout=600, check=False)


@cache
def rendered(name: str) -> list[dict[str, Any]]:
    """The objects that `helm template` makes, hooks included."""
    done = helm("template", "fraud", values=VALUES[name])
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(name: str, kind: str) -> list[dict[str, Any]]:
    return [document for document in rendered(name) if document["kind"] == kind]


def pods(name: str) -> list[dict[str, Any]]:
    """The pod templates: of the workers, the sink, the setup."""
    found = [document["spec"]["template"] for document in rendered(name) if "template" in document.get("spec", {})]
    assert len(found) == 3
    return found


def variables(container: dict[str, Any]) -> dict[str, str]:
    given = [(entry["name"], entry["value"]) for entry in container["env"]]
    assert len(dict(given)) == len(given), "a variable stands twice"
    return dict(given)


@pytest.mark.parametrize("name", VALUES)
def test_helm_has_no_objection(name: str) -> None:
    """`helm lint --strict` passes with the least and with all values."""
    done = helm("lint", "--strict", values=VALUES[name])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", ["1.27", "1.35"])
@pytest.mark.parametrize("name", VALUES)
def test_kubernetes_takes_every_object(name: str, version: str) -> None:
    """Each object is valid by the schemas of the oldest Kubernetes that the chart allows, and of a recent one."""
    known = [document for document in rendered(name) if document["apiVersion"] not in FOREIGN]
    assert len(known) >= 6
    for document in known:
        kubernetes_validate.validate(document, version, strict=True)
    assert f">={version}" in (CHART / "Chart.yaml").read_text() or version != "1.27"


@pytest.mark.parametrize("name", VALUES)
def test_each_program_reads_the_settings_of_its_pod(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variable is a setting of this version with a value that it takes, and ports and probes go together."""
    for pod in pods(name):
        (container,) = pod["spec"]["containers"]
        settings = settings_of(variables(container), tmp_path, monkeypatch)
        assert settings.kafka.bootstrap_servers.startswith("kafka")
        own = {"worker": settings.http.worker_port, "sink": settings.http.sink_port}.get(container["name"])
        assert [port["containerPort"] for port in container.get("ports", [])] == ([own] if own else [])
        if name == "most" and container["name"] == "worker":
            assert settings.worker.shard_key == ["customer_id"]
            assert settings.snapshots.every_payments == 2_000_000
            assert settings.worker.deadline_ms == 80
            assert settings.kafka.security["sasl.username"].get_secret_value() == "fraud-worker"


@pytest.mark.parametrize("name", VALUES)
def test_what_a_program_writes_lies_on_a_volume(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The root file system is read-only: log, cache and snapshots of a worker are on its own disk, which stays."""
    (stateful,) = of_kind(name, "StatefulSet")
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    writable = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    claims = {claim["metadata"]["name"] for claim in stateful["spec"]["volumeClaimTemplates"]}
    assert set(writable) == claims | ({"snapshots"} if name == "readme" else set())
    settings = settings_of(variables(container), tmp_path, monkeypatch)
    folders = list(local_folders(settings))
    assert {"log", "cache"} <= {folder.use for folder in folders}
    for folder in folders:
        assert any(folder.path.is_relative_to(place) for place in writable.values()), folder
    if name != "most":  # an object store takes a package that the image does not have
        assert store_of(settings, 0) is not None
    if name == "readme":  # where every worker finds what another one wrote
        assert variables(container)["FRAUD_SCORER_SNAPSHOTS__URL"] == f"file://{writable['snapshots']}"
    # An emptyDir would be refused for kernels; /dev/shm is sticky in every container.
    assert variables(container)["TMPDIR"] == "/dev/shm"


@pytest.mark.parametrize("name", VALUES)
def test_no_program_may_do_more_than_it_needs(name: str) -> None:
    """No root, no capability, no writable root file system, no token of the cluster, no variable of another service."""
    for pod in pods(name):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert {"requests", "limits"} == set(container["resources"])


@pytest.mark.parametrize("name", VALUES)
def test_secrets_are_named_and_mounted(name: str) -> None:
    """No secret is in the chart's objects: each *_FILE lies in the mount of a Secret that the cluster has."""
    assert of_kind(name, "Secret") == of_kind(name, "ConfigMap") == []
    for pod in pods(name):
        spec = pod["spec"]
        secrets = {volume["name"] for volume in spec["volumes"] or [] if "secret" in volume}
        (container,) = spec["containers"]
        mounts = {
            mount["mountPath"]: mount["name"] for mount in container["volumeMounts"] or [] if mount["name"] in secrets
        }
        assert set(mounts.values()) == secrets
        for variable, value in variables(container).items():
            if variable.startswith(PREFIX) and variable.endswith("_FILE"):
                assert str(PurePosixPath(value).parent) in mounts
                assert PurePosixPath(value).name, variable
            assert not re.search(r"(PASSWORD|SECRET|KEY)$", variable) or variable.endswith(
                ("HTTP__KEY", "SHARD_KEY", "CLIENT_KEY")
            )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("kafka: {bootstrapServers: a, security: {sasl.password: x}}", "is a secret"),
        ("postgres: {url: 'postgresql://sink:hunter2@db/fraud'}", "holds a password"),
        ("postgres: {url: ''}", "postgres.url"),
        ("kafka: {bootstrapServers: ''}", "kafka.bootstrapServers"),
        ("keda: {enabled: true, prometheus: p}", "one shard"),
        ("keda: {enabled: true, prometheus: p, maxReplicas: 9}\nworker: {shards: 4}", "only follow"),
        ("keda: {enabled: true}\nworker: {shards: 4}", "keda.prometheus"),
        ("http: {user: prometheus}", "http.passwordSecret"),
        ("http: {host: '::'}", "ipv4"),
        ("kafka: {bootstrapServers: 'a:9092,b:9093'}", "port 9093"),
        ("kafka: {bootstrapServers: a, secret: {saslPassword: password}}", "kafka.secret.name"),
        ("kafka: {bootstrapServers: a}\nsink: {kafka: {secret: {name: sink}}}", "saslPassword"),
        ("sink: {kafka: {bootstrapServers: b}}", "bootstrapServers"),
        ("cards: {secret: {name: cards}}", "cards.secret.key"),
        ("snapshots: {secret: {key: hmac}}", "snapshots.secret.name"),
        ("postgres: {url: 'postgresql://sink@db/fraud', secret: {name: sink, key: ''}}", "postgres.secret.key"),
        ("snapshots: {url: 's3://a/b', volume: {emptyDir: {}}}", "one of the two"),
        ("podMonitor: {enabled: true}", "metricsFrom"),
        ("worker: {settings: {FRAUD_SCORER_LOG_LEVEL: debug}}", "FRAUD_SCORER_LOG_LEVEL"),
        ("tracing: {enabled: true}", "tracing.endpoint"),
        ("tracing: {endpoint: 'https://c:4318/v1/traces'}", "tracing.enabled"),
        ("tracing: {enabled: true, endpoint: 'https://user:word@c/v1/traces'}", "endpoint"),
        ("tracing: {enabled: true, endpoint: 'https://c/v1/traces', secret: {name: c}}", "tracing.secret.key"),
        ("tracing: {enabled: true, endpoint: 'https://c/v1/traces', clientCertificate: true}", "tracing.tlsSecret"),
        ("wroker: {shards: 4}", "wroker"),
    ],
)
def test_values_that_cannot_work_are_refused(change: str, message: str) -> None:
    """A password in the values, more workers than there is work for, a missing or misspelt value: helm stops and names
    it."""
    values = yaml.safe_load(LEAST) | yaml.safe_load(change)
    done = helm("template", "fraud", values=yaml.safe_dump(values))
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize("name", VALUES)
def test_probes_ask_for_what_the_programs_answer(name: str) -> None:
    """Each probe asks a path that the port serves, in the scheme that it speaks: ready is not alive."""
    paths = set()
    for pod in pods(name):
        (container,) = pod["spec"]["containers"]
        named = {port["name"] for port in container.get("ports", [])}
        probes = {kind: container[kind]["httpGet"] for kind in container if kind.endswith("Probe")}
        if not named:
            continue
        assert probes["readinessProbe"]["path"] == "/readyz"
        assert probes["livenessProbe"]["path"] == probes["startupProbe"]["path"] == "/livez"
        for probe in probes.values():
            assert probe["port"] in named
            assert probe["scheme"] == ("HTTPS" if name == "most" else "HTTP")
            paths.add(probe["path"])
    with HealthServer("127.0.0.1", 0, live=lambda: (True, ""), ready=lambda: (True, "")) as server:
        for path in paths:
            connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=5)
            connection.request("GET", path)
            assert connection.getresponse().status == 200
            connection.close()


@pytest.mark.parametrize("name", VALUES)
def test_traces_are_those_of_the_values(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers and sinks send spans where the values name a collector, with headers and certificates from mounted
    Secrets, and the network policy lets them reach its port; elsewhere nothing of traces is set. The setup has none."""
    for pod in pods(name):
        (container,) = pod["spec"]["containers"]
        given = {key: value for key, value in variables(container).items() if "TRACING__" in key}
        mounts = {mount["mountPath"] for mount in container["volumeMounts"] or []}
        if name != "most" or container["name"] == "setup":
            assert given == {}
            assert not any("tracing" in mount for mount in mounts)
            continue
        tracing = settings_of(variables(container), tmp_path, monkeypatch).tracing
        assert (tracing.exporter, tracing.endpoint) == ("otlp", "https://collector.monitoring:4318/v1/traces")
        assert tracing.ratio == 0.001
        for file in (tracing.certificate, tracing.client_certificate, tracing.client_key):
            assert str(file.parent) in mounts  # type: ignore[union-attr]
        assert given["FRAUD_SCORER_TRACING__HEADERS_FILE"] == "/run/secrets/tracing/headers"
    policies = {p["metadata"]["name"]: p["spec"] for p in of_kind(name, "NetworkPolicy")}
    assert ("fraud-tracing" in policies) is (name == "most")
    if name == "most":
        (rule,) = policies["fraud-tracing"]["egress"]
        assert rule["ports"] == [{"protocol": "TCP", "port": 4318}]
        assert rule["to"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}


@pytest.mark.parametrize(
    ("endpoint", "port"), [("https://c/v1/traces", 443), ("http://c/v1/traces", 80), ("http://[fd00::1]:4318/", 4318)]
)
def test_the_port_of_a_collector_is_that_of_its_address(endpoint: str, port: int) -> None:
    """Without one it is that of the scheme."""
    values = f"{LEAST}tracing: {{enabled: true, endpoint: '{endpoint}'}}\n"
    done = helm("template", "fraud", values=values)
    assert done.returncode == 0, done.stderr
    policies = [d for d in yaml.safe_load_all(done.stdout) if d and d["metadata"]["name"] == "fraud-tracing"]
    assert [rule["ports"] for rule in policies[0]["spec"]["egress"]] == [[{"protocol": "TCP", "port": port}]]


def test_every_program_is_a_command() -> None:
    """What the pods run exists, with its options."""
    for pod in pods("most"):
        check_command(pod["spec"]["containers"][0]["args"])


@pytest.mark.parametrize("name", VALUES)
def test_policies_budgets_and_services_find_their_pods(name: str) -> None:
    """The network policy covers every pod, the one for Postgres the sink alone, the budget the workers alone. The setup
    has one of its own that is there before it."""

    def chosen(selector: dict[str, Any]) -> set[str]:
        found = set()
        for pod in pods(name):
            labels = pod["metadata"]["labels"]
            fits = selector.get("matchLabels", {}).items() <= labels.items()
            fits = fits and all(labels[e["key"]] in e["values"] for e in selector.get("matchExpressions", []))
            if fits:
                found.add(labels["app.kubernetes.io/component"])
        return found

    policies = {p["metadata"]["name"]: p["spec"] for p in of_kind(name, "NetworkPolicy")}
    assert chosen(policies["fraud"]["podSelector"]) == {"worker", "sink", "setup"}
    assert chosen(policies["fraud-postgres"]["podSelector"]) == {"sink"}
    if "fraud-tracing" in policies:
        assert chosen(policies["fraud-tracing"]["podSelector"]) == {"worker", "sink"}
    assert chosen(policies["fraud-setup"]["podSelector"]) == {"setup"}
    first = [p["metadata"]["annotations"] for p in of_kind(name, "NetworkPolicy") if "annotations" in p["metadata"]]
    (job,) = of_kind(name, "Job")
    assert [hook["helm.sh/hook"] for hook in first] == [job["metadata"]["annotations"]["helm.sh/hook"]]
    assert int(first[0]["helm.sh/hook-weight"]) < int(job["metadata"]["annotations"].get("helm.sh/hook-weight", 0))
    assert set(policies["fraud"]["policyTypes"]) == {"Ingress", "Egress"}
    assert ("ingress" in policies["fraud"]) is (name != "least")
    (budget,) = of_kind(name, "PodDisruptionBudget")
    assert chosen(budget["spec"]["selector"]) == {"worker"}
    (service,) = of_kind(name, "Service")
    assert chosen({"matchLabels": service["spec"]["selector"]}) == {"worker"}
    (stateful,) = of_kind(name, "StatefulSet")
    assert stateful["spec"]["serviceName"] == service["metadata"]["name"]


@pytest.mark.parametrize("name", VALUES)
def test_policies_let_each_program_reach_what_it_is_given(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ports of Kafka and Postgres in a pod's settings are among those that its policies leave open."""
    for pod in pods(name):
        labels, (container,) = pod["metadata"]["labels"], pod["spec"]["containers"]
        open_ports = {
            port["port"]
            for policy in of_kind(name, "NetworkPolicy")
            if policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
            for rule in policy["spec"]["egress"]
            for port in rule["ports"]
        }
        settings = settings_of(variables(container), tmp_path, monkeypatch)
        wanted = {int(server.rpartition(":")[2]) for server in settings.kafka.bootstrap_servers.split(",")}
        if "FRAUD_SCORER_POSTGRES__URL" in variables(container):
            wanted.add(urlsplit(settings.postgres.url.get_secret_value()).port or 5432)
        assert wanted <= open_ports, container["name"]


def test_each_program_has_a_login_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the page's example worker, sink and setup have different users at Kafka, each with its own Secret, and the
    setup is another user of Postgres than the sink."""
    users, secrets, owners = set(), set(), set()
    for pod in pods("readme"):
        (container,) = pod["spec"]["containers"]
        settings = settings_of(variables(container), tmp_path, monkeypatch)
        users.add(settings.kafka.security["sasl.username"].get_secret_value())
        (secret,) = [volume["secret"]["secretName"] for volume in pod["spec"]["volumes"] if volume["name"] == "kafka"]
        secrets.add(secret)
        owners.add(variables(container).get("FRAUD_SCORER_POSTGRES__URL", "none").partition("@")[0])
    assert (len(users), len(secrets), len(owners)) == (3, 3, 3)


def test_an_install_warns_of_workers_without_common_snapshots() -> None:
    """Several workers of which each keeps its own snapshots: the notes name the bound. With common ones they do not."""
    for name, warned in (("least", True), ("readme", False)):
        done = helm("install", "fraud", "--dry-run=client", values=VALUES[name])
        assert done.returncode == 0, done.stderr
        assert ("WARNING: several workers" in done.stdout) is warned
        for line in re.findall(r" -- fraud-scorer (.*)", done.stdout):
            check_command(line.split())


def test_workers_follow_the_lag() -> None:
    """KEDA scales the StatefulSet, which then names no number itself, by a metric that workers serve, up to one worker
    for each shard and one standby."""
    (scaled,) = of_kind("most", "ScaledObject")
    (stateful,) = of_kind("most", "StatefulSet")
    target = scaled["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("StatefulSet", stateful["metadata"]["name"])
    assert "replicas" not in stateful["spec"]
    assert (scaled["spec"]["minReplicaCount"], scaled["spec"]["maxReplicaCount"]) == (2, 5)
    (trigger,) = scaled["spec"]["triggers"]
    named = set(re.findall(r"fraud_scorer_\w+", trigger["metadata"]["query"]))
    assert named == {"fraud_scorer_lag_seconds"}
    assert 'namespace="default",pod=~"fraud-worker-.*"' in trigger["metadata"]["query"]
    assert named <= {row.name for row in documented("Worker")}
    assert of_kind("least", "ScaledObject") == []


def test_the_chart_has_the_version_of_the_program() -> None:
    """Without a tag the chart runs the image of its own version."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert chart["appVersion"] == version
    images = {pod["spec"]["containers"][0]["image"] for pod in pods("least")}
    assert images == {f"fraud-scorer:{version}"}


def test_ci_installs_helm() -> None:
    """CI never skips these tests."""
    assert re.search(r"^\.ci/helm$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
