"""The report's page: whole in one file, equal to the figures, safe whatever the payments hold, usable by keyboard."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from scorer.backtest import Backtest, Decided, backtest, write_page
from scorer.backtest.effects import Effect, effects_of, sentences_of
from scorer.backtest.measurement import Side, measure
from scorer.backtest.report_page import document_of
from scorer.policy import FlagCost
from scorer.replay.replay_output import decision_schema
from tests.browser import DARK, asked
from tests.metrics_table import ROOT

DAY_MS = 86_400_000
FIRST_DAY = 19_740  # 18 January 2024
COST = FlagCost(currency="EUR", review=4, good_customer=15, loss_share=0.8)
HOSTILE = "</script><script>wrong.push('ran')</script><img src=x onerror=\"wrong.push('ran')\"><!-- '\"&\u202e\u2028"
TITLE = f"Policy on cards {HOSTILE}"
UPLOT = ROOT / "scorer/backtest/page/uplot"


def _decided(days: int = 20, frauds: float = 0.05, hostile: str = "") -> Decided:
    """50 payments a day, of which the share `frauds` is fraud, flagged from a score of 0.1 on."""
    random, n = np.random.default_rng(3), days * 50
    at = np.sort(random.integers(0, days * DAY_MS, n)) + FIRST_DAY * DAY_MS
    fraud = random.random(n) < frauds
    margin = random.normal(-5 + 4 * fraud, 1.5, n)
    score = 1 / (1 + np.exp(-margin))
    columns: dict[str, Any] = {
        "payment_id": [f"p{i}{hostile}" for i in range(n)],
        "event_time": at,
        "currency": ["EUR"] * n,
        "amount_minor": (random.lognormal(3.5, 1, n) * 100).astype(np.int64),
        "customer_id": [f"c{i}" for i in random.integers(0, 100, n)],
        "channel": np.where(random.random(n) < 0.5, "pos", f"ecom{hostile}").tolist(),
        "decision": np.where(score > 0.1, "flag", "approve").tolist(),
        "mode": ["normal"] * n,
        "margin": margin,
        "score": score,
        "label": fraud.astype(np.int8),
        "label_known_at": at,
        "reasons": [[f"R{hostile}"]] * n,
        "fired": [[f"rule{hostile}"]] * n,
    }
    schema = decision_schema([])
    table = pa.Table.from_arrays(
        [pa.array(columns[f.name]).cast(f.type) if f.name in columns else pa.nulls(n, f.type) for f in schema],
        schema=schema,
    )
    return Decided(table, [], "EUR", {"EUR": 1.0})


def _flagged_from(decided: Decided, score: float) -> Decided:
    """The same payments, flagged from another score on."""
    place = decided.table.schema.get_field_index("decision")
    column = pa.array(np.where(decided.score > score, "flag", "approve").tolist())
    return replace(decided, table=decided.table.set_column(place, "decision", column))


def _result(days: int = 20, hostile: str = "", cost: FlagCost | None = COST) -> Backtest:
    decided = _decided(days, hostile=hostile)
    return backtest(
        decided, _flagged_from(decided, 0.05), names=(f"cards{hostile}", f"policy{hostile}"), rounds=20, cost=cost
    )


def _without_frauds() -> Backtest:
    """`backtest` refuses to measure it; the page shows what is there."""
    decided = _decided(3, frauds=0)
    side = measure("cards", decided, decided, None, alerts=10, cards=10, rounds=5, seed=1)
    return Backtest(FIRST_DAY * DAY_MS, (FIRST_DAY + 3) * DAY_MS, len(decided), len(decided), "EUR", 10, 10, [side])


def _empty() -> Backtest:
    side = Side("cards", {"payments": 0.0, "average_precision": math.nan}, {}, [], {}, [], [], [])
    return Backtest(FIRST_DAY * DAY_MS, FIRST_DAY * DAY_MS + 1, 0, 0, "EUR", 10, 10, [side])


RESULTS = {
    "two sides": _result,
    "hostile": lambda: _result(hostile=HOSTILE),
    "no costs": lambda: _result(cost=None),
    "one side": lambda: backtest(_decided(), rounds=20),
    "one day": lambda: _result(days=1),
    "no frauds": _without_frauds,
    "empty": _empty,
}


def _page(folder: Path, name: str) -> Path:
    path = folder / "report.html"
    write_page(RESULTS[name](), path, TITLE if name == "hostile" else name)
    return path


def _data(page: Path) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(text)  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    """As JSON has it: NaN is null, tuples are lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", RESULTS)
def test_the_page_holds_the_result(name: str, tmp_path: Path) -> None:
    """The data in the page are the result's figures, one by one, whatever texts are in it."""
    result = RESULTS[name]()
    write_page(result, tmp_path / "report.html", TITLE)
    data = _data(tmp_path / "report.html")
    assert data == _plain(document_of(result, TITLE))
    assert [side["overall"] for side in data["sides"]] == [_plain(side.overall) for side in result.sides]
    assert data["effects"] == [dataclasses.asdict(effect) for effect in result.effects]


