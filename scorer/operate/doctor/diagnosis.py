"""What `doctor` is asked, and what it reports: findings, what was checked, and what could not be."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from scorer.runtime.secret_text import without_secrets


class Part(StrEnum):
    """Which process is meant to run here, with these settings."""

    WORKER = "worker"
    SINK = "sink"
    BOTH = "both"


@dataclass(frozen=True)
class Expected:
    """What the deployment is meant for. `bundle`: folder or URL. `keys`: live keys in all entities of a shard,
    `payments`: payments in its longest window; 0: not known."""

    part: Part = Part.BOTH
    bundle: str | None = None
    keys: int = 0
    payments: int = 0


class Level(StrEnum):
    """How bad a finding is."""

    ERROR = "error"  # a process does not start or stops with it, or a promise does not hold
    WARNING = "warning"  # works now, and will not always


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: `part` of the deployment, what was found, and what to do."""

    part: str
    level: Level
    found: str
    repair: str


@dataclass
class Diagnosis:
    """Filled by the checks. `not_checked`: part → why it could not be looked at."""

    checked: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    not_checked: dict[str, str] = field(default_factory=dict)

    def error(self, part: str, found: str, repair: str) -> None:
        """A process does not work so."""
        self._add(Finding(part, Level.ERROR, without_secrets(found), repair))

    def warning(self, part: str, found: str, repair: str) -> None:
        """It works, and will not always."""
        self._add(Finding(part, Level.WARNING, without_secrets(found), repair))

    def skip(self, part: str, reason: str) -> None:
        """`part` was not looked at."""
        self.not_checked[part] = without_secrets(reason)

    @property
    def good(self) -> bool:
        """Whether there is no error."""
        return all(finding.level is not Level.ERROR for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "good": self.good,
            "findings": [asdict(finding) for finding in self.findings],
            "checked": self.checked,
            "not_checked": self.not_checked,
        }

    def _add(self, finding: Finding) -> None:
        if finding not in self.findings:
            self.findings.append(finding)
