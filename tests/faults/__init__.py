"""Faults on real Kafka: processes killed and frozen, a broker that goes, a network that delays, cuts and hangs.

    python -m tests.faults --schedules 1000 --seed 1        random schedules during a stream of payments

`broker` runs a Kafka of the tests' own with listeners behind a `proxy`; `nursery` starts workers in a moment; `run` is
one application on them; `schedule` draws faults from a seed and compares the outcome with an undisturbed run.
"""
