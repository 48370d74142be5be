"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page");
const colour = ["var(--a)", "var(--b)"], mark = ["a", "b"];
const tip = document.body.appendChild(make("div", { id: "tip" }));

function make(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "circle", "rect", "g"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  for (const child of children) node.append(child);
  return node;
}
function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Math.abs(value) >= 1000) return value.toLocaleString("en", { maximumFractionDigits: 0 });
  return Number.isInteger(value) ? String(value) : value.toPrecision(digits);
}
const words = (name) => name.replaceAll("_", " ").replace(/\b(auc|fpr|mcc)\b/g, (short) => short.toUpperCase());
// Round values of a scale, about `count` of them: steps of 1, 2 or 5 times a power of ten.
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}
const tick = (value) => Math.abs(value) >= 10000 ? `${number(value / 1000, 3)}k` : String(value);
function section(title, ...notes) {
  page.append(make("h2", {}, title));
  for (const note of notes) page.append(make("p", { class: "note" }, note));
}

// A table whose heads sort it. columns: [key, title, is text].
function table(rows, columns, parent = page) {
  const body = make("tbody");
  let sorted = null, up = false;
  function fill() {
    body.replaceChildren(...rows.map((row) => make("tr", {}, ...columns.map(([key, , text]) => {
      const value = row[key], many = Array.isArray(value);
      const shown = many ? value.join(", ") || "–" : text ? String(value ?? "–") : number(value);
      return make("td", many ? { class: "text many" } : text ? { class: "text" } : {}, shown);
    }))));
  }
  const head = make("tr", {}, ...columns.map(([key, title, text]) => {
    const cell = make("th", text ? { class: "text", scope: "col" } : { scope: "col" }, title);
    cell.addEventListener("click", () => {
      up = sorted === key ? !up : false;
      sorted = key;
      const rank = (v) => (v === null || v === undefined ? -Infinity : v);
      rows = [...rows].sort((x, y) => (rank(x[key]) < rank(y[key]) ? -1 : rank(x[key]) > rank(y[key]) ? 1 : 0) * (up ? 1 : -1));
      fill();
    });
    return cell;
  }));
  fill();
  parent.append(make("div", { class: rows.length > 40 ? "scroll long" : "scroll" }, make("table", {}, make("thead", {}, head), body)));
}

