"""The label contract: a verdict on a payment that became known later."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from pydantic import Field

from schemas.event_time import event_time_ms
from schemas.field_types import Contract, EventTime, Identifier


class Label(Contract):
    """Whether a payment was fraud, and from when on that was known."""

    type: Literal["label"] = Field(default="label", description="Kind of record.")
    payment_id: Identifier = Field(description="The payment judged.", examples=["p_7f3a19"])
    fraud: bool = Field(description="True for fraud, false for genuine.")
    known_at: EventTime = Field(
        description="When the verdict became known, on the scale of event time; later payments see it.",
        examples=["2026-01-09T08:00:00Z"],
    )
    event_time: EventTime | None = Field(
        default=None, description="Event time of the payment, when known.", examples=["2026-01-01T12:30:00.250Z"]
    )
    source: Identifier | None = Field(
        default=None, description="Where the verdict comes from.", examples=["chargeback", "customer_report"]
    )
    analyst: Identifier | None = Field(default=None, description="Who gave it.", examples=["analyst_7"])

    @cached_property
    def known_at_ms(self) -> int:
        """`known_at`, epoch milliseconds UTC."""
        return event_time_ms(self.known_at, "known_at")

    @cached_property
    def event_time_ms(self) -> int | None:
        """`event_time`, epoch milliseconds UTC."""
        return None if self.event_time is None else event_time_ms(self.event_time)
