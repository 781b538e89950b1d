// Messages to look through, which are not taken; and dead letters, which may be requeued and discarded.

import { get, post } from "./api.js";
import { ask, h, oneLine, replace, setText, visible } from "./dom.js";
import { bytes, count, counted, time } from "./format.js";

const COUNT_MAX = 50;
const PREVIEW = 120;

const FORMATS = {
  protobuf: (message) => message.protobuf ?? null,
  JSON: (message) => message.json,
  text: (message) => message.text,
  hex: (message) => hex(message.base64),
};

function hex(base64) {
  const data = Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));
  const rows = [];
  for (let start = 0; start < data.length; start += 16) {
    const row = [...data.slice(start, start + 16)];
    const digits = row.map((one) => one.toString(16).padStart(2, "0")).join(" ");
    const text = row.map((one) => (one >= 32 && one < 127 ? String.fromCharCode(one) : "·")).join("");
    rows.push(`${start.toString(16).padStart(6, "0")}  ${digits.padEnd(47)}  ${text}`);
  }
  return rows.join("\n");
}

/** Return the payload of a message, with a choice of the formats that it has. */
function payload(message) {
  const found = Object.entries(FORMATS).filter(([, write]) => write(message) !== null).map(([name]) => name);
  const text = h("pre", { tabindex: 0, "aria-label": "Payload" });
  const choose = (name) => {
    text.textContent = visible(FORMATS[name](message)) || "(empty)";
    for (const button of choices.children) {
      button.setAttribute("aria-pressed", button.dataset.format === name);
    }
  };
  const choices = h("div", { class: "choices", role: "group", "aria-label": "Format" },
    found.map((name) => h("button", { type: "button", "data-format": name, onclick: () => choose(name) }, name)));
  choose(found[0]);
  return [
    message.protobuf_error ? h("p", { class: "quiet" }, oneLine(message.protobuf_error)) : null,
    message.headers.length ? h("dl", { class: "headers" }, message.headers.map(([name, value]) =>
      h("div", {}, h("dt", {}, h("bdi", {}, oneLine(name))), h("dd", {}, h("bdi", {}, oneLine(value)))))) : null,
    choices, text,
    message.cut ? h("p", { class: "quiet" }, `The first 16 KiB of ${bytes(message.size)}.`) : null,
  ];
}

function preview(message) {
  const text = message.protobuf ?? message.text;
  const line = text === null ? hex(message.base64.slice(0, 64)).split("\n")[0].slice(8, 55) : oneLine(text.replace(/\s+/g, " "));
  return line.length > PREVIEW ? `${line.slice(0, PREVIEW)}…` : line || "(empty)";
}

/** Return an entry that opens to show all of a message; its body is made only then. */
function entry(message, facts, body) {
  const details = h("details", { class: "message" }, h("summary", {},
    h("span", { class: "id" }, String(message.id)), facts));
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) {
      details.append(h("div", { class: "message-body" }, body().flat()));
    }
  });
  return details;
}

/** Return the panel with messages of a queue. */
export function messagesPanel(id) {
  const list = h("div", { class: "list", "aria-live": "polite" });
  const from = h("input", { type: "number", min: 1, inputmode: "numeric", "aria-label": "Message id", placeholder: "id" });
  const next = h("button", { type: "button", disabled: true }, "Next ›");
  const note = h("p", { class: "quiet" }, "Looking at messages delivers and acknowledges nothing.");
  let nextId = null;

  async function load(start) {
    next.disabled = true;
    try {
      const found = await get(`api/queues/${id}/messages?start=${start}`);
      nextId = found.next;
      const shown = found.messages.map((one) => entry(one, [
        h("span", { class: "when" }, time(one.time)),
        h("span", { class: "preview" }, preview(one)),
        h("span", { class: "size" }, [one.headers.length ? `${counted(one.headers.length, "header")} · ` : "", bytes(one.size)].join("")),
      ], () => payload(one)));
      replace(list, shown.length ? shown : h("p", { class: "quiet" }, "There are no messages from this id on."));
    } catch (error) {
      replace(list, h("p", { class: "problem", role: "alert" }, oneLine(error.message)));
      nextId = null;
    }
    next.disabled = nextId === null;
  }

  next.addEventListener("click", () => load(nextId));
  const element = h("section", { class: "panel" },
    h("div", { class: "head" }, h("h2", {}, "Messages"),
      h("div", { class: "tools" },
        h("button", { type: "button", onclick: () => load(-COUNT_MAX) }, "Latest"),
        h("button", { type: "button", onclick: () => load(1) }, "Oldest"),
        h("form", {
          class: "from",
          onsubmit: (event) => {
            event.preventDefault();
            load(Math.max(1, Math.floor(Number(from.value)) || 1));
          },
        }, from, h("button", {}, "From id")),
        next)),
    note, list);
  return {
    element,
    showFrom(start) {
      from.value = start;
      load(start);
      element.scrollIntoView({ block: "start" });
    },
  };
}

