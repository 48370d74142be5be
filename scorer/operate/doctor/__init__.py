"""`fraud-scorer doctor`: a deployment examined before it starts or while it runs; each finding says what to do.

It may read settings, bundle, Kafka and Postgres, and write one temporary file in each folder that a process writes to.
"""
