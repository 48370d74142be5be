"""`backtest` and `what-if`: what a bundle or a policy would have done."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from features.currency_conversion import conversion_factors
from scorer.backtest import Decided, backtest, what_if, write_page
from scorer.backtest.measurement import Backtest
from scorer.bundle import Bundle
from scorer.cli.command_support import Json, counting, err, parse_time_ms, read_mapping, show
from scorer.cli.command_support import settings as load_settings
from scorer.cli.risk_options import (
    FileRun,
    GenuineOption,
    InputOption,
    LabelsOption,
    MappingOption,
    RefusedMaxOption,
    RefusedOption,
    parse_duration_option,
    read_policy,
    refused_lines,
)
from scorer.errors import UsageError
from scorer.replay import replay_file

BundleOption = Annotated[Path, typer.Option("--bundle", exists=True, file_okay=False, help="The bundle.")]
FromOption = Annotated[str | None, typer.Option("--from", help="First day to measure; earlier payments fill windows.")]
UntilOption = Annotated[str | None, typer.Option("--until", help="Day after the last one to measure.")]
AsOfOption = Annotated[
    str | None, typer.Option("--as-of", help="Labels known later have not matured; the last event time by default.")
]
AlertsOption = Annotated[int, typer.Option(min=1, help="Payments that the team looks at in a day.")]
RoundsOption = Annotated[int, typer.Option(min=0, help="Draws of the bootstrap over customers.")]
PolicyOption = Annotated[Path | None, typer.Option("--policy", exists=True, dir_okay=False, help="Another policy.")]


def backtest_command(
    bundle: BundleOption,
    file: InputOption,
    output: Annotated[Path, typer.Option(help="HTML to write; the figures go to a folder next to it.")],
    mapping: MappingOption = None,
    labels: LabelsOption = None,
    genuine_after: GenuineOption = None,
    against: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="A second bundle.")] = None,
    policy: PolicyOption = None,
    begin: FromOption = None,
    until: UntilOption = None,
    as_of: AsOfOption = None,
    alerts: AlertsOption = 100,
    cards: Annotated[int, typer.Option(min=1, help="k of the card precision.")] = 100,
    rounds: RoundsOption = 200,
    refused: RefusedOption = None,
    refused_max: RefusedMaxOption = None,
    as_json: Json = False,
) -> None:
    """Replay a file with a bundle (and a second bundle or policy) and measure on matured labels.

    Example: fraud-scorer backtest --bundle bundles/cards --against bundles/next --input h.parquet --mapping m.yaml
    --from 2018-08-29 --output report.html
    """
    if against is not None and policy is not None:
        raise UsageError("give --against (another bundle) or --policy (this bundle, another policy), not both")
    loaded = Bundle.load(bundle)
    other = Bundle.load(against) if against is not None else None
    second_policy = None if policy is None else read_policy(policy, loaded.feature_set.names)
    genuine_ms = parse_duration_option(genuine_after, "--genuine-after")
    begin_ms, until_ms = parse_time_ms(begin, "--from"), parse_time_ms(until, "--until")
    keys = load_settings().pseudonym_keys
    with tempfile.TemporaryDirectory(dir=output.resolve().parent, prefix=".backtest-") as folder:
        runs = []
        for number, one in enumerate(item for item in (loaded, other) if item is not None):
            stored = Path(folder) / f"{number}.parquet"
            with counting(f"payments with {one.id}", quiet=as_json) as progress:
                run = FileRun.of(refused, refused_max)
                report = replay_file(
                    one,
                    file,
                    read_mapping(mapping),
                    stored,
                    until_ms=until_ms,
                    labels=labels,
                    keys=keys,
                    progress=progress,
                    expect=progress.expect,
                    options=run.options,
                    refusals=run.refusals,
                )
            if number == 0:
                for line in refused_lines(report.refusals):
                    err.print(f"refused: {line}")
            run.check(report.refusals, report.payments)
            decided = _read(one, stored)
            runs.append(decided if genuine_ms is None else decided.genuine_after(genuine_ms))
        first, second, reasons = runs[0], runs[1] if other else None, None
        names = (loaded.id, other.id if other else "")
        if second_policy is not None:
            changed = what_if(first, loaded, second_policy)
            second, reasons, names = changed.decided, changed.reasons, (loaded.id, f"policy {changed.policy}")
        result = backtest(
            first,
            second,
            names=names,
            reasons=reasons,
            from_ms=begin_ms,
            as_of_ms=parse_time_ms(as_of, "--as-of"),
            alerts=alerts,
            cards=cards,
            rounds=rounds,
        )
    _report(result, output, f"Backtest of {loaded.id}", as_json=as_json)


def what_if_command(
    bundle: BundleOption,
    decided: Annotated[Path, typer.Option("--decided", exists=True, help="Output of `replay` with the bundle.")],
    policy: Annotated[Path, typer.Option("--policy", exists=True, dir_okay=False, help="The policy to try.")],
    output: Annotated[Path | None, typer.Option(help="HTML to write; the figures go to a folder next to it.")] = None,
    begin: FromOption = None,
    until: UntilOption = None,
    as_of: AsOfOption = None,
    alerts: AlertsOption = 100,
    rounds: RoundsOption = 200,
    as_json: Json = False,
) -> None:
    """Try another threshold, rule or list on payments already decided, in seconds: the engine does not run again.

    Example: fraud-scorer what-if --bundle bundles/cards --decided decided.parquet --policy p.yaml --output w.html
    """
    loaded = Bundle.load(bundle)
    begin_ms, until_ms = parse_time_ms(begin, "--from"), parse_time_ms(until, "--until")
    stored = _read(loaded, decided)
    if until_ms is not None:
        stored = stored.take(stored.time_ms < until_ms)
    changed = what_if(stored, loaded, read_policy(policy, loaded.feature_set.names))
    names = (loaded.id, f"policy {changed.policy}")
    result = backtest(
        stored,
        changed.decided,
        names=names,
        reasons=changed.reasons,
        from_ms=begin_ms,
        as_of_ms=parse_time_ms(as_of, "--as-of"),
        alerts=alerts,
        rounds=rounds,
    )
    _report(
        result,
        output,
        f"Policy {changed.policy} on {loaded.id}",
        {"threshold_score_before": loaded.manifest.threshold_score, "threshold_score": changed.threshold_score},
        as_json=as_json,
    )


def _read(bundle: Bundle, stored: Path) -> Decided:
    feature_set = bundle.feature_set
    return Decided.read(stored, feature_set.names, feature_set.currency, conversion_factors(feature_set))


def _report(
    result: Backtest, output: Path | None, title: str, more: dict[str, Any] | None = None, *, as_json: bool
) -> None:
    summary: dict[str, Any] = {"payments": result.payments, "matured": result.matured} | (more or {})
    if output is not None:
        numbers = output.with_name(f"{output.stem}_numbers")
        result.write_numbers(numbers)
        write_page(result, output, title)
        summary |= {"page": str(output), "numbers": str(numbers)}
    if result.changes is not None:
        summary["decided_otherwise"] = result.changes.num_rows
    if as_json:
        # JSON has no NaN.
        sides = [
            {"name": side.name}
            | {key: None if value != value else value for key, value in side.overall.items()}  # noqa: PLR0124
            | {"intervals": side.intervals}
            for side in result.sides
        ]
        show(summary | {"sides": sides}, as_json=True, title="")
        return
    for number, side in enumerate(result.sides):
        label = "" if len(result.sides) == 1 else f" ({side.name})"
        summary |= {f"{key}{label}": value for key, value in side.overall.items()} if number == 0 or label else {}
    show(summary, as_json=False, title=title)
