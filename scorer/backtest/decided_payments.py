"""Decisions as a replay stored them, columnar, with each payment's label."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.currencies import CURRENCY_EXPONENT
from scorer.errors import FraudScorerError
from scorer.replay.replay_output import is_complete, part_files

DAY_MS = 86_400_000
SEGMENT_FIELDS = ("channel", "country", "mcc")
BY_SCORE = "flagged_by_score"
# Bounds of the amount bands, major units of the base currency, where a usual payment is near AMOUNT_USUAL; elsewhere
# times the power of ten that is nearest: 3,000 yen are no "1000 and more".
AMOUNT_BANDS = (10.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
AMOUNT_USUAL = 50.0
LABELLED_RATIO_MAX = 1.25
"""So many times as many of the flagged payments as of the approved ones may have a label, or the other way round. Where
genuine payments are those without one, frauds look so many times as frequent as they are."""
FLAGGED_MIN = 30
"""Flagged payments, at least, from which shares of few days alone are compared."""


class BacktestError(FraudScorerError):
    """Nothing can be measured, or two runs do not fit together; the message states the reason."""


Corrections = dict[str, list[tuple[int, int]]]
"""known_at (epoch ms) and label (1 fraud, 0 genuine)."""


@dataclass(frozen=True, eq=False)
class Decided:
    """n decided payments in journal order, without repeated ones. Written by `fraud-scorer replay`."""

    table: pa.Table
    feature_names: list[str]
    currency: str
    """The base currency, in which money is counted."""
    factors: dict[str, float]
    """Minor units of the base currency for one of each other currency."""
    corrections: Corrections = field(default_factory=dict)
    """Labels by payment id, with the time each became known, of payments that had several: in order of that time."""
    genuine_after_ms: int | None = None
    """Payments of unknown label count as genuine so long after their event time; None: they don't."""

    @classmethod
    def read(cls, path: Path, feature_names: list[str], currency: str, factors: dict[str, float]) -> Decided:
        """The rows of a replay's output: a Parquet file or a folder of parts. Raises BacktestError, also for a folder
        whose replay has not ended."""
        files = part_files(path) if path.is_dir() else [path]
        if not files:
            raise BacktestError(f"{path} holds no day=*/part-*.parquet: replay into it first")
        if path.is_dir() and not is_complete(path):
            raise BacktestError(
                f"{path} does not hold a whole replay (`complete` in its _replay.json is not true): it still runs or "
                "was interrupted; run the replay into this folder again, it is resumed"
            )
        try:
            table = pa.concat_tables([pq.ParquetFile(file, memory_map=True).read() for file in files])
        except (pa.ArrowException, OSError) as exc:
            raise BacktestError(f"{path} is not readable as Parquet: {str(exc).splitlines()[0]}") from exc
        missing = [name for name in ("payment_id", "margin", "decision", "label") if name not in table.column_names]
        if missing:
            raise BacktestError(f"{path} has no column {missing[0]!r}: it is not the output of `fraud-scorer replay`")
        table = table.filter(pc.field("mode") != "refused")  # no payments
        fresh = table.filter(pc.field("mode") != "duplicate")
        corrections: Corrections = {}
        if len(fresh) < len(table) and "label_known_at" in table.column_names:
            corrections = _corrections(table)
            fresh = _labelled(fresh, corrections, None)
        return cls(fresh, feature_names, currency, factors, corrections)

    def genuine_after(self, delay_ms: int) -> Decided:
        """The payments with those of unknown label as genuine, known so long after their event time."""
        unknown = self.label < 0
        known_at = np.where(unknown, self.time_ms + delay_ms, self.numbers("label_known_at"))
        table = self.table
        for name, values in (("label", np.maximum(self.label, 0)), ("label_known_at", known_at)):
            column = pa.array(values).cast(table.schema.field(name).type)
            table = table.set_column(table.column_names.index(name), name, column)
        return replace(self, table=table, genuine_after_ms=delay_ms)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def take(self, keep: npt.NDArray[np.bool_]) -> Decided:
        """The rows where bool [n] holds."""
        return replace(self, table=self.table.filter(pa.array(keep)))

    def numbers(self, name: str) -> npt.NDArray[np.generic]:
        """A column of numbers, [n], NaN or -1 (label, times) where null."""
        column = self.table[name]
        if pa.types.is_timestamp(column.type):
            return np.asarray(pc.fill_null(pc.cast(column, pa.int64()), -1).to_numpy())
        if name == "label":
            return np.asarray(pc.fill_null(column, -1).to_numpy())
        return np.asarray(column.to_numpy())

    def texts(self, name: str) -> list[str | None]:
        """A column of texts."""
        return list(self.table[name].to_pylist())

    def codes(self, name: str) -> tuple[npt.NDArray[np.int64], list[str]]:
        """A column of texts as numbers int64 [n] into its sorted values; "(none)" where null."""
        filled = pc.fill_null(self.table[name], "(none)").combine_chunks()
        encoded = filled.dictionary_encode()
        values = [str(v) for v in encoded.dictionary.to_pylist()]
        order = sorted(range(len(values)), key=values.__getitem__)
        rank = np.empty(len(values), dtype=np.int64)
        rank[order] = np.arange(len(values))
        return rank[encoded.indices.to_numpy()] if values else np.empty(0, np.int64), sorted(values)

    @cached_property
    def time_ms(self) -> npt.NDArray[np.int64]:
        return np.asarray(self.numbers("event_time"), dtype=np.int64)

    @cached_property
    def day(self) -> npt.NDArray[np.int64]:
        """Days since 1970, UTC."""
        return self.time_ms // DAY_MS

    @cached_property
    def label(self) -> npt.NDArray[np.int8]:
        return np.asarray(self.numbers("label"), dtype=np.int8)

    @cached_property
    def fraud(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.label == 1)

    @cached_property
    def margin(self) -> npt.NDArray[np.float32]:
        return np.asarray(self.numbers("margin"), dtype=np.float32)

    @cached_property
    def score(self) -> npt.NDArray[np.float64]:
        return np.asarray(self.numbers("score"), dtype=np.float64)

    @cached_property
    def flagged(self) -> npt.NDArray[np.bool_]:
        return np.asarray(pc.equal(self.table["decision"], "flag").to_numpy())

    @cached_property
    def degraded(self) -> npt.NDArray[np.bool_]:
        """bool [n]: decided without the model; margin and score are the student's, or those before the first tree."""
        return np.asarray(pc.equal(self.table["mode"], "degraded").to_numpy())

    def fired(self, name: str) -> npt.NDArray[np.bool_]:
        """bool [n]: the list or rule of that name fired."""
        return self._fired(lambda names: pc.equal(names, name))

    def with_values(self, field: str, values: Collection[str]) -> npt.NDArray[np.bool_]:
        """bool [n]: the text field has one of the values."""
        if not values:
            return np.zeros(len(self), dtype=np.bool_)
        return np.asarray(pc.is_in(self.table[field], value_set=pa.array(sorted(values), pa.string())).to_numpy())

    def by_list_or_rule(self, segments: Collection[str]) -> npt.NDArray[np.bool_]:
        """bool [n]: a list or a rule fired, so that any model's decision is the same. `segments`: names of the policy's
        segments, which stand in `fired` as well where their threshold made a difference: there the score decided."""
        return self._fired(lambda names: pc.invert(pc.is_in(names, value_set=pa.array(list(segments), pa.string()))))

    def _fired(self, wanted: Callable[[pa.Array], pa.Array]) -> npt.NDArray[np.bool_]:
        """bool [n]: one of the names that fired is wanted; `wanted`: bool [k] of k names."""
        fired = self.table["fired"].combine_chunks()
        found = np.zeros(len(self), dtype=np.bool_)
        found[pc.list_parent_indices(fired).filter(wanted(pc.list_flatten(fired))).to_numpy()] = True
        return found

    def beside(self, flagged_by_score: npt.NDArray[np.bool_]) -> Decided:
        """The payments with what the score alone would flag, bool [n], beside a policy by cost."""
        table = self.table
        if BY_SCORE in table.column_names:
            table = table.drop_columns([BY_SCORE])
        return replace(self, table=table.append_column(BY_SCORE, pa.array(flagged_by_score)))

    @cached_property
    def flagged_by_score(self) -> npt.NDArray[np.bool_] | None:
        """What `beside` was given; None without."""
        return np.asarray(self.table[BY_SCORE].to_numpy()) if BY_SCORE in self.table.column_names else None

    @cached_property
    def customer(self) -> npt.NDArray[np.int64]:
        """int64 [n], equal for payments of one customer, or of one card where no customer is named. A payment that
        names neither has a number of its own: guests are not one person."""
        who, named = np.zeros(len(self), dtype=np.int64), np.zeros(len(self), dtype=np.bool_)
        for name in ("customer_id", "card_token"):
            rows = ~named & pc.is_valid(self.table[name]).to_numpy()
            codes = self.codes(name)[0]
            who[rows] = codes[rows] + who.max(initial=-1) + 1
            named |= rows
        who[~named] = who.max(initial=-1) + 1 + np.arange(np.count_nonzero(~named))
        return who

    @cached_property
    def money(self) -> npt.NDArray[np.float64]:
        """Amounts in major units of the base currency; NaN without an exchange rate."""
        codes, values = self.codes("currency")
        factor = np.array([self.factors.get(value, np.nan) for value in values])
        minor = np.asarray(self.numbers("amount_minor"), dtype=np.float64) * factor[codes]
        return np.asarray(minor / 10 ** CURRENCY_EXPONENT[self.currency])

    def segments(self) -> dict[str, tuple[npt.NDArray[np.int64], list[str]]]:
        """Codes and names by kind of segment: channel, country, mcc where the payments have them, and amount bands."""
        found = {name: self.codes(name) for name in SEGMENT_FIELDS if self.table[name].null_count < len(self)}
        usual = self.money[self.money > 0]
        scale = 10.0 ** np.rint(np.log10(np.median(usual) / AMOUNT_USUAL)) if len(usual) else 1.0
        bounds = np.array(AMOUNT_BANDS) * scale
        texts = [f"{bound:.12g}" for bound in bounds]
        names = [f"below {texts[0]}", *(f"{a} to {b}" for a, b in pairwise(texts)), f"{texts[-1]} and more"]
        found["amount"] = (np.searchsorted(bounds, self.money, side="right"), names)
        return found

    @property
    def columns_of_features(self) -> dict[str, str]:
        """Feature by name: its column in the table."""
        there = set(self.table.column_names)
        return {name: f"feature.{name}" if f"feature.{name}" in there else name for name in self.feature_names}

    def features(self) -> npt.NDArray[np.float32]:
        """float32 [n, k] in column order."""
        X = np.empty((len(self), len(self.feature_names)), dtype=np.float32)
        for i, column in enumerate(self.columns_of_features.values()):
            X[:, i] = self.table[column].to_numpy()
        return X

    def known_by(self, at_ms: int) -> Decided:
        """All payments, with their labels as known at `at_ms`, epoch ms; of the others the label is unknown."""
        if self.corrections:
            labelled = replace(self, table=_labelled(self.table, self.corrections, at_ms), corrections={})
            return labelled.known_by(at_ms)
        unknown = (self.label < 0) | (np.asarray(self.numbers("label_known_at"), dtype=np.int64) > at_ms)
        table = self.table
        for name in ("label", "label_known_at"):
            values = pa.array(np.asarray(self.numbers(name), dtype=np.int64), mask=unknown)
            kind = table.schema.field(name).type
            table = table.set_column(table.column_names.index(name), name, values.cast(kind))
        return replace(self, table=table)

    def labelled_by_decision(self) -> tuple[float, float] | None:
        """The shares of the flagged and of the approved payments that have a label, where they are so different that
        who has one depends on what was flagged (LABELLED_RATIO_MAX); else None."""
        if not self.flagged.any() or self.flagged.all():
            return None
        flagged, approved = (float((self.label[side] >= 0).mean()) for side in (self.flagged, ~self.flagged))
        return (flagged, approved) if max(flagged, approved) > LABELLED_RATIO_MAX * min(flagged, approved) else None

    def matured(self, as_of_ms: int | None) -> Decided:
        """The payments whose label was known by `as_of_ms` (default: the last event time). Where the others count as
        genuine after a time, those that had so long: of later ones frauds alone would have a label. Raises
        BacktestError."""
        if not len(self):
            raise BacktestError("no payment lies in the window: check --from and --until")
        at = int(self.time_ms.max()) if as_of_ms is None else as_of_ms
        if self.corrections:
            labelled = replace(self, table=_labelled(self.table, self.corrections, at), corrections={})
            return labelled.matured(at)
        known_at = np.asarray(self.numbers("label_known_at"), dtype=np.int64)
        keep = (self.label >= 0) & (known_at <= at)
        if self.genuine_after_ms is not None:
            keep &= self.time_ms <= at - self.genuine_after_ms
        if not keep.any():
            raise BacktestError(
                f"none of the {len(self)} payments has a label that was known by the end: give a longer file, name the "
                "label in the mapping, set --as-of to a later day, or, for what was decided live, replay the audit "
                "rows (--input audit), which have labels; a topic has none"
            )
        return self.take(keep)


