// The part of a page that changes: fetched again when something happened that it shows.

import * as clock from "./clock.js";
import { listen } from "./events.js";
import { morph } from "./morph.js";
import * as phone from "./phone.js";
import * as transcript from "./transcript.js";

const PAUSE_MS = 400; // Events come in bursts; one look is enough for all of them.
const MOVE_MS = 260;

const part = document.getElementById("part");
let is_looking = false;
let is_wanted = false;
let timer = 0;

export function start() {
  listen((event) => concerns(event) && refresh());
  settle();
}

function concerns(event) {
  if (event === null) return true;
  if (!part.dataset.hears.split(" ").includes(event.kind.split(":")[0])) return false;
  return !part.dataset.issue || !event.issue_id || event.issue_id === part.dataset.issue;
}

export async function refresh() {
  is_wanted = true;
  if (is_looking) return;
  is_looking = true;
  while (is_wanted) {
    is_wanted = false;
    await look().catch(() => {}); // The server is away; the stream says when it is back.
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
  }
  is_looking = false;
}

async function look() {
  const answer = await fetch(part.dataset.part);
  if (answer.status === 401) location.assign("/login");
  if (answer.status === 404) location.reload();
  if (answer.ok) show(await answer.text());
  else settle();
}

function show(html) {
  const fresh = part.cloneNode(false);
  fresh.append(...new DOMParser().parseFromString(html, "text/html").body.childNodes);
  const before = places();
  morph(part, fresh);
  slide(before);
  settle();
}

function settle() {
  clock.set(part.querySelector("[data-now]")?.dataset.now);
  clock.tick();
  transcript.attach();
  phone.mark();
  clearTimeout(timer);
  const every_ms = Number(part.querySelector("[data-every]")?.dataset.every);
  if (every_ms) timer = setTimeout(() => (document.hidden ? settle() : refresh()), every_ms);
}

function places() {
  const found = new Map();
  for (const element of part.querySelectorAll("[data-moves]")) found.set(element, element.getBoundingClientRect());
  return found;
}

// Cards that went elsewhere glide there; new ones appear.
function slide(before) {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  const timing = { duration: MOVE_MS, easing: "cubic-bezier(.2,.7,.2,1)" };
  for (const element of part.querySelectorAll("[data-moves]")) {
    const was = before.get(element);
    const is = element.getBoundingClientRect();
    if (!was) element.animate({ opacity: [0, 1], scale: [0.97, 1] }, timing);
    else if (was.x !== is.x || was.y !== is.y)
      element.animate({ translate: [`${was.x - is.x}px ${was.y - is.y}px`, "0 0"], zIndex: [2, 2] }, timing);
  }
}
