"""Waits of tests: for what other processes do, until a condition holds."""

from __future__ import annotations

import subprocess
from typing import Final


class WaitEnded(AssertionError):
    """A wait reached its bound. That may be a fault, or a machine that had other work."""


RAN_OUT: Final = (WaitEnded, TimeoutError, subprocess.TimeoutExpired)
"""What a test raises whose wait ran out, as opposed to one that saw something wrong."""
