// One stream of the workspace's events for this tab (R11.4). It begins where the page was rendered
// and goes on where it was cut: nothing is missed. A tab that nobody looks at lets its stream go,
// because a browser opens only six connections to one server.

const KINDS = [
  "task:deferred", "task:queued", "task:dispatch", "task:running", "task:progress",
  "task:cancelling", "task:completed", "task:failed", "task:cancelled",
  "issue:created", "issue:updated", "issue:deleted",
  "comment:created", "comment:updated", "comment:deleted",
  "agent:status", "daemon:register",
];
const RETRY_FIRST_MS = 1000;
const RETRY_LAST_MS = 15000;
const HIDDEN_MS = 20000;

const listeners = new Set();
let last = Number(document.documentElement.dataset.cursor ?? 0);
let source = null;
let retry_ms = RETRY_FIRST_MS;
let timer = 0;
let was_away = false;

// `heard(event)` is called for each event, and with null after a time without any connection.
export function listen(heard) {
  listeners.add(heard);
}

export function start() {
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (document.hidden) timer = setTimeout(leave, HIDDEN_MS);
    else if (!source) open();
  });
  addEventListener("pagehide", leave);
  addEventListener("pageshow", (event) => event.persisted && open());
  open();
}

function open() {
  leave();
  source = new EventSource(`/api/events?after=${last}`);
  source.addEventListener("open", () => {
    retry_ms = RETRY_FIRST_MS;
    show("live");
    if (was_away) tell(null);
    was_away = false;
  });
  source.addEventListener("error", lost);
  for (const kind of KINDS) source.addEventListener(kind, hear);
}

function hear(event) {
  last = Number(event.lastEventId);
  tell(JSON.parse(event.data));
}

function tell(event) {
  for (const heard of listeners) heard(event);
}

function leave() {
  clearTimeout(timer);
  source?.close();
  source = null;
  was_away = true;
}

// The browser comes back by itself from a cut, with Last-Event-ID; not from an answer that is an error.
function lost() {
  was_away = true;
  show("reconnecting");
  if (source.readyState !== EventSource.CLOSED) return;
  leave();
  timer = setTimeout(() => whoAmI().then(open, open), retry_ms * (0.75 + Math.random() / 2));
  retry_ms = Math.min(retry_ms * 2, RETRY_LAST_MS);
}

async function whoAmI() {
  const answer = await fetch("/api/me");
  if (answer.status === 401) location.assign("/login");
}

function show(state) {
  const sign = document.getElementById("connection");
  if (sign.dataset.state === state) return;
  sign.dataset.state = state;
  sign.querySelector(".words").textContent = state;
}
