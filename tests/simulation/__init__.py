"""The worker's own code under seeded schedules: kills, freezes, lost and late requests, rebalances, clocks that jump.

    python -m tests.simulation --schedules 100000 --seed 1      the long form; the first that breaks a promise is shown
    python -m tests.simulation --schedules 4000 --break standby_catches_up          without one of the rules

What runs is scorer.worker.worker.Worker with all that it is made of (Membership, ShardThread, Shard, Publisher,
Batcher, Follower, Standby, Snapshotter, JournalReader, ShardInputs), over the ports that it has in production
(scorer.worker.ports), and scorer.operate.loss_acceptance.Recovery. Simulated is what stands behind them:

    scheduler, threads      threads that run one at a time, and the clock that only they move
    broker, group           topics, logs, transactions, offsets; members, generations, who owns which shard
    clients, consumers, producer        what a client does between a call and a request
    network                 what becomes of a request
    shard_state             a cheap pure stand-in for Pipeline, and the store of snapshots
    chaos, payers           what goes wrong, and what is paid
    operator                where workers refuse to go on: `fraud-scorer recover`, by the product's own code
    world, incarnation      one schedule; one life of a process
    invariants              what must hold of the logs, judged without the worker's code
    rules                   each rule of the protocol broken, by a method of the product replaced

A change of the protocol comes with the fault that it is there for (chaos, network), what must hold then (invariants, or
a check in World where the broker does it), and the rule that is found when it is broken (rules). A new call of a Kafka
client stands in scorer.kafka.client_ports first, and here it goes through Network.call.
"""
