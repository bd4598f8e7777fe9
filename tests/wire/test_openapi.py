"""The description is made from the types that decode, and says nothing else (R11.6)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from schemathesis.openapi import from_dict

from understudy.core import records
from understudy.wire import board, daemon
from understudy.wire.api import ROUTES
from understudy.wire.daemon import CALLS
from understudy.wire.openapi import MOMENTS, document

DOCUMENT = document("1.2", cookie="session")
OPERATIONS = {
    operation["operationId"]: operation
    for methods in DOCUMENT["paths"].values()
    for operation in methods.values()
}


def references(node: Any) -> Iterator[str]:
    match node:
        case {"$ref": str(target)}:
            yield target
        case dict():
            for each in node.values():
                yield from references(each)
        case list():
            for each in node:
                yield from references(each)
        case _:
            pass


def found(target: str) -> Any:
    node: Any = DOCUMENT
    for step in target.removeprefix("#/").split("/"):
        node = node[step]
    return node


def test_every_call_and_every_route_has_an_operation_of_its_own() -> None:
    assert set(OPERATIONS) == set(ROUTES) | {f"daemon_{name}" for name in CALLS}


def test_it_is_openapi_3_1() -> None:
    """R11.6"""
    from_dict(DOCUMENT).validate()


def test_every_reference_has_its_target() -> None:
    assert all(found(each) for each in references(DOCUMENT))


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_described_by_the_type_that_decodes_it(name: str) -> None:
    shape, operation = CALLS[name], OPERATIONS[f"daemon_{name}"]
    if shape.method == "GET":
        assert "requestBody" not in operation
        return
    (reference,) = references(operation["requestBody"])
    described = found(reference)["properties"]
    assert set(described) == {each.encode_name for each in msgspec.structs.fields(shape.request)}


@pytest.mark.parametrize("name", CALLS)
def test_the_id_in_a_call_s_path_is_typed_and_named_for_what_it_is(name: str) -> None:
    shape, operation = CALLS[name], OPERATIONS[f"daemon_{name}"]
    typed = [each["name"] for each in operation["parameters"] if each["in"] == "path"]
    assert typed == ([f"{shape.subject}_id"] if shape.subject else [])
    for each in operation["parameters"]:
        if each["in"] == "path":
            assert each["schema"] == {"type": "string", "format": "uuid"}


def test_paths_and_their_parameters_agree() -> None:
    for path, methods in DOCUMENT["paths"].items():
        for operation in methods.values():
            typed = [each["name"] for each in operation["parameters"] if each["in"] == "path"]
            assert typed == re.findall(r"{(\w+)}", path)


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_a_key_opens_says_what_happens_without_it(name: str) -> None:
    """R11.3"""
    operation = OPERATIONS[name]
    assert "503" in operation["responses"]
    if operation["security"]:
        assert {"401", "403"} <= set(operation["responses"])
    if "requestBody" in operation:
        assert {"400", "413"} <= set(operation["responses"])


def test_what_is_held_by_a_claim_can_be_fenced_off() -> None:
    """R3.5, R11.3"""
    for name, shape in CALLS.items():
        is_held = issubclass(shape.request, daemon.Held)
        assert ("409" in OPERATIONS[f"daemon_{name}"]["responses"]) is is_held


def test_a_fresh_document_can_be_encoded() -> None:
    assert msgspec.json.decode(msgspec.json.encode(DOCUMENT)) == DOCUMENT


def test_every_moment_is_described_as_one() -> None:
    """By the names of fields, so a field of another name would be missed."""
    for kind in (*vars(records).values(), *vars(daemon).values(), *vars(board).values()):
        if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
            continue
        for each in msgspec.structs.fields(kind):
            assert each.name.endswith(MOMENTS) == ("datetime" in str(each.type)), each
    created_at = DOCUMENT["components"]["schemas"]["Task"]["properties"]["created_at"]
    assert created_at["format"] == "date-time"


def test_a_body_of_which_nothing_is_required_may_be_missing() -> None:
    assert OPERATIONS["create_issue"]["requestBody"]["required"] is True
    assert OPERATIONS["daemon_start"]["requestBody"]["required"] is False
