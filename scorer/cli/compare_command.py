"""`compare`: champion and challenger on payments whose labels have matured."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from scorer.cli.backtest_commands import BundleOption, FromOption, UntilOption
from scorer.cli.command_support import Json, check_output, counting, err, out, parse_time_ms, show
from scorer.cli.risk_options import parse_duration_option
from scorer.errors import UsageError

if TYPE_CHECKING:
    from scorer.backtest.champion_comparison import Comparison


def compare(
    bundle: BundleOption,
    decided: Annotated[
        Path,
        typer.Option("--decided", exists=True, help="Output of `replay` with the bundle; --input audit has labels."),
    ],
    challenger: Annotated[
        str | None, typer.Option(help="Id of the challenger; may be left out where the bundle has one.")
    ] = None,
    begin: FromOption = None,
    until: UntilOption = None,
    as_of: Annotated[
        str | None,
        typer.Option("--as-of", help="Labels known later are not used; the last event or label by default."),
    ] = None,
    label_delay: Annotated[
        str | None,
        typer.Option(help="Payments younger than this are left out (30d); by default what 95 % of the labels took."),
    ] = None,
    genuine_after: Annotated[
        str | None,
        typer.Option(
            help="A payment without a label counts as genuine after so long (30d): where every fraud is reported."
        ),
    ] = None,
    inspected: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Ids of payments drawn at random and investigated, one a line: they stand for those without a label.",
        ),
    ] = None,
    inspect: Annotated[
        Path | None,
        typer.Option(help="File to write: ids drawn at random, of the payments that the challenger alone flags."),
    ] = None,
    inspect_count: Annotated[
        int | None, typer.Option(min=1, help="How many ids for --inspect; by default as many as the report asks for.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="HTML to write.")] = None,
    rounds: Annotated[int, typer.Option(min=0, max=20_000, help="Draws of the intervals.")] = 1_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws and of --inspect.")] = 1,
    as_json: Json = False,
) -> None:
    """Champion and challenger on payments whose labels have matured: win, loss, money, by segment, and what to do.

    Example: fraud-scorer compare --bundle bundles/cards-and-new --decided decided.parquet --output compared.html
    """
    from scorer.backtest import BacktestError  # noqa: PLC0415
    from scorer.backtest.champion_comparison import Counted, inspected_of  # noqa: PLC0415
    from scorer.backtest.champion_comparison import compare as measured  # noqa: PLC0415
    from scorer.backtest.comparison_page import write_comparison  # noqa: PLC0415
    from scorer.backtest.shadow_trial import challenger_of, seen_of, shadow_of  # noqa: PLC0415
    from scorer.bundle import Bundle  # noqa: PLC0415
    from scorer.cli.backtest_commands import read_decided  # noqa: PLC0415

    if label_delay is not None and genuine_after is not None:
        raise UsageError("give --label-delay or --genuine-after, which is a delay too, not both")
    if inspect_count is not None and inspect is None:
        raise UsageError("--inspect-count is of --inspect: name the file to write the ids to")
    for path, option in ((output, "--output"), (inspect, "--inspect")):
        if path is not None:
            check_output(path, option)
    delay_ms = parse_duration_option(label_delay, "--label-delay")
    genuine_ms = parse_duration_option(genuine_after, "--genuine-after")
    begin_ms, until_ms, as_of_ms = (
        parse_time_ms(text, option) for text, option in ((begin, "--from"), (until, "--until"), (as_of, "--as-of"))
    )
    drawn = Drawn(frozenset(), None, None) if inspected is None else Drawn.read(inspected)
    loaded = Bundle.load(bundle)
    shadowed = challenger_of(loaded, challenger)
    with counting("comparing", quiet=as_json):
        stored = read_decided(loaded, decided)
        if until_ms is not None:
            stored = stored.take(stored.time_ms < until_ms)
        seen = seen_of(loaded, shadowed)
        if seen.until_ms is not None and not (stored.time_ms >= seen.until_ms).any():
            raise BacktestError(
                f"one of {loaded.id} and {shadowed.id} has learned from all of the payments, or was chosen by them: "
                "give decisions of later days"
            )
        chosen = inspected_of(stored, drawn.ids)
        window = Counted.of(
            stored,
            from_ms=max((at for at in (begin_ms, drawn.from_ms, seen.until_ms) if at is not None), default=None),
            until_ms=drawn.until_ms,
            as_of_ms=as_of_ms,
            delay_ms=delay_ms if genuine_ms is None else genuine_ms,
            inspected=chosen,
        )
        result = measured(
            stored,
            shadow_of(stored, loaded, shadowed, window.counted),
            loaded.id,
            window=window,
            genuine=genuine_ms is not None,
            inspected=chosen,
            cost=loaded.policy.flag.cost,
            seen=seen,
            rounds=rounds,
            seed=seed,
        )
    if output is not None:
        write_comparison(result, output)
    if inspect is not None:
        ids = result.sample(inspect_count or result.inspect or len(result.draw_from), seed)
        Drawn(frozenset(ids), result.from_ms, result.until_ms).write(inspect, ids)
    if as_json:
        show(result.document(), as_json=True, title="")
        return
    if drawn.until_ms is not None:
        err.print("note: compared are the payments that the inspected ones were drawn from, and no later ones")
    _show(result)


_DRAWN = re.compile(r"# drawn at random from payments of \[(\d{1,15}), (\d{1,15})\) ms")


@dataclass(frozen=True)
class Drawn:
    """A random sample of payments, and of which times it was drawn, epoch ms: later payments had no chance to be in it,
    so it does not stand for them. None: a file that does not say so; then it stands for all."""

    ids: frozenset[str]
    from_ms: int | None
    until_ms: int | None

    @classmethod
    def read(cls, path: Path) -> Drawn:
        """A file of ids, one a line, after a line that says the times. Raises UsageError."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as exc:
            raise UsageError(f"--inspected {path} cannot be read as text: {exc}") from exc
        times = None if not lines else _DRAWN.fullmatch(lines[0].strip())
        ids = frozenset(line.strip() for line in lines[0 if times is None else 1 :] if line.strip())
        if not ids:
            raise UsageError(f"--inspected {path} holds no payment id: one a line, as --inspect writes them")
        return cls(ids, None if times is None else int(times[1]), None if times is None else int(times[2]))

    def write(self, path: Path, ids: list[str]) -> None:
        """The file, ids in the order given."""
        head = f"# drawn at random from payments of [{self.from_ms}, {self.until_ms}) ms\n"
        path.write_text(head + "".join(f"{one}\n" for one in ids), encoding="utf-8")


