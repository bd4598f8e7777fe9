"""What people and agents write, with the little of Markdown that carries meaning: code and weight.

Line by line and in one pass: the text comes from outside, and no text may hold the server up.
`static/prose.js` does the same for transcripts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from markupsafe import Markup, escape

FENCE: Final = "```"
CODE: Final = Markup("<code>{}</code>")
STRONG: Final = Markup("<strong>{}</strong>")
MARKS: Final = re.compile(r"`([^`\n]+)`|\*\*([^*\n]+)\*\*")


def prose(text: str) -> Markup:
    return Markup("").join(
        Markup("<pre>{}</pre>").format(block) if is_code else marked(block)
        for is_code, block in _blocks(text)
    )


def _blocks(text: str) -> Iterator[tuple[bool, str]]:
    """Stretches of prose and of fenced code, in turn; an open fence ends with the text."""
    is_code, lines = False, list[str]()
    for line in text.strip("\n").split("\n"):
        if not line.lstrip().startswith(FENCE):
            lines.append(line)
            continue
        if lines:
            yield is_code, "\n".join(lines)
        is_code, lines = not is_code, []
    if lines:
        yield is_code, "\n".join(lines)


def marked(block: str) -> Markup:
    """For what is no text of its own but a sentence of a page."""
    parts, end = [], 0
    for mark in MARKS.finditer(block):
        code, strong = mark.groups()
        parts.append(escape(block[end : mark.start()]))
        parts.append(CODE.format(code) if code else STRONG.format(strong))
        end = mark.end()
    return Markup("").join([*parts, escape(block[end:])])
