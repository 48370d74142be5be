"""The chance that a payment of the Handbook's kind is fraud, from how such data is made: hardly a model ranks better.

A payment is fraud when its amount is above 220, when its terminal is compromised (28 days, all payments), or when its
customer's data is stolen (14 days) and a thief made it (one in three, 5 times the amount). Everything is known of that
but the days on which terminals and customers are taken, and which payments are the thief's. Bayes' theorem has the
chance of each, given the payments before this one and the labels known by then:

    customer   a payment weighs for "stolen" what its amount does: the density of 5 times an amount of this customer
               over that of one of its own. A known genuine one is not the thief's; a known fraud is, or its terminal
               was compromised then.
    terminal   a known genuine payment says "not compromised", for sure; a known fraud says it was, or its customer's
               data was stolen.

So customers and terminals explain each other's frauds: they exchange the chances of a known fraud's two causes a few
times (belief propagation; exact unless known frauds connect customers and terminals to a circle). Within one key the
days are a chain of states, days left of a campaign, which is summed over exactly (forward and backward).

Ranking by the chance of fraud has the highest average precision that can be expected where payments are frauds
independently; frauds of one terminal are not, so that another order could gain a little. It knows more than a model:
the simulator's rates, and each customer's mean amount, from the genuine payments of all days, later ones too. It does
not use that a thief's amounts, in cents, are multiples of 5, as amounts are rounded before they are multiplied: an
accident of the simulator, which says nothing about fraud, and which no feature shows. Chance may still put a ranking
above it on some hundred frauds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from tests import handbook_data

DAY_MS = 86_400_000
WINDOW_DAYS = 70  # what is older says nothing: a campaign of today explains 28 days, its rival causes 28 more
EXCHANGES = 3
CUSTOMERS, TERMINALS = 5_000, 10_000
BELOW_ZERO = 0.02275  # of a normal distribution two deviations above 0: these amounts are drawn anew, from 0 to 2 means
RATIO_MIN, RATIO_MAX = 1e-12, 1e12
CHANCE_MIN = 1e-9


@dataclass(frozen=True)
class Campaign:
    """On each day one begins at a key with this chance, and lasts so many days, the first included."""

    chance: float
    days: int


@dataclass(frozen=True)
class Scheme:
    """What is known of how the payments were made."""

    stolen: Campaign = Campaign(handbook_data.CUSTOMERS_A_DAY / CUSTOMERS, handbook_data.CUSTOMER_DAYS)
    compromised: Campaign = Campaign(handbook_data.TERMINALS_A_DAY / TERMINALS, handbook_data.TERMINAL_DAYS)
    delay_days: int = 7


@dataclass(frozen=True)
class Payments:
    """n payments in order of time: int64 [n], amount float64 [n] in major units, fraud bool [n]."""

    time_ms: np.ndarray
    customer: np.ndarray
    terminal: np.ndarray
    amount: np.ndarray
    fraud: np.ndarray

    @property
    def day(self) -> np.ndarray:
        return self.time_ms // DAY_MS

    @property
    def large(self) -> np.ndarray:
        """bool [n]: fraud whatever else happened, so the label tells nothing of customer or terminal."""
        return np.asarray(self.amount > handbook_data.LARGE_CENTS / 100)


def chance_of_fraud(payments: Payments, tested: np.ndarray, scheme: Scheme | None = None) -> np.ndarray:
    """float64 [m]: of the payments `tested` (numbers, int64 [m]), each from what was known at its own time.

    Raises ValueError for payments out of order.
    """
    if (np.diff(payments.time_ms) < 0).any():
        raise ValueError("payments are not in order of time_ms, which says what was known at each: sort them")
    scheme = scheme or Scheme()
    odds = stolen_odds(payments)
    chance = np.empty(len(tested))
    for today in np.unique(payments.day[tested]):
        now = payments.day[tested] == today
        chance[now] = _of_day(payments, odds, tested[now], int(today), scheme)
    return chance


def stolen_odds(payments: Payments) -> np.ndarray:
    """float64 [n]: how much likelier each amount is a thief's than the customer's own."""
    mean = mean_amounts(payments)[payments.customer]
    factor = handbook_data.STOLEN_FACTOR
    own = _density(payments.amount, mean)
    thief = _density(payments.amount / factor, mean) / factor
    return np.clip(thief / np.maximum(own, 1e-300), RATIO_MIN, RATIO_MAX)


def mean_amounts(payments: Payments) -> np.ndarray:
    """float64 [customers]: the likeliest mean of normal amounts whose deviation is half of it, from the genuine ones.

    The logarithm of the likelihood of n amounts of sum s and sum of squares q is -n ln m - 2 q / m² + 4 s / m - 2 n;
    its slope is 0 where n m² + 4 s m - 4 q = 0. Without a genuine payment: 52.5, the middle of what there is.
    """
    genuine = ~payments.fraud
    customer, amount = payments.customer[genuine], payments.amount[genuine]
    size = int(payments.customer.max()) + 1
    n, s, q = (np.bincount(customer, amount**power, minlength=size) for power in (0, 1, 2))
    return np.where(n > 0, 2 * (np.sqrt(s**2 + n * q) - s) / np.maximum(n, 1), 52.5)


def _density(amount: np.ndarray, mean: np.ndarray) -> np.ndarray:
    deviation = mean / 2
    bell = np.exp(-(((amount - mean) / deviation) ** 2) / 2) / (deviation * np.sqrt(2 * np.pi))
    return np.asarray(bell + BELOW_ZERO * (amount < 2 * mean) / (2 * mean))


def _of_day(payments: Payments, odds: np.ndarray, tested: np.ndarray, today: int, scheme: Scheme) -> np.ndarray:
    """As `chance_of_fraud`, for payments of one day."""
    begin, end = np.searchsorted(payments.day, [today - WINDOW_DAYS, today + 1])
    part = slice(int(begin), int(end))
    time_ms, fraud, large = payments.time_ms[part], payments.fraud[part], payments.large[part]
    customers = _Keys(payments.customer[part], time_ms, today, scheme.stolen, scheme.delay_days)
    terminals = _Keys(payments.terminal[part], time_ms, today, scheme.compromised, scheme.delay_days)
    share, by_amount = handbook_data.STOLEN_SHARE, odds[part] * handbook_data.STOLEN_SHARE
    stolen_unknown = 1 - share + by_amount
    known = time_ms <= (today - scheme.delay_days) * DAY_MS
    of_terminal = np.full(len(time_ms), scheme.compromised.chance * scheme.compromised.days)

    def ratios() -> tuple[np.ndarray, np.ndarray]:
        """How much likelier each payment is, its label known, where its customer's data is stolen, and where its
        terminal is compromised, by what is believed of terminals at the moment."""
        stolen = np.where(large, stolen_unknown, np.where(fraud, 1 - share + by_amount / of_terminal, 1 - share))
        before = customers.odds_without(stolen, stolen_unknown, known)
        of_thief = _bounded(before * by_amount / (1 + before * stolen_unknown))
        return stolen, np.where(large, 1.0, np.where(fraud, 1 / of_thief, 0.0))

    nothing = np.ones(len(time_ms))
    for _ in range(EXCHANGES):
        before = terminals.odds_without(ratios()[1], nothing, known)
        of_terminal = _bounded(before / (1 + before))
    stolen_ratio, terminal_ratio = ratios()

    here = tested - part.start
    stolen = customers.chance_at(here, stolen_ratio, stolen_unknown)
    thief = stolen * by_amount[here] / (1 - stolen + stolen * stolen_unknown[here])
    compromised = terminals.chance_at(here, terminal_ratio, nothing)
    return np.asarray(np.where(large[here], 1.0, 1 - (1 - thief) * (1 - compromised)))


def _bounded(chance: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(chance, CHANCE_MIN, 1 - CHANCE_MIN))


class _Keys:
    """The payments of a window by customer or terminal, and the campaigns that may be under way there."""

    def __init__(self, key: np.ndarray, time_ms: np.ndarray, today: int, campaign: Campaign, delay_days: int) -> None:
        self._key, self._time_ms, self._campaign = key, time_ms, campaign
        self._day = time_ms // DAY_MS - (today - WINDOW_DAYS)
        self._order = np.argsort(key, kind="stable")
        self._first = np.concatenate([[0], np.cumsum(np.bincount(key))])
        self._delay_ms = delay_days * DAY_MS

    def odds_without(self, known_ratio: np.ndarray, unknown_ratio: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Odds that a campaign was under way at each payment before today, from all others before today: float64 [n].

        A ratio is how much likelier the payment is during a campaign, with and without its label.
        """
        ratio = np.where(known, known_ratio, unknown_ratio)
        chance = np.zeros(len(ratio))
        _at_payments(self._first, self._order, self._day, ratio, *self._chain, chance)
        # A genuine payment at a terminal rules a campaign out. It asks for no odds.
        return np.asarray(chance / np.maximum(1 - chance, CHANCE_MIN) / np.where(ratio > 0, ratio, 1.0))

    def chance_at(self, here: np.ndarray, known_ratio: np.ndarray, unknown_ratio: np.ndarray) -> np.ndarray:
        """Chance of a campaign at the payments `here`, all of today, from those before each and its labels then."""
        chance = np.empty(len(here))
        _before_payments(
            here, self._first[self._key[here]], self._first[self._key[here] + 1], self._order, self._day,
            self._time_ms, self._delay_ms, known_ratio, unknown_ratio, *self._chain, chance,
        )  # fmt: skip
        return chance

    @property
    def _chain(self) -> tuple[float, int]:
        return self._campaign.chance, self._campaign.days


