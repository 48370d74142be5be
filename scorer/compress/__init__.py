"""Levers that trade a model's quality for size or speed, each measured before and after, and its export as source code.

It may touch bundles, models and the training room; nothing that decides payments imports it.
"""
