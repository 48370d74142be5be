"""What holds for all tests."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Examples are random where people work, so that each run looks at others; .ci/run sets CI and has the same each time,
# so that a run says something of the change alone. No bound on the time of an example: on a busy machine it says
# nothing of the code.
settings.register_profile(
    "tests",
    settings.get_profile("default"),
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")
