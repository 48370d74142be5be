"""Checks of the whole trail for `audit verify`: digests, chains, topics, anchors, the database itself.

It may read Postgres, Kafka and the anchors; it changes nothing.
"""
