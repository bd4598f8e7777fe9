// What an agent writes, with the little of Markdown that carries meaning. http/pages/prose.py does
// the same for comments.

const MARKS = /`([^`\n]+)`|\*\*([^*\n]+)\*\*/g;

export function prose(text) {
  const nodes = [];
  let is_code = false;
  let lines = [];
  const close = () => {
    if (lines.length) nodes.push(...(is_code ? [made("pre", lines.join("\n"))] : marked(lines.join("\n"))));
    lines = [];
  };
  for (const line of text.replace(/^\n+|\n+$/g, "").split("\n")) {
    if (!line.trimStart().startsWith("```")) {
      lines.push(line);
      continue;
    }
    close();
    is_code = !is_code;
  }
  close();
  return nodes;
}

function marked(block) {
  const nodes = [];
  let end = 0;
  for (const mark of block.matchAll(MARKS)) {
    nodes.push(block.slice(end, mark.index), mark[1] ? made("code", mark[1]) : made("strong", mark[2]));
    end = mark.index + mark[0].length;
  }
  nodes.push(block.slice(end));
  return nodes;
}

function made(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}
