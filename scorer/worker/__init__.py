"""The live process: group membership, one thread a shard, batcher, publisher, follower, standby, snapshots, metrics.

It may touch Kafka, the clock and every pure room; Postgres is not its business.
"""
