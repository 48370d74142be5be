"""The audit trail read back: verified, explained, anchored, kept as long as it must be and no longer."""
