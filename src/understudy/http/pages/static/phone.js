// On a phone the columns are a row of screens: begin where something happens, and say where one is.

const narrow = matchMedia("(max-width: 48rem)");

export function start() {
  const board = document.getElementById("board");
  if (!board) return;
  board.addEventListener("scroll", mark, { passive: true });
  narrow.addEventListener("change", mark);
  const live = board.querySelector(".card-running, .card-preparing, .card-cancelling") ?? board.querySelector(".card");
  if (narrow.matches && live && !location.hash) reveal(board, live.closest(".column"));
}

function reveal(board, column) {
  const left = column.getBoundingClientRect().left - board.firstElementChild.getBoundingClientRect().left;
  board.scrollTo({ left, behavior: "instant" });
}

// Also after each change of the page, which knows nothing of where one is.
export function mark() {
  const board = document.getElementById("board");
  if (!board || !narrow.matches) return;
  const middle = innerWidth / 2;
  for (const column of board.querySelectorAll(".column")) {
    const box = column.getBoundingClientRect();
    const link = document.querySelector(`.jumps [href="#${column.id}"]`);
    const is_here = box.left <= middle && middle < box.right;
    if (is_here && !link.hasAttribute("aria-current")) link.scrollIntoView({ inline: "center", block: "nearest" });
    link.toggleAttribute("aria-current", is_here);
  }
}
