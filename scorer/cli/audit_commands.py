"""`audit`: the trail in Postgres verified, anchored, explained, kept and forgotten."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from schemas.durations import parse_duration_ms
from scorer.cli import explain_command, set_aside_commands
from scorer.cli.audit_output import postgres_errors
from scorer.cli.command_support import Json, counting, err, out, show
from scorer.cli.command_support import settings as load_settings
from scorer.errors import PromiseBroken, UsageError
from scorer.runtime.settings import Settings

if TYPE_CHECKING:
    from scorer.audit.maintain.person_traces import Traces

app = typer.Typer(help="The audit trail: verify, explain, anchor, keep, forget.", no_args_is_help=True)
app.add_typer(set_aside_commands.app, name="set-aside")
app.command("accept-gap")(set_aside_commands.accept_gap)
Shard = Annotated[int | None, typer.Option(min=0, help="Only this shard.")]
Anchors = Annotated[
    str | None, typer.Option("--anchors", help="File or URL of the anchors; by default setting audit.anchors.")
]


@app.command()
def verify(
    shard: Shard = None,
    first: Annotated[int, typer.Option("--from", min=0, help="First batch (sequence).")] = 0,
    last: Annotated[int | None, typer.Option("--until", min=0, help="Last batch (sequence), included.")] = None,
    since_anchor: Annotated[bool, typer.Option("--since-anchor", help="Only what came after the last anchor.")] = False,
    journal: Annotated[bool, typer.Option(help="Compare heads with the journal topic.")] = True,
    anchors: Anchors = None,
    parallel: Annotated[
        int, typer.Option("--parallel", min=0, help="Connections that are read at once; 0: one more than cores.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Recompute every digest from the rows, follow the chain, compare its heads with journal topic and anchors.

    Exit 3 when anything was changed; the first bad batch is named. Example: fraud-scorer audit verify --json
    """
    from scorer.audit.signed.anchors import AnchorFile, read_anchors  # noqa: PLC0415 - compiles kernels
    from scorer.audit.verify.scope import Scope  # noqa: PLC0415
    from scorer.audit.verify.verification import verify as run  # noqa: PLC0415

    settings = load_settings()
    place = anchors or settings.audit.anchors
    file = None if place is None else AnchorFile(place, given=anchors is not None)
    if last is not None and last < first:
        raise UsageError(f"--from {first} --until {last}: no batch lies there, --until comes before --from")
    verifier = _verifier(settings)
    since = None
    if since_anchor:
        if file is None:
            raise UsageError("--since-anchor needs the anchors: give --anchors or set FRAUD_SCORER_AUDIT__ANCHORS")
        bodies, findings = read_anchors(file, verifier)
        if findings:
            raise PromiseBroken(findings[0].sentence)
        since = {body["shard"]: body["sequence"] for body in bodies if body["kind"] == "anchor"}
    with postgres_errors(), counting("rows", quiet=as_json) as progress:
        report = run(
            settings.postgres_url,
            scope=Scope(shard, first, last, since),
            verifier=verifier,
            anchors=file,
            kafka_settings=settings if journal else None,
            # One more than cores, so that none is idle while one thread does what only one can do at a time.
            parallel=parallel or len(os.sched_getaffinity(0)) + 1,
            progress=progress.of,
        )
    findings_json = [finding.as_json() for finding in report.findings]
    result: dict[str, Any] = {
        "verified": report.good,
        "shards": report.shards,
        "batches": report.batches,
        "decisions": report.decisions,
        "tombstones": report.tombstones,
        "erased_batches": report.erased,
        "set_aside": report.set_aside,
        "behind": report.behind,
        "heads_equal_to_journal": report.heads_journal,
        "heads_anchored": report.heads_anchored,
        "records_equal_to_topics": report.records,
        "records_older_than_topics": report.records_older,
        "views": "compared" if report.views_compared else "not compared: no right to make temporary tables",
        "signatures": "checked" if verifier is not None else "not checked: no key is set",
    }
    if as_json:
        bad = findings_json[0] if findings_json else None
        show({**result, "first_bad": bad, "findings": findings_json}, as_json=True, title="")
    else:
        shown = {name: "not asked" if value is None else value for name, value in result.items()}
        show(shown, as_json=False, title="Audit trail")
        if report.findings:
            table = Table("where", "kind", "what was found", title="What was found first", title_justify="left")
            for finding in report.findings[:20]:
                table.add_row(finding.where, finding.kind, finding.detail)
            out.print(table)
    if report.findings:
        raise PromiseBroken(f"the audit trail was changed: {report.findings[0].sentence}")