def _show(result: Comparison) -> None:
    """For people: figures, cells, findings, advice last, where a terminal's reader looks."""
    from scorer.backtest.comparison_page import ADVICE, interval, value  # noqa: PLC0415

    title = f"{result.challenger} less {result.champion}, {result.payments:,} payments of {result.days:,} days"
    figures = Table("", "difference", "95 %", "labelled payments alone", title=title, title_justify="left")
    for name, one in result.figures.items():
        figures.add_row(name.replace("_", " "), value(one), interval(one), value(result.naive[name]))
    out.print(figures)
    cells = Table("", "payments", "labelled", "frauds", "inspected", f"{result.currency} of fraud", "known by")
    for cell in result.cells:
        counts = (cell.payments, cell.labelled, cell.frauds, cell.inspected)
        cells.add_row(cell.name, *(f"{count:,}" for count in counts), f"{cell.fraud_money:,.0f}", cell.how or "")
    out.print(cells)
    segments = Table("segment", "", "differ", result.deciding.replace("_", " "), "95 %", "shown")
    for part in result.segments:
        figure = part.figures[result.deciding]
        segments.add_row(part.kind, part.name, f"{part.differ:,}", value(figure), interval(figure), part.verdict)
    out.print(segments)
    for found in result.findings:
        err.print(f"{'warning' if found.warning else 'note'}: {found.name}: {found.text}", markup=False)
    out.print(f"{ADVICE[result.action]}: {result.reason}.", markup=False)
