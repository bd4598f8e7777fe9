// A card dragged into another column is an issue with another status. Keyboards use the select on
// the page. What an agent has in hand cannot be dragged: its column is a fact.

import { call, toast } from "./calls.js";
import { refresh } from "./parts.js";

let card = null;

export function start() {
  document.addEventListener("dragstart", (event) => {
    card = event.target.closest?.(".card[draggable=true]");
    if (card) event.dataTransfer.effectAllowed = "move";
  });
  document.addEventListener("dragend", () => mark(null));
  document.addEventListener("dragover", (event) => {
    const column = card && event.target.closest?.(".column");
    mark(column);
    if (column) event.preventDefault();
  });
  document.addEventListener("drop", drop);
}

function mark(column) {
  for (const each of document.querySelectorAll(".column.is-target")) if (each !== column) each.classList.remove("is-target");
  column?.classList.add("is-target");
}

async function drop(event) {
  const column = card && event.target.closest(".column");
  if (!column) return;
  event.preventDefault();
  const [moved, key] = [card, card.id.replace("card-", "")];
  card = null;
  mark(null);
  if (column.contains(moved)) return;
  column.querySelector(".cards").prepend(moved);
  const answer = await call(`PATCH /api/issues/${key}`, { status: column.id.replace("column-", "") });
  if (answer.error) toast(answer.error);
  refresh();
}
