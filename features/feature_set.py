"""The feature set: a declarative list of entities, windows and aggregates, read from YAML and checked by pydantic.

A feature set says what a model sees. It is data: the same text trains the model, travels in the bundle and drives the
live engine, and its fingerprint (sha256 over the canonical form) tells them apart.

    name: cards
    currency: EUR
    entities: {customer: [customer_id], pair: [customer_id, merchant_id]}
    features:
      - {name: amount, payment: amount}
      - {name: customer_mean_7d, entity: customer, aggregate: mean, of: amount, window: 7d, include_current: true}
      - {name: amount_to_mean, ratio: [amount, customer_mean_7d]}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from features.filters import CALENDAR_FIELDS, KEY_FIELDS, Condition, check, check_attribute, is_field
from features.yaml_model import PlacedError, Strict, closest, read_yaml_model
from schemas.card_fields import ATTRIBUTE, KEY, CardFields
from schemas.currencies import CURRENCY_EXPONENT
from schemas.durations import parse_duration_ms
from schemas.field_kinds import Kind
from schemas.field_table import KINDS, POSITION_FIELDS
from schemas.field_types import ATTRIBUTE_NAME

# With a `window`, or without one (then over the whole life of the key).
WINDOWED = (
    "count", "sum", "mean", "std", "min", "max", "median", "distinct", "share", "circular_dispersion",
    "circular_variance", "mean_gap", "neighbour_frauds", "nearest_km", "fraud_count", "fraud_rate",
)  # fmt: skip
LATEST = ("since_last", "since_first", "last", "speed_kmh", "since_fraud", "since_first_fraud", "last_label")
DECAYED = ("decayed_count", "decayed_sum", "decayed_mean", "decayed_std")
AGGREGATES = WINDOWED + LATEST + DECAYED
# What counts the different values of a text field.
BY_VALUE = ("distinct", "share")
# A part of all payments, which a prior can smooth.
SHARES = ("share", "fraud_rate")
# Of fields that return to where they began: 23 h is next to 0 h, Sunday next to Monday.
CIRCULAR = ("circular_dispersion", "circular_variance")
CIRCLE_FIELDS = ("hour_of_day", "day_of_week")
# Of the key's latest payments, of which at most so many are kept.
RECENT = ("mean", "std", "min", "max", "median", "mean_gap", "neighbour_frauds", "nearest_km")
LATEST_MAX = 128
# Of neighbour_frauds and nearest_km, which visit them all.
NEIGHBOURS_MAX = PLACES_MAX = 20
VISITS = {"neighbour_frauds": (NEIGHBOURS_MAX, "payments"), "nearest_km": (PLACES_MAX, "places")}
# What reads the payment's latitude and longitude.
PLACED = ("speed_kmh", "nearest_km")
NEEDS_OF = (
    "sum", "mean", "std", "min", "max", "median", *BY_VALUE, *CIRCULAR, "neighbour_frauds", "last", "decayed_sum",
    "decayed_mean", "decayed_std",
)  # fmt: skip

# Keys of a feature that an earlier release did not have.
LATER_KEYS = ("prior", "latest")

ENTITIES_MAX = 16
FEATURES_MAX = 512
# One bit of a 64-bit word each.
WHERES_MAX = 64


class FeatureSetError(ValueError):
    """The feature set says something that the engine cannot or must not do; the message names the place and the way
    out."""


def _duration(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("a duration is text such as 10m, 24h or 30d")
    if isinstance(value, int):
        raise ValueError(f"{value} has no unit; write {value}s, {value}m, {value}h or {value}d")
    return parse_duration_ms(value)


def _positive(value: int) -> int:
    if value < 1:
        raise ValueError("a duration must be at least 1ms")
    return value


DurationMs = Annotated[int, BeforeValidator(_duration)]
PositiveDurationMs = Annotated[int, BeforeValidator(_duration), AfterValidator(_positive)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]


class Rates(Strict):
    """Exchange rates: units of the set's currency for one unit of another, versioned because a changed rate changes
    features."""

    version: str = Field(min_length=1, max_length=64)
    per_unit: dict[str, Annotated[float, Field(gt=0, lt=1e9)]]


class Prior(Strict):
    """What a share is before any payment is known, and how many payments that belief counts for.

    The smoothed share is (hits + rate · weight) / (payments + weight): the mean of a Beta(rate · weight, (1 - rate) ·
    weight) belief after as many payments (the m-estimate; Cestnik, "Estimating Probabilities", 1990).
    """

    rate: float = Field(ge=0, le=1)
    weight: float = Field(gt=0, lt=1e9)


class Feature(Strict):
    """One column of the model's input. Exactly one of `payment`, `aggregate`, `ratio`, `difference`, `zscore` is
    given."""

    name: Name
    # What training may assume: a larger value never makes a payment less (increasing) or more (decreasing) suspicious.
    monotone: Literal["increasing", "decreasing"] | None = None
    # A value of the payment itself: amount, hour_of_day, day_of_week, a position field, a declared category,
    # attributes.NAME.
    payment: str | None = None
    categories: list[str] | None = Field(None, min_length=1, max_length=10_000)
    # A rolling aggregate over the payments of one entity.
    entity: str | None = None
    aggregate: str | None = None
    of: str | None = None
    window: PositiveDurationMs | None = None
    # The window is (T - delay - window, T - delay], T being stream time: a payment exactly `delay` old is in it.
    delay: DurationMs = 0
    # Only so many of the window's latest payments.
    latest: Annotated[int, Field(strict=True, ge=1, le=LATEST_MAX)] | None = None
    half_life: PositiveDurationMs | None = None
    prior: Prior | None = None
    include_current: bool = False
    where: dict[str, Condition] = Field(default_factory=dict)
    # Arithmetic on earlier columns.
    ratio: tuple[str, str] | None = None
    difference: tuple[str, str] | None = None
    zscore: tuple[str, str, str] | None = None

    @property
    def kind(self) -> Literal["payment", "aggregate", "ratio", "difference", "zscore"]:
        for kind in ("payment", "aggregate", "ratio", "difference", "zscore"):
            if getattr(self, kind) is not None:
                return kind  # type: ignore[return-value]
        raise AssertionError("checked at construction")

    @property
    def operands(self) -> tuple[str, ...]:
        """The earlier columns a derived feature reads; empty for the others."""
        return self.ratio or self.difference or self.zscore or ()

    @property
    def read_entities(self) -> tuple[str, ...]:
        """The entities whose keys' state the feature reads: its own, and that of its neighbours."""
        neighbour = self.of if self.aggregate == "neighbour_frauds" else None
        return tuple(entity for entity in (self.entity, neighbour) if entity is not None)

    @model_validator(mode="after")
    def _check(self) -> Feature:
        given = [k for k in ("payment", "aggregate", "ratio", "difference", "zscore") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(
                f"feature {self.name}: give exactly one of payment, aggregate, ratio, difference, zscore; found "
                f"{given or 'none'}"
            )
        if self.kind != "aggregate":
            extra = [
                k
                for k in ("entity", "of", "window", "delay", "latest", "half_life", "prior", "include_current", "where")
                if k in self.model_fields_set
            ]
            if extra:
                raise ValueError(
                    f"feature {self.name}: {', '.join(extra)} belong to an aggregate, not to a {self.kind} feature"
                )
        if self.categories is not None and self.kind != "payment":
            raise ValueError(f"feature {self.name}: categories belong to a payment feature")
        if self.kind == "payment":
            self._check_payment()
        if self.kind == "aggregate":
            self._check_aggregate()
        return self

    def _check_payment(self) -> None:
        field = self.payment or ""
        if field in KEY_FIELDS:
            if self.categories is None:
                raise ValueError(
                    f"feature {self.name}: {field} is text; declare its categories: [..] in the order of their numbers"
                )
        elif field in CALENDAR_FIELDS + POSITION_FIELDS:
            if self.categories is not None:
                raise ValueError(f"feature {self.name}: {field} is a number and takes no categories")
        elif field.startswith("attributes."):
            check_attribute(field)
        else:
            known = ", ".join(CALENDAR_FIELDS + POSITION_FIELDS + KEY_FIELDS)
            raise ValueError(
                f"feature {self.name}: unknown payment field {field!r}; known are {known} and attributes.NAME"
            )
        if self.categories is not None and len(set(self.categories)) != len(self.categories):
            raise ValueError(f"feature {self.name}: a category is listed twice")

    def _check_aggregate(self) -> None:
        name, kind = self.name, self.aggregate or ""
        if kind not in AGGREGATES:
            raise ValueError(f"feature {name}: unknown aggregate {kind!r}; known are {', '.join(AGGREGATES)}")
        if self.entity is None:
            raise ValueError(f"feature {name}: an aggregate needs its entity")
        self._check_of()
        if self.prior is not None and kind not in SHARES:
            raise ValueError(f"feature {name}: {kind} takes no prior; that is for {' and '.join(SHARES)}")
        if self.latest is not None and kind not in RECENT:
            raise ValueError(f"feature {name}: {kind} takes no latest; that is for {', '.join(RECENT)}")
        if kind == "mean_gap" and (self.latest or 1) < 2:
            raise ValueError(f"feature {name}: mean_gap needs the number of payments, 2 or more, such as latest: 10")
        self._check_time()

    def _check_of(self) -> None:
        """The field that is aggregated: which kind takes which."""
        name, kind = self.name, self.aggregate or ""
        if (kind in NEEDS_OF) != (self.of is not None):
            what = {BY_VALUE: "of: customer_id or another text field", CIRCULAR: "of: hour_of_day or day_of_week",
                    ("neighbour_frauds",): "of: another entity"}  # fmt: skip
            wanted = next((text for kinds, text in what.items() if kind in kinds), "of: amount")
            raise ValueError(
                f"feature {name}: {kind} needs `{wanted}`"
                if kind in NEEDS_OF
                else f"feature {name}: {kind} takes no `of`"
            )
        if kind in BY_VALUE:
            if self.of not in KEY_FIELDS:
                raise ValueError(f"feature {name}: {kind} counts one of {', '.join(KEY_FIELDS)}")
        elif kind in CIRCULAR:
            if self.of not in CIRCLE_FIELDS:
                raise ValueError(f"feature {name}: {kind} is computed of {' or '.join(CIRCLE_FIELDS)}")
        elif kind != "neighbour_frauds" and self.of not in (None, "amount"):
            raise ValueError(f"feature {name}: {kind} is computed of amount, not of {self.of!r}; write of: amount")

    def _check_time(self) -> None:
        """Window, delay, half-life and the current payment: what belongs to which aggregate."""
        name, kind = self.name, self.aggregate or ""
        if kind in WINDOWED and self.window is None:
            raise ValueError(f"feature {name}: {kind} needs a window such as 24h")
        if kind in ("since_first", "since_first_fraud") and self.window is not None:
            raise ValueError(f"feature {name}: {kind} looks at the whole life of a key; leave the window out")
        if kind in LATEST and (self.delay or self.include_current):
            raise ValueError(f"feature {name}: {kind} takes neither delay nor include_current; leave them out")
        if (kind in DECAYED) != (self.half_life is not None):
            way = (
                "needs a half_life such as 7d"
                if kind in DECAYED
                else "takes no half_life; that is for " + ", ".join(DECAYED)
            )
            raise ValueError(f"feature {name}: {kind} {way}")
        if kind in DECAYED and (self.window is not None or self.delay):
            raise ValueError(f"feature {name}: {kind} forgets by its half_life; leave window and delay out")
        if kind in VISITS:
            if self.delay or self.include_current:
                raise ValueError(f"feature {name}: {kind} takes neither delay nor include_current; leave them out")
            at_most, visited = VISITS[kind]
            if (self.latest or 1) > at_most:
                raise ValueError(f"feature {name}: {kind} looks at {at_most} {visited} at most")
        if kind in ("fraud_count", "fraud_rate") and self.include_current:
            raise ValueError(
                f"feature {name}: the current payment has no label yet, so include_current means nothing here"
            )


class FeatureSet(Strict):
    """The declaration as a whole. `FeatureSet.from_yaml` reads it; `names` is the column order; `fingerprint` its
    identity."""

    name: Name
    currency: str
    allowed_lateness: DurationMs = 600_000
    # 5 minutes hold any honest clock.
    max_future_skew: DurationMs = 300_000
    dedupe_horizon: PositiveDurationMs = 86_400_000
    # At least one batch, so that no payment of a batch can push out another of the same batch.
    dedupe_capacity: int = Field(20_000_000, ge=65_536, le=2_000_000_000)
    # How long a label may come after its payment and still be found, beyond the windows that need it anyway.
    label_horizon: PositiveDurationMs = 90 * 86_400_000
    keys_max: int = Field(50_000_000, ge=1, le=1_000_000_000)
    required: list[str] = Field(default_factory=list)
    rates: Rates | None = None
    # What may hold a card number (schemas.card_fields), by field, attributes.NAME, or key for the record's key.
    card_numbers: dict[str, Literal["opaque", "token", "refuse"]] = Field(default_factory=dict, max_length=64)
    entities: dict[Name, Annotated[list[str], Field(min_length=1, max_length=4)]] = Field(
        default_factory=dict, max_length=ENTITIES_MAX
    )
    features: Annotated[list[Feature], Field(min_length=1, max_length=FEATURES_MAX)]

    @model_validator(mode="after")
    def _check(self) -> FeatureSet:
        if self.currency not in CURRENCY_EXPONENT:
            raise PlacedError(
                f"currency: {self.currency!r} is not an ISO 4217 code; write three capitals such as EUR", "currency"
            )
        for entity, fields in self.entities.items():
            unknown = [f for f in fields if f not in KEY_FIELDS]
            if unknown:
                raise PlacedError(
                    f"entities.{entity}: unknown field {unknown[0]!r}; {closest(unknown[0], KEY_FIELDS)}known are "
                    f"{', '.join(KEY_FIELDS)}",
                    "entities",
                    entity,
                    fields.index(unknown[0]),
                )
            if len(set(fields)) != len(fields):
                raise PlacedError(f"entities.{entity}: a field is listed twice", "entities", entity)
        allowed = (*KEY_FIELDS, *POSITION_FIELDS)
        unknown = [f for f in self.required if f not in allowed]
        if unknown:
            raise PlacedError(
                f"required: unknown field {unknown[0]!r}; {closest(unknown[0], allowed)}known are {', '.join(allowed)}",
                "required",
                self.required.index(unknown[0]),
            )
        self._check_card_numbers()
        if self.rates is not None:
            unknown = [c for c in self.rates.per_unit if c not in CURRENCY_EXPONENT]
            if unknown:
                raise PlacedError(f"rates: {unknown[0]!r} is not an ISO 4217 code", "rates", "per_unit", unknown[0])
        seen: set[str] = set()
        for index, feature in enumerate(self.features):
            if feature.name in seen:
                raise PlacedError(f"feature {feature.name}: the name is used twice", "features", index, "name")
            if feature.entity is not None and feature.entity not in self.entities:
                raise ValueError(
                    f"feature {feature.name}: unknown entity {feature.entity!r}; declared are "
                    f"{', '.join(self.entities) or 'none'}"
                )
            if feature.aggregate == "neighbour_frauds" and (
                feature.of not in self.entities or feature.of == feature.entity
            ):
                raise ValueError(
                    f"feature {feature.name}: neighbour_frauds needs `of:` with another entity; declared are "
                    f"{', '.join(self.entities)}"
                )
            if feature.aggregate == "share" and feature.of in self.entities[feature.entity or ""]:
                raise ValueError(
                    f"feature {feature.name}: all payments of one {feature.entity} have the same {feature.of}, so the "
                    f"share is always 1; choose another entity or field"
                )
            for operand in feature.operands:
                if operand not in seen:
                    raise ValueError(f"feature {feature.name}: {operand!r} must be a feature that stands before it")
            self._check_where(index, feature, seen)
            seen.add(feature.name)
        clauses = {json.dumps(f.model_dump(mode="json")["where"], sort_keys=True) for f in self.features if f.where}
        if len(clauses) > WHERES_MAX:
            raise ValueError(
                f"features: {len(clauses)} different where clauses; there may be {WHERES_MAX}, so let features share "
                f"theirs"
            )
        return self

    def _check_card_numbers(self) -> None:
        known = [*(name for name, kind in KINDS.items() if kind is Kind.IDENTIFIER), KEY]
        for name, rule in self.card_numbers.items():
            place = ("card_numbers", name)
            attribute = name.startswith(ATTRIBUTE) and ATTRIBUTE_NAME.fullmatch(name.removeprefix(ATTRIBUTE))
            if name not in known and not attribute:
                near = closest(name, known)
                raise PlacedError(
                    f"card_numbers: unknown field {name!r}; {near}known are {', '.join(known)} and attributes.NAME",
                    *place,
                )
            if name == "payment_id" and rule == "token":
                raise PlacedError(
                    "card_numbers.payment_id: decisions and labels name a payment by its id, so it cannot be a token; "
                    "give payments an id of their own (opaque), or refuse",
                    *place,
                )

    @property
    def cards(self) -> CardFields:
        """What may hold a card number, without the key for pseudonyms."""
        return CardFields.of(self.card_numbers)

    def _check_where(self, index: int, feature: Feature, seen: set[str]) -> None:
        """A filter names a field of the payment, or a feature that stands before it and is then a number; and some
        payment can pass it."""
        for name, condition in feature.where.items():
            place = ("features", index, "where", name)
            if not is_field(name) and name not in seen:
                near = closest(name, (*KEY_FIELDS, *POSITION_FIELDS, *CALENDAR_FIELDS, *seen))
                raise PlacedError(
                    f"feature {feature.name}: where names {name!r}, "
                    + (
                        "which must stand before it"
                        if name in self.names
                        else "which is neither a field of the payment, nor attributes.NAME, nor an earlier feature"
                        + (f"; {near.strip()}" if near else "")
                    ),
                    *place,
                )
            try:
                check(name, condition)
            except ValueError as exc:
                raise PlacedError(f"feature {feature.name}: where {name}: {exc}", *place) from exc

    def check_sharding(self, shard_key: Sequence[str], shards: int) -> None:
        """Refuse a set whose entities `shards` shards would split. `shard_key`: the fields that decide a payment's
        partition.

        A key of an entity stays in one shard when the entity has all fields of the shard key. Raises FeatureSetError.
        """
        if shards <= 1:
            return
        for feature in self.features:
            for entity in feature.read_entities:
                fields = self.entities[entity]
                if shard_key and set(shard_key) <= set(fields):
                    continue
                raise FeatureSetError(
                    f"feature {feature.name}: payments are shared out among {shards} shards by "
                    f"{', '.join(shard_key) or 'no field'}, so each shard would see "
                    f"only a part of every {entity} ({', '.join(fields)}). Run one shard, key the payments "
                    f"topic by {', '.join(fields)}, leave the "
                    "feature out, or compute it in a stage of its own behind a re-keyed topic"
                )

    @property
    def names(self) -> list[str]:
        """Column names in column order."""
        return [feature.name for feature in self.features]

    @property
    def fingerprint(self) -> str:
        """Hex sha256 over the canonical JSON of everything that can change a value; comments and layout do not
        count."""
        # A constraint on training changes no value.
        document = self.model_dump(mode="json", exclude={"features": {"__all__": {"monotone"}}})
        # Sets of earlier releases keep their fingerprints.
        if not self.card_numbers:
            del document["card_numbers"]
        for feature in document["features"]:
            for name in LATER_KEYS:
                if feature[name] is None:
                    del feature[name]
        canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def fields(self) -> set[str]:
        """The payment fields that features are made of (without attributes)."""
        used = {field for fields in self.entities.values() for field in fields}
        for feature in self.features:
            used.update(
                f for f in (feature.payment, feature.of, *feature.where) if f in (*KEY_FIELDS, *POSITION_FIELDS)
            )
            if feature.aggregate in PLACED:
                used.update(("latitude", "longitude"))
        return used

    @classmethod
    def from_yaml(cls, source: str | Path) -> FeatureSet:
        """Read a feature set from YAML text, or from a file when a Path is given. Raises FeatureSetError."""
        where = str(source) if isinstance(source, Path) else "feature set"
        text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
        return read_yaml_model(cls, text, where=where, error=FeatureSetError)
