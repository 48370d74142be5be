"""Payments and risk, for the business: what was decided, flagged, refused, and for which reasons."""

from __future__ import annotations

from scorer.operate.dashboards.board import OF_BUNDLE, SHARD, Board, Panel, Query, Row, Unit, or_zero, quantile, rate


def _decided(where: str = "") -> str:
    return rate("fraud_scorer_decisions_total", where=f"{SHARD}{where}", more=OF_BUNDLE)


def _in_range(metric: str, by: str = "", where: str = "") -> str:
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (increase({metric}{{{SHARD}{where}}}[$__range]))"


def _mode(mode: str) -> str:
    return or_zero(f"""{_decided(f',mode="{mode}"')} / {_decided()}""")


PAYMENTS = Board(
    name="payments",
    title="fraud-scorer: payments and risk",
    meaning="For the business: payments decided and flagged, reasons, what was refused or late, labels.",
    rows=(
        Row(
            "Now",
            (
                Panel(
                    "Payments a second",
                    "Decided and committed.",
                    (Query(_decided(), "payments/s"),),
                    unit=Unit.PER_SECOND,
                    number=True,
                    alerts=("NoPayments",),
                ),
                Panel(
                    "Payments in the time shown",
                    "Decided and committed, by whichever bundle.",
                    (Query(_in_range("fraud_scorer_decisions_total"), "payments"),),
                    number=True,
                ),
                Panel(
                    "Flagged in the time shown",
                    "Share of payments, decided by whichever bundle.",
                    (
                        Query(
                            or_zero(
                                f"""{_in_range("fraud_scorer_decisions_total", where=',decision="flag"')} / """
                                f"{_in_range('fraud_scorer_decisions_total')}"
                            ),
                            "flagged",
                        ),
                    ),
                    unit=Unit.SHARE,
                    zero="0: no payment was flagged.",
                    number=True,
                ),
                Panel(
                    "Wait for an answer",
                    "Seconds from the broker's timestamp to the decision, p99, of all bundles: on topic "
                    "decisions-fast and committed.",
                    (
                        Query(quantile(0.99, "fraud_scorer_fast_decision_latency_seconds"), "decisions-fast"),
                        Query(quantile(0.99, "fraud_scorer_decision_latency_seconds"), "decisions"),
                    ),
                    unit=Unit.SECONDS,
                    number=True,
                ),
            ),
        ),
        Row(
            "Decisions",
            (
                Panel(
                    "Decisions",
                    "Payments a second by decision and mode.",
                    (
                        Query(
                            rate("fraud_scorer_decisions_total", by="decision, mode", more=OF_BUNDLE),
                            "{{decision}}, {{mode}}",
                        ),
                    ),
                    unit=Unit.PER_SECOND,
                ),
                Panel(
                    "Share of payments flagged",
                    "Of the last minutes; and of the day before each moment, decided by whichever bundle.",
                    (
                        Query(
                            or_zero(f"""{_decided(',decision="flag"')} / {_decided()}"""),
                            "now",
                        ),
                        Query(
                            f"""sum(increase(fraud_scorer_decisions_total{{{SHARD},decision="flag"}}[1d])) / """
                            f"sum(increase(fraud_scorer_decisions_total{{{SHARD}}}[1d]))",
                            "day",
                        ),
                    ),
                    unit=Unit.SHARE,
                    zero="0: no payment was flagged.",
                    alerts=("FlaggedRateJump",),
                ),
                Panel(
                    "Reasons of flagged payments",
                    "The ten most frequent reason codes, a second; a payment can have several.",
                    (
                        Query(
                            or_zero(f"topk(10, {rate('fraud_scorer_reasons_total', by='reason', more=OF_BUNDLE)})"),
                            "{{reason}}",
                        ),
                    ),
                    unit=Unit.PER_SECOND,
                    zero="0: no payment was flagged.",
                ),
                Panel(
                    "Share of payments with a high score",
                    "Those with a score above 0.1, 0.5 and 0.9.",
                    tuple(
                        Query(
                            "1 - "
                            + rate("fraud_scorer_scores_bucket", where=f'{SHARD},le="{bound}"', more=OF_BUNDLE)
                            + " / "
                            + rate("fraud_scorer_scores_count", more=OF_BUNDLE),
                            f"above {bound}",
                        )
                        for bound in ("0.1", "0.5", "0.9")
                    ),
                    unit=Unit.SHARE,
                    zero="0: no score is so high.",
                ),
            ),
        ),
        Row(
            "Not decided as usual",
            (
                Panel(
                    "Late",
                    "Share of payments later than the feature set allows: scored, and without trace in windows.",
                    (Query(_mode("late"), "late"),),
                    unit=Unit.SHARE,
                    zero="0: none was late.",
                    bad_from=0.05,
                    alerts=("LatePaymentsMany",),
                ),
                Panel(
                    "Without the model",
                    "Share of payments decided by lists, rules and the student, because their deadline was near.",
                    (Query(_mode("degraded"), "degraded"),),
                    unit=Unit.SHARE,
                    zero="0: the model decided every payment.",
                    bad_from=0.01,
                    alerts=("DecisionsDegraded",),
                ),
                Panel(
                    "Refused records",
                    "Records a second that went to topic dead-letters, by reason.",
                    (Query(or_zero(rate("fraud_scorer_dead_letters_total", by="reason")), "{{reason}}"),),
                    unit=Unit.PER_SECOND,
                    zero="0: none was refused.",
                    alerts=("DeadLettersMany",),
                ),
                Panel(
                    "Refused records without an answer",
                    "In the time shown: they name no payment, so their sender gets no answer.",
                    (Query(_in_range("fraud_scorer_unanswered_total"), "unanswered"),),
                    zero="0: each refused record was answered.",
                    bad_from=1,
                    alerts=("RecordsUnanswered",),
                ),
                Panel(
                    "Repeated payments",
                    "Payments a second that came again, answered as before; and those among them with other bytes.",
                    (
                        Query(rate("fraud_scorer_duplicates_total"), "repeated"),
                        Query(rate("fraud_scorer_duplicate_conflicts_total"), "with other bytes"),
                    ),
                    unit=Unit.PER_SECOND,
                    zero="0: none was repeated.",
                ),
                Panel(
                    "Event time behind the clock",
                    "The clock less the newest payment's event time: payments that are sent with a delay, or history.",
                    (
                        Query(
                            f"time() - max by (shard) (fraud_scorer_stream_time_seconds{{{SHARD}}})", "shard {{shard}}"
                        ),
                    ),
                    unit=Unit.SECONDS,
                ),
            ),
        ),
        Row(
            "Labels and lists",
            (
                Panel(
                    "Labels",
                    "A second: those that reached their payment, were refused, or given up since it never came.",
                    (
                        Query(rate("fraud_scorer_labels_applied_total"), "applied"),
                        Query(rate("fraud_scorer_labels_refused_total"), "refused"),
                        Query(rate("fraud_scorer_labels_expired_total"), "given up"),
                    ),
                    unit=Unit.PER_SECOND,
                    zero="0: no label came.",
                ),
                Panel(
                    "Labels that wait",
                    "Stream time has not reached them, or their payment has not come.",
                    (Query(f"sum by (shard) (fraud_scorer_labels_waiting{{{SHARD}}})", "shard {{shard}}"),),
                    zero="0: none waits.",
                ),
            ),
        ),
    ),
)
