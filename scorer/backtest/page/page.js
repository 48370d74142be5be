// The page, section by section, from the data beside it.
const data = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page");
const two = data.sides.length > 1;
const each = (pick) => data.sides.map((side) => ({ name: side.name, points: pick(side) }));
const money = { title: data.currency, kind: "number" };
const share = (title) => ({ title, kind: "share" });

page.append(make("h1", {}, data.title));
page.append(make("p", { class: "note" }, `${dayName(Date.parse(data.from))} to ${dayName(Date.parse(data.until))}: ${number(data.payments)} payments, of which ${number(data.matured)} have matured labels. Money in ${data.currency}.`));

{
  const place = section(page, "If this goes live");
  data.summary.forEach((text, i) => place.append(make("p", i === 0 ? { class: "lead" } : i === data.summary.length - 1 ? { class: "note" } : {}, text)));
  const names = {
    flagged: "payments flagged", frauds_found: "frauds found", genuine_stopped: "genuine payments stopped",
    fraud_money_caught: "fraud caught", genuine_money_stopped: "genuine amounts stopped", loss_prevented: "loss prevented",
    cost_of_reviews: "cost of reviews", cost_of_good_customers: "cost of good customers stopped", money_saved: "saved, after all costs",
  };
  const cards = data.effects.map((effect) => {
    const unit = effect.unit === "payments" ? "" : ` ${effect.unit}`;
    const certain = isKnown(effect.low) && (effect.low > 0 || effect.high < 0);
    const value = make("dd", { class: "value" }, `${two ? signed(effect.change, 3) : number(effect.after, 3)}${unit}`);
    if (effect.figure === "money_saved" && certain) value.classList.add(effect.change > 0 ? "good" : "bad");
    const card = make("div", { class: "card" }, make("dt", {}, `${names[effect.figure] ?? words(effect.figure)}, a day`), value);
    if (two) card.append(make("dd", {}, `${number(effect.before, 3)} → ${number(effect.after, 3)}${unit}`));
    if (isKnown(effect.low)) card.append(make("dd", {}, `95 %: ${interval(effect.low, effect.high, (v) => (two ? signed(v, 3) : number(v, 3)))}`));
    return card;
  });
  if (cards.length) place.append(make("dl", { class: "cards" }, ...cards));
  place.append(make("p", { class: "note" }, `Means over days with matured labels${two ? `; before: ${data.sides[0].name}, after: ${data.sides[1].name}` : ""}.`));
}
for (const note of data.notes) page.append(make("p", { class: "note" }, note));

{
  const place = section(page, "Figures", "In brackets: 95 % intervals, drawn with replacement: customers drawn; money saved: days drawn.");
  const rows = Object.keys(data.sides[0].overall).map((name) => {
    const row = { name: words(name) };
    data.sides.forEach((side, i) => {
      const range = side.intervals[name];
      row[`s${i}`] = number(side.overall[name]) + (range ? ` [${interval(range[0], range[1])}]` : "");
    });
    return row;
  });
  table(place, "Figures", rows, [["name", "figure", true], ...data.sides.map((side, i) => [`s${i}`, side.name])]);
}

{
  const place = section(page, "Day by day");
  const of = (key) => each((side) => side.days.map((day) => [Date.parse(day.name), day[key]]));
  const x = { title: "day (UTC)", kind: "day" };
  place.append(make("div", { class: "charts" },
    chart({ title: "Payments flagged", x, y: { title: "payments a day", kind: "number" }, series: of("flagged") }),
    chart({ title: "Fraud caught", x, y: { title: `${data.currency} a day`, kind: "number" }, series: of("money_caught") }),
    chart({ title: "Genuine amounts stopped", x, y: { title: `${data.currency} a day`, kind: "number" }, series: of("money_blocked") }),
    chart({ title: "Average precision", x, y: { title: "average precision, 0 to 1", kind: "number", range: [0, 1] }, series: of("average_precision") }),
    chart({ title: `Frauds among the ${data.cards} riskiest cards`, x, y: { ...share("share of the cards"), range: [0, 1] }, series: of(`card_precision_${data.cards}`) }),
  ));
}

