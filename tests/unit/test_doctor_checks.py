"""Doctor's checks that need no service: what cannot be seen is reported as not checked, and nothing is guessed."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from scorer.operate.doctor import broker_check
from scorer.operate.doctor.broker_check import check_clock
from scorer.operate.doctor.diagnosis import Diagnosis, Level
from scorer.operate.doctor.process_check import is_here
from scorer.operate.doctor.tracing_check import check_tracing
from scorer.runtime import settings as settings_module
from tests.otlp_collector import collector
from tests.ports import free_ports


def test_producers_timestamps_say_nothing_about_the_brokers_clock() -> None:
    """Where payments keep their producers' timestamps, a producer's clock is not taken for the broker's."""
    found = Diagnosis()
    check_clock(found, None, [], producer_timestamps=True, epoch_s=lambda: 0.0)  # type: ignore[arg-type]
    assert found.findings == []
    assert "producers" in found.not_checked["clock"]
    assert found.checked == []


class Broker:
    """Answers so late that each question takes `late_s`; a payment comes in between, with this clock's time but for
    `ahead_s`."""

    def __init__(self, late_s: float, ahead_s: float) -> None:
        self._late_s, self._ahead_s = late_s, ahead_s
        self.now_s = 1_000_000.0
        self._newest_s = self.now_s - 500.0 - ahead_s

    def newest_s(self, *_: object) -> float:
        shown, self._newest_s = self._newest_s, self.now_s + 0.05 - self._ahead_s
        self.now_s += self._late_s
        return shown


@pytest.mark.parametrize("late_s", [0.0, 5.0])
@pytest.mark.parametrize(("ahead_s", "word"), [(0.0, ""), (30.0, "ahead of"), (-30.0, "behind")])
def test_a_broker_that_answers_late_makes_no_clock_wrong(
    late_s: float, ahead_s: float, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of a busy broker take seconds: a clock that is right is not called wrong for it, and one that is wrong by
    more than that is found."""
    found, broker = Diagnosis(), Broker(late_s, ahead_s)
    monkeypatch.setattr(broker_check, "_newest_s", broker.newest_s)
    check_clock(found, None, [], producer_timestamps=False, epoch_s=lambda: broker.now_s)  # type: ignore[arg-type]
    assert found.checked == ["clock"]
    assert [f"{word} the broker's" in finding.found for finding in found.findings] == [True] * bool(word)


def traced(**tracing: Any) -> Diagnosis:
    """What is found of these settings."""
    found = Diagnosis()
    check_tracing(found, settings_module.load(tracing=tracing))
    return found


def test_a_collector_that_takes_spans_is_no_finding() -> None:
    """It is asked once, with a request that has no span and the headers of the settings."""
    with collector() as there:
        found = traced(exporter="otlp", endpoint=there.address, headers="authorization=Bearer%20abcdefgh")
    assert found.findings == []
    assert found.checked == ["tracing"]
    assert there.spans == []
    (sent,) = [{name.lower(): value for name, value in request.items()} for request in there.requests]
    assert sent["authorization"] == "Bearer abcdefgh"


@pytest.mark.parametrize("status", [401, 404])
def test_a_collector_that_refuses_is_a_warning_with_its_answer(status: int) -> None:
    """Decisions do not need it, so the process starts; the answer tells a wrong token from a wrong path."""
    with collector() as there:
        there.status = status
        found = traced(exporter="otlp", endpoint=there.address, headers="authorization=Bearer%20abcdefgh")
    (finding,) = found.findings
    assert finding.level is Level.WARNING
    assert str(status) in finding.found
    assert "TRACING__ENDPOINT" in finding.repair
    assert "abcdefgh" not in finding.found
    assert found.good


def test_a_collector_that_is_away_is_found_within_the_time_of_a_request() -> None:
    """No answer is a warning too, and the examination goes on."""
    (port,) = free_ports(1)
    found = traced(exporter="otlp", endpoint=f"http://127.0.0.1:{port}/v1/traces", timeout_s=0.5)
    (finding,) = found.findings
    assert finding.level is Level.WARNING
    assert "does not take spans" in finding.found


def test_what_keeps_a_process_from_starting_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages that are not installed, and headers or files that cannot be read, as the process itself would end."""
    (bad,) = traced(exporter="otlp", headers="authorization").findings
    assert (bad.level, bad.part) == (Level.ERROR, "tracing")
    assert "TRACING__HEADERS" in bad.found
    (missing,) = traced(exporter="otlp", certificate="/nowhere/ca.pem").findings
    assert (missing.level, "ca.pem" in missing.found) == (Level.ERROR, True)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    (absent,) = traced(exporter="otlp").findings
    assert absent.level is Level.ERROR
    assert "fraud-scorer[tracing]" in absent.found


def test_settings_of_traces_that_do_nothing_or_give_away_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint without the exporter, OpenTelemetry turned off beside it, and spans in clear text to another host."""
    assert traced().findings == []
    assert traced().checked == []
    (unused,) = traced(endpoint="https://collector:4318/v1/traces").findings
    assert "TRACING__EXPORTER is none" in unused.found
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with collector() as there:
        (off,) = traced(exporter="otlp", endpoint=there.address).findings
    assert "OTEL_SDK_DISABLED" in off.found
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    found = traced(exporter="otlp", endpoint="http://collector.invalid:4318/v1/traces", headers="a=b", timeout_s=0.5)
    assert "and headers go to collector.invalid by http" in [f.found for f in found.findings][-1]


@pytest.mark.parametrize(
    ("server", "here"),
    [("localhost:9092", True), ("127.0.0.1:1", True), ("[::1]:9092", True), ("127.0.0.1", True), ("[::1]", True),
     ("kafka:9092", False), ("10.0.0.1:9092", False), ("localhost.evil:1", False)],
)  # fmt: skip
def test_this_machine_is_known_by_its_names_alone(server: str, here: bool) -> None:
    """With and without a port."""
    assert is_here(server) is here
