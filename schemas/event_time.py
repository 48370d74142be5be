"""Event times: what the contracts accept as a moment, and its epoch milliseconds.

Either RFC 3339 text with an offset ("2026-01-01T00:00:00.123Z", "2026-01-01 01:00:00+01:00"; up to nine digits of a
second, cut to milliseconds) or an integer of epoch milliseconds. No leap second (":60"): Unix time has no number for
it.

The range ends at 4 * 10^12 ms (2096-10-02), because a 13-digit number that begins with 4 could be a card number, and
begins with the year 2000, below which numbers are seconds by mistake.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

from schemas.contract_error import ContractError, DeadLetterReason, shape

EVENT_TIME_MS_MIN: Final = 946_684_800_000  # 2000-01-01T00:00:00Z
EVENT_TIME_MS_END: Final = 4_000_000_000_000  # exclusive

_FORM = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[T ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9}))?"
    r"(?:Z|([+-])([0-9]{2}):([0-9]{2}))"
)
_NO_OFFSET = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?)?")
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - offsets are added as integers, so no calendar end overflows
_WAY_OUT = "write RFC 3339 with an offset, such as 2026-01-01T00:00:00Z, or epoch milliseconds"


def event_time_ms(value: object, field: str = "event_time") -> int:
    """Epoch milliseconds of a contract time. Raises ContractError for `field`.

    The reference of the kernel in schemas.text_kernels.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ContractError(
            DeadLetterReason.WRONG_TYPE, field, f"expected text or an integer, found {shape(value)}; {_WAY_OUT}"
        )
    moment_ms = value if isinstance(value, int) else _rfc3339_ms(value, field)
    if EVENT_TIME_MS_MIN <= moment_ms < EVENT_TIME_MS_END:
        return moment_ms
    if isinstance(value, int):
        message = f"{shape(value)}; epoch milliseconds from 2000-01-01 to 2096-10-02 have 12 or 13 digits"
    else:
        message = "the time must be from 2000-01-01 to 2096-10-02"
    raise ContractError(DeadLetterReason.EVENT_TIME_OUT_OF_RANGE, field, message)


def _rfc3339_ms(text: str, field: str) -> int:
    match = _FORM.fullmatch(text)
    if match is None:
        lacks = "a time without an offset" if _NO_OFFSET.fullmatch(text) else shape(text)
        raise ContractError(DeadLetterReason.EVENT_TIME_INVALID, field, f"{lacks} is not a moment; {_WAY_OUT}")
    year, month, day, hour, minute, second = (int(match[group]) for group in range(1, 7))
    offset_hour, offset_minute = int(match[9] or 0), int(match[10] or 0)
    try:
        # Year 0 is a date of RFC 3339 but not of datetime; 400 years later the calendar is the same, and both are out
        # of range.
        moment = datetime(year or 400, month, day, hour, minute, second)  # noqa: DTZ001
    except ValueError:
        moment = None
    if moment is None or offset_hour > 23 or offset_minute > 59:
        raise ContractError(
            DeadLetterReason.EVENT_TIME_INVALID, field, "no such date, time or offset exists (nor does second 60 here)"
        )
    milliseconds = int(((match[7] or "") + "000")[:3])
    offset_ms = (offset_hour * 60 + offset_minute) * (-60_000 if match[8] == "-" else 60_000)
    return (moment - _EPOCH) // timedelta(milliseconds=1) + milliseconds - offset_ms