def test_the_page_allows_its_own_script_and_style_and_nothing_else(tmp_path: Path) -> None:
    """No address is loaded, no attribute has code; the policy names the two elements by their hashes."""
    text = _page(tmp_path, "hostile").read_text(encoding="utf-8")
    markup = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.DOTALL)
    assert not re.search(r"<(link|img|iframe|object|embed|base)\b|<script[^>]*\ssrc|\son\w+=[\"']|javascript:", markup)
    assert "<img" not in text
    assert set(re.findall(r"https?://[^\"' )]+", text)) == {"https://github.com/leeoniya/uPlot"}  # in its head comment
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert set(rules) == {"default-src", "script-src", "style-src", "base-uri", "form-action"}
    for element, rule in (("script", "script-src"), ("style", "style-src")):
        (content,) = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"


@pytest.mark.parametrize("name", RESULTS)
def test_a_browser_shows_every_section_without_an_error(name: str, tmp_path: Path) -> None:
    """From a file, without the network: charts for what is defined, a sentence for what is not, and no code of a
    payment's text runs."""
    result = RESULTS[name]()
    seen = asked(
        _page(tmp_path, name),
        """return {
          title: document.querySelector("h1").textContent,
          heads: [...document.querySelectorAll("h2")].map((head) => head.textContent),
          lead: document.querySelector("p.lead")?.textContent ?? null,
          cards: document.querySelectorAll(".card").length,
          charts: document.querySelectorAll(".chart canvas").length,
          none: document.querySelectorAll("figure p.note").length,
          cells: [...document.querySelectorAll("td")].map((cell) => cell.textContent),
          strange: document.querySelectorAll("img, iframe, main script, main style, main a").length,
        };""",
    )
    heads = ["If this goes live", "Figures", "Day by day", "Thresholds", "Calibration"]
    heads += ["Segments"] if name != "empty" else []
    heads += ["Payments decided otherwise"] if len(result.sides) > 1 else []
    assert seen["heads"] == heads
    assert seen["title"] == (TITLE if name == "hostile" else name)
    assert seen["strange"] == 0
    assert seen["cards"] == len(result.effects)
    assert seen["lead"] == (result.summary[0] if result.summary else None)
    assert seen["charts"] + seen["none"] == 9
    assert seen["none"] == {"empty": 9, "no frauds": 1}.get(name, 0)
    if name == "hostile":
        assert f"ecom{HOSTILE}" in seen["cells"]
        assert f"R{HOSTILE}" in seen["cells"]
    for row in (result.changes.to_pylist() if result.changes is not None else [])[:20]:
        assert row["payment_id"] in seen["cells"]


def test_charts_are_read_by_keyboard_and_follow_the_system_s_colours(tmp_path: Path) -> None:
    """The arrow keys go from day to day and show what each side has there, in words for a screen reader too."""
    result = RESULTS["two sides"]()
    press = """
      const chart = document.querySelector(".chart"), seen = [];
      const [now, words] = ["now", "text"].map((name) => () => chart.getAttribute(`aria-value${name}`));
      chart.focus();
      for (const key of ["Home", "ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowRight", "PageDown", "Escape"]) {
        chart.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
        seen.push([now(), words(), chart.nextSibling.textContent]);
      }
      const ground = getComputedStyle(document.body).backgroundColor;
      return { seen, ground, focused: document.activeElement === chart };
    """
    page = _page(tmp_path, "two sides")
    light, dark = asked(page, press), asked(page, press, DARK)
    assert light["seen"] == dark["seen"]
    assert light["focused"]
    assert (light["ground"], dark["ground"]) == ("rgb(255, 255, 255)", "rgb(16, 21, 29)")
    days = [[row["flagged"] for row in side.days] for side in result.sides]
    assert [int(now) for now, _, _ in light["seen"]] == [0, 1, 2, 1, 19, 19, 9, 9]
    for now, words, shown in light["seen"][:-1]:
        assert words == shown
        day = f"{(np.datetime64(FIRST_DAY, 'D') + int(now)).item():%d %b %Y}".lstrip("0")
        assert words == f"day (UTC) {day} – cards: {days[0][int(now)]}; policy: {days[1][int(now)]}"
    assert "arrow keys" in light["seen"][-1][2]


