"""The command `fraud-scorer`: options read, rooms called, results on stdout, logs on stderr.

It may touch every room. The worker, the audit trail and the demo are imported in the command that runs. Exit 0: done;
1: failed; 2: wrong usage; 3: a promise is broken.
"""

from __future__ import annotations

import sys

import typer

from scorer.cli import (
    acls_command,
    audit_commands,
    backtest_commands,
    bundle_commands,
    dead_letter_commands,
    demo_command,
    features_commands,
    import_command,
    label_commands,
    prove_command,
    recover_command,
    replay_command,
    run_commands,
    topic_commands,
    train_command,
)
from scorer.cli.command_support import plain
from scorer.cli.services_commands import app as services
from scorer.errors import FraudScorerError
from scorer.runtime.secret_text import without_secrets

app = typer.Typer(
    name="fraud-scorer",
    help=(
        "Streaming payment-fraud scoring on Kafka: "
        "exact features, a compiled model, transactional decisions, an audit trail."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo_command.demo)
app.command()(run_commands.run)
app.command()(run_commands.sink)
app.command()(topic_commands.setup)
app.command()(topic_commands.simulate)
app.command()(topic_commands.send)
app.add_typer(features_commands.app, name="features")
app.command()(train_command.train)
app.command()(replay_command.replay)
app.command()(prove_command.prove)
app.command("backtest")(backtest_commands.backtest_command)
app.command("what-if")(backtest_commands.what_if_command)
bundle_commands.app.command("import")(import_command.import_bundle)
app.add_typer(bundle_commands.app, name="bundle")
app.add_typer(dead_letter_commands.app, name="dead-letters")
app.add_typer(audit_commands.app, name="audit")
app.add_typer(label_commands.app, name="labels")
app.add_typer(services, name="services")
app.command()(recover_command.recover)
app.command()(acls_command.acls)
app.command()(topic_commands.settings)
app.command()(topic_commands.schemas)


def main() -> None:
    """Entry point of the console script and of `python -m scorer`."""
    try:
        app()
    except FraudScorerError as error:
        print(f"fraud-scorer: {plain(without_secrets(str(error)))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except MemoryError:
        print("fraud-scorer: out of memory: raise the limit of this process, or give it less to do", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("fraud-scorer: interrupted", file=sys.stderr)
        sys.exit(130)
