"""The command `fraud-scorer`: options read, rooms called, results on stdout, logs on stderr.

It may touch every room. Each command is imported when it runs (scorer/cli/lazy_commands.py). Exit 0: done;
1: failed; 2: wrong usage; 3: a promise is broken.
"""

from __future__ import annotations

import sys

import typer

from scorer.cli import compile_notice
from scorer.cli.lazy_commands import LazyGroup
from scorer.errors import FraudScorerError

app = typer.Typer(
    name="fraud-scorer",
    cls=LazyGroup,
    help=(
        "Streaming payment-fraud scoring on Kafka: "
        "exact features, a compiled model, transactional decisions, an audit trail."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root() -> None:
    """Makes the application a group, though its commands come later."""


INTERRUPTED = 130


def main() -> None:
    """Entry point of the console script and of `python -m scorer`."""
    compile_notice.watch(sys.argv[1:])
    try:
        app()
    except FraudScorerError as error:
        from scorer.cli.command_support import plain  # noqa: PLC0415 - the help needs neither
        from scorer.runtime.secret_text import without_secrets  # noqa: PLC0415

        print(f"fraud-scorer: {plain(without_secrets(str(error)))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except MemoryError:
        print("fraud-scorer: out of memory: raise the limit of this process, or give it less to do", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("fraud-scorer: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except SystemExit as ended:  # typer's, without a word
        if ended.code == INTERRUPTED:
            print("fraud-scorer: interrupted", file=sys.stderr)
        raise
