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
    dead_letters: str

    @classmethod
    def of(cls, settings: KafkaSettings) -> Topics:
        prefix = settings.topic_prefix
        return cls(
            *(prefix + name for name in ("payments", "decisions", "audit", "journal", "control", "dead-letters"))
        )

    @property
    def all(self) -> tuple[str, ...]:
        """Every topic of the live engine."""
        return self.payments, self.decisions, self.audit, self.journal, self.control, self.dead_letters
