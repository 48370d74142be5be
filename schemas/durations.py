"""Durations as people write them in YAML and on the command line: "250ms", "30s", "10m", "24h", "7d".

A number always carries its unit, because a bare 30 is read as seconds by one person and as days by the next.
"""

from __future__ import annotations

import re

UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

# A century: longer than any window or horizon, and in milliseconds still far inside int64.
DURATION_MS_MAX = 36_525 * UNIT_MS["d"]

_FORM = re.compile(r"([0-9]{1,15})(ms|s|m|h|d)", re.ASCII)
_EXAMPLES = "write a whole number and its unit, such as 250ms, 30s, 10m, 24h or 7d"


def parse_duration_ms(text: str) -> int:
    """Milliseconds in `text`, 0 <= result <= DURATION_MS_MAX. Raises ValueError that says what to write instead."""
    if not isinstance(text, str):
        raise ValueError(f"a duration is text, found {type(text).__name__}; {_EXAMPLES}")
    match = _FORM.fullmatch(text.strip())
    if match is None:
        shown = repr(text) if len(text) <= 40 else f"a string of {len(text)} characters"
        raise ValueError(f"{shown} is not a duration; {_EXAMPLES}")
    duration_ms = int(match[1]) * UNIT_MS[match[2]]
    if duration_ms > DURATION_MS_MAX:
        raise ValueError(
            f"{text.strip()!r} is longer than {DURATION_MS_MAX // UNIT_MS['d']}d, the longest duration there is"
        )
    return duration_ms
