"""What an owner does to the trail: retention, erasure, writing quarantined batches.

It may change Postgres and append signed records; every change leaves one.
"""
