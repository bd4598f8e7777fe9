"""The API's description (R11.6): OpenAPI 3.1, made from the types that decode the requests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any, Final, TypeAlias

import msgspec

from understudy.core.struct import Struct
from understudy.wire.api import ROUTES, WORKSPACE, Query, Route
from understudy.wire.daemon import CALLS, CLAIM_LEASE, FENCED_REPORTS, CallShape, Held

Json: TypeAlias = dict[str, Any]
Known: TypeAlias = dict[Any, Json]
"""Each type's schema."""

REFERENCE: Final = "#/components/schemas/{name}"
ABOUT: Final = (
    "Boards, issues, agents and runs, for people and scripts; and the calls of the daemons that"
    " run the agents. The same calls travel over one websocket, `/api/daemon/ws`:"
    " docs/protocol.md shows an exchange of each."
)
REFUSALS: Final = {
    400: "It cannot be understood; the sentence names the field.",
    401: "No key, or one that is unknown, expired or revoked.",
    403: "This key does not open this.",
    404: "Proven absence, when `code` is `not_found`; a daemon stops an agent on it (R4.6).",
    409: "Another claim holds the task, or this one has expired (R3.5).",
    413: "The body is too large.",
    429: "Too often; ask again after `Retry-After` seconds.",
    503: "The database is away; ask again after `Retry-After` seconds.",
}
MOMENTS: Final = ("_at", "_since")
DATE_TIME: Final = {"format": "date-time"}
WAITING: Final = frozenset({429, 503})
KEYS: Final[dict[str, list[Json]]] = {
    "person": [{"key": []}, {"cookie": []}],
    "machine": [{"key": []}],
    "either": [{"key": []}, {"cookie": []}],
    "none": [],
}
CAPABILITIES: Final = Query(
    "X-Client-Capabilities",
    str,
    f"What the daemon can do, separated by commas: `{CLAIM_LEASE}`, it knows claim tokens (R3.6);"
    f" `{FENCED_REPORTS}`, it names them in whatever it tells of a run (R3.13).",
    where="header",
)


class Error(Struct):
    """A refusal (R11.3): a sentence for people, a slug for programs."""

    error: str
    code: str


def document(version: str, *, cookie: str) -> Json:
    operations = {**dict(_of_people()), **dict(_of_daemons())}
    types = [Error, *_types(operations.values())]
    schemas, components = msgspec.json.schema_components(types, ref_template=REFERENCE)
    known = dict(zip(types, schemas, strict=True))
    paths: dict[str, Json] = {}
    for name, route in operations.items():
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(name, route, known)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Understudy", "version": version, "description": ABOUT},
        "paths": paths,
        "components": {
            "schemas": {name: _dated(each) for name, each in components.items()},
            "responses": {str(status): _refusal(status) for status in REFUSALS},
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "cookie": {"type": "apiKey", "in": "cookie", "name": cookie},
            },
        },
    }


def _dated(schema: Json) -> Json:
    """msgspec leaves the format out where a time may come without its zone."""
    properties = {
        name: each | DATE_TIME if name.endswith(MOMENTS) else each
        for name, each in schema.get("properties", {}).items()
    }
    return schema | {"properties": properties} if properties else schema


def _of_people() -> Iterator[tuple[str, Route]]:
    for name, route in ROUTES.items():
        is_scoped = route.key in {"person", "either"}
        query = (WORKSPACE, *route.query) if is_scoped else route.query
        yield name, msgspec.structs.replace(route, query=query)


def _of_daemons() -> Iterator[tuple[str, Route]]:
    for name, shape in CALLS.items():
        yield f"daemon_{name}", _route(shape)


def _route(shape: CallShape) -> Route:
    return Route(
        shape.method,
        shape.path.replace("<subject>", f"{{{shape.subject}_id}}"),
        None if shape.status == HTTPStatus.NO_CONTENT else shape.answer,
        None if shape.method == "GET" else shape.request,
        shape.status,
        {409: REFUSALS[409]} if issubclass(shape.request, Held) else {},
        key="machine",
        query=(CAPABILITIES,),
    )


def _types(routes: Iterable[Route]) -> Iterator[Any]:
    for route in routes:
        if route.answer is not None:
            yield route.answer
        if route.request is not None:
            yield route.request
        yield from (each.type for each in route.query)


def _operation(name: str, route: Route, known: Known) -> Json:
    operation: Json = {
        "operationId": name,
        "tags": ["stream"]
        if route.is_stream
        else ["daemon" if route.key == "machine" else "board"],
        "security": KEYS[route.key],
        "parameters": [*_path_parameters(route), *_query_parameters(route, known)],
        "responses": {str(route.status): _success(route, known), **_refusals(route)},
    }
    if route.request is not None:
        operation["requestBody"] = {
            "required": any(each.required for each in msgspec.structs.fields(route.request)),
            "content": {"application/json": {"schema": known[route.request]}},
        }
    return operation


def _path_parameters(route: Route) -> Iterator[Json]:
    for name in re.findall(r"{(\w+)}", route.path):
        schema = {"type": "string"} | ({"format": "uuid"} if name.endswith("_id") else {})
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(route: Route, known: Known) -> Iterator[Json]:
    for each in route.query:
        yield {
            "name": each.name,
            "in": each.where,
            "description": each.about,
            "schema": known[each.type],
        }


def _success(route: Route, known: Known) -> Json:
    response: Json = {"description": HTTPStatus(route.status).phrase}
    if route.answer is None:
        return response
    schema = known[route.answer]
    if route.is_stream:
        about = "Server-sent events; the data of each is what `contentSchema` says."
        schema = {"type": "string", "description": about, "contentSchema": schema}
        return response | {"content": {"text/event-stream": {"schema": schema}}}
    return response | {"content": {"application/json": {"schema": schema}}}


def _refusals(route: Route) -> Json:
    statuses = {503} | ({400, 413} if route.request else set())
    if route.key != "none":
        statuses |= {401, 403, 404, 429}
    if "{" in route.path or route.query:
        statuses |= {400}
    return {
        str(status): {"$ref": f"#/components/responses/{status}"}
        | ({"description": route.refusals[status]} if status in route.refusals else {})
        for status in sorted(statuses | set(route.refusals))
    }


def _refusal(status: int) -> Json:
    schema = {"$ref": REFERENCE.format(name=Error.__name__)}
    response: Json = {
        "description": REFUSALS[status],
        "content": {"application/json": {"schema": schema}},
    }
    if status in WAITING:
        response["headers"] = {"Retry-After": {"schema": {"type": "integer", "minimum": 0}}}
    return response