def of_both(first: Decided, second: Decided) -> tuple[Decided, Decided, int]:
    """Two runs over one file without the payments that one of them refused, and how many these are."""
    ids = [run.table["payment_id"] for run in (first, second)]
    if ids[0].equals(ids[1]):
        return first, second, 0
    one, two = (pc.is_in(ids[i], value_set=pc.unique(ids[1 - i])).to_numpy() for i in (0, 1))
    return first.take(one), second.take(two), int((~one).sum() + (~two).sum())


def _corrections(table: pa.Table) -> Corrections:
    """The labels of payments that came more than once. The windows count the one that became known last."""
    repeated = table.filter(pc.field("mode") == "duplicate")["payment_id"]
    ids, labels = table["payment_id"], table["label"]
    rows = table.filter(pc.and_(pc.is_in(ids, value_set=pc.unique(repeated)), pc.is_valid(labels)))
    found: Corrections = {}
    known_at = pc.cast(rows["label_known_at"], pa.int64()).to_pylist()
    for payment_id, at, label in zip(rows["payment_id"].to_pylist(), known_at, rows["label"].to_pylist(), strict=True):
        found.setdefault(payment_id, []).append((at, label))
    for history in found.values():
        history.sort(key=lambda item: item[0])  # stable: of equal times the later row
    return found


def _labelled(table: pa.Table, corrections: Corrections, as_of_ms: int | None) -> pa.Table:
    """The table with those payments' labels as known at `as_of_ms`; None: at the end."""
    if not corrections:
        return table
    places = np.flatnonzero(pc.is_in(table["payment_id"], value_set=pa.array(list(corrections))).to_numpy())
    label, known_at = table["label"].to_pylist(), pc.cast(table["label_known_at"], pa.int64()).to_pylist()
    ids = table["payment_id"].take(pa.array(places)).to_pylist()
    for place, payment_id in zip(places.tolist(), ids, strict=True):
        known = [item for item in corrections[payment_id] if as_of_ms is None or item[0] <= as_of_ms]
        known_at[place], label[place] = known[-1] if known else (None, None)
    for name, values in (("label", label), ("label_known_at", known_at)):
        kind = table.schema.field(name).type
        table = table.set_column(table.column_names.index(name), name, pa.array(values, kind))
    return table
