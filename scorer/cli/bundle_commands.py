"""`bundle show|verify|sign|activate|compile|challenge|export`: everything about bundles once they are made."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from scorer.cli.command_support import (
    Json,
    check_new_bundle,
    counting,
    date_of,
    err,
    moment_of,
    out,
    parse_time_ms,
    read_mapping,
    read_options,
    show,
)
from scorer.cli.command_support import settings as load_settings
from scorer.cli.import_command import import_bundle
from scorer.cli.lever_tables import show_report
from scorer.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from scorer.bundle import Bundle
    from scorer.bundle.gate import Verdict

app = typer.Typer(
    help="Show, verify, sign, activate, import, compile, challenge and export bundles.", no_args_is_help=True
)
app.command("import")(import_bundle)

Folder = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="The bundle's folder.")]
TrustedKeys = Annotated[
    list[str] | None, typer.Option("--trusted-key", help="ed25519:BASE64, or a PEM file; may be given several times.")
]
PASSWORD_VARIABLE = "FRAUD_SCORER_SIGNING_PASSWORD"  # noqa: S105 - a name


@app.command("show")
def show_bundle(folder: Folder, as_json: Json = False) -> None:
    """What a bundle is: checked, then described.

    Example: fraud-scorer bundle show bundles/cards
    """
    from scorer.bundle import Bundle  # noqa: PLC0415

    loaded = Bundle.load(folder)
    manifest = loaded.manifest
    plan = loaded.model.plan
    curve = manifest.calibration
    result: dict[str, Any] = {
        "id": loaded.id,
        "created_at": manifest.created_at,
        "features": len(manifest.feature_names),
        "feature_fingerprint": manifest.feature_fingerprint,
        "trees": loaded.model.tree_count,
        "currency": manifest.currency,
        "threshold_score": manifest.threshold_score,
        **manifest.metrics,
    }
    if as_json:
        signed = {"signed_by": list(loaded.signed_by), "challengers": [item.id for item in loaded.challengers]}
        show({**result, **signed, "manifest": manifest.model_dump(mode="json")}, as_json=True, title="")
        return
    result |= {
        "threshold_margin": float(loaded.threshold_margin),
        **{f"threshold_score_{item.name}": item.score for item in loaded.policy.segments},
        **({} if manifest.saving_min is None else {"saving_min": manifest.saving_min}),
        "calibration": curve.kind
        if curve.kind != "platt"
        else f"platt: sigmoid({curve.slope:.6g} x margin {curve.intercept:+.6g})",
        "golden_rows": manifest.golden_rows,
        "signed_by": ", ".join(loaded.signed_by) or "none",
        "challengers": ", ".join(item.id for item in loaded.challengers) or "none",
        "student": _student(loaded),
        "evaluator": f"{plan.vector_trees} trees in byte lanes" if plan.vector_trees else f"plain walk: {plan.reason}",
    }
    if manifest.training is not None:
        window = manifest.training
        result["trained_on"] = f"{window.train_rows:,} rows, {window.train_frauds:,} frauds, " + _days(
            window.train_from_ms, window.train_until_ms
        )
        result["validated_on"] = f"{window.validation_rows:,} rows, {window.validation_frauds:,} frauds, " + _days(
            window.validation_from_ms, window.validation_until_ms
        )
    if (lineage := manifest.lineage) is not None:
        result["continues"] = (
            f"{lineage.bundle}, {lineage.made}, {lineage.trees_kept} trees of it; average precision on payments it had "
            f"not seen {lineage.average_precision_before:.4f}, here {lineage.average_precision:.4f}"
        )
    result["versions"] = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    show(result, as_json=False, title=str(folder))
    reasons = Table("reason", "sentence", "features", title="Reasons", title_justify="left")
    for group in loaded.policy.reasons:
        reasons.add_row(group.code, group.sentence, ", ".join(group.features))
    out.print(reasons)


@app.command()
def verify(folder: Folder, trusted_key: TrustedKeys = None, as_json: Json = False) -> None:
    """Run the gate: hashes, signature, fingerprint, parity with the source model, calibration. Exit code 3 if anything
    fails.

    Example: fraud-scorer bundle verify bundles/cards --trusted-key signing.pub.pem
    """
    verdict = _gate(folder, _keys(trusted_key), quiet=as_json)
    _report(verdict, folder, as_json=as_json)
    verdict.require(folder)


@app.command()
def sign(
    folder: Folder,
    key: Annotated[Path, typer.Option(help="Ed25519 private key (PEM).")],
    new_key: Annotated[bool, typer.Option("--new-key", help="Make the key first; the file must not exist.")] = False,
    as_json: Json = False,
) -> None:
    """Verify a bundle, then sign its manifest. Prints the public key, which goes into the trusted keys of workers.

    Example: fraud-scorer bundle sign bundles/cards --key signing.pem --new-key
    """
    from scorer.bundle import Bundle  # noqa: PLC0415
    from scorer.bundle.signature import new_private_key, public_name  # noqa: PLC0415
    from scorer.bundle.signature import sign as add_signature  # noqa: PLC0415

    verdict = _gate(folder, quiet=as_json)
    verdict.require(folder)
    assert verdict.bundle is not None
    private = new_private_key(key) if new_key else _private_key(key)
    name = add_signature(folder, private, verdict.bundle.manifest_bytes)
    show(
        {"id": Bundle.load(folder, trusted_keys=[name]).id, "signed_by": public_name(private.public_key())},
        as_json=as_json,
        title=str(folder),
    )


@app.command()
def activate(
    folder: Folder,
    key: Annotated[
        Path | None, typer.Option(help="Ed25519 private key (PEM) that signs the activation; workers trust its key.")
    ] = None,
    trusted_key: TrustedKeys = None,
    location: Annotated[
        str | None,
        typer.Option(
            help="Where workers find the bundle, below one of FRAUD_SCORER_BUNDLE__LOCATIONS; the folder's absolute "
            "path by default."
        ),
    ] = None,
    valid_minutes: Annotated[
        float, typer.Option(min=0.1, max=525_600, help="A worker that reads it later than this refuses it.")
    ] = 60.0,
    number: Annotated[
        int | None, typer.Option(min=1, max=2**53 - 1, help="Larger than any before; the time in ms by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify a bundle, then activate it: every shard decides with it from one position of its journal on. To roll back,
    activate the older bundle.

    The activation is signed for this deployment, with a number that is used once and an expiry.

    Example: fraud-scorer bundle activate bundles/cards-2 --key signing.pem
    """
    from scorer.bundle.bundle_places import Places  # noqa: PLC0415
    from scorer.operate.activation import new_activation, send_activation  # noqa: PLC0415 - needs a Kafka client

    settings = load_settings()
    verdict = _gate(folder, _keys(trusted_key) or settings.bundle.trusted_keys, quiet=as_json)
    verdict.require(folder)
    assert verdict.bundle is not None
    if key is None and not settings.bundle.unsigned_activations:
        raise UsageError(
            "--key: workers take an activation that a key of FRAUD_SCORER_BUNDLE__TRUSTED_KEYS has signed (for trials "
            "without keys set FRAUD_SCORER_BUNDLE__UNSIGNED_ACTIVATIONS=true here and for the workers)"
        )
    place = Places(settings.bundle.locations).of(location or str(folder.resolve())).text
    private = None if key is None else _private_key(key)
    record = new_activation(settings, verdict.bundle.id, place, private, number=number, valid_s=valid_minutes * 60.0)
    offset = send_activation(settings, record)
    show(
        {
            "bundle": record.bundle,
            "location": place,
            "number": record.number,
            "signed_by": record.public_key or "none: workers take it only where unsigned activations are allowed",
            "control_offset": offset,
        },
        as_json=as_json,
        title="Activation sent",
    )


