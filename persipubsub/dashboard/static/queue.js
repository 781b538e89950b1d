// The page of one queue.

import { follow } from "./api.js";
import { h, oneLine, replace, setText } from "./dom.js";
import { age, bytes, count, rate } from "./format.js";
import { deadLettersPanel, messagesPanel } from "./messages.js";
import { fact, finding, findingsKey, freshness, meter, showState } from "./parts.js";
import { newPlots, newSamples } from "./plots.js";

/** Show a queue in an element; return a function that ends it. */
export function queuePage(main, id, session, onState) {
  const title = h("h1", {}, "Queue");
  const state = h("span", {});
  const path = h("bdi", { class: "path" });
  const note = h("p", { class: "note" });
  const findings = h("ul", { class: "findings", "aria-live": "polite" });
  const figures = newFigures();
  const plots = newPlots();
  const samples = newSamples();
  const messages = messagesPanel(id);
  const subscribers = subscribersTable(messages);
  const dead = deadLettersPanel(id, session);
  const settings = h("dl", { class: "settings" });
  const body = h("div", { class: "stack", hidden: true }, figures.element, plots.element,
    h("section", { class: "panel" }, h("h2", {}, "Subscribers"), subscribers.element), dead.element, messages.element,
    h("section", { class: "panel" }, h("h2", {}, "Settings"), settings));
  replace(main, h("nav", { class: "crumbs", "aria-label": "Path" }, h("a", { href: "#/" }, "‹ All queues")),
    h("div", { class: "title" }, h("div", { class: "names" }, title, path), state), note, findings, body);

  function show({ now_s, queue }) {
    document.title = `${oneLine(queue.name)} · persipubsub`;
    setText(title, oneLine(queue.name));
    setText(path, oneLine(queue.location));
    showState(state, queue);
    setText(note, freshness(queue, now_s));
    const key = findingsKey(queue.findings);
    if (findings.dataset.key !== key) {
      findings.dataset.key = key;
      replace(findings, queue.findings.map((one) => finding(one, queue, false)));
    }
    const wasHidden = body.hidden;
    body.hidden = queue.backlog === undefined;
    if (body.hidden) {
      return;
    }
    figures.update(queue);
    subscribers.update(queue, now_s);
    dead.update(queue.subscribers);
    showSettings(settings, queue);
    samples.add(queue.samples);
    if (queue.samples.length || wasHidden) {
      plots.update(samples.all);
    }
  }

  const stop = follow(`api/queues/${id}/events`, show, onState);
  return () => {
    stop();
    plots.close();
  };
}

function newFigures() {
  const names = ["backlog", "in /s", "out /s", "oldest", "in flight", "dead letters", "delayed", "retained", "oldest reader"];
  const facts = Object.fromEntries(names.map((name) => [name, fact(name)]));
  const messages = meter("Messages of the limit");
  const size = meter("Bytes of the limit");
  const messagesText = h("span", {});
  const sizeText = h("span", {});
  const element = h("div", { class: "figures" },
    h("dl", { class: "totals" }, names.map((name) => facts[name].element)),
    h("div", { class: "limits" }, h("div", {}, messagesText, messages.element), h("div", {}, sizeText, size.element)));
  return {
    element,
    update(queue) {
      facts.backlog.update(count(queue.backlog));
      facts["in /s"].update(rate(queue.sent_per_s), !queue.sent_per_s);
      facts["out /s"].update(rate(queue.taken_per_s), !queue.taken_per_s);
      facts.oldest.update(age(queue.oldest_s), queue.oldest_s === null);
      facts["in flight"].update(count(queue.in_flight), !queue.in_flight);
      facts["dead letters"].update(count(queue.dead_letters), !queue.dead_letters, "error");
      facts.delayed.update(count(queue.delayed), !queue.delayed);
      facts.retained.update(count(queue.retained), !queue.retained);
      facts["oldest reader"].update(`${count(queue.reader_lag)}`, queue.reader_lag < 1000, "warning");
      setText(messagesText, `${count(queue.messages)} ${queue.max_messages === null ? "messages, no limit" : `of ${count(queue.max_messages)} messages`}`);
      setText(sizeText, `${bytes(queue.size_bytes)}${queue.max_bytes === null ? ", no limit" : ` of ${bytes(queue.max_bytes)}`}`);
      messages.update(queue.messages, queue.max_messages);
      size.update(queue.size_bytes, queue.max_bytes);
    },
  };
}

