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
    order: str
    decisions_fast: str

    @classmethod
    def of(cls, settings: KafkaSettings) -> Topics:
        prefix = settings.topic_prefix
        names = (
            "payments", "decisions", "audit", "journal", "control", "labels", "dead-letters", "order", "decisions-fast",
        )  # fmt: skip
        return cls(*(prefix + name for name in names))

    @property
    def all(self) -> tuple[str, ...]:
        """Every topic of the live engine."""
        return *self.inputs, *self.outputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """What workers write."""
        return self.decisions, self.audit, self.journal, self.dead_letters, self.order, self.decisions_fast

    @property
    def inputs(self) -> tuple[str, ...]:
        """What workers read and others write."""
        return self.payments, self.control, self.labels

    @property
    def decided_from(self) -> tuple[str, ...]:
        """What a fast decision stands on: were records of these lost that the broker has acknowledged, it could be made
        otherwise, or be missing."""
        return *self.inputs, self.order, self.decisions_fast


def workers_group(topics: Topics) -> str:
    """The consumer group whose members own the journal's partitions. It belongs to the journal and not to the
    application's name: two deployments on the same topics are members of one group, and one of them owns a shard."""
    return f"{topics.journal}-workers"
