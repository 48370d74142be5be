"""Contracts of everything that crosses a topic, a file or a table."""

from schemas import kernel_cache

kernel_cache.ensure()  # before any kernel is declared
