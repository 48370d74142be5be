"""`bundle show|verify|sign|activate|compile|challenge|export`: everything about bundles once they are made."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.table import Table

from scorer.bundle import Bundle
from scorer.bundle.bundle_places import Places
from scorer.bundle.challengers import with_challengers
from scorer.bundle.gate import Verdict
from scorer.bundle.gate import verify as run_gate
from scorer.bundle.signature import new_private_key, public_name, read_private_key
from scorer.bundle.signature import sign as add_signature
from scorer.cli.command_support import Json, counting, out, parse_time_ms, read_mapping, show
from scorer.cli.command_support import settings as load_settings
from scorer.cli.import_command import import_bundle
from scorer.errors import UsageError

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
        "calibration": curve.kind
        if curve.kind != "platt"
        else f"platt: sigmoid({curve.slope:.6g} x margin {curve.intercept:+.6g})",
        "golden_rows": manifest.golden_rows,
        "signed_by": ", ".join(loaded.signed_by) or "none",
        "challengers": ", ".join(item.id for item in loaded.challengers) or "none",
        "student": loaded.manifest.student or "none",
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
    verdict = run_gate(folder, trusted_keys=_keys(trusted_key))
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
    verdict = run_gate(folder)
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
    from scorer.operate.activation import new_activation, send_activation  # noqa: PLC0415 - needs a Kafka client

    settings = load_settings()
    verdict = run_gate(folder, trusted_keys=_keys(trusted_key) or settings.bundle.trusted_keys)
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
    early_exit: Annotated[
        bool, typer.Option("--early-exit", help="Measure decisions without the rest of the trees.")
    ] = False,
    bits: Annotated[int, typer.Option(help="Bits of a leaf for --quantise-leaves.")] = 10,
    loss: Annotated[float, typer.Option(help="Average precision that --prune may give up.")] = 0.005,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Write it even where the rows that measure lose more than --loss.")
    ] = False,
    trees: Annotated[int, typer.Option(help="Trees of the student.")] = 40,
    depth: Annotated[int, typer.Option(help="Depth of the student's trees.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the student.")] = 1,
    as_json: Json = False,
) -> None:
    """Apply one lever and print size, speed and quality before and after, on held-out payments.

    Example: fraud-scorer bundle compile bundles/cards --prune --input later.parquet --mapping m.yaml --output
    bundles/cards-small
    """
    from scorer.compress import levers  # noqa: PLC0415 - needs a training library

    chosen = [quantise_leaves, prune, distil, early_exit]
    if sum(chosen) != 1:
        raise UsageError("give exactly one of --quantise-leaves, --prune, --distil and --early-exit")
    if output is None and not early_exit:
        raise UsageError("--output: name the folder of the new bundle")
    X, truth = _held_out(folder, file, mapping, begin, until, quiet=as_json)
    created_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if early_exit or output is None:
        show(levers.early_exit(folder, X, truth), as_json=as_json, title="Early exit")
        return
    if quantise_leaves:
        done = levers.quantise(folder, output, X, truth, bits=bits, created_at=created_at)
    elif prune:
        done = levers.prune(folder, output, X, truth, loss=loss, created_at=created_at, accept=accept_loss)
    else:
        done = levers.student(folder, output, X, truth, trees=trees, depth=depth, seed=seed, created_at=created_at)
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
    created_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
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


def _days(begin_ms: int, end_ms: int) -> str:
    return " to ".join(time.strftime("%Y-%m-%d", time.gmtime(at / 1000)) for at in (begin_ms, end_ms))


def _private_key(path: Path) -> Ed25519PrivateKey:
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
    folder: Path, file: Path, mapping: Path | None, begin: str | None, until: str | None, *, quiet: bool
) -> tuple[np.ndarray, np.ndarray]:
    from scorer.pipeline.card_keys import cards_of  # noqa: PLC0415 - as below
    from scorer.replay import file_batches, training_table  # noqa: PLC0415 - the whole pipeline

    declared, keys = Bundle.load(folder).feature_set, load_settings().pseudonym_keys
    with counting("payments", quiet=quiet) as progress:
        batches = file_batches(file, read_mapping(mapping), cards=cards_of(declared, keys))
        table = training_table(declared, batches, source=file, keys=keys, progress=progress)
    keep = table.label >= 0
    for bound, option, after in ((begin, "--from", True), (until, "--until", False)):
        at = parse_time_ms(bound, option)
        if at is not None:
            keep &= (table.event_time_ms >= at) if after else (table.event_time_ms < at)
    return np.ascontiguousarray(table.features[keep]), np.asarray(table.label[keep] == 1)