// Lines over one x: series is [{name, points: [[x, y, label]]}]; the pointer shows the nearest point.
function plot(title, series, options = {}) {
  const width = 500, height = 260, left = 56, right = 12, top = 10, bottom = 28;
  const all = series.flatMap((s) => s.points).filter((p) => p[1] !== null && (!options.log || p[0] > 0));
  if (!all.length) return make("figure");
  const fx = options.log ? Math.log10 : (v) => v;
  let [x0, x1] = [Math.min(...all.map((p) => fx(p[0]))), Math.max(...all.map((p) => fx(p[0])))];
  let [y0, y1] = [Math.min(0, ...all.map((p) => p[1])), Math.max(...all.map((p) => p[1])) || 1];
  if (options.diagonal) [x0, x1, y0, y1] = [0, 1, 0, 1];
  if (x0 === x1) x1 = x0 + 1;
  const X = (v) => left + ((fx(v) - x0) / (x1 - x0)) * (width - left - right);
  const Y = (v) => height - bottom - ((v - y0) / (y1 - y0)) * (height - top - bottom);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": title });
  for (const y of ticks(y0, y1, 5)) {
    svg.append(make("line", { class: "axis", x1: left, x2: width - right, y1: Y(y), y2: Y(y) }));
    svg.append(make("text", { x: left - 6, y: Y(y) + 4, "text-anchor": "end" }, tick(y)));
  }
  const round = options.x || options.log ? null : ticks(x0, x1, 5);
  const places = round ? round.map((x) => [X(x), tick(x)]) : [0, 0.5, 1].map((at) => {
    const raw = x0 + (x1 - x0) * at, value = options.log ? 10 ** raw : raw;
    return [left + at * (width - left - right), options.x ? options.x(value) : number(value, 2)];
  });
  for (const [x, shown] of places) {
    const anchor = x > width - right - 24 ? "end" : x < left + 24 ? "start" : "middle";
    svg.append(make("text", { x, y: height - 8, "text-anchor": anchor }, shown));
  }
  if (options.diagonal) svg.append(make("line", { class: "diagonal", x1: X(Math.max(x0, y0)), y1: Y(Math.max(x0, y0)), x2: X(Math.min(x1, y1)), y2: Y(Math.min(x1, y1)) }));
  series.forEach((s, i) => {
    const known = s.points.filter((p) => p[1] !== null && (!options.log || p[0] > 0));
    svg.append(make("path", { d: known.map((p, k) => `${k ? "L" : "M"}${X(p[0])} ${Y(p[1])}`).join(""), fill: "none", stroke: colour[i], "stroke-width": 1.8 }));
    if (known.length < 80) for (const p of known) svg.append(make("circle", { cx: X(p[0]), cy: Y(p[1]), r: 2.5, fill: colour[i] }));
  });
  const dot = svg.appendChild(make("circle", { r: 4, fill: "var(--ink)", visibility: "hidden" }));
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), px = ((event.clientX - box.left) * width) / box.width, py = ((event.clientY - box.top) * height) / box.height;
    let best = null, far = Infinity;
    series.forEach((s) => s.points.forEach((p) => {
      if (p[1] === null || (options.log && p[0] <= 0)) return;
      const d = (X(p[0]) - px) ** 2 + ((Y(p[1]) - py) ** 2) / 4;
      if (d < far) [far, best] = [d, [s, p]];
    }));
    if (!best) return;
    const [s, p] = best;
    dot.setAttribute("cx", X(p[0])); dot.setAttribute("cy", Y(p[1])); dot.setAttribute("visibility", "visible");
    tip.textContent = `${s.name}\n${p[2] ?? (options.x ? options.x(p[0]) : number(p[0]))}: ${number(p[1])}`;
    Object.assign(tip.style, { display: "block", left: `${event.clientX + 14}px`, top: `${event.clientY + 14}px` });
  });
  svg.addEventListener("pointerleave", () => { tip.style.display = "none"; dot.setAttribute("visibility", "hidden"); });
  return make("figure", {}, make("figcaption", {}, title), svg);
}
function plots(...figures) { page.append(make("div", { class: "plots" }, ...figures)); }
const each = (pick) => data.sides.map((side) => ({ name: side.name, points: pick(side) }));

page.append(make("h1", {}, data.title));
page.append(make("p", { class: "note" }, `${data.from} to ${data.until}: ${number(data.payments)} payments, of which ${number(data.matured)} have matured labels. Money in ${data.currency}.`));
for (const note of data.notes) page.append(make("p", { class: "note" }, note));
page.append(make("p", {}, ...data.sides.flatMap((side, i) => [make("strong", { class: mark[i] }, side.name), " "])));

section("Figures", "In brackets: 95 % intervals, customers drawn with replacement.");
{
  const names = Object.keys(data.sides[0].overall);
  const rows = names.map((name) => {
    const row = { name: words(name) };
    data.sides.forEach((side, i) => {
      const range = side.intervals[name];
      row[`s${i}`] = number(side.overall[name]) + (range ? ` [${number(range[0], 3)}, ${number(range[1], 3)}]` : "");
    });
    return row;
  });
  table(rows, [["name", "figure", true], ...data.sides.map((side, i) => [`s${i}`, side.name])]);
}

section("Day by day");
{
  const day = (v) => new Date(v).toISOString().slice(0, 10);
  const of = (key) => each((side) => side.days.map((d) => [Date.parse(d.name), d[key], d.name]));
  plots(...["average_precision", `card_precision_${data.cards}`, "flagged", "money_caught"].map((key) => plot(words(key), of(key), { x: day })));
}

