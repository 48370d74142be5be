"""The kinds of fraud of the simulated world, and how long each takes to be reported."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class FraudKind(IntEnum):
    """What a payment truly is. Never a feature; shown only in reports about the simulation."""

    GENUINE = 0
    COMPROMISED_TERMINAL = 1
    STOLEN_CARD = 2
    CARD_TESTING = 3
    ACCOUNT_TAKEOVER = 4
    MERCHANT_COLLUSION = 5

    @property
    def text(self) -> str:
        """Lower-case name, as in reports."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Report:
    """When a payment of one kind is reported: log-normal delay, `median_h` hours, sigma `spread`, cut at
    REPORT_DAYS_MAX.
    """

    median_h: float
    spread: float


REPORT_DAYS_MAX = 45

# Card testing alarms the issuer; an overcharge is found on the monthly statement. Genuine: confirmed by the customer.
REPORTS = {
    FraudKind.GENUINE: Report(72, 0.8),
    FraudKind.COMPROMISED_TERMINAL: Report(24, 0.8),
    FraudKind.STOLEN_CARD: Report(14, 0.9),
    FraudKind.CARD_TESTING: Report(8, 0.9),
    FraudKind.ACCOUNT_TAKEOVER: Report(30, 0.9),
    FraudKind.MERCHANT_COLLUSION: Report(168, 0.7),
}

# Share of genuine payments that are confirmed, and that are reported as fraud by mistake or in bad faith.
CONFIRMED_SHARE = 0.05
FALSE_REPORT_SHARE = 0.0001
