"""The delivery protocol as plain objects under a seeded scheduler: broker, transactions, group, workers, clock.

    python -m tests.simulation --schedules 20000 --seed 1

The journal's records and the order of payments are the product's own code; the shell (scorer.worker.shard, worker,
publisher) is modelled step by step, one `yield` wherever another thread, process or machine may come between.
"""