@app.command("compile")
def compile_bundle(
    folder: Folder,
    file: Annotated[Path, typer.Option("--input", exists=True, dir_okay=False, help="Held-out payments with labels.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the new bundle (not for --early-exit).")] = None,
    mapping: Annotated[Path | None, typer.Option("--mapping", help="Which column is which field (YAML).")] = None,
    begin: Annotated[
        str | None, typer.Option("--from", help="First day to measure on; earlier ones fill the windows.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Day after the last one to measure on.")] = None,
    quantise_leaves: Annotated[
        bool, typer.Option("--quantise-leaves", help="Leaves on a grid of --bits bits (lossy).")
    ] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Leave out trees and merge leaves within --loss.")] = False,
    distil: Annotated[bool, typer.Option("--distil", help="Train a small student of the bundle's scores.")] = False,
    first_trees: Annotated[
        int | None, typer.Option("--first-trees", help="Keep so many trees, the first: a student without training.")
    ] = None,
    isolation_forest: Annotated[
        bool,
        typer.Option("--isolation-forest", help="An isolation forest of the rows instead, as a challenger: no labels."),
    ] = False,
    early_exit: Annotated[
        bool, typer.Option("--early-exit", help="Measure decisions without the rest of the trees.")
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report", help="Try every lever and print what each costs and gives; writes nothing. Labels may lack."
        ),
    ] = False,
    bits: Annotated[int, typer.Option(help="Bits of a leaf for --quantise-leaves.")] = 10,
    loss: Annotated[
        float, typer.Option(help="Average precision that --prune may give up, and a lever of --report may cost.")
    ] = 0.005,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Write it even where the rows that measure lose more than --loss.")
    ] = False,
    trees: Annotated[
        int | None, typer.Option(help="Trees of the student (40 by default) or of the isolation forest (100).")
    ] = None,
    depth: Annotated[int, typer.Option(help="Depth of the student's trees.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the student or of the isolation forest.")] = 1,
    as_json: Json = False,
) -> None:
    """Apply one lever and print size, speed and quality before and after, on held-out payments; or report on all.

    Example: fraud-scorer bundle compile bundles/cards --prune --input later.parquet --mapping m.yaml --output
    bundles/cards-small
    """
    from scorer.compress import levers  # noqa: PLC0415 - needs a training library

    chosen = [quantise_leaves, prune, distil, first_trees is not None, isolation_forest, early_exit, report]
    if sum(chosen) != 1:
        raise UsageError(
            "give exactly one of --quantise-leaves, --prune, --distil, --first-trees, --isolation-forest, --early-exit "
            "and --report"
        )
    if output is None and not (early_exit or report):
        raise UsageError("--output: name the folder of the new bundle")
    if output is not None and report:
        raise UsageError("--report writes no bundle: leave --output out, and give it to the lever that you choose")
    if output is not None and not early_exit:
        check_new_bundle(output)
    X, truth, until_ms = _held_out(folder, file, mapping, begin, until, unlabelled=report, quiet=as_json)
    if report:
        show_report(folder, X, truth if len(truth) else None, loss=loss, seed=seed, as_json=as_json)
        return
    created_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if early_exit or output is None:
        with counting("measuring", quiet=as_json):
            measured = levers.early_exit(folder, X, truth)
        show(measured, as_json=as_json, title="Early exit")
        return
    with counting("making the bundle smaller", quiet=as_json):
        if quantise_leaves:
            done = levers.quantise(folder, output, X, truth, bits=bits, created_at=created_at, until_ms=until_ms)
        elif prune:
            done = levers.prune(
                folder, output, X, truth, loss=loss, created_at=created_at, accept=accept_loss, until_ms=until_ms
            )
        elif first_trees is not None:
            done = levers.shorten(folder, output, X, truth, trees=first_trees, created_at=created_at, until_ms=until_ms)
        elif isolation_forest:
            many = 100 if trees is None else trees
            done = levers.isolate(
                folder, output, X, truth, trees=many, seed=seed, created_at=created_at, until_ms=until_ms
            )
        else:
            many = 40 if trees is None else trees
            done = levers.student(
                folder, output, X, truth, trees=many, depth=depth, seed=seed, created_at=created_at, until_ms=until_ms
            )
    for note in done.notes:
        err.print(f"note: {note}", markup=False)
    if as_json:
        show(asdict(done), as_json=True, title="")
        return
    table = Table("", "before", "after", title=f"{done.lever}: {output}", title_justify="left")
    after = done.after.document()
    for name, value in done.before.document().items():
        table.add_row(name.replace("_", " "), f"{value:,.6g}", f"{after[name]:,.6g}")
    out.print(table)
    changed = {
        "rows": done.rows,
        "frauds": done.frauds,
        "decisions_changed": done.decisions_changed,
        "score_distance_max": done.score_distance_max,
    }
    show({"bundle": done.bundle_id, **changed, **done.detail}, as_json=False, title="On the held-out rows")


