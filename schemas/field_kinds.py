"""The kinds of payment field: how a value is checked. Each type in schemas.field_types carries its kind."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Kind(IntEnum):
    """How the value of a field is checked."""

    IDENTIFIER = 0
    TIME = 1
    AMOUNT = 2
    CURRENCY = 3
    IP = 4
    MCC = 5
    CHANNEL = 6
    COUNTRY = 7
    LATITUDE = 8
    LONGITUDE = 9
    ATTRIBUTES = 10


TEXT_KINDS: Final = frozenset({Kind.IDENTIFIER, Kind.CURRENCY, Kind.IP, Kind.MCC, Kind.CHANNEL, Kind.COUNTRY})
DEGREES_MAX: Final = {Kind.LATITUDE: 90, Kind.LONGITUDE: 180}
