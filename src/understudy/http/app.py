"""The Quart-trio app of one node: blueprints that decode, ask, encode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from quart import Response
from quart.routing import QuartRule
from quart_trio import QuartTrio

from understudy.http import (
    agents,
    daemon,
    errors,
    issues,
    login,
    runtimes,
    socket,
    stream,
    sweeps,
    system,
    tasks,
    work,
)
from understudy.http.calls import Desk
from understudy.http.pages import pages
from understudy.http.site import Site

Builder: TypeAlias = Callable[..., tuple[str, str]]
BODY_MAX: Final = 16 * 1024 * 1024
SECURITY: Final = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Route(QuartRule):
    """Parsed in both directions, as werkzeug has it, a route takes five times as long to add."""

    def _compile_builder(self, append_unknown: bool = True) -> Builder:  # noqa: FBT001, FBT002
        """Only when somebody asks for an URL by its endpoint; nobody here does."""
        return lambda _, **values: super(Route, self)._compile_builder(append_unknown)(
            self, **values
        )


def create_app(site: Site) -> QuartTrio:
    app = QuartTrio("understudy", static_folder=None, template_folder=None)
    app.url_rule_class = Route
    app.config["MAX_CONTENT_LENGTH"] = BODY_MAX
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    errors.install(app)
    desk = Desk(site.cast)
    for routes in (
        daemon.blueprint(site, desk),
        socket.blueprint(site, desk),
        stream.blueprint(site),
        system.blueprint(site),
        sweeps.blueprint(site),
        agents.blueprint(site),
        issues.blueprint(site),
        work.blueprint(site),
        runtimes.blueprint(site),
        tasks.blueprint(site),
        login.blueprint(site),
        pages.blueprint(site),
    ):
        app.register_blueprint(routes)

    @app.after_request
    async def secure(response: Response) -> Response:
        for name, value in SECURITY.items():
            response.headers.setdefault(name, value)
        return response

    return app