app.command("explain")(explain_command.explain)


@app.command()
def anchor(anchors: Anchors = None, as_json: Json = False) -> None:
    """Append the newest head of every shard to the anchors, signed when a key is set. Run it from a timer.

    Example: fraud-scorer audit anchor --anchors s3://worm-bucket/fraud/anchors.jsonl
    """
    from scorer.audit.signed.anchors import anchor as run  # noqa: PLC0415

    settings = load_settings()
    signer = _signer(settings, required=False)
    with postgres_errors(), counting("anchoring", quiet=as_json):
        new = run(settings.postgres_url, _anchor_file(settings, anchors), signer)
    heads = [{name: body[name] for name in ("shard", "sequence", "head")} for body in new]
    if as_json:
        show({"anchored": heads, "signed": signer is not None}, as_json=True, title="")
        return
    shown = {f"batch {body['shard']}/{body['sequence']}": body["head"] for body in heads}
    show(
        (shown or {"anchored": "nothing new since the last anchor"}) | {"signed": signer is not None},
        as_json=False,
        title="Anchored",
    )


@app.command()
def keygen(
    folder: Annotated[Path, typer.Option("--output", file_okay=False, help="Folder for the two files.")],
) -> None:
    """A key pair for anchors, tombstones and erasures: audit-signing-key.pem (keep it secret) and audit-public-key.pem.

    Example: fraud-scorer audit keygen --output /etc/fraud-scorer
    """
    from scorer.audit.signed.signatures import Signer  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    private, public = folder / "audit-signing-key.pem", folder / "audit-public-key.pem"
    signer = Signer.generate()
    try:
        with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(signer.to_pem())
    except FileExistsError as exc:
        raise UsageError(f"{private} exists; what it signed can be verified with it alone, so it is kept") from exc
    public.write_bytes(signer.verifier.to_pem())
    show(
        {"signing_key": str(private), "public_key": str(public), "key": signer.verifier.key_id}, as_json=False, title=""
    )


@app.command()
def retain(
    keep: Annotated[
        str | None, typer.Option(help="How long to keep decisions, such as 365d; whole days of stream time.")
    ] = None,
    keep_labels: Annotated[str | None, typer.Option(help="How long to keep labels, from when they were sent.")] = None,
    keep_dead_letters: Annotated[str | None, typer.Option(help="How long to keep dead letters' reasons.")] = None,
    as_of: Annotated[datetime | None, typer.Option("--as-of", help="Count from this day; today by default.")] = None,
    anchors: Anchors = None,
    as_json: Json = False,
) -> None:
    """Remove what is older; signed tombstones stay, and the rest still verifies. Needs the owner's login.

    What is not named stays. Example: fraud-scorer audit retain --keep 365d --keep-labels 730d --keep-dead-letters 90d
    """
    from scorer.audit.maintain.retention import Retained, retain_records  # noqa: PLC0415
    from scorer.audit.maintain.retention import retain as run  # noqa: PLC0415

    settings = load_settings()
    signer = _signer(settings, required=True)
    if keep is None and keep_labels is None and keep_dead_letters is None:
        raise UsageError("give what to keep for how long: --keep, --keep-labels, --keep-dead-letters")
    now = as_of or datetime.now(UTC)
    now = now if now.tzinfo else now.replace(tzinfo=UTC)
    place = anchors or settings.audit.anchors
    file = None if place is None else _anchor_file(settings, place)
    limits = {
        name: None if text is None else now - _duration(option, text)
        for name, option, text in (
            ("decisions", "--keep", keep),
            ("labels", "--keep-labels", keep_labels),
            ("dead_letters", "--keep-dead-letters", keep_dead_letters),
        )
    }
    days = Retained()
    details: dict[str, Any] = {}
    with postgres_errors(), counting("removing", quiet=as_json):
        if limits["decisions"] is not None:
            before = limits["decisions"].date()
            days = run(settings.postgres_url, before=before, signer=signer, anchors=file)
            details["removed_before"] = str(before)
        for table in ("labels", "dead_letters"):
            if (limit := limits[table]) is not None:
                details[table] = retain_records(
                    settings.postgres_url, table=table, before=limit, signer=signer, anchors=file
                )
    result: dict[str, Any] = {"days": [str(day) for day in days.days], "batches": days.batches}
    result |= {"decisions": days.decisions, **details}
    if not as_json:
        result["days"] = ", ".join(result["days"]) or "none"
    show(result, as_json=as_json, title="Retained")


