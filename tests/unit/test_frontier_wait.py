"""The wait for a partition that holds the others: bounded by the clock, unless it is catching up."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from scorer.worker.frontier_wait import FIRST_READ_WAITS, STEP_S_MAX, FrontierWait

SHARD = 977


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def wait(clock: Clock) -> FrontierWait:
    found = FrontierWait(shard=SHARD, wait_s=2.0, share=10, monotonic=clock)
    found.see({0: 1, 1: 1}, set())  # both were read once
    return found


def counted(outcome: str) -> float:
    return (
        REGISTRY.get_sample_value("fraud_scorer_frontier_waits_total", {"shard": str(SHARD), "outcome": outcome}) or 0.0
    )


def held_s(wait: FrontierWait, clock: Clock, holders: set[int], gain: float | None, most_s: float = 60.0) -> float:
    """How long the others wait when the frontier moves on `gain` ms a millisecond; None: silent."""
    start = clock.now
    while clock.now - start < most_s:
        if wait.hold(holders, None if gain is None else int((clock.now - start) * 1000 * gain)):
            return clock.now - start
        clock.now += 0.1
    return most_s


def test_a_silent_partition_is_passed_after_the_wait_and_waited_for_again_once_it_shows_a_share(
    wait: FrontierWait, clock: Clock
) -> None:
    """The others wait for a silent partition for the setting's time, once; it is counted and logged; when it is read
    again it takes part again."""
    before = counted("silent")
    with capture_logs() as logged:
        assert held_s(wait, clock, {1}, None) == pytest.approx(2.0, abs=0.15)
    assert counted("silent") == before + 1
    assert [entry["partitions"] for entry in logged] == [[1]]
    assert set(wait.passed) == {1}
    wait.see({0: 1, 1: 9}, {1})
    assert set(wait.passed) == {1}
    wait.see({0: 1, 1: 10}, {1})
    assert not wait.passed


@pytest.mark.parametrize(("gain", "seconds"), [(50.0, 60.0), (1.5, 60.0), (0.5, 2.0), (0.0, 2.0)])
def test_only_a_backlog_that_gains_on_the_clock_is_waited_for(
    wait: FrontierWait, clock: Clock, gain: float, seconds: float
) -> None:
    """A partition that is caught up faster than time passes is waited for as long as it takes; one whose event times
    stand still or crawl, in however many records, is not."""
    assert held_s(wait, clock, {1}, gain) == pytest.approx(seconds, abs=0.15)
    assert set(wait.passed) == (set() if seconds == 60.0 else {1})
    wait.see({0: 1, 1: 5000}, {1})
    assert set(wait.passed) == (set() if seconds == 60.0 else {1})  # a slow one until it has caught up
    wait.see({0: 1, 1: 5000}, set())
    assert not wait.passed


def test_a_partition_not_read_yet_is_waited_for_longer(wait: FrontierWait, clock: Clock) -> None:
    """After a start, a leader that is still being elected does not make hours of its partition late."""
    wait.see({0: 1, 1: 1, 2: 0}, {2})
    assert held_s(wait, clock, {2}, None) == pytest.approx(2.0 * FIRST_READ_WAITS, abs=0.15)


def test_a_stall_of_the_worker_is_not_the_partitions_wait(wait: FrontierWait, clock: Clock) -> None:
    """Half a minute in a commit between two looks does not pass a partition."""
    wait.hold({1}, None)
    clock.now += 30.0
    assert not wait.hold({1}, None)
    assert held_s(wait, clock, {1}, None) == pytest.approx(2.0 - STEP_S_MAX, abs=0.15)


def test_a_wait_that_ends_by_itself_is_counted_unless_it_was_a_moment(wait: FrontierWait, clock: Clock) -> None:
    """Waits that payments could notice are counted, the moments of fetching are not."""
    before = counted("caught_up")
    for pause in (0.001, 0.1):
        wait.hold({1}, None)
        clock.now += pause
        wait.hold({1}, None)
        wait.none()
    assert counted("caught_up") == before + 1
    assert not wait.passed
