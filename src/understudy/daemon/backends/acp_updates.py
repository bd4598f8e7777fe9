"""The updates of a turn over the Agent Client Protocol: words in pieces, tools in instalments."""

from __future__ import annotations

import json
from typing import Any, Final, final

from understudy.daemon.backends.backend import Event, Text, Thinking, ToolResult, ToolUse
from understudy.daemon.backends.frames import TEXT_MAX, Frame, clean

# Characters. A long message is told part by part, for what is not told is taken for silence.
PART_MIN: Final = 2 << 10  # to the end of a line,
PART_MAX: Final = 64 << 10  # or wherever it is.
WORK: Final = {"agent_message_chunk", "agent_thought_chunk", "tool_call", "tool_call_update"}
OVER: Final = {"completed", "failed"}
KINDS: Final = {"read", "edit", "delete", "move", "search", "execute", "think", "fetch"}


@final
class Updates:
    """Words are told when their message ends: it is cut where the next thing begins."""

    def __init__(self) -> None:
        self._answer: list[str] = []  # The last message.
        self.tools = 0
        self._calls: dict[str, Frame] = {}  # What is known of the calls that were not told yet,
        self._open: dict[str, None] = {}  # and those that were and have no result.
        self._kind: type[Text | Thinking] = Text
        self._message = ""
        self._pieces: list[str] = []
        self._size = 0

    def answer(self) -> str:
        return "".join(self._answer)[-TEXT_MAX:]

    def told(self, update: Frame) -> list[Event]:
        match update.text("sessionUpdate"):
            case "agent_message_chunk":
                return self._word(Text, update)
            case "agent_thought_chunk":
                return self._word(Thinking, update)
            case "tool_call" | "tool_call_update" as kind:
                return [*self.pause(), *self._used(update, is_new=kind == "tool_call")]
            case _:
                return []

    def asked(self, call: Frame) -> list[Event]:
        """For permission: a call that must not wait for its input any longer."""
        used = self._used(call, is_new=True)
        return [*self.pause(), *used, *self._begin(call.text("toolCallId"))]

    def pause(self) -> list[Event]:
        text, self._pieces, self._size = "".join(self._pieces), [], 0
        return [self._kind(text)] if text else []

    def end(self) -> list[Event]:
        """What the agent has left open is closed: nobody will."""
        left = [ToolResult(id_, "interrupted", is_error=True) for id_ in self._open]
        self._open = {}
        return [*self.pause(), *left]

    def _word(self, kind: type[Text | Thinking], update: Frame) -> list[Event]:
        text = _said(update.frame("content"))
        message = update.text("messageId")
        is_new = (kind, message) != (self._kind, self._message)
        events = self.pause() if is_new else []
        if kind is Text and text:
            self._answer = [] if is_new else self._answer
            self._answer.append(text)
        self._kind, self._message = kind, message
        self._pieces.append(text)
        self._size += len(text)
        is_part = self._size >= (PART_MIN if "\n" in text else PART_MAX)
        return [*events, *(self.pause() if is_part else [])]

    def _used(self, update: Frame, *, is_new: bool) -> list[Event]:
        id_ = update.text("toolCallId")
        if not is_new and id_ not in self._calls:
            return []  # Of an earlier turn, or over already.
        self._message, self._kind = "", Thinking  # A message after a tool is another one.
        known = self._calls.get(id_, Frame({}))
        call = Frame({**known.fields, **_given(update)})
        self._calls[id_] = call
        is_over = call.text("status") in OVER
        events = self._begin(id_) if is_over or _is_told(call) else []
        if is_over:
            del self._calls[id_]
            self._open.pop(id_, None)
            events.append(ToolResult(id_, _output(call), call.text("status") == "failed"))
        return events

    def _begin(self, id_: str) -> list[Event]:
        if id_ in self._open or id_ not in self._calls:
            return []
        self.tools += 1
        self._open[id_] = None
        call = self._calls[id_]
        return [ToolUse(id_, _name(call), _input(call))]


def _given(update: Frame) -> dict[str, Any]:
    """An update tells what has changed: an input that is still to come has not."""
    return {name: value for name, value in update.fields.items() if value not in (None, {})}


def _is_told(call: Frame) -> bool:
    """OpenCode tells where before it tells what."""
    return bool(call.frame("rawInput").fields.keys() - {"cwd"})


def _name(call: Frame) -> str:
    """The protocol has kinds and titles, no names; some agents add theirs."""
    named = call.text("name") or call.frame("_meta").frame("claudeCode").text("toolName")
    kind = call.text("kind")
    return named or (kind if kind in KINDS else "") or call.text("title") or "tool"


def _input(call: Frame) -> dict[str, Any]:
    title = call.text("title")
    return call.frame("rawInput").fields or ({"title": title} if title else {})


def _output(call: Frame) -> str:
    raw = call.fields.get("rawOutput")
    if isinstance(raw, str):
        return raw
    parts = [_content(part) for part in call.frames("content")]
    told = "\n".join(part for part in parts if part)
    return clean(told or (json.dumps(raw) if raw else ""))


def _content(part: Frame) -> str:
    match part.text("type"):
        case "content":
            return _said(part.frame("content"))
        case "diff":
            return part.text("path")
        case _:
            return ""


def _said(content: Frame) -> str:
    kind = content.text("type")
    return content.text("text") if kind in {"text", ""} else f"[{kind}]"
