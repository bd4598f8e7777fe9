// Calls of the JSON API. What went wrong comes back as a sentence for the person who asked.

const TOAST_MS = 6000;

export async function call(what, body) {
  const [method, path] = what.split(" ");
  try {
    const headers = { "Content-Type": "application/json" };
    const answer = await fetch(path, { method, headers, body: JSON.stringify(body) });
    const told = await answer.json();
    if (answer.status === 503) return { error: "The database is away. Nothing was lost; try again in a moment." };
    if (answer.status === 401) return { error: "You are signed out. Open a new link from `understudy login`." };
    return answer.ok ? told : { error: told.error ?? `The server said ${answer.status}.` };
  } catch {
    return { error: "The server cannot be reached. Nothing was lost; try again in a moment." };
  }
}

export function toast(words) {
  document.querySelector(".toast")?.remove();
  const note = document.createElement("p");
  note.className = "toast";
  note.setAttribute("role", "alert");
  note.textContent = words;
  document.body.append(note);
  setTimeout(() => note.remove(), TOAST_MS);
}
