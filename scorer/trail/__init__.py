"""The Postgres tables of the audit trail in both directions: their schema, rows encoded, rows decoded.

It may touch Postgres and the audit contracts; it knows no Kafka.
"""
