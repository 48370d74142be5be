"""Rolling features: declared in a feature set, computed exactly by one engine."""
