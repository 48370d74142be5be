"""Commands that are imported when they are used: `fraud-scorer --help` needs neither numba nor a client of Kafka."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from collections.abc import Callable

# Name, where it is, and its line in the help; a test compares that with the command's own. A new command needs one.
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "demo": (
        "demo_command:demo",
        "Everything on one machine: Kafka, Postgres, a trained bundle, simulated payments, worker, sink.",
    ),
    "run": ("run_commands:run", "Decide payments: the worker."),
    "sink": (
        "run_commands:sink",
        "Write the audit topic to Postgres, each batch exactly once; labels, activations and dead letters as well.",
    ),
    "setup": (
        "topic_commands:setup",
        "Create topics and tables. Idempotent; what exists is checked, and changed with --append-time alone.",
    ),
    "simulate": (
        "topic_commands:simulate",
        "Simulated payments with five kinds of fraud, and labels with their delays, onto the topics or into a file.",
    ),
    "mapping": ("mapping_command:mapping", "Look at a file and write a commented draft of its mapping."),
    "send": ("topic_commands:send", "Payments of a file, and their labels when they become known, onto the topics."),
    "train": ("train_command:train", "Train a model on a file's payments and write a bundle."),
    "replay": (
        "replay_command:replay",
        "Decide history again through the same function. Along the journal every digest is "
        "checked; a difference exits 3.",
    ),
    "prove": (
        "prove_command:prove",
        "Decide history again and compare each payment with the audit trail; each difference is "
        "reported with its cause.",
    ),
    "backtest": (
        "backtest_commands:backtest_command",
        "Replay a file with a bundle (and a second bundle or policy) and measure on matured labels.",
    ),
    "what-if": (
        "backtest_commands:what_if_command",
        "Try another threshold, rule or list on payments already decided, in seconds: the engine does not run again.",
    ),
    "segments": (
        "backtest_commands:segments_command",
        "Which channels, countries or merchant categories deserve a threshold of their own, by what later days show.",
    ),
    "compare": (
        "compare_command:compare",
        "Champion and challenger on payments whose labels have matured: win, loss, money, by segment, and what to do.",
    ),
    "recover": (
        "recover_command:recover",
        "Show what is missing or changed between journal and topics; accept it, as a record of the journal.",
    ),
    "doctor": (
        "doctor_command:doctor",
        "Examine a deployment: settings, machine, bundle, Kafka, Postgres. Each finding says what to do.",
    ),
    "acls": ("acls_command:acls", "The least privileges of a role, as kafka-acls.sh commands for an operator."),
    "pseudonym": (
        "pseudonym_command:pseudonym_command",
        "The pseudonym of each line of stdin, by the first key of FRAUD_SCORER_CARDS__KEYS.",
    ),
    "settings": ("topic_commands:settings", "All settings with value, source and meaning; secrets hidden."),
    "schemas": (
        "topic_commands:schemas",
        "JSON Schema of every contract: payment, label, control, decision, fast decision, journal, audit, dead letter.",
    ),
    "features": (
        "features_commands:app",
        "Training export: the live engine's own feature values, plus label. Also: explain and schema.",
    ),
    "bundle": ("bundle_commands:app", "Show, verify, sign, activate, import, compile, challenge and export bundles."),
    "dead-letters": ("dead_letter_commands:app", "What was refused, and sending it again."),
    "audit": ("audit_commands:app", "The audit trail: verify, explain, anchor, keep, forget."),
    "labels": ("label_commands:app", "Verdicts on payments: chargebacks, analysts."),
    "services": ("services_commands:app", "Local Kafka and Postgres, for development and the demo."),
}


class LazyGroup(TyperGroup):
    """The commands of COMMANDS, in their order. For the help each is its name and its line."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the base class's signature
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - the base class's signature
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name][1]) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if name in COMMANDS else command, rest


def load(name: str) -> Any:
    """The command itself, imported."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    found: typer.Typer | Callable[..., Any] = getattr(importlib.import_module(f"scorer.cli.{module}"), attribute)
    if isinstance(found, typer.Typer):
        command: Any = typer.main.get_group(found)
        command.name = name
        return command
    one = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    one.command(name)(found)
    return typer.main.get_command(one)
