// Forms, buttons and selects that call the JSON API, and say in their place what went wrong.

import { called } from "./called.js";
import { call, toast } from "./calls.js";
import { startCopying } from "./copying.js";
import { refresh } from "./parts.js";

export function start() {
  startCopying();
  document.addEventListener("click", click);
  document.addEventListener("submit", submit);
  document.addEventListener("change", change);
  document.addEventListener("keydown", key);
}

function click(event) {
  const target = event.target.closest("button, summary, a, dialog, .menu");
  const opens = target?.dataset.opens;
  if (opens) document.getElementById(opens).showModal();
  else if (target?.hasAttribute("data-closes") || event.target.tagName === "DIALOG") target.closest("dialog").close();
  else if (target?.hasAttribute("data-logs-out")) logOut();
  else if (target?.matches("button[data-call]")) act(target);
  for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
}

async function act(button) {
  if (button.getAttribute("aria-busy") === "true") return;
  button.setAttribute("aria-busy", "true");
  const answer = await call(button.dataset.call, JSON.parse(button.dataset.body ?? "{}"));
  button.removeAttribute("aria-busy");
  button.closest("details.menu")?.removeAttribute("open");
  if (answer.error) toast(answer.error);
  else if (button.dataset.goes && location.search) return location.assign(button.dataset.goes);
  refresh();
}

async function logOut() {
  await fetch("/logout", { method: "POST", redirect: "manual" });
  location.assign("/login");
}

// `c` creates what this page is about; Ctrl+Enter sends what is being written.
function key(event) {
  const typing = event.target.closest("input, textarea, select, dialog[open]");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.target.form?.requestSubmit();
  if (event.key === "Escape") for (const menu of document.querySelectorAll("details.menu[open]")) menu.open = false;
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const button = document.querySelector(`[aria-keyshortcuts="${CSS.escape(event.key)}"]`);
  if (!button) return;
  event.preventDefault();
  button.click();
}

async function submit(event) {
  const form = event.target;
  if (!form.dataset.call) return;
  event.preventDefault();
  if (form.getAttribute("aria-busy") === "true") return;
  complain(form, "");
  if (form.dataset.tells) tell(form, "");
  form.setAttribute("aria-busy", "true");
  const answer = await call(form.dataset.call, fields(form));
  form.removeAttribute("aria-busy");
  if (answer.error) return complain(form, answer.error);
  form.reset();
  if (form.dataset.tells) tell(form, called(answer));
  else if (form.dataset.shows) show(form, answer);
  else form.closest("dialog")?.close();
  refresh();
}

// A command that is made of the answer, ready to be copied.
function show(form, answer) {
  const filled = { ...answer, origin: location.origin };
  const command = form.dataset.shows.replace(/\{(\w+)\}/g, (_, name) => filled[name]);
  form.querySelector(".command code").textContent = command;
  form.querySelector("[data-copies]").dataset.copies = command;
  form.querySelector(".command").hidden = false;
}

function tell(form, words) {
  form.querySelector(".told").textContent = words;
}

async function change(event) {
  const select = event.target.closest("select[data-call]");
  if (!select) return;
  const was = [...select.options].find((option) => option.defaultSelected)?.value ?? "";
  select.setAttribute("aria-busy", "true");
  const answer = await call(select.dataset.call, { [select.name]: select.value });
  select.removeAttribute("aria-busy");
  select.toggleAttribute("aria-invalid", false);
  if (answer.error) {
    select.value = was;
    toast(answer.error);
  }
  refresh();
}

// What was left empty is not sent: the API's defaults are the form's.
function fields(form) {
  const told = {};
  for (const field of form.elements) {
    if (!field.name || field.value.trim() === "") continue;
    told[field.name] = field.dataset.type === "number" ? Number(field.value) : field.value;
  }
  return told;
}

// An error that names a field (`… - at `$.title``) belongs to that field too.
function complain(form, error) {
  for (const field of form.elements) field.removeAttribute("aria-invalid");
  const name = /\$\.(\w+)/.exec(error)?.[1];
  const field = name && form.elements.namedItem(name);
  if (field) {
    field.setAttribute("aria-invalid", "true");
    field.focus();
  }
  form.querySelector(".complaint").textContent = error;
}