def test_heads_sort_a_table_and_the_filter_finds_payments(tmp_path: Path) -> None:
    """A press on a head sorts by it, and shows the direction; the filter keeps the rows with the text."""
    result = RESULTS["two sides"]()
    seen = asked(
        _page(tmp_path, "two sides"),
        """
        const part = [...document.querySelectorAll("section")].at(-1);
        const column = (place) => [...part.querySelectorAll("tbody tr")].map((row) => row.children[place].textContent);
        const head = [...part.querySelectorAll("th")].find((cell) => cell.textContent === "EUR");
        const place = [...head.parentNode.children].indexOf(head);
        head.firstChild.click(); head.firstChild.click();
        const sorted = column(place), direction = head.getAttribute("aria-sort");
        const filter = part.querySelector("input");
        filter.value = "FRAUD"; filter.dispatchEvent(new Event("input"));
        return { sorted, direction, labels: column(3), heads: [...part.querySelectorAll("th")].length };
        """,
    )
    assert result.changes is not None
    amounts = sorted(result.changes["money"].to_pylist())
    assert seen["direction"] == "ascending"
    assert [float(text.replace(",", "")) for text in seen["sorted"]] == pytest.approx(amounts, rel=1e-3)
    frauds = sum(result.changes["fraud"].to_pylist())
    assert seen["labels"] == ["fraud"] * frauds


def test_effects_are_sums_over_payments() -> None:
    """Each figure of a day equals the sum over payments, counted one by one, over the days; its change the difference;
    its interval holds it."""
    decided = _decided()
    after = _flagged_from(decided, 0.03)
    found = {effect.figure: effect for effect in effects_of(decided, after, COST, rounds=100, seed=1)}
    rows = list(zip(decided.fraud, decided.money, decided.flagged, after.flagged, strict=True))

    def total(figure: str, side: int) -> float:
        value = 0.0
        for row in rows:
            fraud, amount, flagged = row[0], row[1], row[2 + side]
            if flagged:
                value += {
                    "flagged": 1,
                    "frauds_found": fraud,
                    "genuine_stopped": not fraud,
                    "fraud_money_caught": amount * fraud,
                    "genuine_money_stopped": amount * (not fraud),
                    "loss_prevented": amount * fraud * 0.8,
                    "cost_of_reviews": 4,
                    "cost_of_good_customers": 15 * (not fraud),
                    "money_saved": amount * 0.8 - 4 if fraud else -19,
                }[figure]
        return value / 20

    assert len(found) == 9
    for name, effect in found.items():
        assert effect.before == pytest.approx(total(name, 0))
        assert effect.after == pytest.approx(total(name, 1))
        assert effect.change == pytest.approx(effect.after - effect.before)
        assert effect.low is not None
        assert effect.high is not None
        assert effect.low <= effect.change <= effect.high
        assert effect.unit == ("payments" if name in ("flagged", "frauds_found", "genuine_stopped") else "EUR")
    parts = found["loss_prevented"].after - found["cost_of_reviews"].after - found["cost_of_good_customers"].after
    assert found["money_saved"].after == pytest.approx(parts)
    alone = {effect.figure: effect for effect in effects_of(None, after, None, rounds=0, seed=1)}
    assert set(alone) == set(found) - {"money_saved", "loss_prevented", "cost_of_reviews", "cost_of_good_customers"}
    assert all((effect.before, effect.low) == (0, None) for effect in alone.values())
    assert alone["flagged"].after == found["flagged"].after


@pytest.mark.parametrize(
    ("change", "low", "high", "wanted"),
    [
        (120.0, 80.0, 160.0, "policy instead of cards saves 120 EUR a day more (95 % interval 80 to 160)."),
        (-30.0, -50.0, -10.0, "policy instead of cards costs 30 EUR a day (95 % interval 10 to 50)."),
        (5.0, -10.0, 20.0, "(95 % interval -10 to 20; it includes 0, so no difference is shown)."),
        (5.0, None, None, "saves 5 EUR a day more (too few days for an interval)."),
    ],
)
def test_the_first_sentence_is_what_the_change_costs(
    change: float, low: float | None, high: float | None, wanted: str
) -> None:
    """Saved or costs, with the interval the same way round, and nothing is claimed that chance may have made."""
    counts = [Effect(name, "payments", 1, 3, 2, None, None) for name in ("flagged", "frauds_found", "genuine_stopped")]
    effects = [Effect("money_saved", "EUR", 200, 200 + change, change, low, high), *counts]
    sentences = sentences_of(effects, ["cards", "policy"], (1_000, 4, 2), COST)
    assert wanted in sentences[0]
    assert sentences[2].startswith("6 of 1,000 payments are decided otherwise")
    assert "4 EUR a review" in sentences[-1]
    without = sentences_of(counts, ["cards", "policy"], (1_000, 4, 2), None)
    assert without[0].startswith("policy instead of cards: each day 2 more payments are flagged (1 → 3)")
    assert "--cost" in without[-1]


def test_the_page_carries_the_licence_of_what_it_carries(tmp_path: Path) -> None:
    """A copy of uPlot goes with every report, and its licence with it."""
    text = _page(tmp_path, "empty").read_text()
    assert "The MIT License" in (UPLOT / "LICENSE").read_text()
    assert (UPLOT / "LICENSE").read_text() in text
    assert (UPLOT / "uPlot.iife.min.js").read_text() in text


def test_ci_installs_the_browser() -> None:
    """CI never skips the tests above."""
    text = (ROOT / ".ci/run").read_text()
    assert "command -v chromium" in text
    assert re.search(r"apt-get install [^#]*\bchromium\b", text, re.DOTALL)
