"""The frauds of the simulated world, one file a kind. Each says how it works and what gives it away."""
