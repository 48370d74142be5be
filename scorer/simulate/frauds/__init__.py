"""The frauds of the simulated world, one file a kind; each describes how it works and what reveals it."""
