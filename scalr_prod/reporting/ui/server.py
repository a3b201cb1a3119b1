# SPDX-License-Identifier: Apache-2.0
"""Loopback web server of `scalr ui`: routes, access checks, start and shutdown."""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.signals import Interrupted
from scalr_prod.errors import ReportError, ScalrError
from scalr_prod.reporting.ui.pages import CHANGEABLE_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from scalr_prod.config import Settings
    from scalr_prod.reporting.ui.drawing import SamplingThread
    from scalr_prod.reporting.ui.pages import Page


logger = logging.getLogger(__name__)

_HOST: Final = "127.0.0.1"
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
#: Pages of Great Expectations load scripts and styles from other hosts; this policy blocks them.
_DOCS_CSP: Final = (
    "sandbox allow-same-origin; default-src 'none'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'"
)
_SHUTDOWN_TIMEOUT_S: Final = 5


def serve(settings: Settings, *, port: int | None = None, on_started: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C or SIGTERM, then release its resources.

    Args:
        settings: The project's settings.
        port: On 127.0.0.1; 0 picks a free one. Default: ``[ui] port``.
        on_started: Called with the page's address once the server listens.

    Raises:
        ReportError: The port is not available.
    """
    import uvicorn

    from scalr_prod.reporting.ui.drawing import SamplingThread

    token = secrets.token_urlsafe(24)
    with _bind_socket(settings.ui.port if port is None else port) as bound, SamplingThread(settings) as drawing:
        config = uvicorn.Config(
            create_app(settings, drawing, token),
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=_SHUTDOWN_TIMEOUT_S,
        )
        server = uvicorn.Server(config)
        # The server has its own thread, since only the main thread receives the signals that end the command.
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="scalr ui", daemon=True)
        thread.start()
        try:
            on_started(f"http://{_HOST}:{bound.getsockname()[1]}/{token}/")
            thread.join()
        except Interrupted:
            logger.debug("interrupted, shutting down")
        finally:
            server.should_exit = True
            thread.join(2 * _SHUTDOWN_TIMEOUT_S)


def create_app(settings: Settings, sampler: SamplingThread, token: str) -> Starlette:
    """Create the app that serves the pages below ``/<token>/`` for requests with this machine as their host."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, PlainTextResponse
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    from scalr_prod.reporting.ui.pages import Pages

    root = f"/{token}/"
    pages = Pages(settings, sampler, root)

    def to_response(page: Page) -> Response:
        refresh = {"Refresh": str(page.refresh_s)} if page.refresh_s else {}
        return HTMLResponse(page.html, page.status, _HEADERS | refresh)

    def endpoint_of(build: Callable[[Request], Page]) -> Callable[[Request], Response]:
        def endpoint(request: Request) -> Response:
            try:
                return to_response(build(request))
            except ScalrError as error:
                return to_response(pages.error(error))

        return endpoint

    def query(request: Request, name: str) -> str:
        return request.query_params.get(name, "")

    def http_error(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        if request.url.path.startswith(root):
            return to_response(pages.http_error(status))
        return PlainTextResponse("Open the address that scalr ui printed.\n", status, _HEADERS)

    class Docs(StaticFiles):
        """The data docs in the project's home; their scripts from other hosts are blocked."""

        async def check_config(self) -> None:
            """Skip the check that the folder exists: before the first validation there is none, and every file is not found."""

        async def get_response(self, path: str, scope: Any) -> Response:
            response = await super().get_response(path, scope)
            response.headers.update(_HEADERS | {"Content-Security-Policy": _DOCS_CSP})
            return response

    routes = [
        Route("/", endpoint_of(lambda request: pages.runs(paused="still" in request.query_params))),
        Route("/runs/{run_id}", endpoint_of(lambda request: pages.run(request.path_params["run_id"]))),
        Route("/search", endpoint_of(lambda request: pages.search(query(request, "q").strip()))),
        Route(
            "/translate",
            endpoint_of(
                lambda request: pages.user(query(request, "run"), query(request, "user").strip(), _other_settings(request))
            ),
        ),
        Route(
            "/translate",
            endpoint_of(
                lambda request: pages.draw(
                    query(request, "run"), query(request, "user").strip(), query(request, "before"), _other_settings(request)
                )
            ),
            methods=["POST"],
        ),
        Mount("/data_docs", Docs(directory=settings.home / "data_docs", check_dir=False)),
    ]
    return Starlette(
        routes=[Mount(f"/{token}", routes=routes)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[_HOST, "localhost"], www_redirect=False)],
        exception_handlers={HTTPException: http_error, 500: http_error},
    )


def _other_settings(request: Request) -> dict[str, str]:
    return {name: request.query_params.get(name, "").strip() for name in CHANGEABLE_SETTINGS}


def _bind_socket(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((_HOST, port))
        bound.listen()
    except OSError as error:
        bound.close()
        raise ReportError(
            f"port {port} is not available: {error.strerror or error}",
            where=_HOST,
            next_step="scalr ui --port 0 picks a free port",
        ) from error
    return bound
