"""Model quality: which bundle decides, how far live payments are from its training, whether challengers agree."""

from __future__ import annotations

from scorer.operate.dashboards.board import OF_BUNDLE, SHARD, Board, Panel, Query, Row, Unit, or_zero, quantile, rate

_CHALLENGED = "fraud_scorer_challenger_payments_total"

MODEL = Board(
    name="model",
    title="fraud-scorer: model quality",
    meaning="Which bundle decides, drift of scores and features against its golden rows, agreement of its challengers, "
    "precision and recall on labels that are known. For more: `fraud-scorer backtest`, and view outcomes in Postgres.",
    rows=(
        Row(
            "Bundle",
            (
                Panel(
                    "Bundles that decide",
                    "Shards by bundle. More than one for longer than a change takes: an activation was not taken up.",
                    (
                        Query(
                            f'sum by (bundle) (fraud_scorer_bundle_info{{{SHARD},bundle=~"$bundle"}})',
                            "{{bundle}}",
                        ),
                    ),
                    alerts=("BundlesDiffer",),
                ),
                Panel(
                    "Activations refused",
                    "In the time shown, by reason.",
                    (
                        Query(
                            f"sum by (reason) (increase(fraud_scorer_bundles_refused_total{{{SHARD}}}[$__range]))",
                            "{{reason}}",
                        ),
                    ),
                    zero="0: none was refused.",
                    bad_from=1,
                    alerts=("ActivationRefused",),
                ),
            ),
        ),
        Row(
            "Drift",
            (
                Panel(
                    "Drift of scores",
                    "Population stability index of live margins against those of the bundle's golden rows: 0.04 is "
                    "none, 0.1 worth a look, 0.25 drift.",
                    (
                        Query(
                            or_zero(f"max by (shard) (fraud_scorer_score_psi{{{SHARD}}} {OF_BUNDLE})"),
                            "shard {{shard}}",
                        ),
                    ),
                    zero="0: fewer than 500 payments were sampled, or the bundle has fewer than 100 golden rows.",
                    bad_from=0.25,
                    alerts=("ScoreDrift",),
                ),
                Panel(
                    "Drift of features",
                    "The ten features with the largest index.",
                    (
                        Query(
                            or_zero(
                                f"topk(10, max by (feature) (fraud_scorer_feature_psi{{{SHARD}}} {OF_BUNDLE}))",
                            ),
                            "{{feature}}",
                        ),
                    ),
                    zero="0: fewer than 500 payments were sampled, or the bundle has fewer than 100 golden rows.",
                    bad_from=0.25,
                    alerts=("FeatureDrift",),
                ),
                Panel(
                    "Missing values",
                    "The ten features that lack a value most often.",
                    (
                        Query(
                            or_zero(
                                "topk(10, max by (feature) "
                                f"(fraud_scorer_feature_missing_ratio{{{SHARD}}} {OF_BUNDLE}))"
                            ),
                            "{{feature}}",
                        ),
                    ),
                    unit=Unit.SHARE,
                    zero="0: every feature has its value.",
                ),
                Panel(
                    "Scores",
                    "Calibrated scores of decided payments.",
                    tuple(
                        Query(quantile(share, "fraud_scorer_scores", more=OF_BUNDLE), name)
                        for share, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
                    ),
                ),
            ),
        ),
        Row(
            "Challengers",
            (
                Panel(
                    "Agreement of challengers",
                    "Share of payments that model and challenger put on the same side of the threshold.",
                    (
                        Query(
                            or_zero(
                                rate(
                                    _CHALLENGED,
                                    by="challenger",
                                    where=f'{SHARD},flagged_by=~"both|neither"',
                                    more=OF_BUNDLE,
                                )
                                + " / "
                                + rate(_CHALLENGED, by="challenger", more=OF_BUNDLE)
                            ),
                            "{{challenger}}",
                        ),
                    ),
                    unit=Unit.SHARE,
                    zero="0 without a name: the bundle has no challenger.",
                ),
                Panel(
                    "Flagged by one of them",
                    "Payments a second whose score reaches the threshold with both, the model or the challenger alone.",
                    (
                        Query(
                            or_zero(
                                rate(
                                    _CHALLENGED,
                                    by="challenger, flagged_by",
                                    where=f'{SHARD},flagged_by!="neither"',
                                    more=OF_BUNDLE,
                                )
                            ),
                            "{{challenger}}: {{flagged_by}}",
                        ),
                    ),
                    unit=Unit.PER_SECOND,
                    zero="0: none was flagged, or the bundle has no challenger.",
                ),
            ),
        ),
        Row(
            "Labels",
            (
                Panel(
                    "Precision and recall",
                    "Of payments of the last FRAUD_SCORER_AUDIT__QUALITY_DAYS days whose label is known. Precision: of "
                    "those flagged, the share that is fraud. Recall: of the frauds, the share that was flagged.",
                    tuple(
                        Query(
                            or_zero(f'max by (bundle) (fraud_scorer_{name}_ratio{{bundle=~"$bundle"}})'),
                            f"{name}, {{{{bundle}}}}",
                        )
                        for name in ("precision", "recall")
                    ),
                    unit=Unit.SHARE,
                    zero="0 without a name: no flagged payment, or no fraud, has a label yet.",
                    alerts=("PrecisionFalls",),
                ),
                Panel(
                    "Payments with a known label",
                    "What precision and recall are of: with few of them they mean little.",
                    (
                        Query(
                            or_zero(
                                'max by (bundle, decision, fraud) (fraud_scorer_labelled_payments{bundle=~"$bundle"})'
                            ),
                            "{{decision}}, fraud {{fraud}}, {{bundle}}",
                        ),
                    ),
                    zero="0: no label of these days is known yet.",
                    alerts=("LabelCountTooOld",),
                ),
                Panel(
                    "Labels that reached their payment",
                    "A second: what features of known frauds, and the next training, learn from.",
                    (Query(rate("fraud_scorer_labels_applied_total"), "labels"),),
                    unit=Unit.PER_SECOND,
                    zero="0: no label came.",
                ),
            ),
        ),
    ),
)
