// Plots of the last hour, by uPlot.

import { h, oneLine, replace } from "./dom.js";
import { age, count, rate } from "./format.js";

const SLOT_S = 5;
const SLOTS_MAX = 720;
const SHORTEST_S = 300;
const LINES_MAX = 5;
// Steps between the lines of a plot that counts things.
const STEPS = Array.from({ length: 16 }, (_, power) => [1, 2, 5].map((one) => one * 10 ** power)).flat();

// Of a sample.
const [TIME, BACKLOG, SENT, TAKEN, OLDEST, IN_FLIGHT, DEAD, PENDING] = [0, 1, 2, 3, 4, 5, 6, 7];

/** Return the samples of a queue, to which those of an event are added. */
export function newSamples() {
  const samples = [];
  return {
    all: samples,
    add(more) {
      for (const one of more) {
        const last = samples[samples.length - 1];
        if (last && Math.floor(last[TIME] / SLOT_S) === Math.floor(one[TIME] / SLOT_S)) {
          samples.pop();
        }
        if (last && (one[TIME] < last[TIME] || one[SENT] < last[SENT])) {
          samples.length = 0;  // the queue was made anew
        }
        samples.push(one);
      }
      samples.splice(0, samples.length - SLOTS_MAX);
    },
  };
}

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function rates(samples, column) {
  return samples.map((one, index) => {
    const before = samples[index - 1];
    const elapsed_s = before ? one[TIME] - before[TIME] : 0;
    return elapsed_s <= 0 || elapsed_s > 4 * SLOT_S ? null : Math.max(0, one[column] - before[column]) / elapsed_s;
  });
}

const column = (number) => (samples) => samples.map((one) => one[number]);

/** Return the names of the subscribers that lag most in the last sample. */
function lagging(samples) {
  const last = samples.length ? samples[samples.length - 1][PENDING] : {};
  return Object.keys(last).sort((one, other) => last[other] - last[one] || (one < other ? -1 : 1)).slice(0, LINES_MAX);
}

const PLOTS = [
  {
    title: "Pending, by subscriber", text: count,
    lines: (samples) => lagging(samples).map((name) => [oneLine(name), (all) => all.map((one) => one[PENDING][name] ?? null)]),
  },
  {
    title: "Messages per second", text: rate,
    lines: () => [["sent", (all) => rates(all, SENT)], ["acknowledged", (all) => rates(all, TAKEN)]],
  },
  { title: "Age of the oldest message", text: age, lines: () => [["oldest", column(OLDEST)]] },
  { title: "In flight and dead letters", text: count, lines: () => [["in flight", column(IN_FLIGHT)], ["dead letters", column(DEAD)]] },
];

/** Return the plots of a queue, which are drawn by update(samples). */
export function newPlots() {
  const element = h("div", { class: "plots" });
  const drawn = PLOTS.map((plot) => {
    const figure = h("div", { class: "plot-area" });
    const legend = h("figcaption", {});
    element.append(h("figure", { class: "plot" }, h("h3", {}, plot.title), figure, legend));
    return { plot, figure, legend, chart: null, key: "" };
  });
  let latest = [];
  const redraw = () => {
    for (const one of drawn) {
      one.key = "";
    }
    update(latest);
  };
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", redraw);
  const resizing = new ResizeObserver(() => {
    for (const one of drawn) {
      one.chart?.setSize(sizeOf(one.figure));
    }
  });
  resizing.observe(element);

  function update(samples) {
    latest = samples;
    for (const one of drawn) {
      draw(one, samples);
    }
  }
  return {
    element,
    update,
    close() {
      scheme.removeEventListener("change", redraw);
      resizing.disconnect();
      drawn.forEach((one) => one.chart?.destroy());
    },
  };
}

function sizeOf(figure) {
  return { width: Math.max(figure.clientWidth, 100), height: 170 };
}

function draw(one, samples) {
  const lines = one.plot.lines(samples);
  const key = JSON.stringify(lines.map(([name]) => name));
  const data = [samples.map((sample) => sample[TIME]), ...lines.map(([, values]) => values(samples))];
  if (one.chart === null || one.key !== key) {
    one.chart?.destroy();
    one.key = key;
    one.chart = new window.uPlot(options(one, lines), data, one.figure);
  } else {
    one.chart.setData(data);
  }
  showLegend(one, lines, data, data[0].length - 1);
}

function options(one, lines) {
  const axis = { stroke: color("muted"), grid: { stroke: color("line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  return {
    ...sizeOf(one.figure),
    padding: [8, 8, 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
    scales: {
      x: { range: (_chart, least, most) => [Math.min(least, most - SHORTEST_S), most] },
      y: { range: (_chart, _least, most) => [0, Math.max(most || 0, 1) * 1.08] },
    },
    axes: [
      { ...axis, space: 46, values: (_chart, times) => times.map((at) => new Date(at * 1000).toLocaleTimeString("en-GB").slice(0, 5)) },
      { ...axis, size: 56, space: 36, ...(one.plot.text === count ? { incrs: STEPS } : {}), values: (_chart, values) => values.map(one.plot.text) },
    ],
    series: [{}, ...lines.map(([name], index) => ({
      label: name, stroke: color(`line-${index}`), width: 2, dash: index > 2 ? [6, 4] : [], fill: lines.length === 1 ? color("fill") : undefined,
      points: { show: false },
    }))],
    hooks: {
      setCursor: [(chart) => showLegend(one, lines, chart.data, chart.cursor.idx ?? chart.data[0].length - 1)],
    },
  };
}

function showLegend(one, lines, data, index) {
  const at = data[0][index];
  replace(one.legend, lines.map(([name], number) => h("span", { class: "key" },
    h("i", { class: `swatch line-${number}`, "aria-hidden": "true" }), h("bdi", {}, name), " ",
    h("b", {}, one.plot.text(data[number + 1][index])))),
  at === undefined ? null : h("span", { class: "at" }, new Date(at * 1000).toLocaleTimeString("en-GB")));
}
