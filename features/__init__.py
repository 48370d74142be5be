"""Rolling features: declared in a feature set, computed exactly by one engine."""

import schemas  # noqa: F401 - finds a place for compiled kernels before numba is imported
