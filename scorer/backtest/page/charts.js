// Charts by uPlot: lines of one or two sides over one x, the same for pointer, keyboard and screen reader.
const DAY_MS = 86400000, HEIGHT = 250;
const charts = new Set();  // functions that draw one, first and again
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const COLOURS = ["--a", "--b"], MARKS = ["a", "b"], DASHES = [[], [7, 4]];
const FONT = "12px system-ui, sans-serif";

// How an axis shows its values: in ticks and in the line below the chart.
const SHOWN = {
  number: { tick: (value) => (Math.abs(value) >= 10000 ? `${number(value / 1000, 4)}k` : number(value)), exact: (value) => number(value) },
  share: { tick: (value) => percent(value), exact: (value) => percent(value) },
  day: { tick: (value) => dayName(value, false), exact: (value) => dayName(value) },
};

// Points in order of x with a known y; equal x are set apart by less than can be seen, so that none of them is lost.
function ascending(points, positive) {
  const known = points.filter(([x, y]) => isKnown(x) && isKnown(y) && (!positive || x > 0)).sort((p, q) => p[0] - q[0]);
  const apart = (known.length ? known.at(-1)[0] - known[0][0] || 1 : 1) * 1e-9;
  let last = -Infinity;
  return known.map(([x, y]) => {
    const at = x > last ? x : last + apart;
    last = at;
    return { at, x, y };
  });
}

// Days in steps of one to many, from the first on, as many as have room.
function dayTicks(from, until, room) {
  const step = [1, 2, 7, 14, 28, 56, 91, 182, 364].find((days) => (until - from) / (days * DAY_MS) <= room) ?? 728;
  const first = Math.ceil(from / DAY_MS), found = [];
  for (let day = first; day * DAY_MS <= until; day += step) found.push(day * DAY_MS);
  return found;
}

function axis(spec, ofX) {
  const shown = SHOWN[spec.kind === "log" ? "number" : spec.kind];
  const made = {
    label: spec.title, labelFont: FONT, labelSize: 20, labelGap: 2, font: FONT, gap: 4,
    stroke: () => colour("--soft"),
    grid: { stroke: () => colour("--line"), width: 1 },
    ticks: { stroke: () => colour("--line"), width: 1, size: 4 },
    // What a log scale leaves unlabelled is null.
    values: (u, splits) => splits.map((value) => (isKnown(value) ? shown.tick(value) : "")),
    space: ofX ? 64 : 36,
  };
  if (ofX) made.size = 30;
  else made.size = (u, values) => Math.max(30, ...(values ?? []).map((text) => text.length * 7 + 12));
  if (spec.kind === "day") {
    made.splits = (u, index, from, until) => dayTicks(from, until, Math.max(2, Math.floor(u.bbox.width / devicePixelRatio / 50)));
    made.values = (u, splits) => splits.map((value, i) => {
      const year = new Date(value).getUTCFullYear();
      return i === 0 || new Date(splits[i - 1]).getUTCFullYear() !== year ? `${dayName(value, false)}\n${year}` : dayName(value, false);
    });
    made.size = 44;
  }
  return made;
}

function scale(spec, values) {
  if (spec.kind === "log") return { time: false, distr: 3 };
  if (spec.range) return { time: false, range: spec.range };
  const low = Math.min(...values), high = Math.max(...values);
  if (spec.kind === "day") return { time: false, range: [low - DAY_MS / 2, high + DAY_MS / 2] };
  return { time: false, range: (u, from, until) => uPlot.rangeNum(Math.min(0, from), until > 0 || from < 0 ? until : 1, 0.08, true) };
}

