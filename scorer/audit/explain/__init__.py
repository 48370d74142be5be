"""One decision explained from the trail, and decided again from the topics as its proof.

It may read Postgres, Kafka and bundles; it changes nothing.
"""