{
  const place = section(page, "Thresholds", "What each number of alerts a day would bring, by score alone. The slider shows one in numbers.");
  place.append(make("div", { class: "charts" },
    chart({ title: "Frauds found", x: { title: "alerts a day", kind: "log" }, y: { ...share("share of frauds found (recall)"), range: [0, 1] }, series: each((side) => side.sweep.map((s) => [s.flagged_a_day, s.recall])) }),
    chart({ title: "Alerts that are fraud", x: { ...share("share of frauds found (recall)"), range: [0, 1] }, y: { ...share("share of alerts (precision)"), range: [0, 1] }, series: each((side) => side.sweep.map((s) => [s.recall, s.precision])) }),
    chart({ title: "Fraud caught, genuine stopped", x: { ...money, title: `genuine amounts stopped, ${data.currency}` }, y: { ...money, title: `fraud caught, ${data.currency}` }, series: each((side) => side.sweep.map((s) => [s.money_blocked, s.money_caught])) }),
  ));
  const longest = Math.max(0, ...data.sides.map((side) => side.sweep.length));
  if (longest) {
    const slider = make("input", { type: "range", min: 0, max: longest - 1, value: Math.floor(longest / 2), "aria-label": "threshold" });
    const numbers = make("div");
    const keys = ["threshold", "flagged_a_day", "recall", "precision", "money_caught", "money_blocked"];
    const show = () => {
      numbers.replaceChildren();
      const rows = data.sides.filter((side) => side.sweep.length).map((side) => ({ name: side.name, ...side.sweep[Math.min(slider.value, side.sweep.length - 1)] }));
      slider.setAttribute("aria-valuetext", `${number(rows[0].flagged_a_day, 3)} alerts a day`);
      table(numbers, "This threshold", rows, [["name", "side", true], ...keys.map((key) => [key, words(key)])]);
    };
    slider.addEventListener("input", show);
    place.append(slider, numbers);
    show();
  }
}

{
  const place = section(page, "Calibration", "Where the line meets the diagonal, a score is the share of frauds.");
  place.append(make("div", { class: "charts" }, chart({
    title: "Scores and frauds", x: { title: "mean score", kind: "number", range: [0, 1] }, y: { ...share("share of frauds"), range: [0, 1] }, diagonal: true,
    series: each((side) => side.calibration.map((bin) => [bin.score, bin.fraud])),
  })));
}

if (Object.keys(data.sides[0].segments).length) {
  const place = section(page, "Segments");
  for (const kind of Object.keys(data.sides[0].segments)) {
    // The sides of a segment next to each other, for comparison.
    const names = [...new Set(data.sides.flatMap((side) => side.segments[kind].map((row) => row.name)))];
    const rows = names.flatMap((name) => data.sides.flatMap((side) => side.segments[kind].filter((row) => row.name === name).map((row) => ({ side: side.name, ...row }))));
    place.append(make("h3", {}, words(kind)));
    const keys = ["payments", "frauds", "average_precision", "auc", "flagged", "recall", "precision", "money_caught", "money_blocked"];
    table(place, words(kind), rows, [["name", words(kind), true], ...(two ? [["side", "side", true]] : []), ...keys.map((key) => [key, words(key)])]);
  }
}

if (data.sides.some((side) => side.drift.length)) {
  const place = section(page, "Drift", "Population stability index against the payments before the window: above 0.1 a shift, above 0.25 a large one.");
  for (const side of data.sides) table(place, `Drift, ${side.name}`, side.drift, [["feature", `feature (${side.name})`, true], ["psi", "PSI"]]);
}

if (two) {
  const place = section(page, "Payments decided otherwise", `${number(data.changes_all)} payments` + (data.changes_all > data.changes.length ? `; the ${number(data.changes.length)} with most money are shown, all are in changes.parquet.` : "."));
  const rows = data.changes.map((c) => ({ ...c, event_time: c.event_time.slice(0, 19).replace("T", " "), change: `${c.decision_before} → ${c.decision_after}`, fraud: c.fraud === null ? "not known" : c.fraud ? "fraud" : "genuine" }));
  const filter = make("input", { type: "search", placeholder: "payment, reason, fraud …", "aria-label": "filter" });
  const shown = make("div");
  const columns = [["payment_id", "payment", true], ["event_time", "time, UTC", true], ["money", data.currency], ["fraud", "label", true], ["change", "change", true], ["score_before", "score before"], ["score_after", "score after"], ["reasons_before", "reasons before", true], ["reasons_after", "reasons after", true], ["fired_before", "rules before", true], ["fired_after", "rules after", true]];
  const show = () => {
    const wanted = filter.value.toLowerCase();
    shown.replaceChildren();
    table(shown, "Payments decided otherwise", rows.filter((row) => Object.values(row).flat().join(" ").toLowerCase().includes(wanted)), columns);
  };
  filter.addEventListener("input", show);
  place.append(filter, shown);
  show();
}

charts.forEach((draw) => draw());
