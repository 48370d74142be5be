"""What a feature set may not say is refused with file, line and what to write instead; what it says is put in
words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from features import kernel_tables as kt
from features.feature_description import FeatureCost, describe, json_schema
from features.feature_set import FeatureSet, FeatureSetError
from features.window_engine import WindowEngine
from tests.benchmarks.streams import bench_set
from tests.properties.engine_streams import T0, feed

ROOT = Path(__file__).resolve().parents[2]
HEAD = """name: t
currency: EUR
entities: {customer: [customer_id], pair: [customer_id, merchant_id]}
features:
  - {name: amount, payment: amount}
  - {name: n, entity: customer, aggregate: count, window: 1h}
"""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{name: n, entity: customer, aggregate: count, window: 2h}", "7: .*name is used twice"),
        ("{name: x, entity: custmer, aggregate: count, window: 2h}", "7: .*unknown entity 'custmer'.*customer, pair"),
        ("{name: x, payment: amuont}", "7: .*unknown payment field 'amuont'; known are amount"),
        ("{name: x, payment: channel}", "7: .*declare its categories"),
        (
            "{name: x, entity: customer, aggregate: avg, of: amount, window: 1h}",
            "7: .*unknown aggregate 'avg'; known are count",
        ),
        ("{name: x, entity: customer, aggregate: count}", "7: .*needs a window such as 24h"),
        ("{name: x, entity: customer, aggregate: count, window: 0s}", "7: .*at least 1ms"),
        ("{name: x, entity: customer, aggregate: count, window: 30}", "7: .*no unit; write 30s"),
        ("{name: x, entity: customer, aggregate: sum, window: 1h}", "7: .*needs `of: amount`"),
        ("{name: x, entity: customer, aggregate: count, of: amount, window: 1h}", "7: .*takes no `of`"),
        (
            "{name: x, entity: customer, aggregate: distinct, of: amount, window: 1h}",
            "7: .*distinct counts one of payment_id",
        ),
        ("{name: x, entity: customer, aggregate: share, window: 1h}", "7: .*needs `of: customer_id or another text"),
        (
            "{name: x, entity: customer, aggregate: share, of: amount, window: 1h}",
            "7: .*share counts one of payment_id",
        ),
        ("{name: x, entity: customer, aggregate: share, of: mcc}", "7: .*needs a window such as 24h"),
        ("{name: x, entity: pair, aggregate: share, of: merchant_id, window: 1h}", "7: .*the share is always 1"),
        (
            "{name: x, entity: customer, aggregate: sum, of: amount, window: 1h, latest: 5}",
            "7: .*sum takes no latest; that is for mean, std, min, max, median, mean_gap, neighbour_frauds, nearest_km",
        ),
        ("{name: x, entity: customer, aggregate: mean, of: amount, latest: 5}", "7: .*needs a window such as 24h"),
        (
            "{name: x, entity: customer, aggregate: mean, of: amount, window: 1h, latest: 129}",
            "7: .*latest: .*less than or equal to 128",
        ),
        (
            "{name: x, entity: customer, aggregate: mean, of: amount, window: 1h, latest: true}",
            "7: .*latest: .*valid integer",
        ),
        ("{name: x, entity: customer, aggregate: mean_gap, window: 1h}", "7: .*2 or more, such as latest: 10"),
        ("{name: x, entity: customer, aggregate: mean_gap, window: 1h, latest: 1}", "7: .*2 or more"),
        ("{name: x, entity: customer, aggregate: mean_gap, of: amount, window: 1h, latest: 5}", "7: .*takes no `of`"),
        ("{name: x, ratio: [n, amount], latest: 5}", "7: .*latest belong to an aggregate"),
        ("{name: x, entity: customer, aggregate: neighbour_frauds, window: 1d}", "7: .*needs `of: another entity`"),
        ("{name: x, entity: customer, aggregate: neighbour_frauds, of: pair}", "7: .*needs a window such as 24h"),
        (
            "{name: x, entity: customer, aggregate: neighbour_frauds, of: device, window: 1d}",
            "7: .*with another entity; declared are customer, pair",
        ),
        (
            "{name: x, entity: pair, aggregate: neighbour_frauds, of: pair, window: 1d}",
            "7: .*with another entity; declared are customer, pair",
        ),
        (
            "{name: x, entity: customer, aggregate: neighbour_frauds, of: pair, window: 1d, delay: 1d}",
            "7: .*neither delay nor include_current",
        ),
        (
            "{name: x, entity: customer, aggregate: neighbour_frauds, of: pair, window: 1d, latest: 21}",
            "7: .*looks at 20 payments at most",
        ),
        ("{name: x, entity: customer, aggregate: nearest_km}", "7: .*needs a window such as 24h"),
        ("{name: x, entity: customer, aggregate: nearest_km, of: amount, window: 1d}", "7: .*takes no `of`"),
        (
            "{name: x, entity: customer, aggregate: nearest_km, window: 1d, include_current: true}",
            "7: .*nearest_km takes neither delay nor include_current",
        ),
        (
            "{name: x, entity: customer, aggregate: nearest_km, window: 1d, latest: 21}",
            "7: .*nearest_km looks at 20 places at most",
        ),
        (
            "{name: x, entity: customer, aggregate: circular_variance, window: 1h}",
            "7: .*needs `of: hour_of_day or day_of_week`",
        ),
        (
            "{name: x, entity: customer, aggregate: circular_dispersion, of: amount, window: 1h}",
            "7: .*circular_dispersion is computed of hour_of_day or day_of_week",
        ),
        (
            "{name: x, entity: customer, aggregate: sum, of: hour_of_day, window: 1h}",
            "7: .*sum is computed of amount, not of 'hour_of_day'",
        ),
        (
            "{name: x, entity: customer, aggregate: count, window: 1h, prior: {rate: 0.1, weight: 5}}",
            "7: .*count takes no prior; that is for share and fraud_rate",
        ),
        ("{name: x, ratio: [n, amount], prior: {rate: 0.1, weight: 5}}", "7: .*prior belong to an aggregate"),
        (
            "{name: x, entity: customer, aggregate: fraud_rate, window: 1h, prior: {rate: 2, weight: 5}}",
            "7: .*prior.rate: .*less than or equal to 1",
        ),
        (
            "{name: x, entity: customer, aggregate: fraud_rate, window: 1h, prior: {rate: 0.1, weight: 0}}",
            "7: .*prior.weight: .*greater than 0",
        ),
        (
            "{name: x, entity: customer, aggregate: fraud_rate, window: 1h, prior: {rate: 0.1}}",
            "7: .*prior.weight: Field required",
        ),
        (
            "{name: x, entity: customer, aggregate: fraud_rate, window: 1h, prior: {rate: 0.1, wight: 3}}",
            "7: .*unknown key 'wight'; did you mean weight",
        ),
        ("{name: x, entity: customer, aggregate: since_last, delay: 1h}", "7: .*leave them out"),
        ("{name: x, entity: customer, aggregate: since_first, window: 1h}", "7: .*leave the window out"),
        ("{name: x, entity: customer, aggregate: decayed_count}", "7: .*needs a half_life such as 7d"),
        (
            "{name: x, entity: customer, aggregate: decayed_count, half_life: 1d, window: 7d}",
            "7: .*leave window and delay out",
        ),
        (
            "{name: x, entity: customer, aggregate: count, window: 7d, half_life: 1d}",
            "7: .*takes no half_life; that is for decayed_count, decayed_sum, decayed_mean, decayed_std",
        ),
        ("{name: x, entity: customer, aggregate: decayed_mean, half_life: 1d}", "7: .*needs `of: amount`"),
        ("{name: x, entity: customer, aggregate: decayed_std, of: amount}", "7: .*needs a half_life such as 7d"),
        (
            "{name: x, entity: customer, aggregate: decayed_std, of: amount, half_life: 1d, delay: 7d}",
            "7: .*leave window and delay out",
        ),
        ("{name: x, entity: customer, aggregate: fraud_count, window: 7d, include_current: true}", "7: .*no label yet"),
        ("{name: x, ratio: [n, later]}", "7: .*'later' must be a feature that stands before it"),
        ("{name: x, ratio: [n, amount], window: 1h}", "7: .*window belong to an aggregate"),
        ("{name: x, payment: amount, ratio: [n, amount]}", "7: .*exactly one of"),
        (
            "{name: x, entity: customer, aggregate: count, window: 1h, where: {chanel: pos}}",
            "7: .*'chanel', which is neither",
        ),
        ("{name: x, entity: customer, aggregate: count, window: 1h, where: {x: 1}}", "7: .*must stand before it"),
        ("{name: x, entity: customer, aggregate: count, window: 1h, where: {n: many}}", "7: .*a feature is a number"),
        ("{name: x, entity: customer, aggregate: count, window: 1h, where: {channel: []}}", "7: .*empty list"),
        (
            "{name: x, entity: customer, aggregate: count, window: 1h, where: {amount: {}}}",
            "7: .*at_least, above, at_most or below",
        ),
        ("{name: Bad, payment: amount}", "7: "),
        ("{name: x, payment: amount, name: y}", "7: .*given twice"),
    ],
)
def test_a_mistake_is_refused_with_its_line_and_the_way_out(line: str, message: str, tmp_path: Path) -> None:
    """Every mistake names file and line, and says what to write instead."""
    path = tmp_path / "set.yaml"
    path.write_text(HEAD + f"  - {line}\n", encoding="utf-8")
    with pytest.raises(FeatureSetError, match=message) as error:
        FeatureSet.from_yaml(path)
    assert str(error.value).startswith(str(path))


C = "name: x, entity: customer, aggregate: count, window: 1h, where: "


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("{mcc: 5411}", "7: .*write '5411' in quotes"),
        ("{mcc: [742]}", "7: .*write '0742' in quotes"),
        ("{country: NO}", "7: .*write 'NO' in quotes"),
        ("{country: [SE, NO]}", "7: .*write 'NO' in quotes"),
        ("{merchant_id: {above: 3}}", "7: .*is text and has no range"),
        ("{country: Norway}", "7: .*no payment has the country 'Norway'"),
        ("{channel: ECOM}", "7: .*no payment has the channel 'ECOM'"),
        ("{currency: EURO}", "7: .*no payment has the currency 'EURO'"),
        ("{amount: many}", "7: .*amount is a number"),
        ("{latitude: '48.1'}", "7: .*latitude is a number"),
        ("{hour_of_day: true}", "7: .*hour_of_day is a number"),
        ("{hour_of_day: 24}", "7: .*never 24; it lies from 0 to 23"),
        ("{day_of_week: 1.5}", "7: .*whole number"),
        ("{hour_of_day: {above: 23}}", "7: .*never lies in this range; it lies from 0 to 23"),
        ("{amount: {below: 0}}", "7: .*at least 0"),
        ("{amount: {above: .nan}}", "7: .*above takes a finite number"),
        ("{amount: {above: .inf}}", "7: .*above takes a finite number"),
        ("{amount: .nan}", "7: .*write a finite number"),
        ("{amount: {at_least: 10, below: 5}}", "7: .*the range is empty"),
        ("{attributes.x: {at_least: 10, below: 10}}", "7: .*the range is empty"),
        ("{n: {above: 0.1, below: 0.1000000001}}", "7: .*the range is empty"),
        ("{n: {above: 1.0e+300}}", "7: .*float32"),
        ("{n: 1.0e+300}", "7: .*never 1e[+]300"),
        ("{amount: {atleast: 3}}", "7: .*unknown bound 'atleast'; did you mean at_least[?]"),
        ("{amount: {above: '3'}}", "7: .*above takes a finite number"),
        ("{amount: 2020-01-01}", "7: .*write text, a number"),
    ],
)
def test_a_filter_that_no_payment_can_pass_is_refused(where: str, message: str) -> None:
    """A condition that could never hold is refused where it stands, with what to write."""
    with pytest.raises(FeatureSetError, match=message):
        FeatureSet.from_yaml(HEAD + f"  - {{{C}{where}}}\n")


@pytest.mark.parametrize(
    "where",
    [
        "{mcc: '5411', country: [SE, 'NO'], channel: ecom, currency: EUR}",
        "{amount: {at_least: 10, at_most: 10}, hour_of_day: [22, 23], day_of_week: {below: 5}, latitude: {above: 60}}",
        "{attributes.x: 3, attributes.y: [true, text, 1.5], attributes.z: {above: 1.0e+300}, n: {above: 3}}",
    ],
)
def test_a_filter_that_payments_can_pass_is_taken(where: str) -> None:
    """Text on text fields, numbers and ranges on numbers, anything on attributes."""
    assert FeatureSet.from_yaml(HEAD + f"  - {{{C}{where}}}\n").features[-1].where


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEAD + "  - name: x\n    entity: customer\n    agregate: count\n",
            "9: .*'agregate'; did you mean aggregate[?]",
        ),
        (HEAD.replace("EUR", "EURO"), "2: .*'EURO' is not an ISO 4217 code"),
        (HEAD.replace("[customer_id]", "[custmer_id]"), "3: .*'custmer_id'; did you mean customer_id[?]"),
        (HEAD + "required:\n  - customer_id\n  - countri\n", "9: .*'countri'; did you mean country[?]"),
        (HEAD + "windows: 3\n", "7: .*unknown key 'windows'"),
        (
            HEAD + "  - name: x\n    entity: customer\n    aggregate: count\n    window: 1h\n    where:\n"
            "      channel: ecom\n      mcc: 5411\n",
            "13: .*write '5411' in quotes",
        ),
        ("? [a, b]\n: c\n", "1: .*a key must be a name"),
        ("", "set.yaml: the file is empty"),
    ],
)
def test_a_mistake_names_its_own_line_and_the_nearest_word(text: str, message: str, tmp_path: Path) -> None:
    """Not the beginning of the block it stands in, and never a traceback."""
    path = tmp_path / "set.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FeatureSetError, match=message) as error:
        FeatureSet.from_yaml(path)
    assert str(error.value).startswith(str(path))


def test_too_many_filters_are_refused_when_the_set_is_read() -> None:
    """65 different filters do not fit the bits that a payment carries."""
    lines = "".join(
        f"  - {{name: f{k}, entity: customer, aggregate: count, window: 1h, where: {{amount: {{above: {k}}}}}}}\n"
        for k in range(65)
    )
    with pytest.raises(FeatureSetError, match="65 different where clauses"):
        FeatureSet.from_yaml(HEAD + lines)


def test_a_set_whose_keys_the_sharding_splits_is_refused() -> None:
    """Two shards keyed by merchant split customers; keyed by customer they split neither customers nor pairs."""
    declared = FeatureSet.from_yaml(HEAD + "  - {name: p, entity: pair, aggregate: count, window: 1h}\n")
    declared.check_sharding(["merchant_id"], 1)
    declared.check_sharding(["customer_id"], 8)
    with pytest.raises(
        FeatureSetError, match=r"feature n: .*8 shards by merchant_id.*customer.*key the payments topic by customer_id"
    ):
        declared.check_sharding(["merchant_id"], 8)
    with pytest.raises(FeatureSetError, match="feature n"):
        declared.check_sharding([], 2)
    reached = FeatureSet.from_yaml(
        HEAD.replace("pair: [customer_id, merchant_id]", "shop: [merchant_id]")
        + "  - {name: s, entity: customer, aggregate: neighbour_frauds, of: shop, window: 1d}\n"
    )
    with pytest.raises(FeatureSetError, match=r"feature s: .*only a part of every shop \(merchant_id\)"):
        reached.check_sharding(["customer_id"], 8)


def test_the_fingerprint_is_of_what_changes_values() -> None:
    """Comments and layout do not change it, a window does."""
    declared = FeatureSet.from_yaml(HEAD)
    assert FeatureSet.from_yaml("# a comment\n" + HEAD.replace("  - ", "    - ")).fingerprint == declared.fingerprint
    assert FeatureSet.from_yaml(HEAD.replace("1h", "2h")).fingerprint != declared.fingerprint
    assert FeatureSet.from_yaml(HEAD.replace("1h", "60m")).fingerprint == declared.fingerprint
    smoothed = HEAD + "  - {name: r, entity: pair, aggregate: fraud_rate, window: 1h, prior: {rate: 0.1, weight: 5}}\n"
    assert FeatureSet.from_yaml(smoothed).fingerprint != FeatureSet.from_yaml(smoothed.replace("5}", "6}")).fingerprint


def test_sets_of_earlier_releases_keep_their_fingerprints() -> None:
    """Kinds of features that came later change no digest of a bundle, a journal or a snapshot that has none of them."""
    earlier = {
        "demo": "ac5de9b855d50183e6f645845523f76b22ca1efb7f339dcfe2c870f405cd663d",
        "raw_csv": "ebed3deba50fc3ca1acb4caf7fcaf2ef3b2ec37bbc7229e52b024c3b9ea647e2",
    }
    for name, fingerprint in earlier.items():
        assert FeatureSet.from_yaml(ROOT / "deploy/examples" / name / "feature_set.yaml").fingerprint == fingerprint


def described(*lines: str) -> list[FeatureCost]:
    """The features of these lines, as `features explain` has them."""
    text = HEAD + "".join(f"  - {line}\n" for line in lines)
    return describe(FeatureSet.from_yaml(text)).features[2:]


def test_every_feature_is_told_in_words() -> None:
    """Each column has a sentence of its own with window, key and filter."""
    declared = FeatureSet.from_yaml(
        HEAD
        + "  - {name: m, entity: pair, aggregate: mean, of: amount, window: 7d, delay: 2d,\n"
        + "     where: {channel: [ecom, moto], n: {above: 3}}}\n"
    )
    sentences = {f.name: f.sentence for f in describe(declared).features}
    assert sentences["n"] == "number of payments with the same customer_id, in the last 1h"
    assert sentences["m"] == (
        "mean of amounts in EUR with the same customer_id and merchant_id, in the 7d up to 2d ago, where channel is "
        "one of ecom, moto and n > 3"
    )
    (rate,) = described(
        "{name: r, entity: pair, aggregate: fraud_rate, window: 1d, delay: 7d, prior: {rate: 0.005, weight: 20}}"
    )
    assert rate.sentence.endswith("in the 1d up to 7d ago, smoothed as if 20 payments more had a share of 0.005")
    (mean,) = described("{name: m5, entity: customer, aggregate: mean, of: amount, window: 30d, latest: 5}")
    assert mean.sentence == "mean of amounts in EUR (the last 5 at most) with the same customer_id, in the last 30d"
    assert mean.counted == "each payment in the window, up to 5"
    (trouble,) = described("{name: t, entity: customer, aggregate: neighbour_frauds, of: pair, window: 14d}")
    assert trouble.sentence == (
        "number of payments known to be fraud of every pair of the last 20 payments with the same customer_id, in the "
        "last 14d"
    )
    (near,) = described("{name: k, entity: customer, aggregate: nearest_km, window: 30d, latest: 12}")
    assert near.sentence == (
        "km to the nearest of the last 12 different places of payments with the same customer_id, in the last 30d"
    )
    assert near.counted == "each different place in the window, up to 12"
    (gap,) = described("{name: g, entity: customer, aggregate: mean_gap, window: 30d, latest: 8}")
    assert gap.sentence.startswith("mean seconds between neighbours of payments (the last 8 at most) with the same")
    (unlike,) = described("{name: u, entity: pair, aggregate: circular_dispersion, of: hour_of_day, window: 60d}")
    assert unlike.sentence == (
        "circular dispersion of hour_of_day about this payment's (0 equal, 2 opposite), of payments with the same "
        "customer_id and merchant_id, in the last 60d"
    )
    assert unlike.bytes_per_key == 24
    (usual,) = described("{name: d, entity: customer, aggregate: decayed_std, of: amount, half_life: 14d}")
    assert usual.sentence == (
        "standard deviation of amounts in EUR with the same customer_id, each counting half as much every 14d"
    )
    assert usual.bytes_per_key == 40
    (share,) = (f.sentence for f in described("{name: s, entity: customer, aggregate: share, of: mcc, window: 30d}"))
    assert share == "share of payments with this payment's mcc among those with the same customer_id, in the last 30d"
    assert len({f.sentence for f in describe(FeatureSet.from_yaml(bench_set())).features}) == 44


def test_the_schema_for_editors_names_everything_that_can_be_written() -> None:
    """The JSON Schema knows every field of a feature, and durations as text."""
    schema = json.loads(json.dumps(json_schema()))
    feature = schema["$defs"]["Feature"]["properties"]
    assert {"name", "entity", "aggregate", "window", "delay", "half_life", "include_current", "where", "zscore"} <= set(
        feature
    )
    assert feature["window"]["type"] == "string"
    assert schema["properties"]["allowed_lateness"]["type"] == "string"
    assert {"count", "fraud_rate", "speed_kmh"} < set(feature["aggregate"]["enum"])
    assert {"amount", "hour_of_day", "latitude", "mcc"} < set(feature["payment"]["anyOf"][0]["enum"])
    (fields,) = schema["properties"]["entities"]["patternProperties"].values()
    assert "customer_id" in fields["items"]["enum"]
    assert "EUR" in schema["properties"]["currency"]["enum"]
    for text, window, lateness in (("10m", True, True), ("0s", False, True), ("10", False, False)):
        assert bool(re.search(feature["window"]["pattern"], text)) == window
        assert bool(re.search(schema["properties"]["allowed_lateness"]["pattern"], text)) == lateness


def test_the_memory_stated_is_what_a_key_takes() -> None:
    """A maximum over falling amounts keeps every payment, a median 128, distinct values one place each: no more than
    `explain` says, and not much less."""
    declared = FeatureSet.from_yaml("""
