"""What an owner does to the trail: retention, erasure, batches that were set aside.

It may change Postgres and append signed records; every change leaves one.
"""
