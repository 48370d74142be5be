"""The Postgres tables of the audit trail in both directions: schema, migrations, rows encoded for COPY, rows decoded.

It may touch Postgres and the audit contracts; it knows no Kafka.
"""
