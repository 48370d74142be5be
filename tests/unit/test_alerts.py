"""Alerts as code: Prometheus' own tool accepts them, each is shown firing and silent, explained, and fed."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from schemas.contract_error import DeadLetterReason
from schemas.decision import DECISIONS, MODES
from schemas.journal_record import Refusal
from tests.metrics_table import ROOT, documented

FOLDER = ROOT / "deploy/prometheus"
RULES = FOLDER / "alerts.yaml"
CASES = tuple(FOLDER / f"alerts_{part}test.yaml" for part in ("", "hours_", "days_"))
_NAME = re.compile(r"\bfraud_scorer[_:][\w:]*\b")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def cases(name: str) -> list[dict[str, Any]]:
    """What promtool checks of an alert."""
    tests = [test for file in CASES for test in yaml.safe_load(file.read_text())["tests"]]
    return [case for test in tests for case in test["alert_rule_test"] if case["alertname"] == name]


def promtool(*arguments: str, given: str | None = None) -> None:
    """Run Prometheus' tool; skipped only where it is absent: `.ci/run` installs it."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    done = subprocess.run(
        ["promtool", *arguments], cwd=FOLDER, input=given, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_the_rules() -> None:
    """`promtool check rules` finds no error and no duplicate."""
    promtool("check", "rules", RULES.name)


def test_every_case_comes_out_as_written() -> None:
    """`promtool test rules`: the firing cases fire with the labels and the text that people get, the others do not."""
    promtool("test", "rules", *(file.name for file in CASES))


SERVED = """
from prometheus_client import REGISTRY, generate_latest
from scorer.runtime.local_folders import local_folders
from scorer.runtime.machine_metrics import MachineMetrics
from scorer.runtime.settings import load
from scorer.sink.sink_metrics import SinkMetrics
from scorer.worker import worker_metrics
SinkMetrics(REGISTRY)
MachineMetrics(load(), local_folders(load()))
worker_metrics.begin(0)
print(generate_latest().decode(), end="")
"""


def test_names_types_and_units_are_as_prometheus_wants_them() -> None:
    """`promtool check metrics` finds nothing in what a worker and a sink serve at their start."""
    done = subprocess.run([sys.executable, "-c", SERVED], capture_output=True, text=True, timeout=600, check=True)
    assert "fraud_scorer_sink_rows_total" in done.stdout
    assert "fraud_scorer_batches_total" in done.stdout
    promtool("check", "metrics", given=done.stdout)


def test_a_first_event_is_an_increase() -> None:
    """Each counter with label values that the program knows shows all of them as 0 at the start: Prometheus takes no
    increase from a series that begins at 1."""
    done = subprocess.run([sys.executable, "-c", SERVED], capture_output=True, text=True, timeout=600, check=True)
    begins = {
        (sample.name, tuple(value for name, value in sample.labels.items() if name != "shard"))
        for family in text_string_to_metric_families(done.stdout)
        if family.type == "counter"
        for sample in family.samples
        if sample.value == 0
    }
    wanted = {
        "dead_letters": [(reason.value,) for reason in DeadLetterReason],
        "decisions": list(product(DECISIONS, MODES)),
        "bundles_refused": [(refusal,) for refusal in get_args(Refusal)],
        "rebuilds": [("denied",), ("fenced",), ("standby",), ("transaction",)],
        "frontier_waits": [("caught_up",), ("silent",), ("slow",)],
        "sink_records": [("activations",), ("control_changes",), ("dead_letters",), ("labels",)],
        "sink_set_aside": [("unreadable",), ("incomplete",), ("contradiction",), ("card_number",), ("refused",)],
        "sink_errors": [("postgres",), ("kafka",), ("waiting",), ("fatal",)],
        **{name: [()] for name in ("unanswered", "order_lost", "duplicates", "snapshots_failed", "snapshots_refused")},
    }
    for name, values in wanted.items():
        assert {(f"fraud_scorer_{name}_total", value) for value in values} <= begins, name
    # Those that an alert counts are among them, or are set from the state as a shard decides.
    of_state = {f"fraud_scorer_{name}_total" for name in ("feature_keys_refused", "dedupe_evicted_early")}
    counted = {name for rule in rules() for name in re.findall(r"increase\((fraud_scorer_\w+_total)", rule["expr"])}
    assert len(counted) > 8
    assert counted - of_state <= {name for name, _ in begins}


