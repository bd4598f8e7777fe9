// What an agent says and does, as it does it. The stream begins with the first message, so a reload
// shows the same; the browser comes back from a cut with the last number it has.

import { prose } from "./prose.js";

const NEAR_PX = 48;
const OUTPUT_LINES_MAX = 400;
const TELLING = ["command", "file_path", "path", "pattern", "query", "url", "description", "prompt"];

let talk = null; // The element, its run, and what is known of that run.
let task = null;
let source = null;
let open_tools = [];
let follows = true;
let waiting = [];

export function start() {
  addEventListener("pagehide", detach);
  document.addEventListener("visibilitychange", () => !document.hidden && attach());
}

// Called after each change of the page: another run may be selected now.
export function attach() {
  const element = document.getElementById("talk");
  if (!element || (element === talk && element.dataset.task === task)) return;
  detach();
  talk = element;
  task = element.dataset.task;
  open_tools = [];
  follows = true;
  talk.replaceChildren();
  talk.addEventListener("scroll", scrolled, { passive: true });
  jump().onclick = latest;
  source = new EventSource(`/api/tasks/${task}/stream?after=-1`);
  source.addEventListener("task:message", (event) => {
    waiting.push(JSON.parse(event.data));
    if (waiting.length === 1) requestAnimationFrame(draw);
  });
  source.addEventListener("end", (event) => {
    source.close();
    draw();
    ended(JSON.parse(event.data));
  });
}

function detach() {
  source?.close();
  source = talk = task = null;
  waiting = [];
}

const jump = () => document.getElementById("jump");

function scrolled() {
  follows = talk.scrollHeight - talk.scrollTop - talk.clientHeight < NEAR_PX;
  if (follows) jump().hidden = true;
}

function latest() {
  follows = true;
  talk.scrollTop = talk.scrollHeight;
  jump().hidden = true;
}

function draw() {
  const messages = waiting;
  waiting = [];
  if (!talk || !messages.length) return;
  for (const message of messages) add(message);
  if (follows) latest();
  else jump().hidden = false;
}

function ended(row) {
  for (const card of open_tools) finish(card, "unfinished", "no answer");
  open_tools = [];
  document.getElementById("talk-foot").textContent = row?.status === "completed" ? "" : "The run has ended.";
}

function add(message) {
  switch (message.type) {
    case "text": return talk.append(written("said", message.content));
    case "thinking": return talk.append(thought(message.content ?? ""));
    case "error": return talk.append(make("div", "trouble", message.content ?? message.output ?? "error"));
    case "tool_use": return talk.append(tool(message));
    case "tool_result": return result(message);
  }
}

function make(tag, name, text) {
  const element = document.createElement(tag);
  element.className = name;
  if (text != null) element.textContent = text;
  return element;
}

function written(name, text) {
  const element = make("div", name);
  element.append(...prose(text ?? ""));
  return element;
}

function thought(text) {
  const details = make("details", "thought");
  details.append(make("summary", "", text.trim().split("\n")[0] || "Thinking"), written("", text));
  return details;
}

function tool(message) {
  const card = make("details", "tool");
  const head = make("summary", "");
  head.append(
    make("span", "tool-name", message.tool ?? "Tool"),
    make("span", "tool-on", telling(message.input)),
    make("span", "tool-end", "running"),
  );
  const body = make("div", "tool-body");
  const asked = input(message.input);
  if (asked) body.append(asked);
  card.append(head, body);
  card.dataset.state = "open";
  card.tool = message.tool;
  open_tools.push(card);
  return card;
}

// A result belongs to the oldest open use of its tool.
function result(message) {
  const named = open_tools.findIndex((card) => message.tool && card.tool === message.tool);
  const [card] = open_tools.splice(Math.max(named, 0), 1);
  const owner = card ?? talk.appendChild(tool({ tool: message.tool ?? "Tool", input: null }));
  if (!card) open_tools.pop();
  const output = (message.output ?? message.content ?? "").replace(/\n+$/, "");
  const code = exitCode(message, output);
  const is_error = code ? code !== "0" : message.input?.is_error === true;
  if (output) owner.lastChild.append(...shown(output));
  finish(owner, is_error ? "failed" : "done", code && code !== "0" ? `exit ${code}` : is_error ? "failed" : size(output));
  if (is_error) owner.open = true;
}

function finish(card, state, words) {
  card.dataset.state = state;
  card.querySelector(".tool-end").textContent = words;
}

function exitCode(message, output) {
  const told = message.input?.exit_code;
  return told != null ? String(told) : /^Exit code:? (\d+)/i.exec(output)?.[1];
}

function size(output) {
  const lines = output ? output.split("\n").length : 0;
  return lines > 1 ? `${lines} lines` : "done";
}

function shown(output) {
  const lines = output.split("\n");
  const pre = make("pre", "output", lines.slice(0, OUTPUT_LINES_MAX).join("\n"));
  if (lines.length <= OUTPUT_LINES_MAX) return [pre];
  const more = make("button", "quiet small", `${lines.length - OUTPUT_LINES_MAX} more lines`);
  more.type = "button";
  more.onclick = () => {
    pre.textContent = output;
    more.remove();
  };
  return [pre, more];
}

function telling(asked) {
  if (asked == null) return "";
  if (typeof asked !== "object") return String(asked);
  const name = TELLING.find((key) => typeof asked[key] === "string");
  return name ? asked[name].replace(/\s+/g, " ") : "";
}

// An edit as what goes and what comes, a command as it was typed, the rest as it was told.
function input(asked) {
  if (asked == null || (typeof asked === "object" && !Object.keys(asked).length)) return null;
  if (typeof asked === "object" && typeof asked.old_string === "string") {
    const pre = make("pre", "input");
    for (const line of asked.old_string.split("\n")) pre.append(make("span", "diff-less", `- ${line}`));
    for (const line of (asked.new_string ?? "").split("\n")) pre.append(make("span", "diff-more", `+ ${line}`));
    return pre;
  }
  if (typeof asked === "string") return make("pre", "input", asked);
  if (typeof asked.command === "string") return make("pre", "input", `$ ${asked.command}`);
  const told = Object.entries(asked).map(([name, value]) => `${name}: ${typeof value === "string" ? value : JSON.stringify(value, null, 2)}`);
  return make("pre", "input", told.join("\n"));
}
