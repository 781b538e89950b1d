// The page of all queues.

import { follow } from "./api.js";
import { h, oneLine, replace, setText } from "./dom.js";
import { age, bytes, count, counted, rate } from "./format.js";
import { fact, finding, findingsKey, freshness, levelOf, meter, showState, sparkline } from "./parts.js";

const RANK = { error: 0, warning: 1, waiting: 2, ok: 3, idle: 3 };
const FINDINGS_MAX = 12;

/** Show all queues in an element; return a function that ends it. */
export function overview(main, onState) {
  document.title = "Queues · persipubsub";
  const totals = Object.fromEntries(["queues", "backlog", "in /s", "out /s", "dead letters"].map((name) => [name, fact(name)]));
  const attention = h("section", { class: "attention", "aria-live": "polite" });
  const filter = h("input", { type: "search", id: "filter", placeholder: "Filter", "aria-label": "Filter queues by name" });
  const cards = new Map();
  const grid = h("div", { class: "cards" });
  replace(main,
    h("h1", { class: "hidden" }, "Queues"),
    h("dl", { class: "totals" }, Object.values(totals).map((one) => one.element)),
    attention,
    h("div", { class: "head" }, h("h2", {}, "Queues"), filter),
    grid);
  let latest = null;
  const draw = () => latest && show(latest);

  function show({ now_s, queues }) {
    showTotals(totals, queues);
    showAttention(attention, queues);
    const order = queues.map((queue, index) => [RANK[levelOf(queue)], index, queue]);
    order.sort((one, other) => one[0] - other[0] || one[1] - other[1]);
    const wanted = filter.value.toLowerCase();
    const shown = [];
    for (const [, , queue] of order) {
      if (!cards.has(queue.id)) {
        cards.set(queue.id, card(queue));
      }
      const one = cards.get(queue.id);
      one.update(queue, now_s);
      if (queue.location.toLowerCase().includes(wanted)) {
        shown.push(one.element);
      }
    }
    // Only if the order has changed: otherwise the focus would be lost.
    if (shown.length !== grid.children.length || shown.some((one, index) => grid.children[index] !== one)) {
      const focused = document.activeElement;
      replace(grid, shown);
      focused?.focus?.({ preventScroll: true });
    }
  }

  const onKey = (event) => {
    if (event.key === "/" && document.activeElement !== filter && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      filter.focus();
    }
  };
  filter.addEventListener("input", draw);
  document.addEventListener("keydown", onKey);
  const stop = follow("api/events", (event) => {
    latest = event;
    draw();
  }, onState);
  return () => {
    stop();
    document.removeEventListener("keydown", onKey);
  };
}

function showTotals(totals, queues) {
  const sum = (name) => queues.reduce((all, queue) => all + (queue[name] || 0), 0);
  const dead = sum("dead_letters");
  totals.queues.update(count(queues.length));
  totals.backlog.update(count(sum("backlog")));
  totals["in /s"].update(rate(sum("sent_per_s")));
  totals["out /s"].update(rate(sum("taken_per_s")));
  totals["dead letters"].update(count(dead), false, dead ? "error" : "");
}

function showAttention(section, queues) {
  const all = queues.flatMap((queue) => queue.findings.map((one) => [queue, one]));
  all.sort((one, other) => (one[1].level !== "error") - (other[1].level !== "error"));
  const key = findingsKey(all.map(([queue, one]) => [queue.id, one]));
  if (section.dataset.key === key) {
    return;
  }
  section.dataset.key = key;
  if (!all.length) {
    replace(section, h("p", { class: "fine" }, h("span", { "aria-hidden": "true" }, "✓ "), "Nothing needs attention."));
    return;
  }
  const left = all.length - FINDINGS_MAX;
  replace(section,
    h("h2", {}, `Needs attention`, h("span", { class: "number" }, count(all.length))),
    h("ul", { class: "findings" }, all.slice(0, FINDINGS_MAX).map(([queue, one]) => finding(one, queue, true))),
    left > 0 ? h("p", { class: "quiet" }, `and ${counted(left, "more")} on the pages of the queues`) : null);
}

