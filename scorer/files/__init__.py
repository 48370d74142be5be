"""Payments from files: the mapping, the reader, cells as values, rows as columns.

It may touch files and the payment contract; it knows no Kafka and no Postgres.
"""
