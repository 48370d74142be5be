"""The names of the live engine's topics."""

from __future__ import annotations

from dataclasses import dataclass

from scorer.runtime.settings import KafkaSettings


@dataclass(frozen=True)
class Topics:
    """Names of the topics, with the prefix."""

    payments: str
    decisions: str
    audit: str
    journal: str
    control: str
    labels: str
    dead_letters: str

    @classmethod
    def of(cls, settings: KafkaSettings) -> Topics:
        prefix = settings.topic_prefix
        return cls(
            *(
                prefix + name
                for name in ("payments", "decisions", "audit", "journal", "control", "labels", "dead-letters")
            )
        )

    @property
    def all(self) -> tuple[str, ...]:
        """Every topic of the live engine."""
        return *self.inputs, self.decisions, self.audit, self.journal, self.dead_letters

    @property
    def inputs(self) -> tuple[str, ...]:
        """What workers read and others write."""
        return self.payments, self.control, self.labels


def workers_group(topics: Topics) -> str:
    """The consumer group whose members own the journal's partitions. It belongs to the journal and not to the
    application's name: two deployments on the same topics are members of one group, and one of them owns a shard."""
    return f"{topics.journal}-workers"