@app.command()
def challenge(
    folder: Folder,
    output: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
    challenger: Annotated[
        list[Path] | None, typer.Option("--with", exists=True, file_okay=False, help="A challenger's bundle.")
    ] = None,
    student: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Bundle of a small challenger (bundle compile --distil) that decides when a deadline is near.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the bundle anew with the models of others as challengers: they score in shadow, for the audit trail alone;
    a student also decides in degraded mode.

    Example: fraud-scorer bundle challenge bundles/cards --with bundles/cards-new --output bundles/cards-and-new
    """
    from scorer.bundle.challengers import with_challengers  # noqa: PLC0415

    check_new_bundle(output)
    created_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with counting("checking the bundles", quiet=as_json):
        made = with_challengers(folder, challenger or [], output, created_at=created_at, student=student)
    known = {"challengers": [item.id for item in made.challengers], "student": made.manifest.student}
    show({"bundle": made.id, **known}, as_json=as_json, title=str(output))


@app.command()
def export(
    folder: Folder,
    output: Annotated[Path, typer.Option(help="The file to write.")],
    language: Annotated[
        Literal["c", "python"], typer.Option("--format", help="c: one C99 file; python: one module.")
    ] = "c",
    as_json: Json = False,
) -> None:
    """Write the model as source code without dependencies, for devices at the edge; margins and scores keep every bit.

    Example: fraud-scorer bundle export bundles/cards --format c --output fraud.c
    """
    from scorer.bundle import Bundle  # noqa: PLC0415
    from scorer.compress.source_export import to_c, to_python  # noqa: PLC0415 - code generation is rarely needed

    bundle = Bundle.load(folder)
    text = to_c(bundle) if language == "c" else to_python(bundle)
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as exc:
        raise UsageError(f"--output {output} cannot be written: {exc.strerror}") from exc
    show(
        {"bundle": bundle.id, "file": str(output), "bytes": len(text)}, as_json=as_json, title=f"Exported as {language}"
    )


def _student(bundle: Bundle) -> str:
    """The student and what it flags by."""
    if bundle.student is None:
        return "none"
    if bundle.policy.flag.cost is not None:
        return f"{bundle.student.id}, by cost"
    return f"{bundle.student.id}, from a score of {bundle.student_threshold_score:.6g} on"


def _days(begin_ms: int, end_ms: int) -> str:
    return " to ".join(date_of(at) for at in (begin_ms, end_ms))


def _private_key(path: Path) -> Ed25519PrivateKey:
    from scorer.bundle.signature import read_private_key  # noqa: PLC0415

    password = os.environ.get(PASSWORD_VARIABLE)
    return read_private_key(path, password.encode() if password else None)


def _keys(given: list[str] | None) -> list[str]:
    """Keys as written, or as the text of PEM files."""
    keys = []
    for text in given or []:
        if text.startswith("ed25519:"):
            keys.append(text)
            continue
        try:
            keys.append(Path(text).read_text(encoding="ascii"))
        except (OSError, UnicodeDecodeError) as exc:
            raise UsageError(f"--trusted-key {text}: neither ed25519:BASE64 nor a readable PEM file") from exc
    return keys


def _gate(folder: Path, trusted_keys: Sequence[str] = (), *, quiet: bool) -> Verdict:
    from scorer.bundle.gate import verify as run_gate  # noqa: PLC0415

    with counting("checking the bundle", quiet=quiet):
        return run_gate(folder, trusted_keys=trusted_keys)


def _report(verdict: Verdict, folder: Path, *, as_json: bool) -> None:
    if as_json:
        checks = [asdict(check) for check in verdict.checks]
        bundle = None if verdict.bundle is None else verdict.bundle.id
        show({"bundle": bundle, "passed": verdict.passed, "checks": checks}, as_json=True, title="")
        return
    table = Table("check", "", "what was found", title=str(folder), title_justify="left")
    for check in verdict.checks:
        table.add_row(check.name, "passed" if check.passed else "FAILED", check.detail)
    out.print(table)


def _held_out(
    folder: Path, file: Path, mapping: Path | None, begin: str | None, until: str | None, *, unlabelled: bool,
    quiet: bool,
) -> tuple[np.ndarray, np.ndarray, int]:  # fmt: skip
    """Rows float32 [n, k] and truth bool [n] of payments of known label, and the first time after them; with
    `unlabelled`, where none is known, all rows and a truth of length 0. Payments that the bundle's model has seen in
    training are left out. Raises UsageError where it has seen all of them."""
    import numpy as np  # noqa: PLC0415

    from scorer.bundle import Bundle  # noqa: PLC0415
    from scorer.pipeline.card_keys import cards_of  # noqa: PLC0415 - as below
    from scorer.replay import file_batches, training_table  # noqa: PLC0415 - the whole pipeline

    bundle = Bundle.load(folder)
    declared, keys, training = bundle.feature_set, load_settings().pseudonym_keys, bundle.manifest.training
    with counting("payments", quiet=quiet) as progress:
        options = replace(read_options(), lateness_ms=declared.allowed_lateness, looking=progress.looking)
        batches = file_batches(
            file, read_mapping(mapping), cards=cards_of(declared, keys), options=options, expect=progress.expect
        )
        table = training_table(declared, batches, source=file, keys=keys, progress=progress)
    keep = table.label >= 0
    without = unlabelled and not keep.any()
    keep |= without
    for bound, option, after in ((begin, "--from", True), (until, "--until", False)):
        at = parse_time_ms(bound, option)
        if at is not None:
            keep &= (table.event_time_ms >= at) if after else (table.event_time_ms < at)
    if not keep.any():
        raise UsageError("no payment of known label lies in the window: check --from and --until")
    if training is not None:
        keep = _unseen(keep, table.event_time_ms, bundle.id, training.validation_until_ms)
    truth, until_ms = np.asarray(table.label[keep] == 1), int(table.event_time_ms[keep].max()) + 1
    return np.ascontiguousarray(table.features[keep]), truth[:0] if without else truth, until_ms


def _unseen(keep: np.ndarray, times_ms: np.ndarray, name: str, seen_until_ms: int) -> np.ndarray:
    """bool [n]: those of `keep` that the bundle called `name` has not seen in training; of those before it a model
    ranks and rates too well. Raises UsageError where none is left."""
    seen = keep & (times_ms < seen_until_ms)
    if not seen.any():
        return keep
    day = moment_of(seen_until_ms)
    if not (keep & ~seen).any():
        raise UsageError(
            f"{name} has seen all of the {int(seen.sum()):,} payments (those before {day}) in training or in a `bundle "
            "compile` before, so nothing can be measured on them: give later payments, or train with an earlier "
            "--until and keep the days after it for this"
        )
    err.print(f"note: {int(seen.sum()):,} payments before {day} are left out: {name} has seen them in training")
    return keep & ~seen
