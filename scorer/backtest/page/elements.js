// Elements, numbers and tables. Whatever came from payments, rules or bundles gets into the page as text alone.
function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  for (const child of children) node.append(child);
  return node;
}

const isKnown = (value) => value !== null && value !== undefined;

// Three or four digits that matter; whole from a thousand on.
function number(value, digits = 4) {
  if (!isKnown(value)) return "–";
  if (typeof value !== "number") return String(value);
  if (Math.abs(value) >= 1000) return value.toLocaleString("en", { maximumFractionDigits: 0 });
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(digits)));
}
const signed = (value, digits) => (value > 0 ? "+" : value < 0 ? "−" : "±") + number(Math.abs(value), digits);
const percent = (share, digits = 3) => (isKnown(share) ? `${number(share * 100, digits)} %` : "–");
const interval = (low, high, show = (v) => number(v, 3)) => (isKnown(low) && isKnown(high) ? `${show(low)} to ${show(high)}` : "");

const words = (name) => name.replaceAll("_", " ").replace(/\b(auc|fpr|mcc)\b/g, (short) => short.toUpperCase());
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
// Of milliseconds since 1970, UTC: 12 Feb, with the year where it is wanted.
function dayName(ms, withYear = true) {
  const date = new Date(ms), text = `${date.getUTCDate()} ${MONTHS[date.getUTCMonth()]}`;
  return withYear ? `${text} ${date.getUTCFullYear()}` : text;
}

function section(parent, title, ...notes) {
  const place = make("section", { "aria-label": title }, make("h2", {}, title));
  for (const note of notes) place.append(make("p", { class: "note" }, note));
  return parent.appendChild(place);
}

// A table whose heads sort it. columns: [key, title, is text].
function table(parent, title, rows, columns) {
  const body = make("tbody");
  let sorted = null, up = false;
  function fill() {
    body.replaceChildren(...rows.map((row) => make("tr", {}, ...columns.map(([key, , text]) => {
      const value = row[key], many = Array.isArray(value);
      const shown = many ? value.join(", ") || "–" : text ? String(value ?? "–") : number(value);
      return make("td", { class: many ? "text many" : text ? "text" : "number" }, shown);
    }))));
  }
  const heads = columns.map(([key, name, text]) => {
    const button = make("button", { type: "button" }, name);
    const cell = make("th", { scope: "col", class: text ? "text" : "number" }, name ? button : "");
    button.addEventListener("click", () => {
      up = sorted === key ? !up : false;
      sorted = key;
      const rank = (value) => (isKnown(value) ? value : -Infinity);
      rows = [...rows].sort((x, y) => (rank(x[key]) < rank(y[key]) ? -1 : rank(x[key]) > rank(y[key]) ? 1 : 0) * (up ? 1 : -1));
      for (const head of heads) head.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", up ? "ascending" : "descending");
      fill();
    });
    return cell;
  });
  fill();
  // Focusable, so that the arrow keys scroll it.
  parent.append(make("div", { class: rows.length > 40 ? "scroll long" : "scroll", tabindex: 0, role: "region", "aria-label": title },
    make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body)));
}
