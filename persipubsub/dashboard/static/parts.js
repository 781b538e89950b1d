// Parts that both pages show: the state of a queue, findings, and small graphs.

import { h, oneLine, replace, setText, svg } from "./dom.js";
import { age, count } from "./format.js";

// The shape of the sign tells as much as its colour.
const SIGNS = { ok: "●", idle: "○", waiting: "…", warning: "▲", error: "■" };
const WORDS = { ok: "active", idle: "idle", waiting: "reading", warning: "warning", error: "trouble" };

/** Return how severe the state of a queue is: ok, idle, waiting, warning or error. */
export function levelOf(queue) {
  if (queue.state === "ok") {
    return queue.sent_per_s || queue.taken_per_s ? "ok" : "idle";
  }
  return queue.state in SIGNS ? queue.state : "error";
}

/** Show the state of a queue in an element. */
export function showState(element, queue) {
  const level = levelOf(queue);
  element.className = `state ${level}`;
  const word = queue.state in SIGNS ? WORDS[level] : queue.state;
  replace(element, h("span", { "aria-hidden": "true" }, SIGNS[level]), ` ${word}`);
}

/** Return a list item for a finding. */
export function finding(one, queue, withQueue) {
  const where = one.subscriber === null ? null : h("bdi", {}, oneLine(one.subscriber));
  const name = withQueue ? h("a", { href: `#/queues/${queue.id}` }, h("bdi", {}, oneLine(queue.name))) : null;
  return h("li", { class: `finding ${one.level}` },
    h("div", { class: "finding-head" },
      h("span", { class: "kind" }, h("span", { "aria-hidden": "true" }, SIGNS[one.level]), ` ${one.kind}`),
      h("span", { class: "who" }, name, name && where && " › ", where)),
    h("p", {}, oneLine(one.text)));
}

/** Return a key that changes only if what findings show changes: lists are not rebuilt without need. */
export function findingsKey(findings) {
  return JSON.stringify(findings);
}

/** Return a meter that shows a share of a limit. */
export function meter(label) {
  const bar = h("div", { class: "bar-fill" });
  const element = h("div", { class: "meter", role: "meter", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 }, bar);
  return {
    element,
    update(value, limit) {
      element.hidden = limit === null || limit === undefined;
      const share = element.hidden ? 0 : Math.min(1, value / limit);
      bar.style.width = `${share * 100}%`;
      element.setAttribute("aria-valuenow", Math.round(share * 100));
      element.setAttribute("aria-valuetext", `${count(value)} of ${count(limit)}`);
      element.dataset.high = share >= 0.9 ? "full" : share >= 0.7 ? "high" : "low";
    },
  };
}

/** Return a small graph of the latest values. */
export function sparkline() {
  const line = svg("polyline", { class: "spark-line", "vector-effect": "non-scaling-stroke" });
  const area = svg("polygon", { class: "spark-area" });
  const element = svg("svg", { class: "spark", viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" }, area, line);
  return {
    element,
    update(values) {
      const most = Math.max(...values, 1);
      const step = 100 / Math.max(values.length - 1, 1);
      const points = values.map((value, index) => `${(index * step).toFixed(1)},${(28 - value / most * 26).toFixed(1)}`);
      line.setAttribute("points", points.join(" "));
      area.setAttribute("points", points.length ? `0,30 ${points.join(" ")} ${((values.length - 1) * step).toFixed(1)},30` : "");
    },
  };
}

/** Return a figure with its name. */
export function fact(name, hint) {
  const value = h("dd", {});
  return {
    element: h("div", { class: "fact", title: hint }, h("dt", {}, name), value),
    update(text, quiet, level = "") {
      setText(value, text);
      value.className = quiet ? "zero" : level;
    },
  };
}

/** Return how long ago a queue was read or written to, if that is worth a word. */
export function freshness(queue, now_s) {
  if (queue.read_s !== undefined && now_s - queue.read_s > 5) {
    return `numbers of ${age(now_s - queue.read_s)} ago`;
  }
  if (queue.last_sent_s && now_s - queue.last_sent_s > 60) {
    return `nothing sent for ${age(now_s - queue.last_sent_s)}`;
  }
  return "";
}