name: t
currency: EUR
entities: {customer: [customer_id]}
features:
  - {name: most, entity: customer, aggregate: max, of: amount, window: 30d}
  - {name: middle, entity: customer, aggregate: median, of: amount, window: 30d}
  - {name: few, entity: customer, aggregate: mean, of: amount, window: 30d, latest: 10, where: {amount: {above: 0}}}
  - {name: shops, entity: customer, aggregate: distinct, of: merchant_id, window: 30d}
  - {name: shop_share, entity: customer, aggregate: share, of: merchant_id, window: 30d}
  - {name: near, entity: customer, aggregate: nearest_km, window: 30d}
""")
    engine, n = WindowEngine(declared), 3_000
    rows = [
        {"payment_id": f"p{k}", "t": T0 + k, "amount": 10_000 - k, "currency": "EUR", "customer_id": "c",
         "merchant_id": f"m{k}", "latitude": k / 100, "longitude": 10.0}
        for k in range(n)
    ]  # fmt: skip
    feed(engine, rows)
    s, ops = engine.state, engine.plan.tables.ops
    slot = engine._slot_of(0, ["c"])
    costs = {f.name: f for f in describe(declared).features}
    series = (
        ("most", kt.OP_EXTREME, 0, n), ("middle", kt.OP_RECENT, 0, kt.RECENT_MAX), ("few", kt.OP_RECENT, 1, 10),
        ("near", kt.OP_PLACES, 0, 20),
    )  # fmt: skip
    for name, kind, place, pairs in series:
        block = s.arena[slot + ops[ops[:, kt.O_KIND] == kind][place, kt.O_ACCUMULATOR]]
        size = 64 << int(s.pool[block + 1])
        assert size > costs[name].bytes_more_max * pairs / 8
        assert size <= costs[name].bytes_more_max * pairs
    assert costs["shop_share"].bytes_more_max == costs["shops"].bytes_more_max  # of one group: the same places
    assert n * costs["shops"].bytes_more_max / 4 < s.distincts.nbytes <= n * costs["shops"].bytes_more_max
