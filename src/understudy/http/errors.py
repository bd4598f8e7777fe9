"""Every error as an answer, in one table (R11.3)."""

from __future__ import annotations

import logging

import msgspec
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from understudy.actors.mailbox import ActorGone
from understudy.store.errors import DatabaseUnavailable
from understudy.wire.errors import Refusal, Refused, unavailable

logger = logging.getLogger(__name__)

JSON = "application/json"
CODES = {404: "no_such_path"}
"""`not_found` is the proof that something is gone (R4.6); a path we do not know proves nothing."""


def answer(body: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, content_type=JSON)


def refuse(refusal: Refusal) -> Response:
    response = answer({"error": refusal.error, "code": refusal.code}, refusal.status)
    if refusal.retry_after_s is not None:
        response.headers["Retry-After"] = str(round(refusal.retry_after_s))
    if refusal.status == 401:  # noqa: PLR2004
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def refusal_of(error: Exception) -> Refusal:
    """What the asker is told; an error that nobody foresaw is logged and stays ours."""
    match error:
        case Refused():
            return error.refusal
        case DatabaseUnavailable():
            return unavailable().refusal
        case ActorGone():
            return unavailable("it was being restarted; ask again").refusal
        case HTTPException(code=int(status)):
            return Refusal(
                error=error.description or error.name,
                code=CODES.get(status) or error.name.lower().replace(" ", "_"),
                status=status,
            )
        case ExceptionGroup(exceptions=(Exception() as only,)):
            return refusal_of(only)
        case _:
            logger.error("a request failed", exc_info=error)
            return Refusal(error="something broke here; it is logged", code="internal", status=500)


def install(app: QuartTrio) -> None:
    async def handle(error: Exception) -> Response:
        refusal = refusal_of(error)
        if refusal.status == 500:  # noqa: PLR2004
            logger.error("%s %s failed", request.method, request.path)
        response = refuse(refusal)
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
        return response

    for kind in (Exception, HTTPException, Refused, DatabaseUnavailable, ActorGone):
        app.register_error_handler(kind, handle)