section("Thresholds", "Move the slider: what each number of alerts a day would bring.");
{
  plots(
    plot("recall over alerts a day", each((side) => side.sweep.map((s) => [s.flagged_a_day, s.recall, `${number(s.flagged_a_day, 3)} a day`])), { log: true }),
    plot("precision over recall", each((side) => side.sweep.map((s) => [s.recall, s.precision, `recall ${number(s.recall, 3)}`]))),
    plot("money caught over money blocked", each((side) => side.sweep.map((s) => [s.money_blocked, s.money_caught, `blocked ${number(s.money_blocked)}`]))),
  );
  const longest = Math.max(...data.sides.map((side) => side.sweep.length));
  const slider = make("input", { type: "range", min: 0, max: longest - 1, value: Math.floor(longest / 2), "aria-label": "threshold" });
  const place = make("div");
  const keys = ["threshold", "flagged_a_day", "recall", "precision", "money_caught", "money_blocked"];
  const show = () => {
    place.replaceChildren();
    table(data.sides.map((side) => ({ name: side.name, ...side.sweep[Math.min(slider.value, side.sweep.length - 1)] })), [["name", "", true], ...keys.map((key) => [key, words(key)])], place);
  };
  slider.addEventListener("input", show);
  page.append(slider, place);
  show();
}

section("Calibration", "Where the line meets the diagonal, a score is the share of frauds.");
plots(plot("share of frauds over mean score", each((side) => side.calibration.map((c) => [c.score, c.fraud, `score ${number(c.score, 3)}, ${number(c.payments)} payments`])), { diagonal: true }));

section("Segments");
for (const kind of Object.keys(data.sides[0].segments)) {
  // The sides of a segment next to each other, for comparison.
  const names = [...new Set(data.sides.flatMap((side) => side.segments[kind].map((row) => row.name)))];
  const rows = names.flatMap((name) => data.sides.flatMap((side) => side.segments[kind].filter((row) => row.name === name).map((row) => ({ side: side.name, ...row }))));
  page.append(make("h3", {}, words(kind)));
  const keys = ["payments", "frauds", "average_precision", "auc", "flagged", "recall", "precision", "money_caught", "money_blocked"];
  table(rows, [["name", words(kind), true], ...(data.sides.length > 1 ? [["side", "", true]] : []), ...keys.map((key) => [key, words(key)])]);
}

if (data.sides.some((side) => side.drift.length)) {
  section("Drift", "Population stability index against the payments before the window: above 0.1 a shift, above 0.25 a large one.");
  for (const side of data.sides) table(side.drift, [["feature", `feature (${side.name})`, true], ["psi", "PSI"]]);
}

if (data.sides.length > 1) {
  section("What would have changed", `${number(data.changes_all)} payments are decided otherwise` + (data.changes_all > data.changes.length ? `; the ${number(data.changes.length)} with most money are shown, all are in changes.parquet.` : "."));
  const rows = data.changes.map((c) => ({ ...c, event_time: c.event_time.slice(0, 19).replace("T", " "), change: `${c.decision_before} → ${c.decision_after}`, fraud: c.fraud === null ? "not known" : c.fraud ? "fraud" : "genuine" }));
  const filter = make("input", { type: "search", placeholder: "payment, reason, fraud …", "aria-label": "filter" });
  const place = make("div");
  const columns = [["payment_id", "payment", true], ["event_time", "time, UTC", true], ["money", "money"], ["fraud", "label", true], ["change", "change", true], ["score_before", "score before"], ["score_after", "score after"], ["reasons_before", "reasons before", true], ["reasons_after", "reasons after", true], ["fired_before", "rules before", true], ["fired_after", "rules after", true]];
  const show = () => {
    const wanted = filter.value.toLowerCase();
    place.replaceChildren();
    table(rows.filter((row) => JSON.stringify(row).toLowerCase().includes(wanted)), columns, place);
  };
  filter.addEventListener("input", show);
  page.append(filter, place);
  show();
}
