"""`replay`: history decided again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scorer.bundle import Bundle
from scorer.cli.common import Json, check_output, counting, parse_time_ms, read_mapping, show
from scorer.cli.common import settings as load_settings
from scorer.cli.modelling import MappingOption, with_report
from scorer.errors import UsageError
from scorer.replay import replay_file, replay_topic


def replay(
    bundle: Annotated[Path, typer.Option("--bundle", exists=True, file_okay=False, help="The bundle to decide with.")],
    source: Annotated[str, typer.Option("--input", help="A file, or `topic`: the payments topic along its journal.")],
    output: Annotated[
        Path | None,
        typer.Option(help="NAME.parquet, or a folder of parts (an interrupted run goes on): all about each decision."),
    ] = None,
    mapping: MappingOption = None,
    begin: Annotated[
        str | None, typer.Option("--from", help="Write payments from this time on; earlier ones fill windows.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Write payments before this time.")] = None,
    shard: Annotated[int, typer.Option(min=0, help="With topic: which shard's journal.")] = 0,
    as_json: Json = False,
) -> None:
    """Decide history again through the same function. Along the journal every digest is checked; a difference exits 3.

    Example: fraud-scorer replay --bundle bundles/cards --input topic --output d.parquet
    """
    if output is not None and output.suffix == ".parquet":
        check_output(output)
    loaded = Bundle.load(bundle)
    begin_ms, until_ms = parse_time_ms(begin, "--from"), parse_time_ms(until, "--until")
    with counting("payments", quiet=as_json) as progress:
        if source == "topic":
            report = replay_topic(
                loaded,
                load_settings(),
                output,
                shard=shard,
                begin_ms=begin_ms,
                until_ms=until_ms,
                progress=progress,
            )
        elif Path(source).is_file():
            report = replay_file(
                loaded,
                Path(source),
                read_mapping(mapping),
                output,
                begin_ms=begin_ms,
                until_ms=until_ms,
                progress=progress,
            )
        else:
            raise UsageError(f"--input {source}: neither a file nor the word `topic`")
    result: dict[str, Any] = {"decisions": report.decisions, "flagged": report.flagged}
    if source == "topic":
        result["batches_equal"] = report.batches_checked
    show(with_report(result, report), as_json=as_json, title=f"Replayed with {loaded.id}")
