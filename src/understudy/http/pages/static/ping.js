// How long a machine takes to answer. A daemon that only asks hears of it with its next heartbeat.

import { call } from "./calls.js";

const PING_MS = 30000;
const PAUSE_MS = 50;
const PAUSE_MS_MAX = 1000;

export function start() {
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-pings]");
    if (button && button.getAttribute("aria-busy") !== "true") ping(button);
  });
}

async function ping(button) {
  const told = document.getElementById(button.dataset.tells);
  button.setAttribute("aria-busy", "true");
  told.value = "…";
  const answer = await pinged(button.dataset.pings);
  told.value = answer.error ?? words(answer.round_trip_s);
  button.removeAttribute("aria-busy");
}

async function pinged(path) {
  const sent = await call(`POST ${path}`);
  const deadline = performance.now() + PING_MS;
  let pause_ms = PAUSE_MS;
  let answer = sent;
  while (!answer.error && !(answer.is_answered && answer.round_trip_s != null)) {
    if (performance.now() > deadline) return { error: "no answer within 30 s" };
    await new Promise((resolve) => setTimeout(resolve, pause_ms));
    pause_ms = Math.min(2 * pause_ms, PAUSE_MS_MAX);
    answer = await call(`GET ${path}/${sent.ping_id}`);
  }
  return answer;
}

const words = (seconds) => (seconds < 1 ? `${Math.max(1, Math.round(seconds * 1000))} ms` : `${seconds.toFixed(1)} s`);