const COLUMNS = ["subscriber", "kind", "pending", "oldest", "out /s", "in flight", "dead letters", "lease", "deliveries", "idle", ""];

function subscribersTable(messages) {
  const body = h("tbody", {});
  const more = h("p", { class: "quiet" });
  const rows = new Map();
  const table = h("table", { class: "subscribers" },
    h("thead", {}, h("tr", {}, COLUMNS.map((name) => h("th", { scope: "col" }, name || h("span", { class: "hidden" }, "look"))))), body);
  return {
    element: h("div", {}, table, more),
    update(queue, now_s) {
      const bad = new Map(queue.findings.filter((one) => one.subscriber !== null).map((one) => [one.subscriber, one.level]));
      const shown = queue.subscribers.map((one) => {
        if (!rows.has(one.name)) {
          rows.set(one.name, row(one, messages));
        }
        const { element, update } = rows.get(one.name);
        update(one, now_s, bad.get(one.name) || "");
        return element;
      });
      if (shown.length !== body.children.length || shown.some((one, index) => body.children[index] !== one)) {
        const focused = document.activeElement;
        replace(body, shown);
        focused?.focus?.({ preventScroll: true });
        rows.forEach((one, name) => one.element.isConnected || rows.delete(name));
      }
      table.hidden = !shown.length;
      setText(more, !shown.length ? "There are no subscribers." : queue.subscribers_left_out ? `and ${count(queue.subscribers_left_out)} more, which lag less` : "");
    },
  };
}

function row(subscriber, messages) {
  let nextId = 1;
  const cells = COLUMNS.slice(1, -1).map((name) => h("td", { "data-name": name }));
  const look = h("button", { type: "button", "aria-label": `Look at the messages from the cursor of ${oneLine(subscriber.name)}`, onclick: () => messages.showFrom(nextId) }, "Messages");
  const element = h("tr", {}, h("th", { scope: "row" }, h("bdi", {}, oneLine(subscriber.name))), cells, h("td", { class: "look" }, look));
  return {
    element,
    update(one, now_s, level) {
      nextId = one.next_id;
      element.dataset.level = level;
      const policy = one.policy || {};
      const idle_s = one.progress_s === null ? null : now_s - one.progress_s;
      const texts = [one.kind, count(one.pending), age(one.oldest_s), rate(one.taken_per_s), count(one.in_flight), count(one.dead_letters),
        policy.lease_s ? age(policy.lease_s) : "–", policy.max_deliveries ? `max ${count(policy.max_deliveries)}` : "no limit",
        one.pending && idle_s > 5 ? age(idle_s) : "–"];
      texts.forEach((text, index) => {
        setText(cells[index], text);
        cells[index].className = text === "–" ? "none" : text === "0" ? "zero" : index === 5 ? "error" : "";
      });
    },
  };
}

function showSettings(list, queue) {
  const { settings } = queue;
  const pruned = settings.pruned;
  const facts = [
    ["when full", queue.max_messages === null && queue.max_bytes === null ? "no limit" : { refuse: "sends are refused", prune_first: "the oldest messages are dropped", prune_last: "the latest messages are dropped" }[queue.strategy]],
    ["message timeout", queue.timeout_s === null ? "none" : age(queue.timeout_s)],
    ["durability", settings.durability === "power_loss" ? "survives the loss of power" : "survives the death of processes"],
    ["message type", settings.message_type === null ? "bytes" : oneLine(settings.message_type)],
    ["retention", settings.retention_s ? age(settings.retention_s) : "none"],
    ["deduplication", `${age(settings.deduplication_window_s)}${settings.deduplication_max === null ? "" : `, ${count(settings.deduplication_max)} ids`}`],
    ["sent since it was created", count(queue.sent)],
    ["next id", String(settings.next_id)],
    ["low-water mark", String(settings.low_water_mark)],
    ["dropped by timeout", count(pruned.timeout)],
    ["dropped by overflow", count(pruned.overflow)],
    ["awaited by nobody", count(pruned.dangling)],
  ];
  const key = JSON.stringify(facts);
  if (list.dataset.key !== key) {
    list.dataset.key = key;
    replace(list, facts.map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, text))));
  }
}
