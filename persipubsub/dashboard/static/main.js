// The frame of the page: which part of it is shown, and whether it is live.

import { get, takeToken } from "./api.js";
import { h, replace, setText } from "./dom.js";
import { overview } from "./overview.js";
import { queuePage } from "./queue.js";

const STATES = { live: ["live", "● live"], lost: ["lost", "◌ connecting …"] };

const main = document.getElementById("main");
const live = document.getElementById("live");
let leave = () => {};

function onState(state, text = "") {
  if (state === "refused") {
    live.className = "live lost";
    setText(live, "");
    replace(main, h("p", { class: "problem", role: "alert" }, text), h("p", {}, h("a", { href: "#/" }, "All queues")));
    return;
  }
  live.className = `live ${STATES[state][0]}`;
  setText(live, STATES[state][1]);
}

function route(session) {
  leave();
  const match = /^#\/queues\/([0-9a-f]+)$/.exec(location.hash);
  leave = match ? queuePage(main, match[1], session, onState) : overview(main, onState);
  scrollTo(0, 0);
}

async function start() {
  takeToken();
  let session;
  for (;;) {
    try {
      session = await get("api/session");
      break;
    } catch {
      onState("lost");
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
  const mode = document.getElementById("mode");
  mode.hidden = false;
  mode.textContent = session.changes ? "changes allowed" : "read-only";
  addEventListener("hashchange", () => {
    takeToken();
    route(session);
  });
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    main.focus();
  });
  route(session);
}

start();
