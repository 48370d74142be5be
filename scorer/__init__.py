"""fraud-scorer: the shell around the pure core, from Kafka to decisions and their audit trail."""

import schemas  # noqa: F401 - finds a place for compiled kernels before numba is imported
