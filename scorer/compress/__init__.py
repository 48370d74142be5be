"""Levers: what trades a model's size or speed against its quality, each measured before and after; and exports for
small devices.

Offline tools: they may import training libraries, and nothing that decides payments imports them.
"""
