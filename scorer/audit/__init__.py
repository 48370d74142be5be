"""The audit trail after it was written: verified, explained, anchored, kept as long as it must be and no longer.

It may read Kafka, Postgres and the anchors; only `maintain` changes rows, and every change leaves a signed record.
"""