function card(queue) {
  const state = h("span", {});
  const backlog = h("span", { class: "big" });
  const limit = h("span", { class: "quiet" });
  const note = h("p", { class: "note" });
  const spark = sparkline();
  const messages = meter("Messages of the limit");
  const size = meter("Bytes of the limit");
  const facts = {
    sent: fact("in /s", "Messages sent per second"),
    taken: fact("out /s", "Messages acknowledged per second, by all subscribers"),
    oldest: fact("oldest", "Age of the oldest message that a subscriber awaits"),
    flight: fact("in flight", "Messages that workers hold, or that wait for a retry"),
    dead: fact("dead letters", "Messages that were not acknowledged in any of the allowed deliveries"),
    delayed: fact("delayed", "Messages that are not due yet"),
    retained: fact("retained", "Messages that everyone has acknowledged, kept for the retention"),
    reader: fact("oldest reader", "Commits since the oldest current read began"),
  };
  const body = h("div", { class: "card-body" },
    h("div", { class: "backlog" }, h("div", {}, backlog, h("span", { class: "quiet" }, " backlog"), h("br"), limit), spark.element),
    messages.element, size.element,
    h("dl", { class: "facts" }, Object.values(facts).map((one) => one.element)));
  const element = h("article", { class: "card" },
    h("div", { class: "card-head" },
      h("div", { class: "names" },
        h("h3", {}, h("a", { href: `#/queues/${queue.id}`, class: "cover" }, h("bdi", {}, oneLine(queue.name)))),
        h("bdi", { class: "path", title: oneLine(queue.location) }, oneLine(queue.location))),
      state),
    body, note);

  function update(now, now_s) {
    element.dataset.level = levelOf(now);
    showState(state, now);
    body.hidden = now.backlog === undefined;
    setText(note, noteOf(now, now_s));
    if (body.hidden) {
      return;
    }
    setText(backlog, count(now.backlog));
    setText(limit, limitText(now));
    messages.update(now.messages, now.max_messages);
    size.update(now.size_bytes, now.max_bytes);
    spark.update(now.trend);
    facts.sent.update(rate(now.sent_per_s), !now.sent_per_s);
    facts.taken.update(rate(now.taken_per_s), !now.taken_per_s);
    facts.oldest.update(age(now.oldest_s), now.oldest_s === null);
    facts.flight.update(count(now.in_flight), !now.in_flight);
    facts.dead.update(count(now.dead_letters), !now.dead_letters, "error");
    facts.delayed.update(count(now.delayed), !now.delayed);
    facts.retained.update(count(now.retained), !now.retained);
    facts.reader.update(count(now.reader_lag), now.reader_lag < 1000, "warning");
  }
  return { element, update };
}

function limitText(queue) {
  const limits = [];
  if (queue.max_messages !== null) {
    limits.push(`${count(queue.messages)} of ${count(queue.max_messages)} stored`);
  }
  if (queue.max_bytes !== null) {
    limits.push(`${bytes(queue.size_bytes)} of ${bytes(queue.max_bytes)}`);
  }
  return limits.length ? limits.join(", ") : `${bytes(queue.size_bytes)}, no limit`;
}

function noteOf(queue, now_s) {
  if (queue.backlog === undefined) {
    return queue.findings.length ? oneLine(queue.findings[0].text) : "Reading for the first time.";
  }
  const parts = [];
  if (queue.laggard !== null) {
    parts.push(`${oneLine(queue.laggard.name)} lags most: ${count(queue.laggard.pending)} pending`);
  } else if (queue.subscriber_count) {
    parts.push(`${counted(queue.subscriber_count, "subscriber")}, none lags`);
  }
  const fresh = freshness(queue, now_s);
  return parts.concat(fresh || []).join(" · ");
}
