"""One-shot commands of operations: setup, sending, activation, dead letters, a replay onto a topic.

It may write to Kafka and prepare Postgres; nothing here decides a payment.
"""
