"""`backtest`, `what-if` and `segments`: what a bundle, a policy or another threshold would have done."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from scorer.cli.command_support import Json, check_output, counting, err, out, parse_time_ms, read_mapping, show
from scorer.cli.command_support import settings as load_settings
from scorer.cli.risk_options import (
    FileRun,
    GenuineOption,
    InputOption,
    LabelsOption,
    MappingOption,
    RefusedMaxOption,
    RefusedOption,
    left_out,
    parse_duration_option,
    read_policy,
    refused_lines,
)
from scorer.errors import UsageError

if TYPE_CHECKING:
    from scorer.backtest import Decided
    from scorer.backtest.measurement import Backtest
    from scorer.bundle import Bundle
    from scorer.policy import FlagCost, Policy


class _Field(StrEnum):
    CHANNEL = "channel"
    COUNTRY = "country"
    MCC = "mcc"
    CURRENCY = "currency"


BundleOption = Annotated[Path, typer.Option("--bundle", exists=True, file_okay=False, help="The bundle.")]
FromOption = Annotated[str | None, typer.Option("--from", help="First day to measure; earlier payments fill windows.")]
UntilOption = Annotated[str | None, typer.Option("--until", help="Day after the last one to measure.")]
AsOfOption = Annotated[
    str | None, typer.Option("--as-of", help="Labels known later have not matured; the last event time by default.")
]
AlertsOption = Annotated[int, typer.Option(min=1, help="Payments that the team looks at in a day.")]
RoundsOption = Annotated[
    int, typer.Option(min=0, help="Draws of the intervals: of customers; for money saved of days.")
]
CostOption = Annotated[
    str | None,
    typer.Option(
        help="What money is counted by, as flag.cost of a policy: '{currency: EUR, review: 4, good_customer: 15}'; by "
        "default the policy's own, of the second side first.",
    ),
]
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
    cost: CostOption = None,
    refused: RefusedOption = None,
    refused_max: RefusedMaxOption = None,
    as_json: Json = False,
) -> None:
    """Replay a file with a bundle (and a second bundle or policy) and measure on matured labels.

    Example: fraud-scorer backtest --bundle bundles/cards --against bundles/next --input h.parquet --mapping m.yaml
    --from 2018-08-29 --output report.html
    """
    from scorer.backtest import backtest, flagged_by_score, of_both, what_if  # noqa: PLC0415
    from scorer.bundle import Bundle  # noqa: PLC0415
    from scorer.replay import replay_file  # noqa: PLC0415

    if against is not None and policy is not None:
        raise UsageError("give --against (another bundle) or --policy (this bundle, another policy), not both")
    _check_page(output)
    loaded = Bundle.load(bundle)
    other = Bundle.load(against) if against is not None else None
    second_policy = None if policy is None else read_policy(policy, loaded.feature_set.names)
    genuine_ms = parse_duration_option(genuine_after, "--genuine-after")
    begin_ms, until_ms, as_of_ms = _times(begin, until, as_of)
    counted_by = _read_cost(cost) or _cost(second_policy, None if other is None else other.policy, loaded.policy)
    _check_fit(loaded, other, second_policy, counted_by)
    keys = load_settings().pseudonym_keys
    with tempfile.TemporaryDirectory(dir=output.resolve().parent, prefix=".backtest-") as folder:
        runs, rows_left_out = [], {}
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
                    options=replace(run.options, looking=progress.looking),
                    refusals=run.refusals,
                )
            if number == 0:
                for line in refused_lines(report.refusals):
                    err.print(f"refused: {line}")
                rows_left_out = left_out(report.refusals)
            run.check(report.refusals, report.payments)
            decided = read_decided(one, stored)
            if one.policy.flag.cost is not None:
                decided = decided.beside(flagged_by_score(decided, one, one.policy))
            runs.append(decided if genuine_ms is None else decided.genuine_after(genuine_ms))
        first, second, reasons = runs[0], runs[1] if other else None, None
        notes: list[str] = []
        names = (loaded.id, other.id if other else "")
        if second is not None:
            first, second, refused_by_one = of_both(first, second)
            if refused_by_one:
                notes.append(f"{refused_by_one:,} payments are left out: one of the bundles refuses them.")
        with counting("measuring", quiet=as_json):
            if second_policy is not None:
                changed = what_if(first, loaded, second_policy, begin_ms)
                second, reasons, names = changed.decided, changed.reasons, (loaded.id, f"policy {changed.policy}")
                notes += changed.notes
                if second_policy.flag.cost is not None:
                    second = second.beside(flagged_by_score(first, loaded, second_policy, begin_ms))
            result = backtest(
                first,
                second,
                names=names,
                reasons=reasons,
                from_ms=begin_ms,
                as_of_ms=as_of_ms,
                alerts=alerts,
                cards=cards,
                rounds=rounds,
                cost=counted_by,
                seen_until_ms=_seen_until_ms(loaded, other),
            )
    result.notes.extend(notes)
    _report(result, output, f"Backtest of {loaded.id}", rows_left_out, as_json=as_json)


def what_if_command(
    bundle: BundleOption,
    decided: Annotated[Path, typer.Option("--decided", exists=True, help="Output of `replay` with the bundle.")],
    policy: Annotated[Path, typer.Option("--policy", exists=True, dir_okay=False, help="The policy to try.")],
    output: Annotated[Path | None, typer.Option(help="HTML to write; the figures go to a folder next to it.")] = None,
    genuine_after: GenuineOption = None,
    begin: FromOption = None,
    until: UntilOption = None,
    as_of: AsOfOption = None,
    alerts: AlertsOption = 100,
    rounds: RoundsOption = 200,
    cost: CostOption = None,
    as_json: Json = False,
) -> None:
    """Try another threshold, rule or list on payments already decided, in seconds: the engine does not run again.

    Example: fraud-scorer what-if --bundle bundles/cards --decided decided.parquet --policy p.yaml --output w.html
    """
    from scorer.backtest import backtest, flagged_by_score, what_if  # noqa: PLC0415
    from scorer.bundle import Bundle  # noqa: PLC0415

    if output is not None:
        _check_page(output)
    loaded = Bundle.load(bundle)
    begin_ms, until_ms, as_of_ms = _times(begin, until, as_of)
    second = read_policy(policy, loaded.feature_set.names)
    genuine_ms = parse_duration_option(genuine_after, "--genuine-after")
    counted_by = _read_cost(cost) or _cost(second, loaded.policy)
    _check_fit(loaded, None, second, counted_by)
    stored = read_decided(loaded, decided)
    if until_ms is not None:
        stored = stored.take(stored.time_ms < until_ms)
    if genuine_ms is not None:
        stored = stored.genuine_after(genuine_ms)
    with counting("measuring", quiet=as_json):
        changed = what_if(stored, loaded, second, begin_ms)
        names = (loaded.id, f"policy {changed.policy}")
        after = changed.decided
        if second.flag.cost is not None:
            after = after.beside(flagged_by_score(stored, loaded, second, begin_ms))
        result = backtest(
            stored,
            after,
            names=names,
            reasons=changed.reasons,
            from_ms=begin_ms,
            as_of_ms=as_of_ms,
            alerts=alerts,
            rounds=rounds,
            cost=counted_by,
            seen_until_ms=_seen_until_ms(loaded),
        )
    result.notes.extend(changed.notes)
    _report(
        result,
        output,
        f"Policy {changed.policy} on {loaded.id}",
        {"threshold_score_before": loaded.manifest.threshold_score, "threshold_score": changed.threshold_score},
        as_json=as_json,
    )


def segments_command(
    bundle: BundleOption,
    decided: Annotated[Path, typer.Option("--decided", exists=True, help="Output of `replay` with the bundle.")],
    by: Annotated[_Field, typer.Option("--by", help="Field of the payments that makes the segments.")],
    begin: Annotated[str, typer.Option("--from", help="First later day; thresholds are found on those before.")],
    cost: CostOption = None,
    as_of: AsOfOption = None,
    genuine_after: GenuineOption = None,
    rounds: Annotated[int, typer.Option(min=1_000, help="Draws of days.")] = 2_000,
    as_json: Json = False,
) -> None:
    """Which channels, countries or merchant categories deserve a threshold of their own, by what later days show.

    Prints the `segments` for a policy; what the data do not support keeps the common threshold, with the reason. Labels
    that depend on what was flagged are refused: give --genuine-after where every fraud is reported sooner or later.

    Example: fraud-scorer segments --bundle bundles/cards --decided decided.parquet --by channel --from 2025-03-01
    --cost '{currency: EUR, review: 4, good_customer: 15}'
    """
    from scorer.backtest import judged, policy_segments, segment_thresholds  # noqa: PLC0415
    from scorer.bundle import Bundle  # noqa: PLC0415

    loaded = Bundle.load(bundle)
    counted_by = _read_cost(cost) or _cost(loaded.policy)
    if counted_by is None:
        raise UsageError("--cost: which thresholds are best depends on what a review and a good customer stopped cost")
    begin_ms, as_of_ms = parse_time_ms(begin, "--from"), parse_time_ms(as_of, "--as-of")
    genuine_ms = parse_duration_option(genuine_after, "--genuine-after")
    with counting("measuring", quiet=as_json):
        stored, training = read_decided(loaded, decided), loaded.manifest.training
        if training is not None:  # of days that the model learned from, its scores promise too much
            stored = stored.take(stored.time_ms >= training.validation_until_ms)
        measured = judged(stored, loaded.policy, begin_ms or 0, as_of_ms=as_of_ms, genuine_ms=genuine_ms)
        found = segment_thresholds(measured, by.value, counted_by, begin_ms or 0, rounds=rounds)
    segments = policy_segments(by.value, found)
    if as_json:
        rows = [asdict(finding) for finding in found.findings]
        show({"score": found.score, "findings": rows, "segments": segments}, as_json=True, title="")
        return
    title = f"Common threshold {found.score:.4g}, on the days before; later days, {counted_by.currency} a day"
    table = Table(by.value, "frauds", "later", "own threshold", "saves more", "interval", "result", title=title)
    for finding in found.findings:
        bounds = "" if finding.low is None else f"{finding.low:,.2f} to {finding.high:,.2f}"
        own = f"{finding.score:.4g}" if finding.score != found.score else "–"
        counts = (f"{finding.frauds:,}", f"{finding.later_frauds:,}", own, f"{finding.saved_more:,.2f}", bounds)
        table.add_row(escape(finding.value), *counts, "own" if finding.own else f"common: {finding.reason}")
    out.print(table)
    if segments:
        print(f"flag: {{score: {found.score!r}}}\nsegments:")
        for segment in segments:
            print(f"  - {json.dumps(segment)}")
    else:
        print("No segment gets a threshold of its own: the common one is for all.")


def _times(begin: str | None, until: str | None, as_of: str | None) -> tuple[int | None, int | None, int | None]:
    """--from, --until and --as-of, epoch ms. Raises UsageError where no payment can lie between them."""
    begin_ms, until_ms = parse_time_ms(begin, "--from"), parse_time_ms(until, "--until")
    as_of_ms = parse_time_ms(as_of, "--as-of")
    if begin_ms is not None and until_ms is not None and until_ms <= begin_ms:
        raise UsageError(f"--until {until} is not after --from {begin}: no payment lies between them")
    if begin_ms is not None and as_of_ms is not None and as_of_ms < begin_ms:
        raise UsageError(f"--as-of {as_of} is before --from {begin}: no label of those days is known by then")
    return begin_ms, until_ms, as_of_ms


def _check_fit(bundle: Bundle, other: Bundle | None, policy: Policy | None, cost: FlagCost | None) -> None:
    """Refuse, before anything is decided, what could not be measured then. Raises BacktestError."""
    from scorer.backtest import check_currencies, check_lists  # noqa: PLC0415

    currency = bundle.feature_set.currency
    check_currencies(currency, None if other is None else other.feature_set.currency, cost)
    if policy is not None:
        check_currencies(currency, None, policy.flag.cost)
        check_lists(policy, bundle)
        bundle.segment_margins(policy)


def _seen_until_ms(*bundles: Bundle | None) -> dict[str, int | None]:
    """By bundle: until when payments had a part in its training, epoch ms; None: unknown (an imported model)."""
    windows = {bundle.id: bundle.manifest.training for bundle in bundles if bundle is not None}
    return {name: None if window is None else window.validation_until_ms for name, window in windows.items()}


def _cost(*policies: Policy | None) -> FlagCost | None:
    """The costs that money saved is counted by: of the first policy that has some."""
    return next((policy.flag.cost for policy in policies if policy is not None and policy.flag.cost is not None), None)


def _read_cost(text: str | None) -> FlagCost | None:
    """The costs that the user named. Raises UsageError."""
    from features.yaml_model import read_yaml_model  # noqa: PLC0415
    from scorer.policy import FlagCost  # noqa: PLC0415

    if text is None:
        return None
    cost = read_yaml_model(FlagCost, text, where="--cost", error=UsageError)
    if cost.reviews_a_day is not None:
        raise UsageError("--cost: reviews_a_day limits what a policy flags, and counts nothing: leave it out")
    return cost


def read_decided(bundle: Bundle, stored: Path) -> Decided:
    """What a replay with the bundle stored. Raises BacktestError."""
    from features.currency_conversion import conversion_factors  # noqa: PLC0415
    from scorer.backtest import Decided  # noqa: PLC0415

    feature_set = bundle.feature_set
    return Decided.read(stored, feature_set.names, feature_set.currency, conversion_factors(feature_set))


def _numbers_of(page: Path) -> Path:
    """The folder of a page's figures."""
    return page.with_name(f"{page.stem}_numbers")


