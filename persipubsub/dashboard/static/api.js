// Requests to the server. The token stays in this tab, and is sent in a header only: no other page can send it.

import { ask } from "./dom.js";

const KEY = "persipubsub-token";
const RETRY_MS = [500, 1000, 2000, 5000];
const SILENT_MS = 25000;

/** Take the token from the address, so that it is neither shown nor stored in the history. */
export function takeToken() {
  const match = /^#token=(.+)$/.exec(location.hash);
  if (match) {
    sessionStorage.setItem(KEY, decodeURIComponent(match[1]));
    history.replaceState(null, "", "#/");
  }
}

function headers() {
  const token = sessionStorage.getItem(KEY);
  return token === null ? {} : { Authorization: `Bearer ${token}` };
}

async function answer(path, options = {}) {
  const response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers }, cache: "no-store" });
  if (response.ok) {
    return response;
  }
  const told = await response.json().catch(() => ({ error: `The server answered with status ${response.status}.` }));
  throw Object.assign(new Error(told.error), { status: response.status });
}

/** Ask for the token, and try again, for as long as the server does not accept it. */
async function withToken(request) {
  for (;;) {
    try {
      return await request();
    } catch (error) {
      if (error.status !== 401) {
        throw error;
      }
      const token = await ask("Token needed", "The command persipubsub dashboard printed it at its start.", "Continue", "Token");
      if (token === null) {
        throw error;
      }
      sessionStorage.setItem(KEY, token);
    }
  }
}

/** Return the JSON at a path. */
export async function get(path) {
  return (await answer(path)).json();
}

/** Send JSON to a path and return the JSON of the answer. */
export function post(path, value) {
  return withToken(async () => (await answer(path, {
    method: "POST", body: JSON.stringify(value), headers: { "Content-Type": "application/json" },
  })).json());
}

/**
 * Call a function with each event of a stream, until the returned function is called. After an error, connect again.
 */
export function follow(path, onEvent, onState) {
  const stop = new AbortController();
  run(path, onEvent, onState, stop.signal);
  return () => stop.abort();
}

async function run(path, onEvent, onState, stopped) {
  let failures = 0;
  while (!stopped.aborted) {
    const abort = new AbortController();
    const end = () => abort.abort();
    stopped.addEventListener("abort", end);
    let watchdog = setTimeout(end, SILENT_MS);
    try {
      const response = await withToken(() => answer(path, { signal: abort.signal }));
      for await (const text of lines(response.body)) {
        clearTimeout(watchdog);
        watchdog = setTimeout(end, SILENT_MS);
        failures = 0;
        if (text.startsWith("data: ") && !stopped.aborted) {
          onState("live");
          onEvent(JSON.parse(text.slice(6)));
        }
      }
    } catch (error) {
      if (!stopped.aborted && (error.status === 401 || error.status === 404)) {
        onState("refused", error.message);
        return;
      }
    } finally {
      clearTimeout(watchdog);
      stopped.removeEventListener("abort", end);
    }
    if (!stopped.aborted) {
      onState("lost");
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)]));
    }
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) {
      return;
    }
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}
