"""`replay`: history decided again, from files, topics or audit rows."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scorer.cli.command_support import Counting, Json, check_output, counting, parse_time_ms, read_mapping, show
from scorer.cli.command_support import settings as load_settings
from scorer.cli.risk_options import FileRun, LabelsOption, MappingOption, RefusedMaxOption, RefusedOption, with_report
from scorer.errors import UsageError
from scorer.runtime.settings import reading_history

if TYPE_CHECKING:
    from scorer.bundle import Bundle
    from scorer.replay import Open, Report, Window

_OFFSETS = re.compile(r"([0-9]{1,10}):([0-9]{1,19})-([0-9]{1,19})")
_TOPIC = "topic:"


def replay(
    bundle: Annotated[Path, typer.Option("--bundle", exists=True, file_okay=False, help="The bundle to decide with.")],
    source: Annotated[
        str,
        typer.Option(
            "--input",
            help="A file, folder, pattern, URL or - (stdin); "
            "`topic`: the payments topic along its journal; `audit`: logged features in Postgres.",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            help="Where decisions go, with all that explains them: NAME.parquet, a folder by day, or topic:NAME (not a "
            "live one). An interrupted run into a folder or topic is resumed."
        ),
    ] = None,
    mapping: MappingOption = None,
    labels: LabelsOption = None,
    begin: Annotated[
        str | None, typer.Option("--from", help="Write payments from this time on; earlier ones fill windows.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Write payments before this time.")] = None,
    offsets: Annotated[
        list[str] | None,
        typer.Option(
            help="With topic or audit: write payments of PARTITION:START-END (END excluded); may be repeated."
        ),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(
            min=1,
            help="With a file in order of time: number of processes; each computes some of the keys.",
        ),
    ] = 1,
    shard: Annotated[int, typer.Option(min=0, help="With topic or audit: which shard's journal.")] = 0,
    refused: RefusedOption = None,
    refused_max: RefusedMaxOption = None,
    as_json: Json = False,
) -> None:
    """Decide history again through the same function. Along the journal every digest is checked; a difference exits 3.

    Example: fraud-scorer replay --bundle bundles/cards --input topic --output decided
    """
    from scorer.bundle import Bundle  # noqa: PLC0415
    from scorer.replay import Window  # noqa: PLC0415
    from scorer.replay.process_shares import PROCESSES_MAX  # noqa: PLC0415

    if processes > PROCESSES_MAX:
        raise UsageError(f"--processes {processes}: at most {PROCESSES_MAX} share the keys of a file")

    if output is not None and output.endswith(".parquet"):
        check_output(Path(output))
    loaded = Bundle.load(bundle)
    window = Window(parse_time_ms(begin, "--from"), parse_time_ms(until, "--until"), _ranges(offsets or []))
    target, run = _target(output), FileRun.of(refused, refused_max)
    with counting("payments", quiet=as_json) as progress:
        report = _replayed(loaded, bundle, source, target, mapping, window, shard, processes, progress, labels, run)
    result: dict[str, Any] = {"decisions": report.decisions, "flagged": report.flagged}
    if source == "topic":
        result["batches_equal"] = report.batches_checked
    show(with_report(result, report), as_json=as_json, title=f"Replayed with {loaded.id}")
    run.check(report.refusals, report.payments)


def _replayed(
    bundle: Bundle,
    folder: Path,
    source: str,
    target: Path | Open | None,
    mapping: Path | None,
    window: Window,
    shard: int,
    processes: int,
    progress: Counting,
    labels: Path | None,
    run: FileRun,
) -> Report:
    from scorer.cli.audit_output import postgres_errors  # noqa: PLC0415
    from scorer.replay import replay_audit, replay_file, replay_shares, replay_topic  # noqa: PLC0415

    options: dict[str, Any] = {"progress": progress, "expect": progress.expect}
    if processes > 1 and source in ("topic", "audit"):
        raise UsageError("--processes is for files; of a topic, replay each --shard by its own command")
    if labels is not None and (processes > 1 or source in ("topic", "audit")):
        raise UsageError("--labels is for a file that one process replays; topic and audit have their own labels")
    if source == "topic":
        settings = reading_history(load_settings())
        return replay_topic(bundle, settings, target, shard=shard, window=window, **options)
    if source == "audit":
        settings = load_settings()
        options["keys"] = settings.pseudonym_keys
        with postgres_errors():
            return replay_audit(bundle, settings.postgres_url, target, shard=shard, window=window, **options)
    if window.offsets:
        raise UsageError("--offsets are of topics; with a file use --from and --until")
    options |= {"begin_ms": window.begin_ms, "until_ms": window.until_ms}
    options["options"] = replace(run.options, looking=progress.looking)
    options["keys"] = load_settings().pseudonym_keys
    text = read_mapping(mapping)
    if processes > 1:
        report = replay_shares(folder, source, text, target, processes=processes, refused=run.refusals.path, **options)
        report.refusals.leave_out(run.refusals.left_out, run.refusals.unknown)
        return report
    return replay_file(bundle, source, text, target, labels=labels, refusals=run.refusals, **options)


def _target(output: str | None) -> Path | Open | None:
    """A path, or what opens a separate topic."""
    if output is None or not output.startswith(_TOPIC):
        return None if output is None else Path(output)
    # The only part of a replay that writes to Kafka; imported only when it does.
    from scorer.operate.replay_topic_output import TopicOutput, refuse_live  # noqa: PLC0415

    settings, name = reading_history(load_settings()), output.removeprefix(_TOPIC)
    refuse_live(settings, name)
    return lambda _schema, about: TopicOutput(settings, name, about)


def _ranges(texts: list[str]) -> dict[int, tuple[int, int]]:
    """PARTITION:START-END as offsets by partition. Raises UsageError."""
    result: dict[int, tuple[int, int]] = {}
    for text in texts:
        found = _OFFSETS.fullmatch(text)
        if found is None or int(found[2]) >= int(found[3]):
            raise UsageError(f"--offsets {text}: write PARTITION:START-END with END after START, such as 0:1000-2000")
        if int(found[1]) in result:
            raise UsageError(f"--offsets: partition {found[1]} is named twice; give one range per partition")
        result[int(found[1])] = int(found[2]), int(found[3])
    return result
