"""How a session is asked for, and made to work unasked with the right model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from understudy.daemon.backends import frames, rpc
from understudy.daemon.backends.backend import RunSpec
from understudy.daemon.backends.frames import Frame

# Modes in which an agent asks nobody: it works on while there is no daemon to say yes (R8.1).
UNASKING: Final = ("bypassPermissions", "yolo")


class Setting(NamedTuple):
    name: str  # the request's: "mode" or "model"
    frame: str


class NoModel(Exception):
    """The agent offers no choice of model over the protocol."""


def opening(spec: RunSpec, initialized: Frame) -> str | None:
    """The request for the session; None where the agent cannot continue one."""
    place = {"cwd": spec.work_dir, "mcpServers": _mcp_servers(spec.mcp_config)}
    if not spec.resume:
        return rpc.request("session", "session/new", place)
    capabilities = initialized.frame("agentCapabilities")
    wanted = {"sessionId": spec.resume, **place}
    if "resume" in capabilities.frame("sessionCapabilities").fields:
        return rpc.request("session", "session/resume", wanted)
    if capabilities.flag("loadSession"):
        return rpc.request("session", "session/load", wanted)
    return None


def settings(spec: RunSpec, session_id: str, offered: Frame) -> Iterator[Setting]:
    """What to set before the prompt, in order. Raises `NoModel`."""
    offered_modes = {mode.text("id") for mode in offered.frame("modes").frames("availableModes")}
    for mode in UNASKING:
        if mode in offered_modes:
            wanted = {"sessionId": session_id, "modeId": mode}
            yield Setting("mode", rpc.request("mode", "session/set_mode", wanted))
            break
    if spec.model:
        yield Setting("model", _model(spec.model, session_id, offered))


def prompt(spec: RunSpec, session_id: str) -> str:
    told = "\n\n".join(part for part in (spec.instructions, spec.prompt) if part)
    block = {"type": "text", "text": frames.encodable(told)}
    return rpc.request("prompt", "session/prompt", {"sessionId": session_id, "prompt": [block]})


def current_model(offered: Frame) -> str:
    return _model_option(offered).text("currentValue") or offered.frame("models").text(
        "currentModelId"
    )


def _model(model: str, session_id: str, offered: Frame) -> str:
    if option := _model_option(offered).text("id"):
        method, wanted = "session/set_config_option", {"configId": option, "value": model}
    elif offered.frame("models").fields:
        method, wanted = "session/set_model", {"modelId": model}
    else:
        raise NoModel
    return rpc.request("model", method, {"sessionId": session_id, **wanted})


def _model_option(offered: Frame) -> Frame:
    options = offered.frames("configOptions")
    found = (each for each in options if "model" in (each.text("category"), each.text("id")))
    return next(found, Frame({}))


def _mcp_servers(mcp_config: dict[str, Any] | None) -> list[dict[str, Any]]:
    servers = (mcp_config or {}).get("mcpServers") or {}
    return [_mcp_server(name, given) for name, given in servers.items()]


def _mcp_server(name: str, given: dict[str, Any]) -> dict[str, Any]:
    if "url" in given:
        kind = "sse" if given.get("type") == "sse" else "http"
        headers = _pairs(given.get("headers"))
        return {"type": kind, "name": name, "url": given["url"], "headers": headers}
    return {
        "name": name,
        "command": given.get("command", ""),
        "args": given.get("args") or [],
        "env": _pairs(given.get("env")),
    }


def _pairs(given: dict[str, str] | None) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in (given or {}).items()]