// A figure: spec is {title, x, y, series: [{name, points: [[x, y]]}], diagonal}; x and y are {title, kind, range},
// kind one of number, share, day, log.
function chart(spec) {
  const lines = spec.series.map((line, side) => ({ name: line.name, side, points: ascending(line.points, spec.x.kind === "log") }));
  const caption = make("figcaption", {}, spec.title);
  const figure = make("figure", {}, caption);
  const drawn = lines.filter((line) => line.points.length);
  if (!drawn.length) {
    figure.append(make("p", { class: "note" }, "Nothing to draw: no such figure is defined here."));
    return figure;
  }
  caption.append(make("span", { class: "keys" }, ...drawn.map((line) => make("span", { class: `key ${MARKS[line.side]}` }, line.name))));
  const stops = [...new Set(drawn.flatMap((line) => line.points.map((point) => point.at)))].sort((x, y) => x - y);
  const ends = spec.diagonal ? [...new Set([0, ...stops, 1])].sort((x, y) => x - y) : stops;
  const data = [ends, ...drawn.map((line) => {
    const there = new Map(line.points.map((point) => [point.at, point.y]));
    return ends.map((x) => there.get(x) ?? null);
  })];
  if (spec.diagonal) data.push(ends);
  const ys = drawn.flatMap((line) => line.points.map((point) => point.y));

  // A slider for screen readers: the arrow keys go from point to point.
  const place = make("div", {
    class: "chart", tabindex: 0, role: "slider", "aria-orientation": "horizontal", "aria-valuemin": 0, "aria-valuemax": stops.length - 1,
    "aria-valuenow": 0, "aria-label": `${spec.title}: ${spec.y.title} over ${spec.x.title}`,
  });
  const hint = "Point at the chart, or focus it and use the arrow keys.";
  const readout = make("p", { class: "readout", "aria-hidden": "true" }, hint);
  figure.append(place, readout);
  const ofX = SHOWN[spec.x.kind === "log" ? "number" : spec.x.kind], ofY = SHOWN[spec.y.kind];
  let current = 0;

  // Of each line the point nearest to x: lines of two sides need not have points at the same x.
  function text(x) {
    const near = drawn.map((line) => [line, line.points.reduce((best, point) => (Math.abs(point.at - x) < Math.abs(best.at - x) ? point : best))]);
    const same = near.every(([, point]) => ofX.exact(point.x) === ofX.exact(near[0][1].x));
    const values = near.map(([line, point]) => `${line.name}: ${same ? "" : `${ofX.exact(point.x)}, `}${ofY.exact(point.y)}`);
    return (same ? `${spec.x.title} ${ofX.exact(near[0][1].x)} – ` : "") + values.join("; ");
  }
  function showAt(x) {
    current = stops.reduce((best, stop, i) => (Math.abs(stop - x) < Math.abs(stops[best] - x) ? i : best), 0);
    const shown = text(stops[current]);
    readout.textContent = shown;
    place.setAttribute("aria-valuenow", current);
    place.setAttribute("aria-valuetext", shown);
  }

  let plot = null;
  const width = () => Math.max(240, place.clientWidth);
  function draw() {
    plot?.destroy();
    plot = new uPlot({
      width: width(), height: HEIGHT, legend: { show: false }, pxAlign: 0,
      scales: { x: scale(spec.x, stops), y: scale(spec.y, ys) },
      axes: [axis(spec.x, true), axis(spec.y, false)],
      cursor: { y: false, drag: { x: false, y: false } },
      series: [
        {},
        ...drawn.map((line) => ({
          label: line.name, stroke: () => colour(COLOURS[line.side]), width: 2, dash: DASHES[line.side], spanGaps: true,
          points: { show: line.points.length < 80, size: 6, fill: () => colour(COLOURS[line.side]) },
        })),
        ...(spec.diagonal ? [{ label: "score = share", stroke: () => colour("--soft"), width: 1, dash: [3, 4], points: { show: false } }] : []),
      ],
      hooks: {
        setCursor: [(u) => {
          if (isKnown(u.cursor.idx) && u.cursor.left >= 0) showAt(ends[u.cursor.idx]);
          else readout.textContent = hint;
        }],
      },
    }, data, place);
  }
  function moveTo(index) {
    current = Math.max(0, Math.min(stops.length - 1, index));
    plot?.setCursor({ left: plot.valToPos(stops[current], "x"), top: 0 });
    showAt(stops[current]);
  }
  const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageUp: 10, PageDown: -10, Home: -Infinity, End: Infinity };
  place.addEventListener("keydown", (event) => {
    if (event.key === "Escape") plot?.setCursor({ left: -10, top: -10 });
    if (!(event.key in steps)) return;
    event.preventDefault();
    moveTo(current + steps[event.key]);
  });
  place.addEventListener("focus", () => moveTo(current));
  place.addEventListener("blur", () => plot?.setCursor({ left: -10, top: -10 }));
  showAt(stops[0]);
  readout.textContent = hint;
  // In the next frame: a size set within an observer is seen by it again.
  new ResizeObserver(() => requestAnimationFrame(() => {
    if (plot !== null && plot.width !== width()) plot.setSize({ width: width(), height: HEIGHT });
  })).observe(place);
  charts.add(draw);
  return figure;
}
// Colours are those of the page, which follow the system's.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((draw) => draw()));
