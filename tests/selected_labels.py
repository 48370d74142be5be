"""A small world in which labels are chosen: two kinds of fraud, of which the champion sees one and the challenger both.

Only what the champion flags is investigated, where asked for so; then no fraud of the second kind has a label.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from scorer.backtest import Decided
from scorer.backtest.shadow_trial import Shadow
from scorer.replay.replay_output import decision_schema

DAY_MS = 86_400_000
DAYS, CUSTOMERS, FLAGGED = 60, 2_000, 0.015
LABEL_DELAY_DAYS = 5.0


@dataclass(frozen=True)
class World:
    """n payments: what is true of them, and what both models flag, bool [n]; labels with all frauds reported."""

    fraud: np.ndarray
    first_kind: np.ndarray
    champion: np.ndarray
    challenger: np.ndarray
    amount: np.ndarray
    decided: Decided
    shadow: Shadow

    @classmethod
    def of(cls, seed: int, payments: int = 20_000, *, second_kind: float = 0.008) -> World:
        """`second_kind`: share of frauds that the challenger alone sees. Without any it sees noise in their place."""
        rng = np.random.default_rng(seed)
        at = np.sort(rng.integers(0, DAYS * DAY_MS, payments))
        customer = rng.integers(0, CUSTOMERS, payments)
        first, second = rng.random(payments) < 0.008, rng.random(payments) < second_kind
        fraud = first | second
        one, two = (rng.normal(size=payments) + 3.0 * kind for kind in (first, second))
        amount = np.round(rng.lognormal(3, 0.8, payments), 2)
        score = {"champion": one, "challenger": np.maximum(one, two)}
        flags = {name: values >= np.quantile(values, 1 - FLAGGED) for name, values in score.items()}
        columns = {
            "payment_id": [f"p{i}" for i in range(payments)],
            "event_time": at,
            "currency": ["EUR"] * payments,
            "amount_minor": np.round(amount * 100).astype(np.int64),
            "customer_id": [f"c{i}" for i in customer],
            "channel": np.where(customer % 3 == 0, "pos", "ecom").tolist(),
            "mode": ["normal"] * payments,
            "label": fraud.astype(np.int8),
            "label_known_at": at + (rng.exponential(LABEL_DELAY_DAYS / 3, payments) * DAY_MS).astype(np.int64),
        }
        schema = decision_schema([])

        def table(name: str) -> Decided:
            own = columns | {
                "margin": score[name],
                "score": 1 / (1 + np.exp(-score[name])),
                "decision": np.where(flags[name], "flag", "approve").tolist(),
            }
            arrays = [
                pa.array(own[field.name]).cast(field.type) if field.name in own else pa.nulls(payments, field.type)
                for field in schema
            ]
            return Decided(pa.Table.from_arrays(arrays, schema=schema), [], "EUR", {"EUR": 1.0})

        shadow = Shadow("challenger", table("challenger"), 0.5)
        return cls(fraud, first, flags["champion"], flags["challenger"], amount, table("champion"), shadow)

    def labelled(self, who: np.ndarray) -> Decided:
        """The champion's decisions where the payments `who`, bool [n], have a label and no other."""
        table = self.decided.table
        for name in ("label", "label_known_at"):
            column = table[name].combine_chunks()
            kept = pa.array(column.cast(pa.int64()).to_numpy(), mask=~who).cast(column.type)
            table = table.set_column(table.column_names.index(name), name, kept)
        return replace(self.decided, table=table)

    def difference(self, counted: np.ndarray) -> float:
        """Frauds caught by the challenger less those by the champion, among the payments `counted`: the truth."""
        rows = self.fraud & counted
        return float((self.challenger & rows).sum() - (self.champion & rows).sum())
