"""`bundle show|verify|sign|activate|compile|challenge|export`: everything about bundles once they are made."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from scorer.cli.command_support import (
    Json,
    check_new_bundle,
    counting,
    date_of,
    out,
    show,
)
from scorer.cli.command_support import settings as load_settings
from scorer.cli.compile_command import compile_bundle
from scorer.cli.import_command import import_bundle
from scorer.errors import UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from scorer.bundle import Bundle
    from scorer.bundle.gate import Verdict

app = typer.Typer(
    help="Show, verify, sign, activate, import, compile, challenge and export bundles.", no_args_is_help=True
)
app.command("compile")(compile_bundle)
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
