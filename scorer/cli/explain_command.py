"""`audit explain`: one decision in words, with its proof."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from scorer.cli.audit_output import postgres_errors
from scorer.cli.command_support import Json, counting, out, show
from scorer.cli.command_support import settings as load_settings
from scorer.errors import PromiseBroken, UsageError

if TYPE_CHECKING:
    from scorer.audit.explain.explanation import Explanation


def explain(
    payment_id: Annotated[str, typer.Argument(help="The payment.")],
    bundle: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Bundle that decided (--replay: that the shard began with): adds sentences and recomputes.",
        ),
    ] = None,
    replay: Annotated[
        bool,
        typer.Option("--replay", help="Decide its batch again from the topics, along the journal; needs --bundle."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Why a payment was decided so: words, features, reasons, and the proof; exit 3 when the proof fails.

    Example: fraud-scorer audit explain p_7f3a19 --bundle bundles/cards --replay
    """
    from scorer.audit.explain.explanation import compare_replay, find, prove  # noqa: PLC0415
    from scorer.audit.explain.redecision import replay_until, windows_of  # noqa: PLC0415 - compiles kernels
    from scorer.bundle import Bundle  # noqa: PLC0415

    if replay and bundle is None:
        raise UsageError("--replay decides again, and needs the bundle that the shard began with: give --bundle")
    settings = load_settings()
    with postgres_errors():
        explanations = find(settings.postgres_url, payment_id)
    if bundle is not None:
        loaded = Bundle.load(bundle)
        for explanation in explanations:
            if not replay:
                prove(explanation, loaded)
            else:
                shard, sequence, _ = explanation.place
                with counting("batches", quiet=as_json) as progress:
                    again = replay_until(settings, loaded, shard=shard, sequence=sequence, progress=progress.of)
                # After an activation another bundle decided than the shard began with: the journal led to it.
                prove(explanation, again.pipeline.bundle)
                compare_replay(explanation, again.outcomes)
                windows = windows_of(again, explanation.row["row_number"])
                if explanation.row["erased"]:  # their keys are the person's identifiers
                    windows = [replace(window, key="erased") for window in windows]
                explanation.windows.extend(windows)
    if as_json:
        show({"payment_id": payment_id, "decisions": [_as_json(e) for e in explanations]}, as_json=True, title="")
    else:
        for explanation in explanations:
            _print(explanation)
    wrong = [check for explanation in explanations for check in explanation.checks if not check.equal]
    if wrong:
        raise PromiseBroken(f"{wrong[0].what}: logged {wrong[0].logged}, computed again {wrong[0].again}")


def _as_json(explanation: Explanation) -> dict[str, Any]:
    row = explanation.row
    finite = {name: None if value != value else value for name, value in explanation.features}  # noqa: PLR0124 - NaN
    return {
        "sentence": explanation.sentence,
        **{
            name: row[name]
            for name in (
                "decision", "mode", "score", "margin", "threshold", "bundle", "amount_minor", "currency", "customer_id",
                "account_id", "merchant_id", "terminal_id", "fired", "shard", "sequence", "row_number",
            )
        },
        "event_time": row["event_time"].isoformat(),
        "origin": {"topic": row["origin_topic"], "partition": row["origin_partition"], "offset": row["origin_offset"]},
        "reasons": [{"code": code, "sentence": sentence} for code, sentence in explanation.reasons],
        "features": finite,
        "challengers": dict(zip(row["challengers"], row["challenger_margins"], strict=True)),
        "labels": [
            {**label, "known_at": label["known_at"].isoformat()} for label in explanation.labels
        ],
        "notes": explanation.notes,
        "windows": [vars(window) for window in explanation.windows],
        "proof": [vars(check) for check in explanation.checks],
        "equal": explanation.equal,
    }  # fmt: skip


def _print(explanation: Explanation) -> None:
    row = explanation.row
    out.print(explanation.sentence)
    out.print(
        f"Read from {row['origin_topic']}/{row['origin_partition']} offset {row['origin_offset']}; row "
        f"{row['row_number']} of batch {row['shard']}/{row['sequence']}."
    )
    for code, sentence in explanation.reasons:
        out.print(f"  {code}: {sentence}")
    for label in explanation.labels:
        verdict = "fraud" if label["fraud"] else "genuine"
        out.print(f"  Known since {label['known_at']:%Y-%m-%d %H:%M}: {verdict} ({label['source'] or 'no source'})")
    table = Table("feature", "value", title="Features", title_justify="left")
    for name, value in explanation.features:
        table.add_row(name, f"{value:.9g}")
    out.print(table)
    if explanation.windows:
        windows = Table("feature", "key", "payments", "sum", "frauds", "first", "last", title_justify="left")
        windows.title = "In the windows when its batch was done, itself included"
        for w in explanation.windows:
            windows.add_row(w.feature, w.key, str(w.payments), f"{w.amount:.2f}", str(w.frauds), w.first, w.last)
        out.print(windows)
    for note in explanation.notes:
        out.print(note)
    if explanation.checks:
        proof = Table("", "logged", "computed again", "", title="Proof", title_justify="left")
        for check in explanation.checks:
            proof.add_row(check.what, check.logged, check.again, "equal" if check.equal else "NOT EQUAL")
        out.print(proof)
