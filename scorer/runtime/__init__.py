"""The process around everything else: settings, logs, the health port, fault points, data files.

It may touch the environment, the clock and the local disk; it opens no connection to Kafka or Postgres and knows no
payment.
"""
