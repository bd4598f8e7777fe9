// Make the live nodes look like the fresh ones while they stay the same nodes: focus, scroll
// positions, open details and half-written texts survive. What has an id is recognised wherever it
// moves to; what has `data-keep` looks after its own inside.

export function morph(live, fresh) {
  const known = new Map();
  for (const element of live.querySelectorAll("[id]")) known.set(element.id, element);
  const focused = document.activeElement;
  sync(live, fresh, known);
  if (focused !== document.activeElement && focused?.isConnected) focused.focus({ preventScroll: true });
}

function sync(live, fresh, known) {
  if (live.nodeType !== Node.ELEMENT_NODE) {
    if (live.nodeValue !== fresh.nodeValue) live.nodeValue = fresh.nodeValue;
    return;
  }
  syncAttributes(live, fresh);
  if (live.hasAttribute("data-keep")) return;
  syncChildren(live, fresh, known);
  // A select that acts at once shows what is; one in a form what somebody is about to choose.
  if (live.matches("select[data-call]:not([aria-busy])")) live.value = fresh.value;
}

function syncAttributes(live, fresh) {
  const own = ["aria-busy", "aria-invalid"]; // What the page says of itself; the server never does.
  if (live.tagName === "DETAILS" || live.tagName === "DIALOG") own.push("open");
  if (live.hasAttribute("data-keep")) own.push("hidden");
  for (const { name } of [...live.attributes])
    if (!fresh.hasAttribute(name) && !own.includes(name)) live.removeAttribute(name);
  for (const { name, value } of fresh.attributes)
    if (live.getAttribute(name) !== value && !own.includes(name)) live.setAttribute(name, value);
}

function syncChildren(live, fresh, known) {
  let place = live.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const found = match(wanted, place, known);
    if (!found) {
      live.insertBefore(wanted, place);
      continue;
    }
    if (found === place) place = place.nextSibling;
    else live.insertBefore(found, place);
    sync(found, wanted, known);
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

// The node that is meant: by its id, or the next one of the same kind without an id.
function match(wanted, place, known) {
  if (wanted.id) {
    const found = known.get(wanted.id);
    return found?.tagName === wanted.tagName ? found : null;
  }
  for (let node = place; node; node = node.nextSibling)
    if (node.nodeType === wanted.nodeType && node.nodeName === wanted.nodeName && !node.id) return node;
  return null;
}
