"""The byte codes that kernels compare with, by name, and the classes of ASCII bytes they ask for.

Plain integers: numba freezes them into compiled code, so a name costs nothing at run time.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from schemas.kernel_decorators import inlined_reader

TAB: Final = 9
LINE_FEED: Final = 10
CARRIAGE_RETURN: Final = 13
SPACE: Final = 32
QUOTE: Final = 34
PLUS: Final = 43
COMMA: Final = 44
DASH: Final = 45
POINT: Final = 46
ZERO: Final = 48
NINE: Final = 57
COLON: Final = 58
UPPER_A: Final = 65
UPPER_E: Final = 69
UPPER_F: Final = 70
UPPER_T: Final = 84
UPPER_Z: Final = 90
OPEN_BRACKET: Final = 91
BACKSLASH: Final = 92
UNDERSCORE: Final = 95
LOWER_A: Final = 97
LOWER_E: Final = 101
LOWER_F: Final = 102
LOWER_L: Final = 108
LOWER_N: Final = 110
LOWER_R: Final = 114
LOWER_S: Final = 115
LOWER_T: Final = 116
LOWER_U: Final = 117
LOWER_Z: Final = 122
OPEN_BRACE: Final = 123
CLOSE_BRACE: Final = 125
DELETE: Final = 127
ASCII_END: Final = 128  # from here on: bytes of longer UTF-8 sequences

Integer = int | np.int64  # numba's integers are all int64; numpy's stubs tell the two apart


@inlined_reader
def is_digit(b: Integer) -> bool:
    """0 to 9."""
    return bool(ZERO <= b <= NINE)


@inlined_reader
def is_upper(b: Integer) -> bool:
    """A to Z."""
    return bool(UPPER_A <= b <= UPPER_Z)


@inlined_reader
def is_lower(b: Integer) -> bool:
    """a to z."""
    return bool(LOWER_A <= b <= LOWER_Z)


@inlined_reader
def is_letter(b: Integer) -> bool:
    """A to Z or a to z."""
    return bool(UPPER_A <= b <= UPPER_Z or LOWER_A <= b <= LOWER_Z)


@inlined_reader
def is_hex_letter(b: Integer) -> bool:
    """A to F or a to f."""
    return bool(UPPER_A <= b <= UPPER_F or LOWER_A <= b <= LOWER_F)


@inlined_reader
def is_alphanumeric(b: Integer) -> bool:
    """A letter or a digit."""
    return bool(ZERO <= b <= NINE or UPPER_A <= b <= UPPER_Z or LOWER_A <= b <= LOWER_Z)
