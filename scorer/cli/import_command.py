"""`bundle import`: a model trained elsewhere becomes a bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from scorer.cli.command_support import Json, check_new_bundle, counting, read_text, show
from scorer.cli.risk_options import PolicyOption, SetOption, read_feature_set, read_policy


def import_bundle(
    model: Annotated[
        Path,
        typer.Option(
            exists=True, dir_okay=False, help="xgboost (.ubj, .json), LightGBM (.txt) or a treelite checkpoint (.tl)."
        ),
    ],
    feature_set: SetOption,
    policy: PolicyOption,
    output: Annotated[Path, typer.Option(help="Folder of the bundle to write.")],
    golden: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Real rows of features (Parquet, CSV), such as `fraud-scorer features` writes; columns margin and "
            "score are compared where they are there.",
        ),
    ] = None,
    missing: Annotated[
        str | None,
        typer.Option(help="What stood for a missing value in training: nan, declared:-999 or fill:-999."),
    ] = None,
    columns: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Names of the model's columns, one a line, in place of those in its file."
        ),
    ] = None,
    same_order: Annotated[
        bool, typer.Option("--same-order", help="The file has no names: its columns are the feature set's, in order.")
    ] = False,
    all_rounds: Annotated[
        bool, typer.Option("--all-rounds", help="Keep the rounds after best_iteration, which are left out otherwise.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name of the bundle; the feature set's by default.")] = None,
    as_json: Json = False,
) -> None:
    """Make a bundle of a model trained elsewhere. Columns are matched by name; margins are compared with the library's
    own, bit for bit.

    Example: fraud-scorer bundle import --model model.ubj --feature-set cards.yaml --policy policy.yaml --golden
    features.parquet --missing nan --output bundles/cards
    """
    from scorer.bundle.gate import verify  # noqa: PLC0415
    from scorer.model_import import ImportOptions, MissingValue, import_model  # noqa: PLC0415 - rarely needed

    check_new_bundle(output)
    declared = read_feature_set(feature_set)
    text, policy_text = read_text(feature_set, "feature set"), read_text(policy, "policy")
    read_policy(policy, declared.names)
    options = ImportOptions(
        name=name or declared.name,
        created_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        missing=None if missing is None else MissingValue.parse(missing),
        columns=None
        if columns is None
        else [line for line in map(str.strip, read_text(columns, "--columns").splitlines()) if line],
        same_order=same_order,
        all_rounds=all_rounds,
        golden=golden,
    )
    with counting("comparing with the model's own library", quiet=as_json):
        made = import_model(model, text, policy_text, output, options)
        verify(output).require(output)
    result: dict[str, Any] = {
        "bundle": made.bundle.id,
        "output": str(output),
        "kind": made.kind,
        "trees": made.trees,
        "rounds_kept": made.rounds_kept,
        "rounds_in_file": made.rounds_in_file,
        "columns_reordered": made.reordered,
        "missing": made.missing,
        "rows_compared": made.rows_compared,
        "compared_with": made.compared_with,
        **{f"{column}_distance_max": distance for column, distance in made.distance.items()},
        "threshold_score": made.bundle.manifest.threshold_score,
    }
    show(result, as_json=as_json, title="Imported")
