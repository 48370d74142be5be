"""The past read again: buffers of partitions, the journal and what it points to, batches decided once more.

It may touch the pipeline and read Kafka; it writes nothing.
"""