def _duration(option: str, text: str) -> timedelta:
    try:
        return timedelta(milliseconds=parse_duration_ms(text))
    except ValueError as exc:
        raise UsageError(f"{option} {text}: {exc}") from exc


@app.command()
def erase(
    customer: Annotated[str | None, typer.Option("--customer", help="customer_id of the person.")] = None,
    account: Annotated[str | None, typer.Option("--account", help="account_id of the person.")] = None,
    lists: Annotated[
        list[str] | None,
        typer.Option("--list", help="A list of the policy that holds such ids; may be given several times."),
    ] = None,
    no_lists: Annotated[bool, typer.Option("--no-lists", help="No list of the policy holds such ids.")] = False,
    also_unreadable: Annotated[
        bool,
        typer.Option(
            "--also-unreadable", help="Empty quarantined records that cannot be read and hold a short id, too."
        ),
    ] = False,
    anchors: Anchors = None,
    as_json: Json = False,
) -> None:
    """Replace a person's identifiers by pseudonyms whose key is thrown away; the chain stays whole.

    Needs the owner's login. What will be changed is counted first, on stderr.

    Example: fraud-scorer audit erase --customer c_000042 --list blocked_customers
    """
    from scorer.audit.maintain.erasure import erase as run  # noqa: PLC0415

    if (customer is None) == (account is None):
        raise UsageError("give either --customer or --account")
    if lists and no_lists:
        raise UsageError("give either --list or --no-lists")
    settings = load_settings()
    signer = _signer(settings, required=True)
    place = anchors or settings.audit.anchors
    with postgres_errors(), counting("erasing", quiet=as_json):
        result = run(
            settings.postgres_url,
            column="customer_id" if customer is not None else "account_id",
            value=customer or account or "",
            signer=signer,  # type: ignore[arg-type]  # required
            anchors=None if place is None else _anchor_file(settings, place),
            lists=() if no_lists else lists or None,
            also_unreadable=also_unreadable,
            found=_show_traces,
        )
    if result.unreadable_left:
        err.print(
            f"{result.unreadable_left} quarantined records cannot be read, hold this id among their bytes, perhaps by "
            "chance, and were left; --also-unreadable empties them"
        )
    if not (result.rows or result.labels or result.elsewhere):
        # The identifier itself is not repeated: this goes to logs.
        raise UsageError(
            f"no person was erased: no row, list or quarantined record has this "
            f"{'customer_id' if customer is not None else 'account_id'}; it is misspelt, or was erased before"
        )
    show(
        {
            "rows": result.rows, "batches": result.batches, "labels": result.labels, "elsewhere": result.elsewhere,
            "unreadable_left": result.unreadable_left,
        },
        as_json=as_json, title="Erased",
    )  # fmt: skip


def _show_traces(traces: Traces) -> None:
    changes = "".join(f", {count} changes of list {name}" for name, count in traces.lists.items())
    err.print(
        f"erasing: {traces.rows} rows of {len(traces.payment_ids)} payments, {traces.more_rows} more rows of these "
        f"payments, {len(traces.quarantined)} quarantined records{changes}"
    )
    for name, count in traces.lists_left.items():
        err.print(f"left as it is, for --list does not name it: {name}, where {count} changes have the value")


def _signer(settings: Settings, *, required: bool) -> Any:
    from scorer.audit.signed.signatures import Signer  # noqa: PLC0415

    if settings.audit.signing_key is not None:
        return Signer.from_pem(settings.audit.signing_key.get_secret_value())
    if required:
        raise UsageError(
            "what is removed or erased needs a signed record: set FRAUD_SCORER_AUDIT__SIGNING_KEY_FILE; "
            "`fraud-scorer audit keygen` makes a key"
        )
    return None


def _verifier(settings: Settings) -> Any:
    from scorer.audit.signed.signatures import Verifier  # noqa: PLC0415

    if settings.audit.public_key is not None:
        return Verifier.from_pem(settings.audit.public_key)
    signer = _signer(settings, required=False)
    return None if signer is None else signer.verifier


def _anchor_file(settings: Settings, given: str | None) -> Any:
    from scorer.audit.signed.anchors import AnchorFile  # noqa: PLC0415

    place = given or settings.audit.anchors
    if place is None:
        raise UsageError("where to? Give --anchors FILE or set FRAUD_SCORER_AUDIT__ANCHORS")
    return AnchorFile(place)
