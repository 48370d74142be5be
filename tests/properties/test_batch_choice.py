"""Which records make a batch: as a plain loop over single records chooses, and fair whatever stands on a partition."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scorer.worker.batch_choice import NO_TIME, REFUSED_WEIGHT, Choice, Rules, Times, choose

Given = dict[int, list[int]]
checked = settings(max_examples=300, deadline=None)
_FAR = 1 << 60


def arrays(times: Given) -> dict[int, Times]:
    return {p: np.array(part, dtype=np.int64) for p, part in times.items()}


class Plain:
    """The rules of scorer.worker.batch_choice, one record after the other."""

    def __init__(self, times: Given, behind: set[int], stream_ms: int, rules: Rules, passed: set[int]) -> None:
        self.times, self.behind, self.stream_ms, self.rules, self.passed = times, behind, stream_ms, rules, passed

    def active(self, time_ms: int) -> bool:
        return time_ms != NO_TIME and time_ms >= self.stream_ms - self.rules.lateness_ms

    def reached(self, p: int, i: int) -> int:
        return max((t for t in self.times[p][: i + 1] if self.active(t)), default=NO_TIME)

    def key(self, p: int, i: int) -> int:
        following = (k for k in range(i, len(self.times[p])) if self.active(self.times[p][k]))
        k = next(following, None)
        return _FAR if k is None else self.reached(p, k)

    def bound(self, time_ms: int) -> int:
        if time_ms >= self.stream_ms:
            return time_ms
        return min(time_ms + self.rules.lateness_ms, self.stream_ms + self.rules.ahead_ms)

    def claims(self) -> list[int]:
        return [p for p, part in self.times.items() if p not in self.passed and any(map(self.active, part))]

    def weight(self, p: int, i: int) -> int:
        return min(REFUSED_WEIGHT if self.times[p][i] == NO_TIME else 1, self.rules.batch_max)

    def counts(self) -> dict[int, int]:
        bounds = [self.bound(self.reached(p, len(self.times[p]) - 1)) for p in self.claims() if p in self.behind]
        frontier = min(bounds, default=_FAR)
        eligible = {p: sum(self.reached(p, i) <= frontier for i in range(len(part))) for p, part in self.times.items()}
        if sum(self.weight(p, i) for p, n in eligible.items() for i in range(n)) <= self.rules.batch_max:
            return eligible
        counts, left = {}, self.rules.batch_max
        for p in self.times:
            limit = min((self.bound(self.key(q, 0)) for q in self.claims() if q != p), default=_FAR)
            share, taken = self.rules.batch_max // len(self.times), 0
            while taken < eligible[p] and self.reached(p, taken) <= limit and self.weight(p, taken) <= share:
                share -= self.weight(p, taken)
                left -= self.weight(p, taken)
                taken += 1
            counts[p] = taken
        while more := [(self.key(p, n), p) for p, n in counts.items() if n < eligible[p]]:
            _, p = min(more)
            left -= self.weight(p, counts[p])
            if left < 0:
                break
            counts[p] += 1
        return counts


moments = st.just(NO_TIME) | st.integers(0, 60)
partitions = st.dictionaries(st.integers(0, 4), st.lists(moments, max_size=12), min_size=1, max_size=5).map(
    lambda found: dict(sorted(found.items()))
)
rules = st.builds(Rules, batch_max=st.integers(1, 40), lateness_ms=st.integers(0, 30), ahead_ms=st.integers(0, 10))
some = st.sets(st.integers(0, 4))


@checked
@given(partitions, some, st.just(NO_TIME) | st.integers(0, 60), rules, some)
def test_choice_equals_the_plain_one(
    times: Given, behind: set[int], stream: int, rule: Rules, passed: set[int]
) -> None:
    """Arrays and the loop over single records choose the same."""
    choice = choose(arrays(times), behind, stream, rule, passed)
    assert choice.counts == Plain(times, behind, stream, rule, passed).counts()


@checked
@given(partitions, some, st.just(NO_TIME) | st.integers(0, 60), rules, some)
def test_a_batch_is_bounded_and_moves_on(
    times: Given, behind: set[int], stream: int, rule: Rules, passed: set[int]
) -> None:
    """A batch never holds more than its bound, refused records counted as several, and is never empty while something
    is buffered."""
    counts = choose(arrays(times), behind, stream, rule, passed).counts
    taken = [t for p, count in counts.items() for t in times[p][:count]]
    assert sum(min(REFUSED_WEIGHT if t == NO_TIME else 1, rule.batch_max) for t in taken) <= rule.batch_max
    assert bool(taken) == any(times.values())


@checked
@given(
    st.integers(0, 200),
    st.sampled_from([NO_TIME, 1_000]),
    st.lists(st.integers(0, 50), min_size=1, max_size=40),
    st.booleans(),
)
def test_garbage_and_what_is_too_late_neither_hold_nor_push_out(
    burst: int, idle_time: int, gaps: list[int], burst_is_behind: bool
) -> None:
    """However much of one partition is unreadable or later than allowed, all live payments of another one are in the
    next batch when a batch can hold them."""
    rule = Rules(batch_max=80, lateness_ms=10_000, ahead_ms=100)
    live = np.cumsum(gaps) + 1_000_000
    times = {0: np.full(burst, idle_time), 1: live}
    choice = choose(times, {0} if burst_is_behind else set(), 1_000_000, rule)
    assert choice.counts[1] == len(live)
    assert not choice.held


@checked
@given(st.integers(1, 200), st.integers(1_000, 9_000))
def test_old_payments_that_are_not_too_late_do_not_hold_live_ones(burst: int, age_ms: int) -> None:
    """A partition full of payments behind stream time, which waiting would not bring into order, gets its share, and a
    live payment of another partition is in the same batch."""
    rule = Rules(batch_max=80, lateness_ms=10_000, ahead_ms=100)
    old = np.full(burst, 1_000_000 - age_ms)
    choice = choose({0: old, 1: np.array([1_000_050])}, {0}, 1_000_000, rule)
    assert choice.counts[1] == 1
    assert choice.counts[0] >= min(burst, 79)


@checked
@given(
    st.lists(st.lists(st.integers(1, 400), min_size=1, max_size=60), min_size=2, max_size=4),
    st.lists(st.integers(0, 3), max_size=40),
    st.integers(4, 30),
    st.integers(1, 20),
)
def test_catching_up_makes_nothing_late(
    gaps: list[list[int]], garbage_at: list[int], batch_max: int, shown_max: int
) -> None:
    """Partitions of unequal length and density, each in order of time and with garbage in between, are caught up
    without a payment decided later than the allowed lateness, whatever part of them is buffered."""
    rule = Rules(batch_max=batch_max, lateness_ms=100, ahead_ms=50)
    logs: Given = {p: np.cumsum(part).tolist() for p, part in enumerate(gaps)}
    for n, p in enumerate(garbage_at):
        if p in logs:
            logs[p].insert(n % (len(logs[p]) + 1), NO_TIME)
    stream, at = NO_TIME, dict.fromkeys(logs, 0)
    while any(at[p] < len(log) for p, log in logs.items()):
        shown = {p: log[at[p] : at[p] + shown_max] for p, log in logs.items()}
        behind = {p for p, log in logs.items() if at[p] + len(shown[p]) < len(log)}
        # A partition that shows nothing but garbage does not hold the others: that is the price of fairness.
        while blind := [p for p in behind if all(t == NO_TIME for t in shown[p])]:
            for p in blind:
                shown[p] = logs[p][at[p] : at[p] + len(shown[p]) + 1]
                if at[p] + len(shown[p]) == len(logs[p]):
                    behind.discard(p)
        choice: Choice = choose(arrays(shown), behind, stream, rule)
        taken = [(max(shown[p][: i + 1]), p, i) for p, count in choice.counts.items() for i in range(count)]
        assert taken
        for _, p, i in sorted(taken):  # journal order
            time = shown[p][i]
            if time != NO_TIME:
                stream = max(stream, time)
                assert time >= stream - rule.lateness_ms
        for p, count in choice.counts.items():
            at[p] += count