def _check_page(page: Path) -> None:
    """Refuse a page that cannot be written, or its figures, before anything is measured. Raises UsageError."""
    check_output(page)
    if (numbers := _numbers_of(page)).exists() and not numbers.is_dir():
        raise UsageError(f"--output {page}: its figures go to the folder {numbers}, where a file is; name another page")


def _report(
    result: Backtest, output: Path | None, title: str, more: dict[str, Any] | None = None, *, as_json: bool
) -> None:
    from scorer.backtest import write_page  # noqa: PLC0415

    for note in result.notes:
        err.print(f"note: {note}", markup=False)
    summary: dict[str, Any] = {"payments": result.payments, "matured": result.matured} | (more or {})
    if output is not None:
        numbers = _numbers_of(output)
        result.write_numbers(numbers)
        write_page(result, output, title)
        summary |= {"page": str(output), "numbers": str(numbers)}
    if result.changes is not None:
        summary["decided_otherwise"] = result.changes.num_rows
    if as_json:
        sides = [{"name": side.name} | side.overall | {"intervals": side.intervals} for side in result.sides]
        effects = [asdict(effect) for effect in result.effects]
        show(summary | {"summary": result.summary, "effects": effects, "sides": sides}, as_json=True, title="")
        return
    for line in result.summary:
        print(line)
    for number, side in enumerate(result.sides):
        label = "" if len(result.sides) == 1 else f" ({side.name})"
        summary |= {f"{key}{label}": value for key, value in side.overall.items()} if number == 0 or label else {}
    show(summary, as_json=False, title=title)
