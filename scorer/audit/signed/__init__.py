"""Signed documents: anchors, tombstones, amendments, and the keys that make and check them.

It may touch files and objects by URL; it reads no decision.
"""
