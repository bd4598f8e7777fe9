// Durations that go on and ages that grow, between two looks at the server. http/pages/words.py
// says the same in Python.

let ahead_ms = 0; // How far this browser's clock is ahead of the database's.

export function start() {
  setInterval(tick, 1000);
}

export function set(server_now) {
  if (server_now) ahead_ms = Date.now() - Date.parse(server_now);
}

export function tick() {
  if (document.hidden) return;
  const now = Date.now() - ahead_ms;
  for (const time of document.querySelectorAll("time[data-since]"))
    say(time, duration((now - Date.parse(time.dataset.since)) / 1000));
  for (const time of document.querySelectorAll("time[data-at]")) {
    say(time, age((now - Date.parse(time.dataset.at)) / 1000));
    if (!time.title) time.title = new Date(time.dataset.at).toLocaleString();
  }
}

function say(time, words) {
  if (time.textContent !== words) time.textContent = words;
}

export function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (number) => String(number).padStart(2, "0");
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m ${two(whole % 60)}s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)}h ${two(Math.floor((whole % 3600) / 60))}m`;
  return `${Math.floor(whole / 86400)}d ${Math.floor((whole % 86400) / 3600)}h`;
}

export function age(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return "just now";
  if (whole < 3600) return `${Math.floor(whole / 60)} min ago`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ago`;
  return `${Math.floor(whole / 86400)} d ago`;
}
