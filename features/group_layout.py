"""Groups of aggregates, and where their accumulators lie in the entity slots (words: features/kernel_tables.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from features import kernel_tables as kt
from features.feature_set import BY_VALUE, CIRCLE_FIELDS, CIRCULAR, DECAYED, LATEST_MAX, VISITS, Feature
from features.kernel_tables import OpKind

# Ops that need no parameter beside entity and filter, by aggregate.
_LATEST = {
    "since_last": OpKind.LAST_PAYMENT, "last": OpKind.LAST_PAYMENT, "since_first": OpKind.FIRST_PAYMENT,
    "speed_kmh": OpKind.POSITION, "since_fraud": OpKind.KNOWN_FRAUDS, "since_first_fraud": OpKind.KNOWN_FRAUDS,
    "last_label": OpKind.LABEL,
}  # fmt: skip
# Words of a group that is not NUMERIC (what they hold: OpKind).
_WIDTH = {
    OpKind.EXTREME: 1, OpKind.RECENT: 1, OpKind.LAST_PAYMENT: 2, OpKind.FIRST_PAYMENT: 1, OpKind.POSITION: 3,
    OpKind.DECAY: 3, OpKind.KNOWN_FRAUDS: 1, OpKind.LABEL: 3, OpKind.NEIGHBOURS: 1, OpKind.PLACES: 1,
}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """What tells groups apart; a part that its kind does not use is zero. `where`: filter bit, or -1."""

    kind: OpKind
    entity: str
    where: int
    delay_ms: int = 0
    window_ms: int = 0
    largest: bool = False
    half_life_ms: int = 0
    neighbour: str = ""

    @property
    def leaves_ms(self) -> int:
        """Distance behind stream time at which a row leaves a NUMERIC group."""
        return self.delay_ms + self.window_ms


@dataclass(frozen=True)
class Accumulators:
    """Where the accumulators of a group lie in the slot; 0 for what it does not keep."""

    first: int
    width: int
    sum: int = 0
    squares: int = 0
    fraud: int = 0
    distincts: Mapping[str, int] = field(default_factory=dict)
    circles: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Needs:
    """What a NUMERIC group must keep in addition to its count, a DECAY one to its sums, how many pairs a RECENT one,
    and how long rows matter to a group of any kind."""

    sum: bool = False
    squares: bool = False
    fraud: bool = False
    distincts: set[str] = field(default_factory=set)
    circles: set[str] = field(default_factory=set)
    expires_ms: int = 0
    latest: int = 0  # of RECENT, NEIGHBOURS, PLACES: how many pairs are kept

    def add(self, feature: Feature) -> None:
        aggregate = feature.aggregate
        self.sum |= aggregate in ("sum", "mean", "std")
        self.squares |= aggregate in ("std", "decayed_std")
        self.fraud |= aggregate in ("fraud_count", "fraud_rate")
        if aggregate in BY_VALUE:
            self.distincts.add(feature.of or "")
        at_most, _ = VISITS.get(aggregate or "", (LATEST_MAX, ""))
        self.latest = max(self.latest, feature.latest or at_most)
        if aggregate in CIRCULAR:
            self.circles.add(feature.of or "")
        if feature.window is not None:
            self.expires_ms = max(self.expires_ms, feature.window + feature.delay)

    def placed(self, first: int) -> Accumulators:
        """The accumulators of a NUMERIC group whose count is word `first`."""
        following = first + 1

        def place(needed: bool, width: int = 1) -> int:
            nonlocal following
            at, following = following, following + (width if needed else 0)
            return at if needed else 0

        total, squares, fraud = place(self.sum), place(self.squares, 2), place(self.fraud)
        distincts = {name: place(True) for name in sorted(self.distincts)}
        circles = {name: place(True, 2) for name in CIRCLE_FIELDS if name in self.circles}
        return Accumulators(first, following - first, total, squares, fraud, distincts, circles)


@dataclass
class Layout:
    """Collects groups, filters and distinct fields while the features are walked."""

    entities: list[str]
    clauses: list[dict[str, object]] = field(default_factory=list)
    distinct_fields: list[str] = field(default_factory=list)
    groups: dict[Group, Needs] = field(default_factory=dict)

    def where(self, feature: Feature) -> int:
        """The bit of a feature's filter, or -1. How many there may be is checked by FeatureSet."""
        clause: dict[str, object] = dict(sorted(feature.where.items()))
        if not clause:
            return -1
        if clause not in self.clauses:
            self.clauses.append(clause)
        return self.clauses.index(clause)

    def group(self, feature: Feature) -> Group:
        """The group that an aggregate belongs to."""
        entity, kind, where = feature.entity or "", feature.aggregate or "", self.where(feature)
        delay, window = feature.delay, feature.window or 0
        if kind == "neighbour_frauds":
            return Group(OpKind.NEIGHBOURS, entity, where, neighbour=feature.of or "")
        if kind == "nearest_km":
            return Group(OpKind.PLACES, entity, where)
        if kind == "median" or feature.latest is not None:
            return Group(OpKind.RECENT, entity, where, delay)
        if kind in ("min", "max"):
            return Group(OpKind.EXTREME, entity, where, delay, window, largest=kind == "max")
        if kind in DECAYED:
            return Group(OpKind.DECAY, entity, where, half_life_ms=feature.half_life or 0)
        if kind in _LATEST:
            return Group(_LATEST[kind], entity, where)
        return Group(OpKind.NUMERIC, entity, where, delay, window)

    @staticmethod
    def neighbours(feature: Feature) -> Group:
        """The group of the other entity that counts the known frauds which a neighbour_frauds reads."""
        return Group(OpKind.NUMERIC, feature.of or "", -1, window_ms=feature.window or 0)

    def add(self, feature: Feature) -> None:
        """Take an aggregate in."""
        if feature.aggregate in BY_VALUE and feature.of not in self.distinct_fields:
            self.distinct_fields.append(feature.of or "")
        self.groups.setdefault(self.group(feature), Needs()).add(feature)
        if feature.aggregate == "neighbour_frauds":
            known = self.groups.setdefault(self.neighbours(feature), Needs())
            known.fraud, known.expires_ms = True, feature.window or 0

    def accumulators(self) -> tuple[dict[Group, Accumulators], dict[str, int]]:
        """The accumulators of every group, and the words of each entity's slot."""
        used = dict.fromkeys(self.entities, kt.HEADER_WORDS)
        found: dict[Group, Accumulators] = {}
        for group, needs in self.groups.items():
            first = used[group.entity]
            if group.kind == OpKind.NUMERIC:
                found[group] = needs.placed(first)
            elif group.kind == OpKind.DECAY and needs.squares:
                found[group] = Accumulators(first, _WIDTH[group.kind] + 2, squares=first + _WIDTH[group.kind])
            else:
                found[group] = Accumulators(first, _WIDTH[group.kind])
            used[group.entity] = first + found[group].width
        return found, used
