#!/usr/bin/env python3
"""An agent without a model: it follows every relative link in the repository's Markdown.

Any program can be an agent. This one prints JSON lines, so that its run reads like any other
agent's: what it says, each file it reads and what came of it, and at last the text of its comment.

    understudy agent create Linus --provider command -- /path/to/command_agent.py
    understudy issue create "Do our links work?" --repository ~/project --agent linus

Plain lines would do as well: each is a message, and exit status 0 is success.
"""

import json
import re
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

LINK = re.compile(r"\[[^\]]*\]\(<?([^)>\s]+)>?[^)]*\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def main() -> None:
    asked = sys.stdin.read()  # The agent's instructions, then the issue. It may name files.
    found = sorted(path for path in Path().rglob("*.md") if path.name != "AGENTS.md")
    files = [path for path in found if str(path) in asked] or found
    say("text", text=f"I follow the links of {len(files)} files.")
    broken = [line for file in files for line in check(file)]
    say("result", output="\n".join([f"Broken links: {len(broken)}", *broken]))


def check(file: Path) -> list[str]:
    say("tool_use", id=str(file), name="check_links", input={"path": str(file)})
    broken = [f"- `{file}` links to `{link}`" for link in links(file) if not leads(file, link)]
    say("tool_result", id=str(file), output="\n".join(broken) or "All links lead somewhere.")
    return broken


def links(file: Path) -> Iterator[str]:
    for link in LINK.findall(CODE.sub("", file.read_text(errors="replace"))):
        if not urllib.parse.urlsplit(link).scheme and not link.startswith(("#", "/")):
            yield link


def leads(file: Path, link: str) -> bool:
    return (file.parent / urllib.parse.unquote(link.partition("#")[0])).exists()


def say(kind: str, **fields: object) -> None:
    """Flushed at once: whoever watches the run sees it now."""
    print(json.dumps({"type": kind, **fields}), flush=True)


if __name__ == "__main__":
    main()