def test_ci_installs_promtool() -> None:
    """CI never skips the two tests above."""
    text = (ROOT / ".ci/run").read_text()
    assert "command -v promtool" in text
    assert re.search(r"apt-get install [^#]*\bprometheus\b", text, re.DOTALL)


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_every_alert_has_a_firing_and_a_silent_case_and_a_runbook(alert: dict[str, Any]) -> None:
    """Whoever is woken finds how it works, what to look at and what to do; both cases are tested."""
    name = alert["alert"]
    expected = [bool(case["exp_alerts"]) for case in cases(name)]
    assert True in expected, "no case fires"
    assert False in expected, "no case is silent"
    assert alert["labels"]["severity"] in ("page", "ticket")
    page = ROOT / alert["annotations"]["runbook"]
    assert page == ROOT / f"deploy/runbooks/{name}.md"
    text = page.read_text()
    assert text.startswith(f"# {name}\n")
    for title in ("How it works", "Investigate", "Fix"):
        section = text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0].strip()
        assert len(section) > 20, f"{title} is empty"


def test_every_runbook_belongs_to_an_alert() -> None:
    """A page without its alert is out of date."""
    pages = {page.stem for page in (ROOT / "deploy/runbooks").glob("*.md")}
    assert pages == {alert["alert"] for alert in alerts()}


def test_every_metric_that_a_rule_or_runbook_names_is_served() -> None:
    """No rule waits for a series that does not exist: each name is in the table of deploy/METRICS.md, which a test
    compares with what is served, or is recorded by a rule."""
    known = {rule["record"] for rule in rules() if "record" in rule}
    for part in ("Worker", "Sink", "Both"):
        for row in documented(part):
            known |= {row.name}
            if row.kind == "histogram":
                known |= {f"{row.name}_{end}" for end in ("bucket", "sum", "count")}
    assert len(known) > 50
    texts = {rule.get("alert") or rule["record"]: rule["expr"] for rule in rules()}
    texts |= {page.name: page.read_text() for page in (ROOT / "deploy/runbooks").glob("*.md")}
    texts |= {file.name: file.read_text() for file in CASES}
    unknown = {place: sorted(set(_NAME.findall(text)) - known) for place, text in texts.items()}
    assert {place: names for place, names in unknown.items() if names} == {}


def test_every_command_that_a_runbook_names_exists() -> None:
    """`fraud-scorer WORD` in a runbook is a command of this version."""
    from scorer.cli.lazy_commands import COMMANDS  # noqa: PLC0415

    for page in (ROOT / "deploy/runbooks").glob("*.md"):
        text = " ".join(page.read_text().split())
        assert set(re.findall(r"`fraud-scorer ([\w-]+)", text)) <= set(COMMANDS), page.name


def families(path: Path) -> set[str]:
    """The names in a metrics module that hold a family or metric."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            target = node.targets[0]
            if isinstance(target, ast.Name) and target.id.isupper() and not target.id.startswith("_"):
                names.add(target.id)
            elif isinstance(target, ast.Attribute):
                names.add(target.attr)
    return names


@pytest.mark.parametrize("module", ["worker/worker_metrics.py", "sink/sink_metrics.py"])
def test_something_feeds_every_metric(module: str) -> None:
    """Each family is counted or set by code outside its own module: one that begins at 0 and never moves says that all
    is well."""
    path = ROOT / "scorer" / module
    used: set[str] = set()
    for other in (ROOT / "scorer").rglob("*.py"):
        if other != path:
            text = other.read_text()
            used |= set(re.findall(r"(?:worker_metrics|_metrics|metrics)\.(\w+)", text))
    own = families(path)
    assert len(own) > 8
    # The bundle's series is set by `use_bundle`, which shards call.
    assert own - used <= ({"BUNDLE"} if "worker" in module else set())
