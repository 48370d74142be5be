"""`fraud-scorer`: one command for everything. Results on stdout, logs on stderr;
exit 0 done, 1 failed, 2 wrong usage, 3 a promise is broken."""

from __future__ import annotations

import sys

import typer

from scorer.cli import (
    acls,
    audit,
    backtest,
    bundle,
    data,
    dead_letters,
    decide,
    demo,
    features,
    labels,
    prove,
    replay,
    train,
)
from scorer.cli.common import plain
from scorer.cli.services import app as services
from scorer.errors import FraudScorerError

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
app.command()(demo.demo)
app.command()(decide.run)
app.command()(decide.sink)
app.command()(data.setup)
app.command()(data.simulate)
app.command()(data.send)
app.add_typer(features.app, name="features")
app.command()(train.train)
app.command()(replay.replay)
app.command()(prove.prove)
app.command("backtest")(backtest.backtest_command)
app.command("what-if")(backtest.what_if_command)
app.add_typer(bundle.app, name="bundle")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(audit.app, name="audit")
app.add_typer(labels.app, name="labels")
app.add_typer(services, name="services")
app.command()(acls.acls)
app.command()(data.settings)
app.command()(data.schemas)


def main() -> None:
    """Entry point of the console script and of `python -m scorer`."""
    try:
        app()
    except FraudScorerError as error:
        print(f"fraud-scorer: {plain(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("fraud-scorer: interrupted", file=sys.stderr)
        sys.exit(130)
