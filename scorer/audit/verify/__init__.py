"""Everything that `audit verify` recomputes and compares: digests, chains, topics, anchors, the database itself.

It may read Postgres, Kafka and the anchors; it changes nothing.
"""
