"""`recover`: what is missing or changed between the journal and the topics, and accepting it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from scorer.cli.command_support import Json, counting, out, show
from scorer.cli.command_support import settings as load_settings
from scorer.errors import FraudScorerError, UsageError

if TYPE_CHECKING:
    from scorer.operate.loss_acceptance import Finding


class StateUnfit(FraudScorerError):
    """Something is missing or changed, and was shown."""


def recover(
    bundle: Annotated[Path | None, typer.Option(help="The bundle that decides; needed to accept something.")] = None,
    accept_loss: Annotated[
        list[str] | None,
        typer.Option(help="Pass over offsets that are gone: TOPIC:PARTITION:FROM-TO, as shown; several times."),
    ] = None,
    adopt_partitions: Annotated[
        bool, typer.Option("--adopt-partitions", help="Take up partitions added to the payments topic.")
    ] = False,
    new_journal: Annotated[
        bool,
        typer.Option(
            "--new-journal",
            help="Begin with empty windows. The journal so far stays where it is, and the chain of batches goes on.",
        ),
    ] = False,
    reason: Annotated[str, typer.Option(help="Why; it stands in the journal and in the audit trail.")] = "",
    as_json: Json = False,
) -> None:
    """Show what is missing or changed between journal and topics; accept it, as a record of the journal.

    Exits 1 when something does not fit. A running worker is fenced by what is accepted here and takes it up.

    Example: fraud-scorer recover --bundle bundles/cards --accept-loss payments:0:1200-1350 --reason "retention"
    """
    from scorer.audit.signed.signatures import Signer  # noqa: PLC0415
    from scorer.bundle import Bundle  # noqa: PLC0415
    from scorer.kafka import Fenced, Topics  # noqa: PLC0415
    from scorer.operate.loss_acceptance import Loss, Recoveries, by_shard, unfit_shards  # noqa: PLC0415

    settings = load_settings()
    asked = [bool(accept_loss), adopt_partitions, new_journal]
    if not any(asked):
        with counting("comparing journal and topics", quiet=as_json), closing(Recoveries(settings)) as recoveries:
            found = [finding for shard in recoveries.shards for finding in recoveries.of(shard).survey()]
        _show(found, as_json=as_json)
        if any(finding.trouble != "ok" for finding in found):
            raise StateUnfit("the journal and the topics do not fit each other; see the table for what can be accepted")
        return
    if sum(asked) > 1:
        raise UsageError("accept one thing at a time: --accept-loss, --adopt-partitions or --new-journal")
    if bundle is None or not reason:
        raise UsageError("accepting needs --bundle (the one that decides) and --reason")
    key = settings.audit.signing_key
    signer = None if key is None else Signer.from_pem(key.get_secret_value())
    loaded = Bundle.load(bundle, trusted_keys=settings.bundle.trusted_keys)
    given = [Loss.parse(text, Topics.of(settings.kafka)) for text in accept_loss or ()]
    done: dict[str, object] = {}
    with (
        counting("deciding the journal again", quiet=as_json),
        closing(Recoveries(settings, signer=signer)) as recoveries,
    ):
        losses = by_shard(given, recoveries)
        # A shard that fits goes on with its windows.
        for shard in losses if accept_loss else unfit_shards(recoveries) if new_journal else recoveries.shards:
            recovery = recoveries.of(shard)
            try:
                if accept_loss:
                    record = recovery.accept_loss(loaded, losses[shard], reason)
                elif adopt_partitions:
                    adopted = recovery.adopt_partitions(loaded, reason)
                    if adopted is None:
                        done[f"shard {shard}"] = "nothing to adopt"
                        continue
                    record = adopted
                else:
                    record = recovery.new_state(loaded, reason)
            except Fenced as exc:
                raise FraudScorerError(
                    f"a worker took shard {shard} while this command wrote, and nothing was accepted for it. Stop "
                    "its workers (one that is started again and again takes it each time), and run the command again"
                ) from exc
            if recovery.numbers_unknown:
                done[f"decisions-fast of shard {shard}"] = "its readers forget the last place that they have taken"
            done[f"shard {shard}"] = f"batch {record.sequence} of the journal, head {record.head[:12]}"
    show(done | {"signed": signer is not None}, as_json=as_json, title="Accepted")


def _show(found: list[Finding], *, as_json: bool) -> None:
    if as_json:
        show({"findings": [vars(finding) for finding in found]}, as_json=True, title="")
        return
    table = Table("place", "state", "journal", "broker", "way out")
    for finding in found:
        table.add_row(finding.place, finding.trouble, finding.journal, finding.broker, finding.command)
    out.print(table if found else "The journal is empty: nothing was decided yet.")