@numba.njit(cache=True)  # type: ignore[misc]
def _under_way(ratio, chance, length, found):  # type: ignore[no-untyped-def]
    """found float64 [days]: chance of a campaign on each day, from how much likelier that day's payments are during
    one. States: days left, today included; 0 is none. A new campaign takes the place of an old one."""
    days, states = len(ratio), length + 1
    forward, state, moved = np.empty((days, states)), np.empty(states), np.empty(states)
    for left in range(states):
        state[left] = (chance if left else 1.0) * (1 - chance) ** (length - left)
    for day in range(days):
        if day:
            moved[:] = 0.0
            for left in range(states):
                moved[length] += chance * state[left]
                moved[max(left - 1, 0)] += (1 - chance) * state[left]
            state[:] = moved
        state[1:] *= ratio[day]
        state /= state.sum()
        forward[day] = state
    state[:] = 1.0  # from here on: how likely the days after are, by state
    for day in range(days - 1, -1, -1):
        found[day] = (forward[day, 1:] * state[1:]).sum() / (forward[day] * state).sum()
        state[1:] *= ratio[day]
        for left in range(states):
            moved[left] = chance * state[length] + (1 - chance) * state[max(left - 1, 0)]
        state[:] = moved / moved.max()


@numba.njit(cache=True)  # type: ignore[misc]
def _at_payments(first, order, day, ratio, chance, length, found):  # type: ignore[no-untyped-def]
    """found float64 [n]: chance of a campaign on the day of each payment before today."""
    of_day, under_way = np.empty(WINDOW_DAYS), np.empty(WINDOW_DAYS)
    for key in range(len(first) - 1):
        rows = order[first[key] : first[key + 1]]
        of_day[:] = 1.0
        for row in rows:
            if day[row] < WINDOW_DAYS:
                of_day[day[row]] = min(of_day[day[row]] * ratio[row], 1e100)
        _under_way(of_day, chance, length, under_way)
        for row in rows:
            if day[row] < WINDOW_DAYS:
                found[row] = under_way[day[row]]


@numba.njit(cache=True)  # type: ignore[misc]
def _before_payments(  # type: ignore[no-untyped-def]
    here, begin, end, order, day, time_ms, delay_ms, known_ratio, unknown_ratio, chance, length, found
):
    """found float64 [m]: chance of a campaign at each payment `here`, all of today."""
    of_day, under_way = np.empty(WINDOW_DAYS + 1), np.empty(WINDOW_DAYS + 1)
    for number in range(len(here)):
        of_day[:] = 1.0
        for row in order[begin[number] : end[number]]:
            if row >= here[number]:
                break
            known = time_ms[row] <= time_ms[here[number]] - delay_ms
            ratio = known_ratio[row] if known else unknown_ratio[row]
            of_day[day[row]] = min(of_day[day[row]] * ratio, 1e100)
        _under_way(of_day, chance, length, under_way)
        found[number] = under_way[WINDOW_DAYS]
