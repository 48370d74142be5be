"""Contracts of everything that crosses a topic, a file or a table."""
