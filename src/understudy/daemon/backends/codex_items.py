"""The items of a Codex turn: words, thoughts, and the use of tools."""

from __future__ import annotations

import json
from typing import Any, Final, final

from understudy.daemon.backends.backend import Event, Notice, Text, Thinking, ToolResult, ToolUse
from understudy.daemon.backends.frames import Frame, clean

OURS: Final = {"userMessage", "hookPrompt"}  # What we have said, told again.
TOOLS: Final = {
    "commandExecution": "shell",
    "fileChange": "apply_patch",
    "webSearch": "web_search",
    "imageView": "view_image",
    "imageGeneration": "image_generation",
    "sleep": "sleep",
}
FAILED: Final = {"failed", "declined"}
TOLD: Final = ("id", "type", "status", "startedAtMs", "completedAtMs")


@final
class Items:
    def __init__(self) -> None:
        self.answer = ""
        self.tools = 0
        self.open: dict[str, None] = {}  # Tools that have begun, in order.
        self._is_final = False

    def told(self, item: Frame, *, is_over: bool) -> list[Event]:
        kind = item.text("type")
        if name := _tool(kind, item):
            return self._used(name, item, is_over=is_over)
        if not is_over:
            return []
        match kind:
            case "agentMessage" if item.text("text"):
                self._note_answer(item)
                return [Text(item.text("text"))]
            case "plan" if item.text("text"):
                return [Text(item.text("text"))]
            case "reasoning":
                thought = "\n\n".join(item.texts("summary") or item.texts("content"))
                return [Thinking(clean(thought))] if thought else []
            case "contextCompaction":
                return [Notice("the conversation was compacted")]
            case _:
                return []

    def _note_answer(self, item: Frame) -> None:
        """The last message, or the last that is called the final one."""
        is_final = item.text("phase") == "final_answer"
        if is_final or not self._is_final:
            self.answer, self._is_final = item.text("text"), is_final

    def _used(self, name: str, item: Frame, *, is_over: bool) -> list[Event]:
        id_ = item.text("id")
        events = list[Event]()
        if id_ not in self.open:
            self.tools += 1
            self.open[id_] = None
            events.append(ToolUse(id_, name, _input(item)))
        if is_over:
            del self.open[id_]
            events.append(ToolResult(id_, _output(item), _is_error(item)))
        return events


def _tool(kind: str, item: Frame) -> str:
    match kind:
        case "mcpToolCall":
            return f"{item.text('server')}.{item.text('tool')}"
        case "dynamicToolCall" | "collabAgentToolCall":
            return item.text("tool") or kind
        case _:
            return TOOLS.get(kind, "")


def _input(item: Frame) -> dict[str, Any]:
    match item.text("type"):
        case "commandExecution":
            return {"command": item.text("command"), "cwd": item.text("cwd")}
        case "mcpToolCall" | "dynamicToolCall":
            return item.frame("arguments").fields
        case _:
            known = {name: value for name, value in item.fields.items() if name not in TOLD}
            return {name: value for name, value in known.items() if value is not None}


def _output(item: Frame) -> str:
    if item.text("type") == "commandExecution":
        return item.text("aggregatedOutput")
    error, result = item.frame("error").text("message"), item.frame("result")
    parts = [part.text("text") for part in result.frames("content")]
    return error or "\n".join(filter(None, parts)) or (result.fields and _json(result)) or ""


def _json(result: Frame) -> str:
    return clean(json.dumps(result.fields))


def _is_error(item: Frame) -> bool:
    return item.text("status") in FAILED or item.number_or_none("exitCode") not in (None, 0)