/** Return the panel with the dead letters of a queue. */
export function deadLettersPanel(queueId, session) {
  const chooser = h("select", { "aria-label": "Subscriber" });
  const list = h("div", { class: "list" });
  const told = h("p", { class: "quiet", role: "status" });
  const next = h("button", { type: "button", disabled: true }, "Next ›");
  const all = h("div", { class: "tools" });
  let counts = new Map();
  let shown = "";
  let after = 0;

  async function load(start) {
    const name = chooser.value;
    next.disabled = true;
    try {
      const found = await get(`api/queues/${queueId}/dead-letters?subscriber=${encodeURIComponent(name)}&after=${start}`);
      after = start;
      replace(list, found.letters.map((one) => letter(one, name)));
      next.disabled = found.next === null;
      next.onclick = () => load(found.next);
    } catch (error) {
      replace(list, h("p", { class: "problem", role: "alert" }, oneLine(error.message)));
    }
  }

  function letter(one, name) {
    const error = [one.error_type, one.error_text.split("\n")[0]].filter(Boolean).join(": ");
    return entry(one, [
      h("span", { class: "when" }, time(one.died)),
      h("span", { class: "preview" }, h("b", {}, one.reason), error ? ` · ${oneLine(error)}` : "", h("br"), h("span", { class: "quiet" }, preview(one))),
      h("span", { class: "size" }, counted(one.deliveries, "deliver").replace(/delivers?$/, one.deliveries === 1 ? "delivery" : "deliveries")),
    ], () => [
      h("dl", { class: "headers" }, [["reason", one.reason], ["sent", time(one.time)], ["died", time(one.died)], ["deliveries", count(one.deliveries)], ["error", one.error_type || "–"]]
        .map(([key, value]) => h("div", {}, h("dt", {}, key), h("dd", {}, oneLine(value))))),
      one.error_text ? h("pre", { class: "trace", tabindex: 0, "aria-label": "Error text" }, visible(one.error_text)) : null,
      one.error_traceback ? h("pre", { class: "trace", tabindex: 0, "aria-label": "Traceback" }, visible(one.error_traceback)) : null,
      ...payload(one),
      session.changes ? h("div", { class: "buttons" },
        h("button", { type: "button", onclick: () => change("requeue", name, [one.id]) }, "Requeue"),
        h("button", { type: "button", class: "danger", onclick: () => change("discard", name, [one.id]) }, "Discard")) : null,
    ]);
  }

  async function change(action, subscriber, ids) {
    const number = ids === null ? counts.get(subscriber) : ids.length;
    const what = `${counted(number, "dead letter")} of ${oneLine(subscriber)}`;
    const sure = action === "requeue" && ids !== null || await ask(
      action === "requeue" ? "Requeue all?" : "Discard?",
      action === "requeue" ? `${what} will be delivered again, as if for the first time.` : `${what} will be deleted. This cannot be undone.`,
      action === "requeue" ? "Requeue" : "Discard");
    if (!sure) {
      return;
    }
    try {
      const { count: done } = await post(`api/queues/${queueId}/dead-letters`, { action, subscriber, ids });
      setText(told, `${counted(done, "dead letter")} ${action === "requeue" ? "requeued" : "discarded"}.`);
      told.className = "quiet";
      list.querySelectorAll("details[open]").forEach((one) => one.removeAttribute("open"));
    } catch (error) {
      setText(told, oneLine(error.message));
      told.className = "problem";
    }
  }

  chooser.addEventListener("change", () => load(0));
  const tools = h("div", { class: "tools" }, chooser, all, next);
  const element = h("section", { class: "panel", id: "dead-letters", hidden: true },
    h("div", { class: "head" }, h("h2", {}, "Dead letters"), tools), told, list);
  if (session.changes) {
    replace(all,
      h("button", { type: "button", onclick: () => change("requeue", chooser.value, null) }, "Requeue all"),
      h("button", { type: "button", class: "danger", onclick: () => change("discard", chooser.value, null) }, "Discard all"));
  } else {
    setText(told, "Read-only. To requeue and discard here, start the dashboard with --allow-changes.");
  }
  return {
    element,
    update(subscribers) {
      const having = subscribers.filter((one) => one.dead_letters);
      // Once shown it stays: what was done is told there.
      element.hidden &&= !having.length;
      tools.hidden = !having.length;
      counts = new Map(having.map((one) => [one.name, one.dead_letters]));
      const key = JSON.stringify([...counts]);
      if (key === shown) {
        return;
      }
      shown = key;
      const chosen = chooser.value;
      replace(chooser, having.map((one) => h("option", { value: one.name }, `${oneLine(one.name)} (${count(one.dead_letters)})`)));
      if (counts.has(chosen)) {
        chooser.value = chosen;
      }
      if (!having.length) {
        replace(list, h("p", { class: "quiet" }, "There are none."));
      } else if (!list.querySelector("details[open]") || !counts.has(chosen)) {
        load(counts.has(chosen) ? after : 0);
      }
    },
  };
}
