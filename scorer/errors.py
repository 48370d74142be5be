"""The root of every error that fraud-scorer raises on purpose.

    FraudScorerError            one-line reason, shown to people as it is; exit code 1
    ├── UsageError              the caller asked for something impossible; exit code 2
    └── PromiseBroken           a promise of the product does not hold (digest, gate, audit); exit code 3

Parts derive their own errors from these (ModelError, BundleError, SinkError …).
`schemas.contract_error.ContractError` stands apart: it is an outcome (a dead letter), not a failure.
"""

from __future__ import annotations


class FraudScorerError(Exception):
    """A failure with a reason that a person can act on."""

    exit_code = 1


class UsageError(FraudScorerError):
    """The command, setting or file given cannot be used; the message says what to write instead."""

    exit_code = 2


class PromiseBroken(FraudScorerError):
    """Something that must hold does not: the process stops loudly and commits nothing."""

    exit_code = 3
